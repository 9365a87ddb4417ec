//! [`Auth`] against a store in memory.

mod matrix;
mod rbac;
mod restriction;
mod reviews;
mod tokens;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use http::{Request, request::Parts};
use jiff::Timestamp;
use ketch_store::{MemoryStore, Storage, Update};
use serde_json::{Value, json};

use super::*;
use crate::pki::Clock;

/// A test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// Names and values.
type Headers = &'static [(&'static str, &'static str)];
const START: i64 = 1_800_000_000;

struct Cluster {
    storage: Arc<dyn Storage>,
    auth: Arc<Auth>,
    now: Arc<AtomicI64>,
    key: String,
    _running: tokio::task::JoinSet<()>,
}

impl Cluster {
    /// Starts with these objects.
    async fn new(objects: Vec<(&str, Value)>) -> Self {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStore::default());
        for (key, object) in objects {
            put(storage.as_ref(), key, object).await;
        }
        let now = Arc::new(AtomicI64::new(START));
        let clock: Clock = {
            let now = Arc::clone(&now);
            Arc::new(move || Timestamp::from_second(now.load(Ordering::SeqCst)).unwrap())
        };
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let auth = Auth::start_with_clock(Arc::clone(&storage), &key, clock).await.unwrap();
        let mut running = tokio::task::JoinSet::new();
        running.spawn(Arc::clone(&auth).run());
        Self { storage, auth, now, key, _running: running }
    }

    async fn put(&self, key: &str, object: Value) {
        put(self.storage.as_ref(), key, object).await;
    }

    async fn remove(&self, key: &str) {
        self.storage.update(key, Box::new(|_| Ok(Update::Delete))).await.unwrap();
    }

    fn advance(&self, seconds: i64) {
        self.now.fetch_add(seconds, Ordering::SeqCst);
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.now.load(Ordering::SeqCst)).unwrap()
    }

    fn allows(&self, user: &User, a: &Attributes) -> bool {
        self.auth.authorize(user, a) == Decision::Allow
    }
}

async fn put(storage: &dyn Storage, key: &str, object: Value) {
    let value = bytes::Bytes::from(object.to_string());
    storage.update(key, Box::new(move |_| Ok(Update::Put(value.clone())))).await.unwrap();
}

/// `get core/pods/log dev/web`, `list apps/deployments dev/ FIELD-SELECTOR`, `get /healthz`.
fn ask(text: &str) -> Attributes {
    let words: Vec<&str> = text.split(' ').collect();
    let (verb, what, place) = (words[0], words[1], words.get(2).copied().unwrap_or_default());
    if what.starts_with('/') {
        return Attributes { verb: verb.into(), path: what.into(), ..Attributes::default() };
    }
    let mut parts = what.split('/');
    let group = parts.next().unwrap();
    let (resource, subresource) = (parts.next().unwrap(), parts.next().unwrap_or_default());
    let (namespace, name) = place.split_once('/').unwrap_or(("", place));
    Attributes {
        verb: verb.into(),
        group: if group == "core" { String::new() } else { group.into() },
        version: "v1".into(),
        resource: resource.into(),
        subresource: subresource.into(),
        namespace: namespace.into(),
        name: name.into(),
        field_selector: words.get(3).copied().unwrap_or_default().into(),
        is_resource: true,
        ..Attributes::default()
    }
}

fn role(namespace: &str, rules: Value) -> Value {
    let kind = if namespace.is_empty() { "ClusterRole" } else { "Role" };
    json!({"metadata": {"name": "x", "namespace": namespace}, "kind": kind, "rules": rules})
}

fn binding(kind: &str, role: &str, subjects: Value) -> Value {
    json!({"metadata": {"name": "x"}, "roleRef": {"kind": kind, "name": role}, "subjects": subjects})
}

fn parts(method: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri("/api/v1/pods");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}
