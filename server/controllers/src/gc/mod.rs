//! Garbage collection: what has owners goes when the last of them is gone.
//!
//! The picture of who owns whom ([`graph`]) is fed by watches on every kind the server has; an owner that
//! is not in it is looked up on the server before anything is deleted because of it.

mod graph;

use std::{
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use ketch_api::{
    function::{Function, FunctionRevision},
    k8s::{
        api::{
            apps::v1::{Deployment, ReplicaSet},
            core::v1::{Endpoints, Namespace, Node, Pod, Service, ServiceAccount},
            discovery::v1::EndpointSlice,
        },
        apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    },
};
use ketch_client::{Change, Informer, Informers, Key, Queue, TaskError, is_conflict, is_not_found};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde::de::DeserializeOwned;
use serde_json::json;

use self::graph::{Action, Graph, Item, Owner, Propagation};
use crate::{
    error::{Doing, Error},
    owner,
    resources::{AnyMeta, Kind, Resources},
    runner::{Next, Reconcile},
};

/// See the module. Keys are uids.
pub(crate) struct Collector {
    client: Client,
    informers: Informers,
    resources: Resources,
    queue: Queue<Key>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    graph: Graph,
    /// Kinds that are watched; an [`Item`] refers to them by index.
    kinds: Vec<Kind>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Collector ===

impl Collector {
    pub(crate) fn new(
        client: Client,
        informers: &Informers,
        resources: Resources,
        queue: Queue<Key>,
    ) -> Self {
        Self { client, informers: informers.clone(), resources, queue, state: Arc::default() }
    }

    /// Watches every kind as it comes to be known, forever.
    pub(crate) async fn follow(&self) -> Result<(), TaskError> {
        let mut kinds = self.resources.changes();
        loop {
            let known = kinds.borrow_and_update().clone();
            for kind in known.iter().filter(|kind| kind.resource.kind != "Event") {
                self.watch(kind);
            }
            kinds.changed().await.map_err(TaskError::new)?;
        }
    }

    /// Starts watching a kind, unless it is watched. Kinds that other controllers watch are shared.
    fn watch(&self, kind: &Kind) {
        let index = {
            let mut state = lock(&self.state);
            if state.kinds.iter().any(|known| known.resource == kind.resource) {
                return;
            }
            state.kinds.push(kind.clone());
            state.kinds.len() - 1
        };
        match (kind.resource.group.as_str(), kind.resource.plural.as_str()) {
            ("", "endpoints") => self.share::<Endpoints>(index),
            ("", "namespaces") => self.share::<Namespace>(index),
            ("", "nodes") => self.share::<Node>(index),
            ("", "pods") => self.share::<Pod>(index),
            ("", "serviceaccounts") => self.share::<ServiceAccount>(index),
            ("", "services") => self.share::<Service>(index),
            ("apps", "deployments") => self.share::<Deployment>(index),
            ("apps", "replicasets") => self.share::<ReplicaSet>(index),
            ("discovery.k8s.io", "endpointslices") => self.share::<EndpointSlice>(index),
            ("ketch.dev", "functionrevisions") => self.share::<FunctionRevision>(index),
            ("ketch.dev", "functions") => self.share::<Function>(index),
            _ => self.listen(index, &self.informers.metadata_of(&kind.resource)),
        }
    }

    fn share<K>(&self, index: usize)
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        self.listen(index, &self.informers.of::<K>());
    }

    fn listen<K: Resource + 'static>(&self, index: usize, informer: &Informer<K>) {
        let (state, queue) = (Arc::clone(&self.state), self.queue.clone());
        informer.on_change(move |change: &Change<K>| {
            let meta = |object: &Option<Arc<K>>| object.as_ref().map(|object| object.meta().clone());
            let (old, new) = (meta(&change.old), meta(&change.new));
            let visit = observe(&mut lock(&state).graph, index, old.as_ref(), new.as_ref());
            for uid in visit {
                queue.add(Key::cluster(uid));
            }
        });
    }

    /// What the owner of a reference is, asked of the server.
    async fn look_up(&self, namespace: &str, reference: &OwnerReference) -> Result<Owner, Error> {
        let kind = self.resources.by_kind(&reference.api_version, &reference.kind).await?;
        let Some(kind) = kind else {
            return Err(Error::Object(format!(
                "owner {} {} is of a kind the server does not have; its dependents are kept",
                reference.kind, reference.name
            )));
        };
        if kind.namespaced && namespace.is_empty() {
            return Err(Error::Object(format!(
                "a cluster-scoped object has the namespaced owner {} {}; it is kept",
                reference.kind, reference.name
            )));
        }
        let found = self.api(&kind, namespace).get_opt(&reference.name).await;
        let found = found.doing(|| format!("looking up owner {} {}", reference.kind, reference.name))?;
        let same = found.filter(|object| object.metadata.uid.as_deref() == Some(reference.uid.as_str()));
        Ok(match same {
            None => Owner::Gone,
            Some(object) => {
                let item = Item::new(0, &object.metadata);
                if item.deleting && item.foreground { Owner::Waiting } else { Owner::Solid }
            }
        })
    }

    fn api(&self, kind: &Kind, namespace: &str) -> Api<AnyMeta> {
        match kind.namespaced {
            true => Api::namespaced_with(self.client.clone(), namespace, &kind.resource),
            false => Api::all_with(self.client.clone(), &kind.resource),
        }
    }

    /// The object as the server has it now; `None` when it is another or gone.
    async fn live(&self, uid: &str, item: &Item) -> Result<Option<(Api<AnyMeta>, ObjectMeta)>, Error> {
        let Some(kind) = lock(&self.state).kinds.get(item.kind).cloned() else { return Ok(None) };
        let api = self.api(&kind, &item.key.namespace);
        let found = api.get_opt(&item.key.name).await;
        let found = found.doing(|| format!("reading {} {}", kind.resource.kind, item.key))?;
        let same = found.filter(|object| object.metadata.uid.as_deref() == Some(uid));
        Ok(same.map(|object| (api, object.metadata)))
    }

    async fn delete(&self, uid: &str, item: &Item, propagation: Propagation) -> Result<(), Error> {
        // Deleting is for good: what is decided on must be what the server has.
        let Some((api, meta)) = self.live(uid, item).await? else { return Ok(()) };
        if meta.owner_references.clone().unwrap_or_default() != item.owners
            || meta.deletion_timestamp.is_some()
        {
            return Ok(());
        }
        let params = match propagation {
            Propagation::Background => DeleteParams::background(),
            Propagation::Foreground => DeleteParams::foreground(),
            Propagation::Orphan => DeleteParams::orphan(),
        };
        let preconditions =
            Preconditions { uid: Some(uid.to_owned()), resource_version: meta.resource_version.clone() };
        match api.delete(&item.key.name, &params.preconditions(preconditions)).await {
            Err(error) if is_not_found(&error) => Ok(()),
            other => other.map(drop).doing(|| format!("deleting {}", item.key)),
        }
    }

    async fn disown(&self, uid: &str, item: &Item, owners: &[&str]) -> Result<(), Error> {
        let Some((api, meta)) = self.live(uid, item).await? else { return Ok(()) };
        let patch = owner::disowning(&meta, owners);
        match api.patch(&item.key.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(error) if is_not_found(&error) => Ok(()),
            other => other.map(drop).doing(|| format!("taking owners off {}", item.key)),
        }
    }

    async fn remove_finalizer(&self, uid: &str, item: &Item, finalizer: &str) -> Result<(), Error> {
        let Some((api, meta)) = self.live(uid, item).await? else { return Ok(()) };
        let mut finalizers = meta.finalizers.clone().unwrap_or_default();
        finalizers.retain(|own| own != finalizer);
        let patch = json!({"metadata": {
            "uid": uid, "resourceVersion": meta.resource_version, "finalizers": finalizers,
        }});
        match api.patch(&item.key.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(error) if is_not_found(&error) => Ok(()),
            other => other.map(drop).doing(|| format!("taking finalizer {finalizer} off {}", item.key)),
        }
    }

    async fn orphan(&self, uid: &str, item: &Item, dependents: Vec<String>) -> Result<(), Error> {
        for dependent in dependents {
            let known = lock(&self.state).graph.get(&dependent).cloned();
            if let Some(known) = known {
                self.disown(&dependent, &known, &[uid]).await?;
            }
        }
        self.remove_finalizer(uid, item, graph::ORPHAN).await
    }
}

/// Feeds a change to the graph; returns the uids to look at.
fn observe(
    graph: &mut Graph,
    kind: usize,
    old: Option<&ObjectMeta>,
    new: Option<&ObjectMeta>,
) -> Vec<String> {
    let mut visit = Vec::new();
    if let Some(old) = old
        && new.is_none_or(|new| new.uid != old.uid)
    {
        visit.extend(graph.remove(owner::uid(old)));
    }
    if let Some(new) = new {
        visit.extend(graph.set(owner::uid(new), Item::new(kind, new)));
    }
    visit
}

#[async_trait]
impl Reconcile for Collector {
    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let uid = key.name.as_str();
        let (item, known) = {
            let state = lock(&self.state);
            let Some(item) = state.graph.get(uid).cloned() else { return Ok(Next::OnChange) };
            let known: Vec<_> = item.owners.iter().map(|owner| state.graph.owner(&item, owner)).collect();
            (item, known)
        };
        let mut owners = Vec::with_capacity(known.len());
        for (reference, known) in item.owners.iter().zip(known) {
            owners.push(match known {
                Some(owner) => owner,
                None if item.deleting => Owner::Solid,
                None => self.look_up(&item.key.namespace, reference).await?,
            });
        }
        let action = lock(&self.state).graph.decide(uid, &owners);
        let done = match action {
            Action::Nothing => Ok(()),
            Action::Visit(uids) => {
                uids.into_iter().for_each(|uid| self.queue.add(Key::cluster(uid)));
                Ok(())
            }
            Action::Disown(lost) => {
                let lost: Vec<&str> = lost.iter().map(String::as_str).collect();
                self.disown(uid, &item, &lost).await
            }
            Action::Delete(propagation) => self.delete(uid, &item, propagation).await,
            Action::Unblock => self.remove_finalizer(uid, &item, graph::FOREGROUND).await,
            Action::Orphan(dependents) => self.orphan(uid, &item, dependents).await,
        };
        match done {
            Err(Error::Request { source, doing }) if is_conflict(&source) => {
                tracing::debug!(doing, "changed meanwhile, looking again");
                self.queue.add(key.clone());
                Ok(Next::OnChange)
            }
            other => other.map(|()| Next::OnChange),
        }
    }
}
