//! The resources the server has, by discovery: for controllers that must handle kinds they do not know.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ketch_client::TaskError;
use kube::{
    Client,
    core::{ApiResource, DynamicObject, PartialObjectMeta},
    discovery::{ApiCapabilities, Discovery, Scope, verbs},
};
use tokio::{sync::watch, time::Instant};

use crate::error::{Doing, Error};

/// How long an answer is good enough.
const FRESH: Duration = Duration::from_secs(30);

/// Any object, as far as controllers that handle every kind look at it.
pub(crate) type AnyMeta = PartialObjectMeta<DynamicObject>;

/// One kind that can be listed and deleted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Kind {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    /// Whether `DELETE` on the collection is served.
    pub(crate) delete_collection: bool,
}

/// The kinds, and when they were asked for.
type Answer = (Instant, Arc<Vec<Kind>>);

/// The kinds of one server, asked for at most every [`FRESH`].
#[derive(Clone)]
pub(crate) struct Resources {
    client: Client,
    cached: Arc<Mutex<Option<Answer>>>,
    changes: watch::Sender<Arc<Vec<Kind>>>,
}

impl Resources {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, cached: Arc::default(), changes: watch::Sender::default() }
    }

    /// The kinds with list, watch and delete, recent enough.
    pub(crate) async fn get(&self) -> Result<Arc<Vec<Kind>>, Error> {
        let cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, kinds)) = cached
            && at.elapsed() < FRESH
        {
            return Ok(kinds);
        }
        self.refresh().await
    }

    async fn refresh(&self) -> Result<Arc<Vec<Kind>>, Error> {
        let discovery =
            Discovery::new(self.client.clone()).run().await.doing(|| "discovering resources".into())?;
        let kinds = discovery.groups().flat_map(|group| group.recommended_resources()).filter_map(usable);
        let kinds = Arc::new(kinds.collect::<Vec<_>>());
        let entry = Some((Instant::now(), Arc::clone(&kinds)));
        *self.cached.lock().unwrap_or_else(PoisonError::into_inner) = entry;
        self.changes.send_if_modified(|known| {
            let new = **known != *kinds;
            if new {
                *known = Arc::clone(&kinds);
            }
            new
        });
        Ok(kinds)
    }

    /// Kinds as they come to be known.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<Vec<Kind>>> {
        self.changes.subscribe()
    }

    /// One round of looking for new kinds.
    pub(crate) async fn look(&self) -> Result<(), TaskError> {
        self.refresh().await.map(drop).map_err(TaskError::new)
    }

    /// The kind an owner reference names.
    pub(crate) async fn by_kind(&self, api_version: &str, kind: &str) -> Result<Option<Kind>, Error> {
        let is = |k: &&Kind| k.resource.kind == kind && k.resource.api_version == api_version;
        if let Some(found) = self.get().await?.iter().find(is) {
            return Ok(Some(found.clone()));
        }
        // The same group in another version is the same object.
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let same = |k: &&Kind| k.resource.kind == kind && k.resource.group == group;
        Ok(self.get().await?.iter().find(same).cloned())
    }
}

fn usable((resource, capabilities): (ApiResource, ApiCapabilities)) -> Option<Kind> {
    let can = |verb: &str| capabilities.supports_operation(verb);
    let complete = can(verbs::LIST) && can(verbs::WATCH) && can(verbs::DELETE);
    complete.then(|| Kind {
        namespaced: capabilities.scope == Scope::Namespaced,
        delete_collection: can(verbs::DELETE_COLLECTION),
        resource,
    })
}
