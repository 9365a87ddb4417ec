//! Life and death of nodes: silence is noticed, told and acted on.
//!
//! [`Nodes`] keeps conditions and taints; [`Evictions`] removes pods from nodes they no longer tolerate.

mod plan;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use ketch_api::k8s::{
    api::{
        coordination::v1::Lease,
        core::v1::{Node, NodeCondition, Pod, Taint},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use ketch_client::{Change, Informer, Key, Queue, Recorder, Subject, is_conflict, is_not_found};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::json;
use tokio::time::Instant;

use self::plan::Eviction;
use crate::{
    error::{Doing, Error},
    owner, pod,
    runner::{Next, Reconcile, Writes},
};

/// Where nodes renew their Leases.
const LEASES: &str = "kube-node-lease";

/// Plans for hostile objects.
#[cfg(fuzzing)]
pub(crate) fn fuzz(node: &Node, pods: &[Arc<Pod>], now: Timestamp) {
    let taints = plan::plan(node, true, true, now).taints;
    let had = node.spec.as_ref().and_then(|spec| spec.taints.clone());
    for pod in pods {
        for taints in [&taints, &had].into_iter().flatten() {
            let _ = plan::eviction(pod, taints, now);
        }
    }
}

/// Keeps conditions and taints of nodes. Keys are nodes.
pub(crate) struct Nodes {
    pub(crate) client: Client,
    pub(crate) nodes: Informer<Node>,
    pub(crate) leases: Informer<Lease>,
    pub(crate) pods: Informer<Pod>,
    pub(crate) recorder: Recorder,
    pub(crate) writes: Writes,
    /// How long a node may be silent.
    pub(crate) grace: Duration,
    /// When each node was last heard of, by our clock: theirs may be wrong.
    pub(crate) heard: Arc<Mutex<HashMap<String, Instant>>>,
}

impl Nodes {
    /// Puts nodes that a change concerns into `queue`.
    pub(crate) fn listen(&self, queue: &Queue<Key>) {
        let (own, heard, nodes) = (queue.clone(), Arc::clone(&self.heard), self.nodes.clone());
        self.nodes.on_change(move |change: &Change<Node>| {
            match (&change.old, &change.new) {
                (_, None) => {
                    heard.lock().unwrap_or_else(PoisonError::into_inner).remove(&change.key.name);
                }
                (old, Some(new)) if old.as_ref().is_none_or(|old| heartbeat(old) != heartbeat(new)) => {
                    hear(&heard, &change.key.name);
                }
                _ => {}
            }
            own.add(change.key.clone());
            // Whether pods have somewhere to go decides what becomes of those on other nodes.
            let ready = |node: &Option<Arc<Node>>| node.as_ref().is_some_and(|node| is_ready(node));
            if ready(&change.old) != ready(&change.new) {
                let lost = nodes.all().into_iter().filter(|node| !is_ready(node));
                lost.for_each(|node| own.add(Key::of(&node.metadata)));
            }
        });
        let (own, heard, grace, nodes) =
            (queue.clone(), Arc::clone(&self.heard), self.grace, self.nodes.clone());
        self.leases.on_change(move |change: &Change<Lease>| {
            if change.key.namespace != LEASES || change.new.is_none() {
                return;
            }
            let before = hear(&heard, &change.key.name);
            // Most renewals change nothing; those after a silence do.
            let key = Key::cluster(change.key.name.clone());
            if before.is_none_or(|before| before.elapsed() >= grace)
                || nodes.get(&key).is_some_and(|n| !is_ready(&n))
            {
                own.add(key);
            }
        });
    }

    fn silence(&self, node: &str) -> Duration {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.entry(node.to_owned()).or_insert_with(Instant::now).elapsed()
    }

    async fn write(&self, key: &Key, node: &Node, planned: &plan::Plan) -> Result<(), Error> {
        let api = Api::<Node>::all(self.client.clone());
        let version = &node.metadata.resource_version;
        if let Some(conditions) = &planned.conditions {
            let patch =
                json!({"metadata": {"resourceVersion": version}, "status": {"conditions": conditions}});
            let written = api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
            self.writes.wrote(key, &written.doing(|| format!("writing the conditions of node {key}"))?);
            self.recorder.normal(
                node_subject(node),
                "NodeNotReady",
                format!("Node {key} status is now: NodeNotReady"),
            );
        }
        if let Some(taints) = &planned.taints {
            // The conditions were written a moment ago; the taints do not depend on anybody else's.
            let version = version.as_ref().filter(|_| planned.conditions.is_none());
            let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}});
            let written = api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await;
            self.writes.wrote(key, &written.doing(|| format!("writing the taints of node {key}"))?);
        }
        Ok(())
    }

    /// Pods of a silent node get no traffic: nobody knows whether they answer.
    async fn mark_pods(&self, node: &str) -> Result<(), Error> {
        for pod in self.pods.all() {
            if pod::node(&pod) != node || !pod::is_ready(&pod) {
                continue;
            }
            let mut conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
            for condition in conditions.iter_mut().filter(|condition| condition.type_ == "Ready") {
                condition.status = "False".to_owned();
                condition.reason = Some("NodeNotReady".to_owned());
                condition.last_transition_time = Some(Time(Timestamp::now()));
            }
            let patch = json!({"metadata": {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version},
                "status": {"conditions": conditions}});
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
            let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
            let name = owner::name(&pod.metadata);
            match api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(error) if is_not_found(&error) || is_conflict(&error) => {}
                other => other.map(drop).doing(|| format!("marking pod {namespace}/{name} as not ready"))?,
            }
        }
        Ok(())
    }
}

fn node_subject(node: &Node) -> Subject {
    // Events of nodes carry the name in the place of the uid, as kubectl looks for them.
    Subject { uid: owner::name(&node.metadata).to_owned(), ..Subject::of(node) }
}

/// Notes that a node gave a sign of life; returns the time of the one before.
fn hear(heard: &Mutex<HashMap<String, Instant>>, node: &str) -> Option<Instant> {
    heard.lock().unwrap_or_else(PoisonError::into_inner).insert(node.to_owned(), Instant::now())
}

/// What a node writes when it reports; conditions we wrote ourselves do not count.
fn heartbeat(node: &Node) -> Vec<(String, Option<Time>)> {
    let conditions = node.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    conditions.map(|c: &NodeCondition| (c.type_.clone(), c.last_heartbeat_time.clone())).collect()
}

fn is_ready(node: &Node) -> bool {
    let mut conditions = node.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[async_trait]
impl Reconcile for Nodes {
    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        self.writes.seen(key, &self.nodes).await;
        let Some(node) = self.nodes.get(key) else { return Ok(Next::OnChange) };
        let left = self.grace.checked_sub(self.silence(&key.name)).filter(|left| !left.is_zero());
        let refuge = self.nodes.all().iter().any(|other| Key::of(&other.metadata) != *key && is_ready(other));
        let planned = plan::plan(&node, left.is_none(), refuge, Timestamp::now());
        self.write(key, &node, &planned).await?;
        if planned.lost && left.is_none() {
            self.mark_pods(&key.name).await?;
        }
        Ok(left.map_or(Next::OnChange, Next::After))
    }
}

/// Removes pods from nodes with taints they do not tolerate, or not for so long. Keys are pods.
pub(crate) struct Evictions {
    pub(crate) client: Client,
    pub(crate) nodes: Informer<Node>,
    pub(crate) pods: Informer<Pod>,
    pub(crate) recorder: Recorder,
}

impl Evictions {
    /// Puts pods that a change concerns into `queue`.
    pub(crate) fn listen(&self, queue: &Queue<Key>) {
        let (own, pods) = (queue.clone(), self.pods.clone());
        self.nodes.on_change(move |change: &Change<Node>| {
            let before = change.old.as_deref().map(evicting).unwrap_or_default();
            let Some(node) = &change.new else { return };
            if evicting(node) != before {
                let on_node = pods.all().into_iter().filter(|pod| pod::node(pod) == change.key.name);
                on_node.for_each(|pod| own.add(Key::of(&pod.metadata)));
            }
        });
        let (own, nodes) = (queue.clone(), self.nodes.clone());
        self.pods.on_change(move |change: &Change<Pod>| {
            let Some(pod) = &change.new else { return };
            let node = nodes.get(&Key::cluster(pod::node(pod)));
            if node.is_some_and(|node| !evicting(&node).is_empty()) {
                own.add(change.key.clone());
            }
        });
    }
}

fn evicting(node: &Node) -> Vec<Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    taints.into_iter().filter(|taint| taint.effect == "NoExecute").collect()
}

#[async_trait]
impl Reconcile for Evictions {
    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(pod) = self.pods.get(key).filter(|pod| pod::is_active(pod)) else {
            return Ok(Next::OnChange);
        };
        let Some(node) = self.nodes.get(&Key::cluster(pod::node(&pod))) else { return Ok(Next::OnChange) };
        match plan::eviction(&pod, &evicting(&node), Timestamp::now()) {
            Eviction::Never => Ok(Next::OnChange),
            Eviction::In(left) => Ok(Next::After(left)),
            Eviction::Now => {
                let message = format!("Marking for deletion Pod {key}");
                self.recorder.normal(Subject::of(pod.as_ref()), "TaintManagerEviction", message);
                let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
                let params = DeleteParams::default().preconditions(preconditions);
                let api = Api::<Pod>::namespaced(self.client.clone(), &key.namespace);
                match api.delete(&key.name, &params).await {
                    Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(Next::OnChange),
                    other => other.map(|_| Next::OnChange).doing(|| format!("evicting pod {key}")),
                }
            }
        }
    }
}
