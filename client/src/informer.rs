//! One watch per kind for everybody who looks at it.

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Debug,
    ops::Bound,
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};

use futures::{StreamExt, pin_mut};
use ketch_api::k8s::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client, Resource,
    core::{ApiResource, DynamicObject, PartialObjectMeta},
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::{
    sync::{lock, read, write},
    tasks::{TaskError, Tasks},
};

/// An object's place among those of its kind. The namespace of a cluster-scoped object is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Namespace, or empty.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// What happened to one object: `old` is missing when it appeared, `new` when it is gone.
#[derive(Clone, Debug)]
pub struct Change<K> {
    /// Which object.
    pub key: Key,
    /// Before.
    pub old: Option<Arc<K>>,
    /// After.
    pub new: Option<Arc<K>>,
}

/// A live copy of all objects of one kind, shared by everyone who asks for it.
///
/// Reads see a recent state, never a torn one. After a write, [`Informer::wait_for`] tells when the copy
/// has caught up with it.
pub struct Informer<K> {
    inner: Arc<Inner<K>>,
}

struct Inner<K> {
    state: RwLock<Objects<K>>,
    listeners: Mutex<Vec<Listener<K>>>,
    ready: watch::Sender<bool>,
    revision: watch::Sender<u64>,
}

type Listener<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

struct Objects<K> {
    by_key: BTreeMap<Key, Arc<K>>,
    /// Keys by the uid of their controller; objects without one under their namespace.
    by_controller: HashMap<Controller, BTreeSet<Key>>,
}

#[derive(PartialEq, Eq, Hash)]
enum Controller {
    Uid(String),
    NoneIn(String),
}

/// The informers of one client: each kind is watched once, however many ask for it.
#[derive(Clone)]
pub struct Informers {
    client: Client,
    tasks: Tasks,
    known: Arc<Mutex<HashMap<String, Box<dyn Any + Send + Sync>>>>,
}

// === impl Key ===

impl Key {
    /// Of a namespaced object.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Of a cluster-scoped object.
    pub fn cluster(name: impl Into<String>) -> Self {
        Self::new("", name)
    }

    /// Of the object with this metadata.
    pub fn of(meta: &ObjectMeta) -> Self {
        Self::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

// === impl Change ===

impl<K> Change<K> {
    /// The newest known form of the object.
    pub fn latest(&self) -> Option<&Arc<K>> {
        self.new.as_ref().or(self.old.as_ref())
    }
}

// === impl Informer ===

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<K: Resource> Default for Informer<K> {
    fn default() -> Self {
        let state = Objects { by_key: BTreeMap::new(), by_controller: HashMap::new() };
        let inner = Inner {
            state: RwLock::new(state),
            listeners: Mutex::default(),
            ready: watch::Sender::new(false),
            revision: watch::Sender::new(0),
        };
        Self { inner: Arc::new(inner) }
    }
}

impl<K: Resource> Informer<K> {
    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        read(&self.inner.state).by_key.get(key).cloned()
    }

    /// All objects, ordered by namespace and name.
    pub fn all(&self) -> Vec<Arc<K>> {
        read(&self.inner.state).by_key.values().cloned().collect()
    }

    /// The objects of a namespace, ordered by name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let from = Bound::Included(Key::new(namespace, ""));
        let state = read(&self.inner.state);
        let range = state.by_key.range((from, Bound::Unbounded));
        range
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| Arc::clone(object))
            .collect()
    }

    /// The objects whose controller has this uid.
    pub fn controlled_by(&self, uid: &str) -> Vec<Arc<K>> {
        self.indexed(&Controller::Uid(uid.to_owned()))
    }

    /// The objects of a namespace that have no controller.
    pub fn uncontrolled_in(&self, namespace: &str) -> Vec<Arc<K>> {
        self.indexed(&Controller::NoneIn(namespace.to_owned()))
    }

    fn indexed(&self, controller: &Controller) -> Vec<Arc<K>> {
        let state = read(&self.inner.state);
        let keys = state.by_controller.get(controller).into_iter().flatten();
        keys.filter_map(|key| state.by_key.get(key).cloned()).collect()
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        read(&self.inner.state).by_key.len()
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `listener` with every change from now on, after a first call for each object that is there.
    ///
    /// Runs on the informer's task: a listener notes what to do (usually in a [`crate::Queue`]) and returns.
    pub fn on_change(&self, listener: impl Fn(&Change<K>) + Send + Sync + 'static) {
        // Held across the replay, so that no change slips in between.
        let mut listeners = lock(&self.inner.listeners);
        let present: Vec<_> =
            read(&self.inner.state).by_key.iter().map(|(k, v)| (k.clone(), Arc::clone(v))).collect();
        for (key, object) in present {
            listener(&Change { key, old: None, new: Some(object) });
        }
        listeners.push(Box::new(listener));
    }

    /// Completes when the first full list is here.
    pub async fn ready(&self) {
        // The sender lives in `self`, so this cannot fail.
        let _ = self.inner.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// Completes when the copy contains the write that returned `resource_version`, or after `patience`:
    /// then the write is not certain to be visible, as when the watch is being started again.
    ///
    /// Resource versions are compared as numbers, which Kubernetes promises since 1.35.
    pub async fn wait_for(&self, resource_version: u64, patience: Duration) {
        let mut revision = self.inner.revision.subscribe();
        let caught_up = revision.wait_for(|seen| *seen >= resource_version);
        if tokio::time::timeout(patience, caught_up).await.is_err() {
            tracing::debug!(resource_version, "gave up waiting for the watch to catch up");
        }
    }

    /// Puts an object in, as the watch does. For tests of what reads informers.
    pub fn apply(&self, object: K) {
        let key = Key::of(object.meta());
        let revision = revision_of(object.meta());
        let listeners = lock(&self.inner.listeners);
        let new = Arc::new(object);
        let old = write(&self.inner.state).insert(key.clone(), Arc::clone(&new));
        notify(&listeners, &Change { key, old, new: Some(new) });
        self.saw(revision);
    }

    /// Takes an object out, as the watch does.
    pub fn remove(&self, meta: &ObjectMeta) {
        let key = Key::of(meta);
        let listeners = lock(&self.inner.listeners);
        let old = write(&self.inner.state).remove(&key);
        if old.is_some() {
            notify(&listeners, &Change { key, old, new: None });
        }
        self.saw(revision_of(meta));
    }

    /// Replaces everything with the result of a list, reporting only what differs.
    pub fn replace(&self, objects: Vec<K>) {
        let revision = objects.iter().map(|o| revision_of(o.meta())).max().unwrap_or(0);
        let listeners = lock(&self.inner.listeners);
        let mut gone: BTreeSet<Key> = read(&self.inner.state).by_key.keys().cloned().collect();
        for object in objects {
            let key = Key::of(object.meta());
            gone.remove(&key);
            let new = Arc::new(object);
            let old = write(&self.inner.state).insert(key.clone(), Arc::clone(&new));
            let same = old.as_ref().is_some_and(|old| {
                old.meta().resource_version.is_some()
                    && old.meta().resource_version == new.meta().resource_version
            });
            if !same {
                notify(&listeners, &Change { key, old, new: Some(new) });
            }
        }
        for key in gone {
            let old = write(&self.inner.state).remove(&key);
            notify(&listeners, &Change { key, old, new: None });
        }
        self.saw(revision);
        self.inner.ready.send_replace(true);
    }

    fn saw(&self, revision: u64) {
        self.inner.revision.send_if_modified(|seen| {
            let newer = revision > *seen;
            if newer {
                *seen = revision;
            }
            newer
        });
    }
}

impl<K> Informer<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    /// Follows the API until it is dropped.
    async fn follow(self, api: Api<K>) -> Result<(), TaskError> {
        let events = watcher(api, watcher::Config::default()).default_backoff();
        pin_mut!(events);
        let mut listed = Vec::new();
        while let Some(event) = events.next().await {
            match event.map(|event| event.modify(|object| object.meta_mut().managed_fields = None)) {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(object)) => listed.push(object),
                Ok(watcher::Event::InitDone) => self.replace(std::mem::take(&mut listed)),
                Ok(watcher::Event::Apply(object)) => self.apply(object),
                Ok(watcher::Event::Delete(object)) => self.remove(object.meta()),
                // The watcher starts again by itself, with a back-off.
                Err(error) => tracing::debug!(%error, "watch interrupted"),
            }
        }
        Err(TaskError::new("the watch ended"))
    }
}

fn notify<K>(listeners: &[Listener<K>], change: &Change<K>) {
    for listener in listeners {
        listener(change);
    }
}

/// The version of an object as a number; 0 when it has none.
fn revision_of(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

// === impl Objects ===

impl<K: Resource> Objects<K> {
    fn insert(&mut self, key: Key, object: Arc<K>) -> Option<Arc<K>> {
        let controller = Controller::of(object.meta());
        let old = self.by_key.insert(key.clone(), object);
        if let Some(old) = &old {
            let before = Controller::of(old.meta());
            if before == controller {
                return Some(Arc::clone(old));
            }
            self.unindex(&before, &key);
        }
        self.by_controller.entry(controller).or_default().insert(key);
        old
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<K>> {
        let old = self.by_key.remove(key)?;
        self.unindex(&Controller::of(old.meta()), key);
        Some(old)
    }

    fn unindex(&mut self, controller: &Controller, key: &Key) {
        if let Some(keys) = self.by_controller.get_mut(controller) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_controller.remove(controller);
            }
        }
    }
}

impl Controller {
    fn of(meta: &ObjectMeta) -> Self {
        let owners = meta.owner_references.iter().flatten();
        match owners.into_iter().find(|owner| owner.controller == Some(true)) {
            Some(owner) => Self::Uid(owner.uid.clone()),
            None => Self::NoneIn(meta.namespace.clone().unwrap_or_default()),
        }
    }
}

// === impl Informers ===

impl Informers {
    /// Informers of `client`; their watches belong to `tasks`.
    pub fn new(client: Client, tasks: &Tasks) -> Self {
        Self { client, tasks: tasks.clone(), known: Arc::default() }
    }

    /// The informer of a kind, started when it is asked for the first time.
    pub fn of<K>(&self) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let name = format!("{}/{}", K::group(&()), K::plural(&()));
        self.shared(name, || Api::all(self.client.clone()))
    }

    /// The informer of the metadata of a kind that is known only by name.
    pub fn metadata_of(&self, kind: &ApiResource) -> Informer<PartialObjectMeta<DynamicObject>> {
        let name = format!("{}/{} metadata", kind.group, kind.plural);
        self.shared(name, || Api::all_with(self.client.clone(), kind))
    }

    fn shared<K>(&self, name: String, api: impl FnOnce() -> Api<K>) -> Informer<K>
    where
        K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let mut known = lock(&self.known);
        if let Some(informer) = known.get(&name).and_then(|any| any.downcast_ref::<Informer<K>>()) {
            return informer.clone();
        }
        let informer = Informer::<K>::default();
        known.insert(name.clone(), Box::new(informer.clone()));
        let (api, followed) = (api(), informer.clone());
        self.tasks.spawn(format!("watch {name}"), move || followed.clone().follow(api.clone()));
        informer
    }
}

#[cfg(test)]
mod tests {
    use ketch_api::k8s::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::OwnerReference};

    use super::*;

    fn pod(namespace: &str, name: &str, revision: u64, controller: Option<&str>) -> Pod {
        let owner = controller.map(|uid| {
            vec![OwnerReference { uid: uid.into(), controller: Some(true), ..OwnerReference::default() }]
        });
        Pod {
            metadata: ObjectMeta {
                namespace: Some(namespace.into()),
                name: Some(name.into()),
                resource_version: Some(revision.to_string()),
                owner_references: owner,
                ..ObjectMeta::default()
            },
            ..Pod::default()
        }
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect()
    }

    #[test]
    fn indexes_follow_the_controller() {
        let pods = Informer::default();
        pods.apply(pod("a", "one", 1, Some("u1")));
        pods.apply(pod("a", "two", 2, None));
        pods.apply(pod("ab", "three", 3, Some("u1")));
        assert_eq!(names(&pods.in_namespace("a")), ["one", "two"]);
        assert_eq!(names(&pods.controlled_by("u1")), ["one", "three"]);
        assert_eq!(names(&pods.uncontrolled_in("a")), ["two"]);
        pods.apply(pod("a", "two", 4, Some("u1")));
        pods.remove(&pod("a", "one", 5, None).metadata);
        assert_eq!(names(&pods.controlled_by("u1")), ["two", "three"]);
        assert!(pods.uncontrolled_in("a").is_empty());
    }

    #[test]
    fn a_list_reports_only_what_differs() {
        let pods = Informer::default();
        let seen = Arc::new(Mutex::new(Vec::new()));
        pods.replace(vec![pod("a", "same", 1, None), pod("a", "new", 2, None), pod("a", "gone", 3, None)]);
        lock(&seen).clear();
        let log = Arc::clone(&seen);
        pods.on_change(move |change: &Change<Pod>| {
            lock(&log).push((change.key.name.clone(), change.old.is_some(), change.new.is_some()));
        });
        assert_eq!(lock(&seen).len(), 3, "replayed");
        lock(&seen).clear();
        pods.replace(vec![pod("a", "same", 1, None), pod("a", "new", 7, None), pod("a", "more", 8, None)]);
        let expected = [("new", true, true), ("more", false, true), ("gone", true, false)];
        assert_eq!(*lock(&seen), expected.map(|(n, o, w)| (n.to_owned(), o, w)));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_with_the_write_or_the_patience() {
        let pods = Informer::default();
        let other = pods.clone();
        let start = tokio::time::Instant::now();
        let ((), ()) = tokio::join!(pods.wait_for(7, Duration::from_secs(9)), async move {
            other.apply(pod("a", "x", 6, None));
            tokio::task::yield_now().await;
            other.remove(&pod("a", "x", 7, None).metadata);
        });
        assert_eq!(start.elapsed().as_secs(), 0);
        pods.wait_for(8, Duration::from_secs(9)).await;
        assert_eq!(start.elapsed().as_secs(), 9);
    }
}
