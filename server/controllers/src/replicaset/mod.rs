//! ReplicaSet: keeps that many pods of a template.

mod plan;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use futures::future::join_all;
use jiff::Timestamp;
use ketch_api::k8s::{
    api::{apps::v1::ReplicaSet, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use ketch_client::{
    Change, Informer, Key, Queue, Recorder, Subject, is_forbidden_by_termination, is_not_found, status_text,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};

use crate::{
    error::{Doing, Error},
    owner,
    runner::{self, Next, Reconcile, Writes},
};

/// Plans for hostile objects.
#[cfg(fuzzing)]
pub(crate) fn fuzz(set: &ReplicaSet, pods: &[Arc<Pod>], now: Timestamp) {
    let _ = (plan::manage(set, pods, now), plan::status(set, pods, None, now), plan::new_pod(set));
}

/// See the module.
pub(crate) struct ReplicaSets {
    pub(crate) client: Client,
    pub(crate) sets: Informer<ReplicaSet>,
    pub(crate) pods: Informer<Pod>,
    pub(crate) recorder: Recorder,
    pub(crate) writes: Writes,
    /// Pods deleted by us whose end the watch may not have shown yet, by uid.
    pub(crate) deleted: Mutex<HashSet<String>>,
}

impl ReplicaSets {
    /// Puts sets that a change concerns into `queue`.
    pub(crate) fn listen(&self, queue: &Queue<Key>) {
        let changed = queue.clone();
        self.sets.on_change(move |change: &Change<ReplicaSet>| changed.add(change.key.clone()));
        let (queue, sets) = (queue.clone(), self.sets.clone());
        self.pods.on_change(move |change: &Change<Pod>| {
            for pod in [&change.old, &change.new].into_iter().flatten() {
                notify(&queue, &sets, &pod.metadata);
            }
        });
    }

    fn observe(&self, set: &ReplicaSet, key: &Key) -> owner::Claim<Pod> {
        let selector = set.spec.as_ref().and_then(|spec| owner::selector(&spec.selector));
        let mut owned = self.pods.controlled_by(owner::uid(&set.metadata));
        let mut deleted = self.deleted.lock().unwrap_or_else(PoisonError::into_inner);
        if !deleted.is_empty() {
            owned.retain(|pod| {
                let gone = deleted.contains(owner::uid(&pod.metadata));
                if gone && pod.metadata.deletion_timestamp.is_some() {
                    deleted.remove(owner::uid(&pod.metadata));
                    return true;
                }
                !gone
            });
        }
        drop(deleted);
        let free = self.pods.uncontrolled_in(&key.namespace);
        owner::claim(set.metadata.deletion_timestamp.is_some(), selector.as_ref(), owned, free)
    }

    async fn settle_ownership(
        &self,
        key: &Key,
        set: &ReplicaSet,
        claim: &owner::Claim<Pod>,
    ) -> Result<bool, Error> {
        if !claim.adopt.is_empty() {
            let owners = Api::<ReplicaSet>::namespaced(self.client.clone(), &key.namespace);
            if !runner::is_alive(&owners, &set.metadata).await? {
                // Its own change, which is on the way, says what to do.
                return Ok(true);
            }
        }
        let api = Api::<Pod>::namespaced(self.client.clone(), &key.namespace);
        let adoptions =
            claim.adopt.iter().map(|pod| (pod, owner::adoption(&pod.metadata, owner::reference(set))));
        let releases = claim
            .release
            .iter()
            .map(|pod| (pod, owner::disowning(&pod.metadata, &[owner::uid(&set.metadata)])));
        for (pod, patch) in adoptions.chain(releases) {
            let name = owner::name(&pod.metadata);
            match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(pod) => self.writes.wrote(key, &pod),
                Err(gone) if is_not_found(&gone) => {}
                Err(other) => return Err(other).doing(|| format!("changing the owner of pod {name}")),
            }
        }
        Ok(!claim.adopt.is_empty() || !claim.release.is_empty())
    }

    /// Creates pods in batches of 1, 2, 4, …, so that a template that is refused costs one request and not
    /// a thousand. Returns why it stopped early.
    async fn create(&self, key: &Key, set: &ReplicaSet, count: usize) -> Option<String> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &key.namespace);
        let (params, pod) = (PostParams::default(), plan::new_pod(set));
        let (mut left, mut batch) = (count, 1);
        while left > 0 {
            let size = batch.min(left);
            let results = join_all((0..size).map(|_| api.create(&params, &pod))).await;
            let mut failure = None;
            for result in results {
                match result {
                    Ok(pod) => {
                        self.writes.wrote(key, &pod);
                        let message = format!("Created pod: {}", owner::name(&pod.metadata));
                        self.recorder.normal(Subject::of(set), "SuccessfulCreate", message);
                    }
                    Err(error) => failure = Some(error),
                }
            }
            if let Some(error) = failure {
                // Nothing to tell: the namespace and the set are going away.
                if is_forbidden_by_termination(&error) {
                    return None;
                }
                let text = status_text(&error);
                self.recorder.warning(Subject::of(set), "FailedCreate", format!("Error creating: {text}"));
                return Some(text);
            }
            left -= size;
            batch *= 2;
        }
        None
    }

    async fn delete(&self, key: &Key, set: &ReplicaSet, pods: &[Arc<Pod>]) -> Option<String> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &key.namespace);
        let results = join_all(pods.iter().map(|pod| delete_exactly(&api, &pod.metadata))).await;
        let mut failure = None;
        for (pod, result) in pods.iter().zip(results) {
            let name = owner::name(&pod.metadata);
            match result {
                Ok(()) => {
                    let uid = owner::uid(&pod.metadata).to_owned();
                    self.deleted.lock().unwrap_or_else(PoisonError::into_inner).insert(uid);
                    self.recorder.normal(
                        Subject::of(set),
                        "SuccessfulDelete",
                        format!("Deleted pod: {name}"),
                    );
                }
                Err(error) => {
                    let text = status_text(&error);
                    self.recorder.warning(
                        Subject::of(set),
                        "FailedDelete",
                        format!("Error deleting: {text}"),
                    );
                    failure = Some(text);
                }
            }
        }
        // What the watch has shown as gone needs no remembering.
        let present: HashSet<String> =
            self.pods.all().iter().map(|p| owner::uid(&p.metadata).to_owned()).collect();
        self.deleted.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid| present.contains(uid));
        failure
    }

    async fn write_status(&self, key: &Key, set: &ReplicaSet, status: Status) -> Result<(), Error> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut changed = set.clone();
        changed.status = Some(status);
        let api = Api::<ReplicaSet>::namespaced(self.client.clone(), &key.namespace);
        match api.replace_status(&key.name, &PostParams::default(), &changed).await {
            Err(gone) if is_not_found(&gone) => Ok(()),
            other => other.map(drop).doing(|| format!("writing the status of replicaset {key}")),
        }
    }
}

type Status = ketch_api::k8s::api::apps::v1::ReplicaSetStatus;

/// Queues the controller of a pod or, for a pod without one, the sets that may want it.
fn notify(queue: &Queue<Key>, sets: &Informer<ReplicaSet>, pod: &ObjectMeta) {
    let namespace = pod.namespace.clone().unwrap_or_default();
    match owner::controller_of(pod) {
        Some(controller) if controller.kind == "ReplicaSet" => {
            queue.add(Key::new(namespace, controller.name.clone()));
        }
        Some(_) => {}
        None => {
            for set in sets.in_namespace(&namespace) {
                let selector = set.spec.as_ref().and_then(|spec| owner::selector(&spec.selector));
                if selector.is_some_and(|selector| owner::matches(&selector, pod)) {
                    queue.add(Key::of(&set.metadata));
                }
            }
        }
    }
}

/// Deletes this very object, not a later one of the same name. Fine when it is gone already.
async fn delete_exactly(api: &Api<Pod>, pod: &ObjectMeta) -> Result<(), kube::Error> {
    let preconditions = Preconditions { uid: pod.uid.clone(), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match api.delete(owner::name(pod), &params).await {
        Err(error) if is_not_found(&error) => Ok(()),
        other => other.map(drop),
    }
}

#[async_trait]
impl Reconcile for ReplicaSets {
    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        self.writes.seen(key, &self.pods).await;
        let Some(set) = self.sets.get(key) else { return Ok(Next::OnChange) };
        let claim = self.observe(&set, key);
        if self.settle_ownership(key, &set, &claim).await? {
            // The pods' changes bring us back.
            return Ok(Next::OnChange);
        }
        let now = Timestamp::now();
        let (failure, changed) = match plan::manage(&set, &claim.owned, now) {
            None => (None, false),
            Some(plan::Op::Create(count)) => {
                (self.create(key, &set, count).await.map(|text| ("FailedCreate", text)), true)
            }
            Some(plan::Op::Delete(pods)) => {
                (self.delete(key, &set, &pods).await.map(|text| ("FailedDelete", text)), true)
            }
        };
        let failed = failure.is_some();
        let pods = if changed {
            self.writes.seen(key, &self.pods).await;
            self.observe(&set, key).owned
        } else {
            claim.owned
        };
        let (status, next) = plan::status(&set, &pods, failure, Timestamp::now());
        let message = status.conditions.iter().flatten().find_map(|c| c.message.clone());
        self.write_status(key, &set, status).await?;
        if failed {
            return Err(Error::Object(message.unwrap_or_else(|| "pods could not be created".into())));
        }
        Ok(next.map_or(Next::OnChange, Next::After))
    }
}
