//! Feeds the core with changes and carries out its decisions.
//!
//! One task owns the picture of the cluster and decides; the requests that follow from a decision run
//! beside it. A pod counts as placed from the decision on ("assumed"), so the next decision sees it.

use std::sync::Arc;

use jiff::Timestamp;
use ketch_api::{
    k8s::{
        api::{
            core::v1::{
                Binding, Namespace, Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod,
                PodCondition,
            },
            storage::v1::StorageClass,
        },
        apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    },
    volume::{BOUND_BY_CONTROLLER, SELECTED_NODE},
};
use ketch_client::{
    Change, Informer, Informers, Recorder, Report, Subject, TaskError, Tasks, is_conflict, is_not_found,
    status_text,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};

use crate::{
    core::{Cluster, PodInfo, Settle, Unschedulable, schedule, settle},
    pending::Pending,
};

/// Pods with another scheduler's name are left to it.
const NAME: &str = "default-scheduler";
/// Requests under way at a time.
const CONCURRENCY: usize = 64;
/// Attempts to write a pod's condition while others write to it too.
const STATUS_TRIES: usize = 3;
/// Decisions in a row before events are looked at.
const BATCH: usize = 64;

/// The running scheduler; dropping it does not stop it, [`Scheduler::shutdown`] does.
pub struct Scheduler {
    tasks: Tasks,
}

// === impl Scheduler ===

impl Scheduler {
    /// Starts binding pods to nodes. It acts through `client` and looks at `informers`.
    pub fn start(client: Client, informers: &Informers) -> Self {
        let tasks = Tasks::new();
        let recorder = Recorder::new(client.clone(), NAME, &tasks);
        let watched = Watched {
            pods: informers.of(),
            nodes: informers.of(),
            namespaces: informers.of(),
            claims: informers.of(),
            volumes: informers.of(),
            classes: informers.of(),
        };
        tasks.spawn("scheduler", move || {
            let (inbox, watched) = (watched.subscribe(), watched.clone());
            let actor = Actor { client: client.clone(), recorder: recorder.clone() };
            async move {
                // A decision on half a picture would be wrong.
                watched.ready().await;
                run(actor, inbox).await
            }
        });
        Self { tasks }
    }

    /// What its tasks are doing.
    pub fn reports(&self) -> Vec<Report> {
        self.tasks.reports()
    }

    /// Ends it and returns when it has ended.
    pub async fn shutdown(&self) {
        self.tasks.shutdown().await;
    }
}

enum Event {
    Pod(Change<Pod>),
    Node(Change<Node>),
    Namespace(Change<Namespace>),
    Claim(Change<PersistentVolumeClaim>),
    Volume(Change<PersistentVolume>),
    Class(Change<StorageClass>),
}

/// What decisions are made from.
#[derive(Clone)]
struct Watched {
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    namespaces: Informer<Namespace>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
}

impl Watched {
    fn subscribe(&self) -> mpsc::UnboundedReceiver<Event> {
        // Unbounded: an informer must not wait for its listeners, and the copies are shared.
        let (events, inbox) = mpsc::unbounded_channel();
        let to = events.clone();
        self.nodes.on_change(move |change| drop(to.send(Event::Node(change.clone()))));
        let to = events.clone();
        self.namespaces.on_change(move |change| drop(to.send(Event::Namespace(change.clone()))));
        let to = events.clone();
        self.classes.on_change(move |change| drop(to.send(Event::Class(change.clone()))));
        let to = events.clone();
        self.volumes.on_change(move |change| drop(to.send(Event::Volume(change.clone()))));
        let to = events.clone();
        self.claims.on_change(move |change| drop(to.send(Event::Claim(change.clone()))));
        self.pods.on_change(move |change| drop(events.send(Event::Pod(change.clone()))));
        inbox
    }

    async fn ready(&self) {
        tokio::join!(
            self.pods.ready(),
            self.nodes.ready(),
            self.namespaces.ready(),
            self.claims.ready(),
            self.volumes.ready(),
            self.classes.ready(),
        );
    }
}

/// How the requests for one pod ended.
enum Outcome {
    Bound,
    /// It is gone, or bound by somebody else; the watch tells what is true.
    Moot(String),
    Failed(String, String),
    /// It waits for the volumes of its claims.
    Settling(String),
    Told,
}

async fn run(actor: Actor, mut inbox: mpsc::UnboundedReceiver<Event>) -> Result<(), TaskError> {
    let mut state = State { cluster: Cluster::new(), pending: Pending::default() };
    let mut requests = JoinSet::new();
    loop {
        while let Ok(event) = inbox.try_recv() {
            state.observe(event);
        }
        for _ in 0..BATCH {
            if requests.len() >= CONCURRENCY {
                break;
            }
            let Some(info) = state.pending.pop(Instant::now()) else { break };
            let actor = actor.clone();
            match state.decide(&info) {
                Ok(node) => match settle(&state.cluster, &info, &node) {
                    None => requests.spawn(async move { actor.bind(&info, node).await }),
                    Some(steps) => requests.spawn(async move { actor.settle(&info, steps).await }),
                },
                Err(refused) => requests.spawn(async move { actor.explain(&info, refused).await }),
            };
        }
        let due = state.pending.next_due();
        let more = state.pending.has_ready() && requests.len() < CONCURRENCY;
        tokio::select! {
            biased;
            event = inbox.recv() => match event {
                Some(event) => state.observe(event),
                None => return Err(TaskError::new("the watches ended")),
            },
            Some(outcome) = requests.join_next() => state.conclude(outcome),
            () = tokio::task::yield_now(), if more => {}
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() && requests.len() < CONCURRENCY => {}
        }
    }
}

/// What the deciding task owns.
struct State {
    cluster: Cluster,
    pending: Pending,
}

impl State {
    fn observe(&mut self, event: Event) {
        match event {
            Event::Node(Change { key, new, .. }) => {
                match new {
                    Some(node) => self.cluster.set_node(&node),
                    None => self.cluster.remove_node(&key.name),
                }
                self.pending.room_was_made();
            }
            Event::Namespace(Change { key, new, .. }) => match new {
                Some(namespace) => {
                    let labels = namespace.metadata.labels.clone().unwrap_or_default();
                    self.cluster.set_namespace(&key.name, labels);
                }
                None => self.cluster.remove_namespace(&key.name),
            },
            Event::Pod(change) => self.observe_pod(change),
            Event::Claim(Change { key, new, .. }) => {
                self.cluster.set_claim(&key.namespace, &key.name, new);
                self.pending.claim_changed(&key.namespace, &key.name);
            }
            Event::Volume(Change { key, new, .. }) => {
                self.cluster.set_volume(&key.name, new);
                self.pending.room_was_made();
            }
            Event::Class(Change { key, new, .. }) => {
                self.cluster.set_class(&key.name, new);
                self.pending.room_was_made();
            }
        }
    }

    fn observe_pod(&mut self, Change { old, new, .. }: Change<Pod>) {
        let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
        let replaced = old.filter(|old| new.as_ref().is_none_or(|new| uid(new) != uid(old)));
        if let Some(gone) = replaced {
            self.forget(&uid(&gone));
        }
        let Some(pod) = new else { return };
        let (uid, node) = (uid(&pod), node_of(&pod).to_owned());
        if is_finished(&pod) {
            self.forget(&uid);
        } else if !node.is_empty() {
            self.pending.remove(&uid);
            self.cluster.place(Arc::new(PodInfo::new(pod)), &node);
        } else if pod.metadata.deletion_timestamp.is_some() {
            self.pending.remove(&uid);
        } else if is_ours(&pod) && self.cluster.node_of(&uid).is_none() {
            self.pending.put(PodInfo::new(pod));
        }
    }

    fn forget(&mut self, uid: &str) {
        self.pending.remove(uid);
        if self.cluster.remove_pod(uid) {
            self.pending.room_was_made();
        }
    }

    fn decide(&mut self, info: &Arc<PodInfo>) -> Result<String, Unschedulable> {
        let uid = info.pod.metadata.uid.as_deref().unwrap_or_default();
        match schedule(&self.cluster, info) {
            Ok(node) => {
                self.cluster.place(Arc::clone(info), &node);
                Ok(node)
            }
            Err(refused) => {
                self.pending.set_aside(uid, Instant::now());
                Err(refused)
            }
        }
    }

    /// A pod was not bound after all. If the watch has settled the matter meanwhile, it knows better.
    fn take_back(&mut self, uid: &str) {
        if self.pending.holds(uid) {
            self.cluster.remove_pod(uid);
            self.pending.failed(uid, Instant::now());
        }
    }

    /// A pod whose claims have no volumes yet has no place either; it is tried when the claims change.
    fn wait_for_volumes(&mut self, uid: &str) {
        let Some(info) = self.pending.info(uid).cloned() else { return };
        let node = self.cluster.node_of(uid).unwrap_or_default().to_owned();
        self.cluster.remove_pod(uid);
        match settle(&self.cluster, &info, &node) {
            Some(_) => self.pending.set_aside(uid, Instant::now()),
            // They came while the request was under way.
            None => self.pending.again(uid),
        }
    }

    fn conclude(&mut self, outcome: Result<Outcome, tokio::task::JoinError>) {
        match outcome {
            Ok(Outcome::Bound | Outcome::Told) => {}
            Ok(Outcome::Moot(uid)) => self.take_back(&uid),
            Ok(Outcome::Settling(uid)) => self.wait_for_volumes(&uid),
            Ok(Outcome::Failed(uid, error)) => {
                tracing::warn!(pod.uid = uid, error, "binding failed, trying again");
                self.take_back(&uid);
            }
            Err(error) => tracing::error!(%error, "a binding task broke"),
        }
    }
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn is_ours(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
    !gated && spec.scheduler_name.as_deref().is_none_or(|name| name == NAME)
}

/// Makes the requests.
#[derive(Clone)]
struct Actor {
    client: Client,
    recorder: Recorder,
}

impl Actor {
    fn api(&self, pod: &Pod) -> Api<Pod> {
        Api::namespaced(self.client.clone(), pod.metadata.namespace.as_deref().unwrap_or("default"))
    }

    async fn bind(&self, info: &PodInfo, node: String) -> Outcome {
        let meta = &info.pod.metadata;
        let (name, uid) = (meta.name.clone().unwrap_or_default(), meta.uid.clone().unwrap_or_default());
        let binding = Binding {
            metadata: ObjectMeta {
                name: meta.name.clone(),
                namespace: meta.namespace.clone(),
                uid: meta.uid.clone(),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(node.clone()),
                ..ObjectReference::default()
            },
        };
        let params = PostParams::default();
        match self.api(&info.pod).create_subresource::<_, Value>("binding", &name, &params, &binding).await {
            Ok(_) => {
                let namespace = meta.namespace.as_deref().unwrap_or("default");
                let message = format!("Successfully assigned {namespace}/{name} to {node}");
                self.recorder.normal(Subject::of(info.pod.as_ref()), "Scheduled", message);
                Outcome::Bound
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Outcome::Moot(uid),
            Err(error) => Outcome::Failed(uid, status_text(&error)),
        }
    }

    /// Keeps or asks for the volumes of the pod's claims; whoever binds or makes them goes on from there.
    async fn settle(&self, info: &PodInfo, steps: Vec<Settle>) -> Outcome {
        let uid = info.pod.metadata.uid.clone().unwrap_or_default();
        for step in steps {
            if let Err(error) = self.write(step).await {
                return Outcome::Failed(uid, status_text(&error));
            }
        }
        Outcome::Settling(uid)
    }

    async fn write(&self, step: Settle) -> Result<(), kube::Error> {
        let params = PatchParams::default();
        match step {
            Settle::Select(claim, node) => {
                let meta = &claim.metadata;
                let namespace = meta.namespace.as_deref().unwrap_or("default");
                let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), namespace);
                let patch = json!({"metadata": {"uid": meta.uid, "annotations": {SELECTED_NODE: node}}});
                api.patch(meta.name.as_deref().unwrap_or_default(), &params, &Patch::Merge(patch))
                    .await
                    .map(drop)
            }
            Settle::Reserve(volume, claim) => {
                let (meta, claim) = (&volume.metadata, &claim.metadata);
                let api = Api::<PersistentVolume>::all(self.client.clone());
                let patch = json!({
                    "metadata": {"resourceVersion": meta.resource_version, "annotations": {BOUND_BY_CONTROLLER: "yes"}},
                    "spec": {"claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim",
                        "namespace": claim.namespace, "name": claim.name, "uid": claim.uid}},
                });
                api.patch(meta.name.as_deref().unwrap_or_default(), &params, &Patch::Merge(patch))
                    .await
                    .map(drop)
            }
        }
    }

    /// Writes on the pod, and as an event, why it has no node.
    async fn explain(&self, info: &PodInfo, refused: Unschedulable) -> Outcome {
        let message = refused.to_string();
        self.recorder.warning(Subject::of(info.pod.as_ref()), "FailedScheduling", message.as_str());
        let (api, mut pod) = (self.api(&info.pod), Pod::clone(&info.pod));
        let name = pod.metadata.name.clone().unwrap_or_default();
        for _ in 0..STATUS_TRIES {
            let Some(patch) = explanation(&pod, &message, Timestamp::now()) else { break };
            match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(error) if is_conflict(&error) => {}
                Err(error) if !is_not_found(&error) => {
                    tracing::debug!(pod = name, error = status_text(&error), "condition not written");
                    break;
                }
                _ => break,
            }
            // Somebody else wrote: what is there now decides whether there is still something to tell.
            match api.get_opt(&name).await {
                Ok(Some(now)) if now.metadata.uid == pod.metadata.uid => pod = now,
                _ => break,
            }
        }
        Outcome::Told
    }
}

/// The patch that says why a pod has no node, if nobody has changed the pod since; `None` when it has one,
/// or says so already.
fn explanation(pod: &Pod, message: &str, now: Timestamp) -> Option<Value> {
    if !node_of(pod).is_empty() {
        return None;
    }
    let condition = unschedulable(pod, message, now)?;
    let others = pod.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    let mut conditions: Vec<PodCondition> = others.filter(|c| c.type_ != condition.type_).cloned().collect();
    conditions.push(condition);
    let meta = &pod.metadata;
    Some(json!({"metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version},
        "status": {"conditions": conditions}}))
}

/// The condition to write; `None` when the pod has it.
fn unschedulable(pod: &Pod, message: &str, now: Timestamp) -> Option<PodCondition> {
    let mut conditions = pod.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    let old = conditions.find(|condition| condition.type_ == "PodScheduled");
    if old.is_some_and(|old| old.status == "False" && old.message.as_deref() == Some(message)) {
        return None;
    }
    let since = old.filter(|old| old.status == "False").and_then(|old| old.last_transition_time.clone());
    Some(PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: Some("Unschedulable".to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(since.unwrap_or(Time(now))),
        observed_generation: pod.metadata.generation,
        ..PodCondition::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(node: Option<&str>) -> Arc<Pod> {
        let spec = match node {
            Some(node) => json!({"nodeName": node, "containers": []}),
            None => json!({"containers": []}),
        };
        let pod = json!({"metadata": {"name": "p", "uid": "u", "namespace": "a"}, "spec": spec});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn change(old: Option<Arc<Pod>>, new: Option<Arc<Pod>>) -> Event {
        Event::Pod(Change { key: ketch_client::Key::new("a", "p"), old, new })
    }

    fn state() -> State {
        let mut state = State { cluster: Cluster::new(), pending: Pending::default() };
        let node = json!({"metadata": {"name": "n1"}, "status": {"allocatable": {"pods": "1"}}});
        let node: Arc<Node> = Arc::new(serde_json::from_value(node).unwrap());
        let key = ketch_client::Key::cluster("n1");
        state.observe(Event::Node(Change { key, old: None, new: Some(node) }));
        state.observe(change(None, Some(pod(None))));
        state
    }

    #[test]
    fn a_failed_binding_is_taken_back_and_tried_again() {
        let mut state = state();
        let info = state.pending.pop(Instant::now()).unwrap();
        assert_eq!(state.decide(&info).as_deref(), Ok("n1"));
        assert_eq!(state.cluster.node_of("u"), Some("n1"), "assumed");
        state.observe(change(Some(pod(None)), Some(pod(None))));
        assert!(state.pending.pop(Instant::now()).is_none(), "it is being bound");
        state.conclude(Ok(Outcome::Failed("u".into(), "no luck".into())));
        assert_eq!(state.cluster.node_of("u"), None);
        assert!(state.pending.next_due().is_some());
    }

    #[test]
    fn what_the_watch_says_about_a_binding_stands() {
        let mut state = state();
        let info = state.pending.pop(Instant::now()).unwrap();
        state.decide(&info).unwrap();
        state.observe(change(Some(pod(None)), Some(pod(Some("n2")))));
        state.conclude(Ok(Outcome::Moot("u".into())));
        assert_eq!(state.cluster.node_of("u"), Some("n2"));
        state.observe(change(Some(pod(Some("n2"))), None));
        assert_eq!(state.cluster.node_of("u"), None);
    }

    #[test]
    fn a_pod_that_fits_nowhere_is_tried_when_another_leaves() {
        let mut state = state();
        let first = state.pending.pop(Instant::now()).unwrap();
        state.decide(&first).unwrap();
        let second =
            json!({"metadata": {"name": "q", "uid": "v", "namespace": "a"}, "spec": {"containers": []}});
        let second: Arc<Pod> = Arc::new(serde_json::from_value(second).unwrap());
        let key = ketch_client::Key::new("a", "q");
        state.observe(Event::Pod(Change { key, old: None, new: Some(second) }));
        let waiting = state.pending.pop(Instant::now()).unwrap();
        let refused = state.decide(&waiting).unwrap_err();
        assert_eq!(refused.to_string(), "0/1 nodes are available: 1 Too many pods.");
        assert!(state.pending.pop(Instant::now()).is_none());
        state.observe(change(Some(pod(Some("n1"))), None));
        assert!(state.pending.pop(Instant::now()).is_some());
    }

    #[test]
    fn gated_and_foreign_pods_are_left_alone() {
        let foreign = json!({"metadata": {}, "spec": {"schedulerName": "mine", "containers": []}});
        let gated = json!({"metadata": {}, "spec": {"schedulingGates": [{"name": "g"}], "containers": []}});
        for pod in [foreign, gated] {
            assert!(!is_ours(&serde_json::from_value(pod).unwrap()));
        }
        assert!(is_ours(&pod(None)));
    }

    #[test]
    fn the_condition_is_written_once_per_message() {
        let now = Timestamp::UNIX_EPOCH;
        let first = unschedulable(&pod(None), "no room", now).unwrap();
        let mut told = Pod::clone(&pod(None));
        told.status.get_or_insert_default().conditions = Some(vec![first.clone()]);
        assert_eq!(unschedulable(&told, "no room", now), None);
        let later = now + std::time::Duration::from_secs(9);
        let other = unschedulable(&told, "still no room", later).unwrap();
        assert_eq!(other.last_transition_time, first.last_transition_time);
        assert_eq!(explanation(&pod(Some("n1")), "too late", later), None, "it has a node");
    }
}
