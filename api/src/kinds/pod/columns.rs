//! The row of a pod: `printPod` of `pkg/printers/internalversion/printers.go`.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus, Pod, PodStatus};
use serde_json::Value;

use crate::{
    kinds::or_none,
    strategy::{Column, Meta, human_duration},
};

pub(super) const COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text("Ready"),
    Column::text("Status"),
    Column::text("Restarts"),
    Column::AGE,
    Column::wide("IP"),
    Column::wide("Node"),
    Column::wide("Nominated Node"),
    Column::wide("Readiness Gates"),
];

/// Reason of the status of a pod whose node does not answer.
const NODE_LOST: &str = "NodeLost";

pub(super) fn row(pod: &Pod, metadata: &Meta<'_>) -> Vec<Value> {
    let spec = pod.spec.clone().unwrap_or_default();
    let none = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&none);
    let summary = Summary::of(pod, status);
    let sidecars = spec.init_containers.iter().flatten().filter(|c| is_sidecar(c)).count();
    let ready = format!("{}/{}", summary.ready, spec.containers.len() + sidecars);
    let restarts = match summary.last_restart {
        Some(at) if summary.restarts > 0 => {
            format!("{} ({} ago)", summary.restarts, human_duration(metadata.now.duration_since(at)))
        }
        _ => summary.restarts.to_string(),
    };
    let ip = status.pod_ips.iter().flatten().next().map(|ip| ip.ip.as_str()).or(status.pod_ip.as_deref());
    vec![
        metadata.name.into(),
        ready.into(),
        summary.reason.into(),
        restarts.into(),
        metadata.age().into(),
        or_none(ip).into(),
        or_none(spec.node_name.as_deref()).into(),
        or_none(status.nominated_node_name.as_deref()).into(),
        gates(&spec, status).into(),
    ]
}

fn gates(spec: &k8s_openapi::api::core::v1::PodSpec, status: &PodStatus) -> String {
    let gates = spec.readiness_gates.as_deref().unwrap_or_default();
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let met = gates.iter().filter(|gate| condition(status, &gate.condition_type) == Some("True")).count();
    format!("{met}/{}", gates.len())
}

fn condition<'a>(status: &'a PodStatus, kind: &str) -> Option<&'a str> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind).map(|c| c.status.as_str())
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// What a pod's containers add up to.
#[derive(Default)]
struct Summary {
    reason: String,
    ready: usize,
    restarts: i32,
    last_restart: Option<Timestamp>,
}

/// Restarts of some containers and the time of the last one.
#[derive(Clone, Copy, Default)]
struct Restarts {
    count: i32,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &ContainerStatus) {
        self.count += status.restart_count;
        let ended = status.last_state.as_ref().and_then(|s| s.terminated.as_ref());
        let at = ended.and_then(|t| t.finished_at.as_ref()).map(|t| t.0);
        self.last = self.last.max(at);
    }
}

impl Summary {
    fn of(pod: &Pod, status: &PodStatus) -> Self {
        let set = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
        let mut summary = Summary {
            reason: set(&status.reason).or_else(|| set(&status.phase)).unwrap_or_default(),
            ..Self::default()
        };
        let gated = |c: &k8s_openapi::api::core::v1::PodCondition| {
            c.type_ == "PodScheduled" && c.reason.as_deref() == Some("SchedulingGated")
        };
        if status.conditions.iter().flatten().any(gated) {
            summary.reason = "SchedulingGated".to_owned();
        }
        let sidecars = summary.init_containers(pod, status);
        match sidecars {
            // Still initialising: the init containers tell the story.
            None if condition(status, "Initialized") != Some("True") => {}
            sidecars => summary.containers(status, sidecars.unwrap_or_default()),
        }
        let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        if pod.metadata.deletion_timestamp.is_some() {
            if status.reason.as_deref() == Some(NODE_LOST) {
                summary.reason = "Unknown".to_owned();
            } else if !ended {
                summary.reason = "Terminating".to_owned();
            }
        }
        summary
    }

    /// Walks the init containers; the restarts of sidecars when all that must end have ended.
    fn init_containers(&mut self, pod: &Pod, status: &PodStatus) -> Option<Restarts> {
        let specs = pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
        let (mut all, mut sidecars) = (Restarts::default(), Restarts::default());
        let mut stuck = None;
        for (n, container) in status.init_container_statuses.iter().flatten().enumerate() {
            all.add(container);
            let sidecar = specs.iter().any(|c| c.name == container.name && is_sidecar(c));
            if sidecar {
                sidecars.add(container);
            }
            let state = container.state.clone().unwrap_or_default();
            if state.terminated.as_ref().is_some_and(|t| t.exit_code == 0) {
                continue;
            }
            if sidecar && container.started == Some(true) {
                self.ready += usize::from(container.ready);
                continue;
            }
            stuck = Some(init_reason(&state, n, specs.len()));
            break;
        }
        (self.restarts, self.last_restart) = (all.count, all.last);
        match stuck {
            Some(reason) => {
                self.reason = reason;
                None
            }
            None => Some(sidecars),
        }
    }

    fn containers(&mut self, status: &PodStatus, sidecars: Restarts) {
        let mut restarts = sidecars;
        let mut running = false;
        // Backwards, so that the first container's reason wins.
        for container in status.container_statuses.iter().flatten().rev() {
            restarts.add(container);
            let state = container.state.clone().unwrap_or_default();
            if let Some(reason) = container_reason(&state) {
                self.reason = reason;
            } else if container.ready && state.running.is_some() {
                running = true;
                self.ready += 1;
            }
        }
        (self.restarts, self.last_restart) = (restarts.count, restarts.last);
        if self.reason == "Completed" && running {
            let ready = condition(status, "Ready") == Some("True");
            self.reason = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
}

fn init_reason(state: &ContainerState, at: usize, of: usize) -> String {
    if let Some(ended) = &state.terminated {
        return match (ended.reason.as_deref().unwrap_or_default(), ended.signal.unwrap_or(0)) {
            ("", 0) => format!("Init:ExitCode:{}", ended.exit_code),
            ("", signal) => format!("Init:Signal:{signal}"),
            (reason, _) => format!("Init:{reason}"),
        };
    }
    match state.waiting.as_ref().and_then(|w| w.reason.as_deref()).unwrap_or_default() {
        "" | "PodInitializing" => format!("Init:{at}/{of}"),
        reason => format!("Init:{reason}"),
    }
}

fn container_reason(state: &ContainerState) -> Option<String> {
    let waiting = state.waiting.as_ref().and_then(|w| w.reason.clone()).filter(|r| !r.is_empty());
    waiting.or_else(|| {
        let ended = state.terminated.as_ref()?;
        Some(match (ended.reason.as_deref().unwrap_or_default(), ended.signal.unwrap_or(0)) {
            ("", 0) => format!("ExitCode:{}", ended.exit_code),
            ("", signal) => format!("Signal:{signal}"),
            (reason, _) => reason.to_owned(),
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::kinds::tests::row;

    /// Ready, status and restarts of a pod with two containers and an init container.
    fn cells(status: Value, deleting: bool) -> String {
        let mut pod = json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]},
            "status": status,
        });
        if deleting {
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        row("Pod", &pod).split('|').skip(1).take(3).collect::<Vec<_>>().join(" ")
    }

    fn container(state: Value) -> Value {
        json!({"name": "a", "ready": state.get("running").is_some(), "restartCount": 0, "state": state})
    }

    #[test]
    fn status_text() {
        let running = || container(json!({"running": {}}));
        let waiting = |reason: &str| container(json!({"waiting": {"reason": reason}}));
        let ended =
            |code: i32, reason: &str| container(json!({"terminated": {"exitCode": code, "reason": reason}}));
        let with =
            |phase: &str, containers: Vec<Value>| json!({"phase": phase, "containerStatuses": containers});
        let init = |state: Value| json!({"phase": "Pending", "initContainerStatuses": [container(state)]});
        for (status, deleting, want) in [
            (json!({"phase": "Pending"}), false, "0/2 Pending 0"),
            (with("Running", vec![running(), running()]), false, "2/2 Running 0"),
            (with("Running", vec![running(), waiting("CrashLoopBackOff")]), false, "1/2 CrashLoopBackOff 0"),
            (
                with("Pending", vec![waiting("ContainerCreating"), waiting("ContainerCreating")]),
                false,
                "0/2 ContainerCreating 0",
            ),
            (with("Succeeded", vec![ended(0, "Completed"), ended(0, "Completed")]), false, "0/2 Completed 0"),
            (with("Failed", vec![ended(1, "Error"), ended(0, "Completed")]), false, "0/2 Error 0"),
            (with("Failed", vec![ended(3, "")]), false, "0/2 ExitCode:3 0"),
            (with("Running", vec![ended(0, "Completed"), running()]), false, "1/2 NotReady 0"),
            (json!({"phase": "Failed", "reason": "Evicted"}), false, "0/2 Evicted 0"),
            (with("Running", vec![running(), running()]), true, "2/2 Terminating 0"),
            (with("Succeeded", vec![ended(0, "Completed")]), true, "0/2 Completed 0"),
            (json!({"phase": "Running", "reason": "NodeLost"}), true, "0/2 Unknown 0"),
            (init(json!({"running": {}})), false, "0/2 Init:0/1 0"),
            (init(json!({"waiting": {"reason": "PodInitializing"}})), false, "0/2 Init:0/1 0"),
            (init(json!({"waiting": {"reason": "ErrImagePull"}})), false, "0/2 Init:ErrImagePull 0"),
            (init(json!({"terminated": {"exitCode": 1, "reason": "Error"}})), false, "0/2 Init:Error 0"),
            (init(json!({"terminated": {"exitCode": 2}})), false, "0/2 Init:ExitCode:2 0"),
            (init(json!({"terminated": {"exitCode": 1, "signal": 9}})), false, "0/2 Init:Signal:9 0"),
        ] {
            assert_eq!(cells(status.clone(), deleting), want, "{status}");
        }
    }

    #[test]
    fn restarts_tell_when() {
        // Rows are printed at 2026-01-01T01:00:00Z.
        let status = json!({"phase": "Running", "containerStatuses": [
            {"name": "a", "ready": true, "restartCount": 3, "state": {"running": {}},
             "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:55:00Z"}}},
        ]});
        assert_eq!(cells(status, false), "1/2 Running 3 (5m ago)");
    }

    #[test]
    fn wide_cells() {
        let pod = json!({
            "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:30:00Z"},
            "spec": {"containers": [{"name": "a"}], "nodeName": "n1", "readinessGates": [{"conditionType": "x"}, {"conditionType": "y"}]},
            "status": {"phase": "Running", "podIP": "10.42.0.7", "podIPs": [{"ip": "10.42.0.7"}], "conditions": [{"type": "x", "status": "True"}]},
        });
        assert_eq!(row("Pod", &pod), "p|0/1|Running|0|30m|10.42.0.7|n1|<none>|1/2");
    }
}
