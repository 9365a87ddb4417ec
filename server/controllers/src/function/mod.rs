//! Function: a revision for each change, a Deployment for each revision, traffic for those that work.

mod plan;
#[cfg(test)]
mod plan_tests;
mod revision;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use jiff::Timestamp;
#[cfg(test)]
use ketch_api::function::TrafficTarget;
use ketch_api::{
    function::{Function, FunctionRevision, FunctionRevisionStatus, FunctionStatus},
    k8s::api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::Pod,
    },
    names,
};
use ketch_client::{Change, Informer, Key, Queue, Recorder, Subject, is_already_exists, is_not_found};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use self::plan::Op;
use crate::{
    error::{Doing, Error},
    owner,
    runner::{Next, Reconcile, Writes},
};

/// A plan for hostile objects.
#[cfg(fuzzing)]
pub(crate) fn fuzz(
    function: &Function,
    revisions: &[Arc<FunctionRevision>],
    deployments: &[Arc<Deployment>],
    pods: &[Arc<Pod>],
    now: Timestamp,
) {
    let named = |one: &Arc<Deployment>| (owner::name(&one.metadata).to_owned(), Arc::clone(one));
    let pods = |_: &Deployment| pods.to_vec();
    let observed = plan::Observed {
        function,
        revisions: revisions.to_vec(),
        deployments: deployments.iter().map(named).collect(),
        pods: &pods,
        domain: "localhost:8080",
    };
    let _ = plan::plan(&observed, now);
}

/// See the module.
pub(crate) struct Functions {
    pub(crate) client: Client,
    pub(crate) functions: Informer<Function>,
    pub(crate) revisions: Informer<FunctionRevision>,
    pub(crate) deployments: Informer<Deployment>,
    pub(crate) sets: Informer<ReplicaSet>,
    pub(crate) pods: Informer<Pod>,
    pub(crate) recorder: Recorder,
    pub(crate) function_writes: Writes,
    pub(crate) revision_writes: Writes,
    pub(crate) deployment_writes: Writes,
    /// What follows `NAME.NAMESPACE.` in URLs, port included.
    pub(crate) domain: String,
}

impl Functions {
    /// Puts Functions that a change concerns into `queue`.
    pub(crate) fn listen(&self, queue: &Queue<Key>) {
        let own = queue.clone();
        self.functions.on_change(move |change: &Change<Function>| own.add(change.key.clone()));
        let own = queue.clone();
        self.revisions.on_change(move |change: &Change<FunctionRevision>| {
            if let Some(revision) = change.latest() {
                own.add(Key::new(change.key.namespace.clone(), revision.spec.function.clone()));
            }
        });
        let own = queue.clone();
        self.deployments.on_change(move |change: &Change<Deployment>| {
            by_label(&own, &change.key, change.latest().and_then(|d| d.metadata.labels.as_ref()));
        });
        let own = queue.clone();
        self.pods.on_change(move |change: &Change<Pod>| {
            by_label(&own, &change.key, change.latest().and_then(|p| p.metadata.labels.as_ref()));
        });
    }

    /// The pods of a revision's Deployment, without looking at all others.
    fn pods_of(&self, deployment: &Deployment) -> Vec<Arc<Pod>> {
        let sets = self.sets.controlled_by(owner::uid(&deployment.metadata));
        sets.iter().flat_map(|set| self.pods.controlled_by(owner::uid(&set.metadata))).collect()
    }

    fn plan(&self, key: &Key, function: &Function) -> plan::Plan {
        let revisions = self.revisions.controlled_by(owner::uid(&function.metadata));
        let deployments: BTreeMap<_, _> = revisions
            .iter()
            .filter_map(|revision| {
                let deployment = self.deployments.get(&Key::of(&revision.metadata))?;
                let owner = owner::controller_of(&deployment.metadata)?;
                let ours = owner.uid == owner::uid(&revision.metadata);
                ours.then(|| (owner::name(&revision.metadata).to_owned(), deployment))
            })
            .collect();
        tracing::trace!(object.r#ref = %key, revisions = revisions.len(), "planning");
        let pods = |deployment: &Deployment| self.pods_of(deployment);
        let observed = plan::Observed { function, revisions, deployments, pods: &pods, domain: &self.domain };
        plan::plan(&observed, Timestamp::now())
    }

    async fn apply(&self, key: &Key, function: &Function, op: Op) -> Result<(), Error> {
        let deployments = Api::<Deployment>::namespaced(self.client.clone(), &key.namespace);
        let revisions = Api::<FunctionRevision>::namespaced(self.client.clone(), &key.namespace);
        match op {
            Op::CreateRevision(revision) => {
                let name = owner::name(&revision.metadata);
                let created = revisions.create(&PostParams::default(), &revision).await;
                let created = created.doing(|| format!("creating functionrevision {name}"))?;
                self.revision_writes.wrote(key, &created);
                self.recorder.normal(
                    Subject::of(function),
                    "RevisionCreated",
                    format!("Created revision {name}"),
                );
            }
            Op::DeleteRevision(name) => match revisions.delete(&name, &DeleteParams::background()).await {
                Err(error) if !is_not_found(&error) => {
                    return Err(error).doing(|| format!("deleting functionrevision {name}"));
                }
                _ => {}
            },
            Op::CreateDeployment(deployment) => {
                self.create_deployment(key, &deployments, &deployment).await?
            }
            Op::Scale { deployment, to } => {
                let patch =
                    json!({"metadata": {"annotations": {plan::RETIRED: null}}, "spec": {"replicas": to}});
                self.patch(key, &deployments, &deployment, patch).await?;
            }
            Op::Retire { deployment, at } => {
                let patch = json!({"metadata": {"annotations": {plan::RETIRED: at.to_string()}}});
                self.patch(key, &deployments, &deployment, patch).await?;
            }
        }
        Ok(())
    }

    async fn create_deployment(
        &self,
        key: &Key,
        deployments: &Api<Deployment>,
        deployment: &Deployment,
    ) -> Result<(), Error> {
        let name = owner::name(&deployment.metadata);
        match deployments.create(&PostParams::default(), deployment).await {
            Ok(created) => self.deployment_writes.wrote(key, &created),
            Err(error) if is_already_exists(&error) => {
                return Err(Error::Object(format!(
                    "deployment \"{name}\" exists and does not belong to function \"{}\"; delete or rename it",
                    key.name
                )));
            }
            Err(error) => return Err(error).doing(|| format!("creating deployment {name}")),
        }
        Ok(())
    }

    async fn patch(&self, key: &Key, api: &Api<Deployment>, name: &str, patch: Value) -> Result<(), Error> {
        let patched = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        let patched = patched.doing(|| format!("changing deployment {name}"))?;
        self.deployment_writes.wrote(key, &patched);
        Ok(())
    }

    async fn write_status(
        &self,
        key: &Key,
        function: &Function,
        status: FunctionStatus,
    ) -> Result<(), Error> {
        if function.status.as_ref() == Some(&status) {
            return Ok(());
        }
        self.tell_moved(function, &status);
        let mut changed = function.clone();
        changed.status = Some(status);
        let api = Api::<Function>::namespaced(self.client.clone(), &key.namespace);
        match api.replace_status(&key.name, &PostParams::default(), &changed).await {
            Err(gone) if is_not_found(&gone) => Ok(()),
            other => {
                let written = other.doing(|| format!("writing the status of function {key}"))?;
                self.function_writes.wrote(key, &written);
                Ok(())
            }
        }
    }

    fn tell_moved(&self, function: &Function, status: &FunctionStatus) {
        let before = function.status.as_ref().map(|old| old.traffic.as_slice()).unwrap_or_default();
        if before == status.traffic.as_slice() {
            return;
        }
        let shares = status.traffic.iter().map(|t| format!("{} {} %", t.revision_name, t.percent));
        let message = format!("Traffic goes to {}", shares.collect::<Vec<_>>().join(", "));
        self.recorder.normal(Subject::of(function), "TrafficMoved", message);
    }

    async fn write_revision_statuses(
        &self,
        key: &Key,
        statuses: BTreeMap<String, FunctionRevisionStatus>,
    ) -> Result<(), Error> {
        let api = Api::<FunctionRevision>::namespaced(self.client.clone(), &key.namespace);
        for (name, status) in statuses {
            let Some(revision) = self.revisions.get(&Key::new(key.namespace.clone(), name.clone())) else {
                continue;
            };
            if revision.status.as_ref() == Some(&status) {
                continue;
            }
            let mut changed = FunctionRevision::clone(&revision);
            changed.status = Some(status);
            match api.replace_status(&name, &PostParams::default(), &changed).await {
                Err(gone) if is_not_found(&gone) => {}
                other => {
                    let written = other.doing(|| format!("writing the status of functionrevision {name}"))?;
                    self.revision_writes.wrote(key, &written);
                }
            }
        }
        Ok(())
    }
}

fn by_label(queue: &Queue<Key>, key: &Key, labels: Option<&BTreeMap<String, String>>) {
    if let Some(function) = labels.and_then(|labels| labels.get(names::FUNCTION_LABEL)) {
        queue.add(Key::new(key.namespace.clone(), function.clone()));
    }
}

#[async_trait]
impl Reconcile for Functions {
    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        self.function_writes.seen(key, &self.functions).await;
        self.revision_writes.seen(key, &self.revisions).await;
        self.deployment_writes.seen(key, &self.deployments).await;
        let Some(function) = self.functions.get(key) else { return Ok(Next::OnChange) };
        if function.metadata.deletion_timestamp.is_some() {
            return Ok(Next::OnChange);
        }
        let planned = self.plan(key, &function);
        for op in planned.ops {
            self.apply(key, &function, op).await?;
        }
        self.write_status(key, &function, planned.status).await?;
        self.write_revision_statuses(key, planned.revisions).await?;
        Ok(planned.again.map_or(Next::OnChange, Next::After))
    }
}
