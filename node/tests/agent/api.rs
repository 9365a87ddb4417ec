//! A Kubernetes API in memory: lists, watches, merge patches, deletion with grace. Just enough for a node.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use axum::{
    body::{Body, Bytes},
    extract::{Query, State},
    http::{Method, Response, StatusCode, Uri},
    routing::any,
};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::watch;

/// Objects by path, and everything that ever happened to them.
#[derive(Default)]
struct Store {
    objects: BTreeMap<String, Value>,
    history: Vec<(u64, &'static str, String, Value)>,
    version: u64,
    requests: Vec<String>,
}

#[derive(Clone)]
pub struct Api {
    store: Arc<Mutex<Store>>,
    changed: watch::Sender<u64>,
}

impl Api {
    pub fn new() -> Self {
        Self { store: Arc::default(), changed: watch::Sender::new(0) }
    }

    pub fn client(&self) -> kube::Client {
        kube::Client::new(axum::Router::new().fallback(any(serve)).with_state(self.clone()), "default")
    }

    /// Puts an object, at a path such as `/api/v1/namespaces/default/pods/web`.
    pub fn put(&self, path: &str, mut object: Value) {
        let mut store = self.store.lock().unwrap();
        let uid = format!("uid-{}", path.rsplit('/').next().unwrap());
        let meta = object["metadata"].as_object_mut().unwrap();
        meta.entry("uid").or_insert(json!(uid));
        let kind = if store.objects.contains_key(path) { "MODIFIED" } else { "ADDED" };
        store.commit(kind, path, object);
        self.changed.send_replace(store.version);
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.store.lock().unwrap().objects.get(path).cloned()
    }

    /// Waits until the object at `path`, or its absence, satisfies `test`.
    pub async fn wait(&self, path: &str, what: &str, test: impl Fn(Option<&Value>) -> bool) -> Option<Value> {
        let mut changed = self.changed.subscribe();
        let waited = tokio::time::timeout(std::time::Duration::from_secs(20), async {
            loop {
                changed.borrow_and_update();
                let object = self.get(path);
                if test(object.as_ref()) {
                    return object;
                }
                changed.changed().await.unwrap();
            }
        });
        match waited.await {
            Ok(object) => object,
            Err(_) => panic!("{what}: {path} is {}", serde_json::to_string_pretty(&self.get(path)).unwrap()),
        }
    }

    /// Values an object had over time.
    pub fn history(&self, path: &str) -> Vec<Value> {
        let store = self.store.lock().unwrap();
        store
            .history
            .iter()
            .filter(|(_, _, at, _)| at == path)
            .map(|(_, _, _, value)| value.clone())
            .collect()
    }

    /// `METHOD path` of requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.store.lock().unwrap().requests.clone()
    }

    /// Reasons of the events about an object.
    pub fn events(&self, name: &str) -> Vec<(String, String)> {
        let store = self.store.lock().unwrap();
        let about = |v: &&Value| v["involvedObject"]["name"] == name;
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let events = store.objects.iter().filter(|(path, _)| path.contains("/events/")).map(|(_, v)| v);
        events.filter(about).map(|v| (text(&v["reason"]), text(&v["message"]))).collect()
    }

    pub async fn wait_event(&self, name: &str, reason: &str) -> String {
        let mut changed = self.changed.subscribe();
        let waited = tokio::time::timeout(std::time::Duration::from_secs(20), async {
            loop {
                changed.borrow_and_update();
                if let Some((_, message)) = self.events(name).into_iter().find(|(r, _)| r == reason) {
                    return message;
                }
                changed.changed().await.unwrap();
            }
        });
        waited.await.unwrap_or_else(|_| panic!("no event {reason} about {name}: {:?}", self.events(name)))
    }

    /// Deletes as a client would.
    pub fn delete(&self, path: &str, grace: i64) {
        let mut store = self.store.lock().unwrap();
        store.delete(path, grace);
        self.changed.send_replace(store.version);
    }
}

impl Store {
    fn commit(&mut self, kind: &'static str, path: &str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        if kind == "DELETED" {
            self.objects.remove(path);
        } else {
            self.objects.insert(path.to_owned(), object.clone());
        }
        self.history.push((self.version, kind, path.to_owned(), object));
    }

    fn delete(&mut self, path: &str, grace: i64) {
        let Some(mut object) = self.objects.get(path).cloned() else { return };
        if grace == 0 {
            self.commit("DELETED", path, object);
        } else {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
            self.commit("MODIFIED", path, object);
        }
    }
}

/// Splits a path into the object's path, whether it names a collection, and the subresource.
fn parse(path: &str) -> (String, bool, Option<String>) {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let prefix = if parts[0] == "api" { 2 } else { 3 };
    let rest = &parts[prefix..];
    let scoped = if rest[0] == "namespaces" && rest.len() > 2 { 2 } else { 0 };
    let object = |n: usize| format!("/{}", parts[..prefix + scoped + n].join("/"));
    match rest.len() - scoped {
        1 => (object(1), true, None),
        2 => (object(2), false, None),
        _ => (object(2), false, Some(rest[scoped + 2].to_owned())),
    }
}

fn matches(collection: &str, path: &str) -> bool {
    let Some((base, plural)) = collection.rsplit_once('/') else { return false };
    let under = path.starts_with(&format!("{collection}/"));
    let anywhere =
        path.starts_with(&format!("{base}/namespaces/")) && path.split('/').rev().nth(1) == Some(plural);
    under || anywhere
}

fn selected(object: &Value, query: &BTreeMap<String, String>) -> bool {
    let Some(selector) = query.get("fieldSelector") else { return true };
    selector.split(',').all(|term| {
        let (field, value) = term.split_once('=').unwrap();
        field.split('.').fold(object, |at, key| &at[key]) == value
    })
}

fn answer(code: u16, value: &Value) -> Response<Body> {
    let builder = Response::builder().status(code).header("content-type", "application/json");
    builder.body(Body::from(value.to_string())).unwrap()
}

fn status(code: StatusCode, reason: &str) -> Response<Body> {
    answer(
        code.as_u16(),
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason, "message": reason, "code": code.as_u16()}),
    )
}

async fn serve(
    State(api): State<Api>,
    method: Method,
    uri: Uri,
    Query(query): Query<BTreeMap<String, String>>,
    body: Bytes,
) -> Response<Body> {
    let (path, collection, sub) = parse(uri.path());
    let mut store = api.store.lock().unwrap();
    store.requests.push(format!("{method} {}", uri.path()));
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let response = match (method.as_str(), collection) {
        ("GET", true) if query.get("watch").is_some_and(|w| w != "false") => {
            let from = query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
            drop(store);
            return stream(api, path, query, from);
        }
        ("GET", true) => {
            let found = store.objects.iter().filter(|(at, v)| matches(&path, at) && selected(v, &query));
            let items: Vec<&Value> = found.map(|(_, v)| v).collect();
            answer(
                200,
                &json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": store.version.to_string()}, "items": items}),
            )
        }
        ("GET", false) => match store.objects.get(&path) {
            Some(object) => answer(200, object),
            None => status(StatusCode::NOT_FOUND, "NotFound"),
        },
        ("POST", false) if sub.as_deref() == Some("token") => {
            let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3600);
            answer(
                201,
                &json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {}, "spec": body["spec"],
                "status": {"token": format!("token-{}", store.version), "expirationTimestamp": expires.to_string()}}),
            )
        }
        ("POST", true) => {
            let name = body["metadata"]["name"].as_str().unwrap().to_owned();
            let path = format!("{path}/{name}");
            if store.objects.contains_key(&path) {
                status(StatusCode::CONFLICT, "AlreadyExists")
            } else {
                let mut object = body;
                object["metadata"]["uid"] = json!(format!("uid-{name}"));
                store.commit("ADDED", &path, object);
                answer(201, &store.objects[&path])
            }
        }
        ("PATCH", _) => match store.objects.get(&path).cloned() {
            None => status(StatusCode::NOT_FOUND, "NotFound"),
            Some(mut object) => {
                json_patch::merge(&mut object, &body);
                store.commit("MODIFIED", &path, object);
                answer(200, &store.objects[&path])
            }
        },
        ("DELETE", _) => {
            let grace = body["gracePeriodSeconds"].as_i64().unwrap_or(30);
            let uid = body["preconditions"]["uid"].as_str();
            match store.objects.get(&path).cloned() {
                None => status(StatusCode::NOT_FOUND, "NotFound"),
                Some(object) if uid.is_some_and(|uid| object["metadata"]["uid"] != uid) => {
                    status(StatusCode::CONFLICT, "Conflict")
                }
                Some(object) => {
                    store.delete(&path, grace);
                    answer(200, &object)
                }
            }
        }
        _ => status(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
    };
    api.changed.send_replace(store.version);
    response
}

fn stream(api: Api, path: String, query: BTreeMap<String, String>, from: u64) -> Response<Body> {
    let changed = api.changed.subscribe();
    let lines = futures::stream::unfold((api, changed, from), move |(api, mut changed, from)| {
        let (path, query) = (path.clone(), query.clone());
        async move {
            loop {
                changed.borrow_and_update();
                let (version, lines) = {
                    let store = api.store.lock().unwrap();
                    let news = store.history.iter().filter(|(v, _, at, object)| {
                        *v > from && matches(&path, at) && selected(object, &query)
                    });
                    let lines: String = news
                        .map(|(_, kind, _, object)| {
                            json!({"type": kind, "object": object}).to_string() + "\n"
                        })
                        .collect();
                    (store.version, lines)
                };
                if !lines.is_empty() {
                    return Some((Ok::<_, Infallible>(Bytes::from(lines)), (api, changed, version)));
                }
                if changed.changed().await.is_err() {
                    return None;
                }
            }
        }
    });
    Response::new(Body::from_stream(lines.boxed()))
}
