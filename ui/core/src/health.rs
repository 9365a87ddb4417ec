//! One vocabulary for the state of anything, and how each kind maps to it.
//!
//! A state is shown as shape, colour and word together, so the words here are the ones users read.

use serde_json::Value;

use crate::object::{condition, deleting, int, items, text};

/// What something is up to, from best to worst within each group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Does what it should.
    Running,
    /// Ended well.
    Succeeded,
    /// No instance; wakes on request.
    ScaledToZero,
    /// Waits for something outside it.
    Pending,
    /// On its way to what was asked.
    Progressing,
    /// Works, but not as asked.
    Degraded,
    /// Does not work.
    Failed,
    /// Being deleted.
    Terminating,
    /// Nothing is known.
    Unknown,
}

impl State {
    /// All of them, in the order lists group by.
    pub const ALL: [State; 9] = [
        State::Running,
        State::Succeeded,
        State::ScaledToZero,
        State::Pending,
        State::Progressing,
        State::Degraded,
        State::Failed,
        State::Terminating,
        State::Unknown,
    ];

    /// The word shown.
    pub fn label(self) -> &'static str {
        match self {
            State::Running => "Running",
            State::Succeeded => "Succeeded",
            State::ScaledToZero => "Scaled to zero",
            State::Pending => "Pending",
            State::Progressing => "Progressing",
            State::Degraded => "Degraded",
            State::Failed => "Failed",
            State::Terminating => "Terminating",
            State::Unknown => "Unknown",
        }
    }

    /// The word in class names and in `status:` filters.
    pub fn token(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Succeeded => "succeeded",
            State::ScaledToZero => "scaledtozero",
            State::Pending => "pending",
            State::Progressing => "progressing",
            State::Degraded => "degraded",
            State::Failed => "failed",
            State::Terminating => "terminating",
            State::Unknown => "unknown",
        }
    }

    /// Whether a person should look.
    pub fn is_trouble(self) -> bool {
        matches!(self, State::Degraded | State::Failed)
    }

    /// The state that a status word of the API's `Table` form stands for.
    pub fn of_word(word: &str) -> State {
        let base = word.strip_prefix("Init:").unwrap_or(word);
        match base {
            "Running" | "Active" | "Bound" | "Ready" | "Available" | "True" | "Normal" => State::Running,
            "Completed" | "Succeeded" | "Complete" => State::Succeeded,
            "Pending" | "SchedulingGated" => State::Pending,
            "ContainerCreating" | "PodInitializing" | "Progressing" => State::Progressing,
            "Terminating" | "SuspendedTerminating" => State::Terminating,
            "NotReady" | "Warning" | "Released" | "False" => State::Degraded,
            "" | "Unknown" | "<unknown>" | "<none>" => State::Unknown,
            w if w.starts_with("Ready,") => State::Degraded,
            w if w.contains("BackOff") || w.contains("Err") || w.contains("Failed") => State::Failed,
            "OOMKilled" | "Evicted" | "DeadlineExceeded" | "NodeLost" | "InvalidImageName" => State::Failed,
            w if w.starts_with("ExitCode:") || w.starts_with("Signal:") => State::Failed,
            w if w.contains('/') => State::Progressing,
            _ => State::Unknown,
        }
    }
}

/// A state and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Drives shape, colour and word.
    pub state: State,
    /// The API's own word for the cause (`CrashLoopBackOff`), or the empty string.
    pub reason: String,
    /// The cause as a sentence, or the empty string.
    pub message: String,
}

impl Health {
    fn new(state: State, reason: &str, message: &str) -> Self {
        Self { state, reason: reason.to_owned(), message: message.to_owned() }
    }

    fn plain(state: State) -> Self {
        Self::new(state, "", "")
    }

    fn because(state: State, condition: &Value) -> Self {
        Self::new(state, text(condition, "/reason"), text(condition, "/message"))
    }

    /// What to print beside the dot: the reason when it says more than the state.
    pub fn label(&self) -> &str {
        if self.state.is_trouble() && !self.reason.is_empty() { &self.reason } else { self.state.label() }
    }
}

/// Health of an object of any kind, by its `kind`; kinds without a notion of health are running once
/// they exist.
pub fn of(kind: &str, object: &Value) -> Health {
    if deleting(object) {
        return Health::plain(State::Terminating);
    }
    match kind {
        "Function" => of_function(object),
        "FunctionRevision" => of_revision(object),
        "Deployment" => of_deployment(object),
        "Pod" => of_pod(object),
        "Node" => of_node(object),
        "Event" => Health::plain(State::of_word(text(object, "/type"))),
        _ => Health::plain(State::Running),
    }
}

fn behind(object: &Value) -> bool {
    let generation = int(object, "/metadata/generation").unwrap_or(0);
    int(object, "/status/observedGeneration").is_none_or(|seen| seen < generation)
}

fn of_function(function: &Value) -> Health {
    let Some(ready) = condition(function, "Ready") else {
        return Health::new(State::Progressing, "", "The first revision is being made.");
    };
    let serving = !items(function, "/status/traffic").is_empty();
    match text(ready, "/status") {
        _ if behind(function) => Health::new(State::Progressing, "", "The change is being rolled out."),
        "True" if text(ready, "/reason") == "ScaledToZero" => Health::because(State::ScaledToZero, ready),
        "True" => Health::because(State::Running, ready),
        "False" if is_waiting(text(ready, "/reason")) => Health::because(State::Progressing, ready),
        "False" if serving => Health::because(State::Degraded, ready),
        "False" => Health::because(State::Failed, ready),
        _ => Health::because(State::Progressing, ready),
    }
}

/// Reasons that mean "not yet" rather than "no".
fn is_waiting(reason: &str) -> bool {
    const WAITING: [&str; 8] = [
        "Pending",
        "Progressing",
        "Deploying",
        "Waiting",
        "ContainerCreating",
        "PodInitializing",
        "RevisionNotReady",
        "DeploymentNotReady",
    ];
    WAITING.contains(&reason)
}

fn of_revision(revision: &Value) -> Health {
    match condition(revision, "Ready") {
        Some(c) if text(c, "/status") == "True" => Health::because(State::Running, c),
        Some(c) if text(c, "/reason") == "Retired" || int(revision, "/status/replicas") == Some(0) => {
            Health::because(State::ScaledToZero, c)
        }
        Some(c) if text(c, "/status") == "False" && !is_waiting(text(c, "/reason")) => {
            Health::because(State::Failed, c)
        }
        Some(c) => Health::because(State::Progressing, c),
        None => Health::plain(State::Progressing),
    }
}

fn of_deployment(deployment: &Value) -> Health {
    let desired = int(deployment, "/spec/replicas").unwrap_or(1);
    let available = int(deployment, "/status/availableReplicas").unwrap_or(0);
    let updated = int(deployment, "/status/updatedReplicas").unwrap_or(0);
    let total = int(deployment, "/status/replicas").unwrap_or(0);
    if let Some(c) = condition(deployment, "Progressing").filter(|c| text(c, "/status") == "False") {
        return Health::because(if available > 0 { State::Degraded } else { State::Failed }, c);
    }
    if let Some(c) = condition(deployment, "ReplicaFailure").filter(|c| text(c, "/status") == "True") {
        return Health::because(State::Failed, c);
    }
    if desired == 0 && total == 0 {
        return Health::plain(State::ScaledToZero);
    }
    if behind(deployment) || updated < desired || total > updated || available < desired {
        let message = format!("{available} of {desired} replicas are available.");
        return Health::new(State::Progressing, "", &message);
    }
    Health::plain(State::Running)
}

/// Reasons of a waiting container that are steps, not faults.
const STEPS: [&str; 3] = ["ContainerCreating", "PodInitializing", ""];

fn of_pod(pod: &Value) -> Health {
    let statuses =
        || items(pod, "/status/initContainerStatuses").iter().chain(items(pod, "/status/containerStatuses"));
    if let Some(waiting) =
        statuses().filter_map(|s| s.pointer("/state/waiting")).find(|w| !STEPS.contains(&text(w, "/reason")))
    {
        return Health::because(State::Failed, waiting);
    }
    match text(pod, "/status/phase") {
        "Succeeded" => Health::plain(State::Succeeded),
        "Failed" => of_failed_pod(pod),
        "Running" => of_running_pod(pod),
        "Pending" => of_pending_pod(pod),
        _ => Health::plain(State::Unknown),
    }
}

fn of_failed_pod(pod: &Value) -> Health {
    let ended = items(pod, "/status/containerStatuses")
        .iter()
        .filter_map(|s| s.pointer("/state/terminated"))
        .find(|t| int(t, "/exitCode") != Some(0));
    let (reason, message) = (text(pod, "/status/reason"), text(pod, "/status/message"));
    match ended {
        _ if !reason.is_empty() => Health::new(State::Failed, reason, message),
        Some(t) if !text(t, "/message").is_empty() => Health::because(State::Failed, t),
        Some(t) => {
            let message = format!("The program ended with exit code {}.", int(t, "/exitCode").unwrap_or(-1));
            Health::new(State::Failed, text(t, "/reason"), &message)
        }
        None => Health::new(State::Failed, "", message),
    }
}

fn of_running_pod(pod: &Value) -> Health {
    match condition(pod, "Ready") {
        Some(c) if text(c, "/status") == "False" => Health::new(
            State::Progressing,
            text(c, "/reason"),
            match text(c, "/message") {
                "" => "It runs, but is not ready for requests yet.",
                message => message,
            },
        ),
        _ => Health::plain(State::Running),
    }
}

fn of_pending_pod(pod: &Value) -> Health {
    match condition(pod, "PodScheduled") {
        Some(c) if text(c, "/status") == "False" => Health::because(State::Pending, c),
        Some(_) => Health::new(State::Progressing, "ContainerCreating", "The node is preparing it."),
        None => Health::new(State::Pending, "", "It waits for a node."),
    }
}

fn of_node(node: &Value) -> Health {
    let health = match condition(node, "Ready") {
        Some(c) if text(c, "/status") == "True" => Health::plain(State::Running),
        Some(c) if text(c, "/status") == "False" => Health::because(State::Failed, c),
        Some(c) => Health::because(State::Unknown, c),
        None => Health::plain(State::Unknown),
    };
    let cordoned = node.pointer("/spec/unschedulable").and_then(Value::as_bool) == Some(true);
    if cordoned && health.state == State::Running {
        return Health::new(State::Degraded, "SchedulingDisabled", "No new pods are placed on it.");
    }
    health
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn function(status: &str, reason: &str, traffic: bool) -> Value {
        let traffic = if traffic { json!([{"revisionName": "a-00001", "percent": 100}]) } else { json!([]) };
        json!({
            "metadata": {"generation": 2},
            "status": {
                "observedGeneration": 2, "traffic": traffic,
                "conditions": [{"type": "Ready", "status": status, "reason": reason, "message": "m"}],
            },
        })
    }

    #[test]
    fn functions() {
        assert_eq!(of("Function", &function("True", "", true)).state, State::Running);
        assert_eq!(of("Function", &function("True", "ScaledToZero", true)).state, State::ScaledToZero);
        assert_eq!(of("Function", &function("False", "CrashLoopBackOff", false)).state, State::Failed);
        let degraded = of("Function", &function("False", "CrashLoopBackOff", true));
        assert_eq!(degraded.state, State::Degraded, "the old revision still answers");
        assert_eq!(degraded.label(), "CrashLoopBackOff");
        assert_eq!(of("Function", &function("Unknown", "", false)).state, State::Progressing);
        assert_eq!(of("Function", &json!({"metadata": {}})).state, State::Progressing);
        let mut stale = function("True", "", true);
        stale["metadata"]["generation"] = json!(3);
        assert_eq!(of("Function", &stale).state, State::Progressing);
        stale["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(of("Function", &stale).state, State::Terminating);
    }

    #[test]
    fn deployments() {
        let deployment = |desired: i64, available: i64, updated: i64| {
            json!({
                "metadata": {"generation": 1}, "spec": {"replicas": desired},
                "status": {"observedGeneration": 1, "replicas": updated, "availableReplicas": available, "updatedReplicas": updated},
            })
        };
        assert_eq!(of("Deployment", &deployment(2, 2, 2)).state, State::Running);
        assert_eq!(of("Deployment", &deployment(2, 1, 2)).state, State::Progressing);
        assert_eq!(of("Deployment", &deployment(0, 0, 0)).state, State::ScaledToZero);
        let mut late = deployment(2, 0, 2);
        late["status"]["conditions"] =
            json!([{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]);
        assert_eq!(of("Deployment", &late).state, State::Failed);
        assert_eq!(of("Deployment", &late).label(), "ProgressDeadlineExceeded");
    }

    #[test]
    fn pods() {
        let pod = |phase: &str, extra: Value| {
            let mut pod = json!({"metadata": {}, "status": {"phase": phase}});
            for (key, value) in extra.as_object().into_iter().flatten() {
                pod["status"][key] = value.clone();
            }
            pod
        };
        assert_eq!(of("Pod", &pod("Succeeded", json!({}))).state, State::Succeeded);
        assert_eq!(of("Pod", &pod("Pending", json!({}))).state, State::Pending);
        let crash = json!({"containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}}]});
        let health = of("Pod", &pod("Running", crash));
        assert_eq!((health.state, health.message.as_str()), (State::Failed, "back-off"));
        let ended =
            json!({"containerStatuses": [{"state": {"terminated": {"exitCode": 3, "reason": "Error"}}}]});
        assert_eq!(of("Pod", &pod("Failed", ended)).message, "The program ended with exit code 3.");
        let unready = json!({"conditions": [{"type": "Ready", "status": "False"}]});
        assert_eq!(of("Pod", &pod("Running", unready)).state, State::Progressing);
        let creating = json!({"conditions": [{"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]});
        assert_eq!(of("Pod", &pod("Pending", creating)).state, State::Progressing);
    }

    #[test]
    fn nodes() {
        let mut node =
            json!({"metadata": {}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        assert_eq!(of("Node", &node).state, State::Running);
        node["spec"] = json!({"unschedulable": true});
        assert_eq!(of("Node", &node).label(), "SchedulingDisabled");
        node["status"]["conditions"][0]["status"] = json!("Unknown");
        assert_eq!(of("Node", &node).state, State::Unknown);
    }

    #[test]
    fn words_of_tables() {
        for (word, state) in [
            ("Running", State::Running),
            ("CrashLoopBackOff", State::Failed),
            ("ErrImagePull", State::Failed),
            ("Init:0/2", State::Progressing),
            ("Completed", State::Succeeded),
            ("Ready,SchedulingDisabled", State::Degraded),
            ("ContainerCreating", State::Progressing),
        ] {
            assert_eq!(State::of_word(word), state, "{word}");
        }
    }
}
