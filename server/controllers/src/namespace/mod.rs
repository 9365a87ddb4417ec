//! Deletion of namespaces: pods first, then everything else, then the namespace.

mod plan;

use async_trait::async_trait;
use futures::future::join_all;
use jiff::Timestamp;
use ketch_api::k8s::api::core::v1::{Namespace, Pod};
use ketch_client::{Change, Informer, Key, Queue, is_conflict, is_not_found, status_text};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
};

use crate::{
    error::{Doing, Error},
    resources::{AnyMeta, Kind, Resources},
    runner::{Next, Reconcile},
};

/// See the module.
pub(crate) struct Namespaces {
    pub(crate) client: Client,
    pub(crate) namespaces: Informer<Namespace>,
    pub(crate) pods: Informer<Pod>,
    pub(crate) resources: Resources,
}

impl Namespaces {
    /// Puts namespaces that a change concerns into `queue`.
    pub(crate) fn listen(&self, queue: &Queue<Key>) {
        let own = queue.clone();
        self.namespaces.on_change(move |change: &Change<Namespace>| own.add(change.key.clone()));
        let (own, namespaces) = (queue.clone(), self.namespaces.clone());
        self.pods.on_change(move |change: &Change<Pod>| {
            let key = Key::cluster(change.key.namespace.clone());
            let is_leaving = |namespace: &Namespace| namespace.metadata.deletion_timestamp.is_some();
            if change.new.is_none() && namespaces.get(&key).is_some_and(|namespace| is_leaving(&namespace)) {
                own.add(key);
            }
        });
    }

    /// Deletes everything of a kind and tells what is left of it.
    async fn empty(&self, namespace: &str, kind: &Kind) -> plan::Remains {
        let api = Api::<AnyMeta>::namespaced_with(self.client.clone(), namespace, &kind.resource);
        let name = match kind.resource.group.as_str() {
            "" => format!("{}.", kind.resource.plural),
            group => format!("{}.{group}", kind.resource.plural),
        };
        let mut remains = plan::Remains { resource: name, ..plan::Remains::default() };
        if let Err(error) = self.delete_all(&api, kind).await {
            remains.error = Some(status_text(&error));
        }
        match api.list(&ListParams::default()).await {
            Ok(list) => {
                remains.count = list.items.len();
                for object in list.items {
                    for finalizer in object.metadata.finalizers.into_iter().flatten() {
                        *remains.finalizers.entry(finalizer).or_default() += 1;
                    }
                }
            }
            Err(error) => remains.error = Some(status_text(&error)),
        }
        remains
    }

    async fn delete_all(&self, api: &Api<AnyMeta>, kind: &Kind) -> Result<(), kube::Error> {
        let (delete, list) = (DeleteParams::background(), ListParams::default());
        if kind.delete_collection {
            match api.list(&list.clone().limit(1)).await {
                Ok(list) if list.items.is_empty() => return Ok(()),
                _ => {}
            }
            return api.delete_collection(&delete, &list).await.map(drop);
        }
        for object in api.list(&list).await?.items {
            match api.delete(object.metadata.name.as_deref().unwrap_or_default(), &delete).await {
                Err(error) if !is_not_found(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    async fn finalize(&self, namespace: &Namespace) -> Result<(), Error> {
        let name = namespace.metadata.name.clone().unwrap_or_default();
        let mut changed = namespace.clone();
        if let Some(finalizers) = changed.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
            finalizers.retain(|finalizer| finalizer != plan::FINALIZER);
        }
        let api = Api::<Namespace>::all(self.client.clone());
        match api.replace_subresource("finalize", &name, &PostParams::default(), &changed).await {
            Err(error) if is_not_found(&error) => Ok(()),
            other => other.map(drop).doing(|| format!("finalizing namespace {name}")),
        }
    }

    async fn write_conditions(&self, namespace: &Namespace, remains: &[plan::Remains]) -> Result<(), Error> {
        let name = namespace.metadata.name.clone().unwrap_or_default();
        let status = plan::status(namespace, remains, Timestamp::now());
        if namespace.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut changed = namespace.clone();
        changed.status = Some(status);
        let api = Api::<Namespace>::all(self.client.clone());
        match api.replace_status(&name, &PostParams::default(), &changed).await {
            Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(()),
            other => other.map(drop).doing(|| format!("writing the status of namespace {name}")),
        }
    }
}

#[async_trait]
impl Reconcile for Namespaces {
    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(namespace) = self.namespaces.get(key) else { return Ok(Next::OnChange) };
        if !plan::is_to_be_emptied(&namespace) {
            return Ok(Next::OnChange);
        }
        let kinds = self.resources.get().await?;
        let kinds: Vec<&Kind> = kinds.iter().filter(|kind| kind.namespaced).collect();
        let (pods, others): (Vec<&Kind>, Vec<&Kind>) =
            kinds.into_iter().partition(|kind| kind.resource.group.is_empty() && kind.resource.kind == "Pod");
        // What pods use must be there until they have ended.
        let mut remains = join_all(pods.into_iter().map(|kind| self.empty(&key.name, kind))).await;
        if plan::is_empty(&remains) {
            // Events last: emptying the rest makes more of them.
            let (events, others): (Vec<&Kind>, Vec<&Kind>) =
                others.into_iter().partition(|kind| kind.resource.kind == "Event");
            remains.extend(join_all(others.into_iter().map(|kind| self.empty(&key.name, kind))).await);
            remains.extend(join_all(events.into_iter().map(|kind| self.empty(&key.name, kind))).await);
        }
        if plan::is_empty(&remains) {
            self.finalize(&namespace).await?;
            return Ok(Next::OnChange);
        }
        self.write_conditions(&namespace, &remains).await?;
        Ok(Next::After(plan::patience(&remains)))
    }
}
