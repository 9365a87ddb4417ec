//! Deployment: moves from one ReplicaSet to the next, keeping enough pods available.

mod plan;
#[cfg(test)]
mod plan_tests;
mod size;
mod status;
mod template;

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use ketch_api::k8s::api::{
    apps::v1::{Deployment, DeploymentStatus, ReplicaSet},
    core::v1::Pod,
};
use ketch_client::{
    Change, Informer, Key, Queue, Recorder, Subject, is_already_exists, is_conflict, is_not_found,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use self::plan::Op;
use crate::{
    error::{Doing, Error},
    owner,
    runner::{self, Next, Reconcile, Writes},
};

/// A plan for hostile objects.
#[cfg(fuzzing)]
pub(crate) fn fuzz(deployment: &Deployment, sets: Vec<&ReplicaSet>, pods: &[Arc<Pod>], now: Timestamp) {
    let pods = |_: &ReplicaSet| pods.to_vec();
    let _ = plan::plan(&plan::Observed { deployment, sets, pods: &pods }, now);
}

/// See the module.
pub(crate) struct Deployments {
    pub(crate) client: Client,
    pub(crate) deployments: Informer<Deployment>,
    pub(crate) sets: Informer<ReplicaSet>,
    pub(crate) pods: Informer<Pod>,
    pub(crate) recorder: Recorder,
    pub(crate) set_writes: Writes,
    pub(crate) own_writes: Writes,
}

impl Deployments {
    /// Puts Deployments that a change concerns into `queue`.
    pub(crate) fn listen(&self, queue: &Queue<Key>) {
        let changed = queue.clone();
        self.deployments.on_change(move |change: &Change<Deployment>| changed.add(change.key.clone()));
        let (by_set, deployments) = (queue.clone(), self.deployments.clone());
        self.sets.on_change(move |change: &Change<ReplicaSet>| {
            for set in [&change.old, &change.new].into_iter().flatten() {
                notify(&by_set, &deployments, set);
            }
        });
        // `Recreate` waits for the last old pod to go.
        let (by_pod, deployments, sets) = (queue.clone(), self.deployments.clone(), self.sets.clone());
        self.pods.on_change(move |change: &Change<Pod>| {
            let gone =
                change.latest().filter(|_| change.new.as_ref().is_none_or(|p| crate::pod::is_finished(p)));
            let Some(controller) = gone.and_then(|pod| owner::controller_of(&pod.metadata).cloned()) else {
                return;
            };
            let set = sets.get(&Key::new(change.key.namespace.clone(), controller.name));
            if let Some(set) = set.filter(|set| owner::uid(&set.metadata) == controller.uid) {
                notify(&by_pod, &deployments, &set);
            }
        });
    }

    async fn settle_ownership(
        &self,
        key: &Key,
        deployment: &Deployment,
        claim: &owner::Claim<ReplicaSet>,
    ) -> Result<bool, Error> {
        if !claim.adopt.is_empty() {
            let owners = Api::<Deployment>::namespaced(self.client.clone(), &key.namespace);
            if !runner::is_alive(&owners, &deployment.metadata).await? {
                // Its own change, which is on the way, says what to do.
                return Ok(true);
            }
        }
        let api = Api::<ReplicaSet>::namespaced(self.client.clone(), &key.namespace);
        let own = owner::uid(&deployment.metadata);
        let adopt =
            claim.adopt.iter().map(|s| (s, owner::adoption(&s.metadata, owner::reference(deployment))));
        let release = claim.release.iter().map(|s| (s, owner::disowning(&s.metadata, &[own])));
        for (set, patch) in adopt.chain(release) {
            let name = owner::name(&set.metadata);
            match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(set) => self.set_writes.wrote(key, &set),
                Err(gone) if is_not_found(&gone) => {}
                Err(other) => return Err(other).doing(|| format!("changing the owner of replicaset {name}")),
            }
        }
        Ok(!claim.adopt.is_empty() || !claim.release.is_empty())
    }

    /// Carries out one operation; `false` when a set's name is taken by another template.
    async fn apply(&self, key: &Key, deployment: &Deployment, op: Op) -> Result<bool, Error> {
        let sets = Api::<ReplicaSet>::namespaced(self.client.clone(), &key.namespace);
        match op {
            Op::Create(set) => return self.create(key, deployment, &sets, *set).await,
            Op::Scale { set, from, to, annotations } => {
                let patch = json!({"metadata": {"annotations": annotations}, "spec": {"replicas": to}});
                self.patch_set(key, &sets, &set, patch).await?;
                self.tell_scaled(deployment, &set, from, to);
            }
            Op::Update { set, annotations, min_ready_seconds } => {
                let patch = json!({"metadata": {"annotations": annotations},
                    "spec": {"minReadySeconds": min_ready_seconds.unwrap_or(0)}});
                self.patch_set(key, &sets, &set, patch).await?;
            }
            Op::Delete(set) => match sets.delete(&set, &DeleteParams::background()).await {
                Err(error) if !is_not_found(&error) => {
                    return Err(error).doing(|| format!("deleting replicaset {set}"));
                }
                _ => {}
            },
            Op::Revision(revision) => {
                let patch = json!({"metadata": {"annotations": {plan::REVISION: revision}}});
                let api = Api::<Deployment>::namespaced(self.client.clone(), &key.namespace);
                let patched = api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
                let patched = patched.doing(|| format!("writing the revision of deployment {key}"))?;
                self.own_writes.wrote(key, &patched);
            }
        }
        Ok(true)
    }

    async fn patch_set(
        &self,
        key: &Key,
        sets: &Api<ReplicaSet>,
        set: &str,
        patch: serde_json::Value,
    ) -> Result<(), Error> {
        let patched = sets.patch(set, &PatchParams::default(), &Patch::Merge(patch)).await;
        let patched = patched.doing(|| format!("changing replicaset {set}"))?;
        self.set_writes.wrote(key, &patched);
        Ok(())
    }

    fn tell_scaled(&self, deployment: &Deployment, set: &str, from: i32, to: i32) {
        let direction = match to.cmp(&from) {
            std::cmp::Ordering::Less => "down",
            std::cmp::Ordering::Equal => return,
            std::cmp::Ordering::Greater => "up",
        };
        let message = format!("Scaled {direction} replica set {set} from {from} to {to}");
        self.recorder.normal(Subject::of(deployment), "ScalingReplicaSet", message);
    }

    async fn create(
        &self,
        key: &Key,
        deployment: &Deployment,
        sets: &Api<ReplicaSet>,
        set: ReplicaSet,
    ) -> Result<bool, Error> {
        let name = owner::name(&set.metadata).to_owned();
        match sets.create(&PostParams::default(), &set).await {
            Ok(created) => {
                self.set_writes.wrote(key, &created);
                self.tell_scaled(deployment, &name, 0, size::asked(&created));
                Ok(true)
            }
            Err(error) if is_already_exists(&error) => {
                let existing = sets.get_opt(&name).await.doing(|| format!("reading replicaset {name}"))?;
                let ours = existing.as_ref().is_some_and(|existing| {
                    let owner = owner::controller_of(&existing.metadata).map(|owner| owner.uid.as_str());
                    owner == deployment.metadata.uid.as_deref() && same_template(existing, &set)
                });
                if let Some(existing) = existing.filter(|_| ours) {
                    self.set_writes.wrote(key, &existing);
                }
                Ok(ours)
            }
            Err(error) => {
                self.recorder.warning(
                    Subject::of(deployment),
                    "ReplicaSetCreateError",
                    format!(
                        "Failed to create new replica set \"{name}\": {}",
                        ketch_client::status_text(&error)
                    ),
                );
                Err(error).doing(|| format!("creating replicaset {name}"))
            }
        }
    }

    async fn write_status(
        &self,
        key: &Key,
        deployment: &Deployment,
        status: DeploymentStatus,
    ) -> Result<(), Error> {
        if deployment.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut changed = deployment.clone();
        changed.status = Some(status);
        let api = Api::<Deployment>::namespaced(self.client.clone(), &key.namespace);
        match api.replace_status(&key.name, &PostParams::default(), &changed).await {
            // Labels and annotations are part of what is sent: those of an older version must not be put back.
            // The newer one is on its way here, and brings us back.
            Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(()),
            other => {
                let written = other.doing(|| format!("writing the status of deployment {key}"))?;
                self.own_writes.wrote(key, &written);
                Ok(())
            }
        }
    }
}

fn same_template(a: &ReplicaSet, b: &ReplicaSet) -> bool {
    let of = |set: &ReplicaSet| set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
    template::same(&of(a), &of(b))
}

/// Queues the controller of a set or, for a set without one, the Deployments that may want it.
fn notify(queue: &Queue<Key>, deployments: &Informer<Deployment>, set: &ReplicaSet) {
    let namespace = set.metadata.namespace.clone().unwrap_or_default();
    match owner::controller_of(&set.metadata) {
        Some(controller) if controller.kind == "Deployment" => {
            queue.add(Key::new(namespace, controller.name.clone()));
        }
        Some(_) => {}
        None => {
            for deployment in deployments.in_namespace(&namespace) {
                let selector = deployment.spec.as_ref().and_then(|spec| owner::selector(&spec.selector));
                if selector.is_some_and(|selector| owner::matches(&selector, &set.metadata)) {
                    queue.add(Key::of(&deployment.metadata));
                }
            }
        }
    }
}

#[async_trait]
impl Reconcile for Deployments {
    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        self.set_writes.seen(key, &self.sets).await;
        self.own_writes.seen(key, &self.deployments).await;
        let Some(deployment) = self.deployments.get(key) else { return Ok(Next::OnChange) };
        let selector = deployment.spec.as_ref().and_then(|spec| owner::selector(&spec.selector));
        let claim = owner::claim(
            deployment.metadata.deletion_timestamp.is_some(),
            selector.as_ref(),
            self.sets.controlled_by(owner::uid(&deployment.metadata)),
            self.sets.uncontrolled_in(&key.namespace),
        );
        if self.settle_ownership(key, &deployment, &claim).await? {
            return Ok(Next::OnChange);
        }
        let pods = |set: &ReplicaSet| -> Vec<Arc<Pod>> { self.pods.controlled_by(owner::uid(&set.metadata)) };
        let planned = {
            let sets = claim.owned.iter().map(Arc::as_ref).collect();
            let observed = plan::Observed { deployment: &deployment, sets, pods: &pods };
            plan::plan(&observed, Timestamp::now())
        };
        let mut status = planned.status;
        for op in planned.ops {
            if !self.apply(key, &deployment, op).await? {
                status.collision_count = Some(status.collision_count.unwrap_or(0).saturating_add(1));
                break;
            }
        }
        self.write_status(key, &deployment, status).await?;
        Ok(planned.again.map_or(Next::OnChange, Next::After))
    }
}
