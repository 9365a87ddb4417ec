//! Why something does not work, in one sentence, with the evidence and the next step.
//!
//! Joins what is spread over an app's conditions, its pods' container states and its events. The first
//! fault that explains the others wins: a container that cannot start explains the missing replica.

use serde_json::Value;

use crate::{
    format::count,
    health::{self, State},
    object::{condition, event_count, int, items, name, text},
};

/// What is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// One sentence.
    pub cause: String,
    /// Facts that led to it, most telling first.
    pub evidence: Vec<String>,
    /// What to do next.
    pub advice: String,
    /// The pod to look at, when there is one.
    pub pod: Option<String>,
}

/// Looks for the cause. `object` is the Function, Deployment or Pod; `None` when nothing is wrong.
pub fn diagnose(kind: &str, object: &Value, pods: &[&Value], events: &[&Value]) -> Option<Diagnosis> {
    let health = health::of(kind, object);
    if matches!(health.state, State::Running | State::Succeeded | State::ScaledToZero | State::Terminating) {
        return None;
    }
    let mut found = pods.iter().find_map(|pod| of_pod(pod)).or_else(|| of_condition(&health))?;
    for event in events.iter().filter(|e| text(e, "/type") == "Warning").take(3) {
        found.evidence.push(event_line(event));
    }
    found.evidence.dedup();
    Some(found)
}

fn event_line(event: &Value) -> String {
    let times = match event_count(event) {
        1 => String::new(),
        n => format!(" ({n} times)"),
    };
    format!("{}: {}{times}", text(event, "/reason"), text(event, "/message"))
}

fn of_condition(health: &health::Health) -> Option<Diagnosis> {
    if !health.state.is_trouble() || (health.reason.is_empty() && health.message.is_empty()) {
        return None;
    }
    Some(Diagnosis {
        cause: if health.message.is_empty() { health.reason.clone() } else { health.message.clone() },
        evidence: Vec::new(),
        advice: advice(&health.reason).to_owned(),
        pod: None,
    })
}

fn of_pod(pod: &Value) -> Option<Diagnosis> {
    let statuses =
        || items(pod, "/status/initContainerStatuses").iter().chain(items(pod, "/status/containerStatuses"));
    let done = |cause: String, evidence: Vec<String>, reason: &str| {
        let advice = advice(reason).to_owned();
        Some(Diagnosis { cause, evidence, advice, pod: Some(name(pod).to_owned()) })
    };
    if let Some(c) = condition(pod, "PodScheduled").filter(|c| text(c, "/status") == "False") {
        return done(
            format!("No node can take {}.", name(pod)),
            vec![text(c, "/message").to_owned()],
            "Unschedulable",
        );
    }
    for status in statuses() {
        let waiting = status
            .pointer("/state/waiting")
            .filter(|w| !matches!(text(w, "/reason"), "" | "ContainerCreating" | "PodInitializing"));
        if let Some(waiting) = waiting {
            let reason = text(waiting, "/reason");
            let mut evidence = vec![format!("{reason}: {}", text(waiting, "/message"))];
            evidence.extend(last_end(status));
            return done(sentence(status, reason), evidence, reason);
        }
    }
    let ended = statuses().find(|s| int(s, "/state/terminated/exitCode").is_some_and(|code| code != 0))?;
    let code = int(ended, "/state/terminated/exitCode").unwrap_or(-1);
    let message = text(ended, "/state/terminated/message");
    let evidence = if message.is_empty() { Vec::new() } else { vec![message.to_owned()] };
    let cause = format!("Container {} ended with exit code {code}.", text(ended, "/name"));
    done(cause, evidence, "Error")
}

fn sentence(status: &Value, reason: &str) -> String {
    let container = text(status, "/name");
    let restarts = int(status, "/restartCount").unwrap_or(0).max(0);
    match reason {
        "CrashLoopBackOff" => {
            let times = count(usize::try_from(restarts).unwrap_or_default(), "restart");
            format!("Container {container} starts and fails again and again ({times}).")
        }
        "ImagePullBackOff" | "ErrImagePull" => {
            format!("The image {} cannot be fetched.", text(status, "/image"))
        }
        "InvalidImageName" => format!("The image reference {} is not valid.", text(status, "/image")),
        "CreateContainerConfigError" => {
            format!("Container {container} refers to configuration that is not there.")
        }
        reason => format!("Container {container} cannot start: {reason}."),
    }
}

fn last_end(status: &Value) -> Option<String> {
    let last = status.pointer("/lastState/terminated")?;
    let code = int(last, "/exitCode")?;
    let message = text(last, "/message").trim();
    Some(match message {
        "" => format!("It last ended with exit code {code} ({}).", text(last, "/reason")),
        message => format!("It last ended with exit code {code}: {message}"),
    })
}

fn advice(reason: &str) -> &'static str {
    match reason {
        "CrashLoopBackOff" | "Error" | "RunContainerError" => {
            "Read the logs of the last attempt, mend the program, and drop the new build on Deploy."
        }
        "OOMKilled" => "Raise the memory limit in Settings, or make the program use less.",
        "ImagePullBackOff" | "ErrImagePull" | "InvalidImageName" => {
            "Check the image reference; for an upload, deploy the file again so that it is stored again."
        }
        "Unschedulable" => {
            "Add a node, lower the requested resources, or remove what keeps pods off the nodes."
        }
        "CreateContainerConfigError" => "Create the ConfigMap or Secret it names, or remove the reference.",
        "ProgressDeadlineExceeded" => "Look at the pods below: the new ones did not become ready in time.",
        _ => "Look at the events and logs below.",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn failing_function() -> Value {
        json!({"metadata": {"name": "f", "generation": 1}, "status": {"observedGeneration": 1,
            "conditions": [{"type": "Ready", "status": "False", "reason": "CrashLoopBackOff", "message": "pod f-1 fails"}]}})
    }

    #[test]
    fn a_crash_names_the_last_end() {
        let pod = json!({"metadata": {"name": "f-1"}, "status": {"phase": "Running", "containerStatuses": [{
            "name": "function", "restartCount": 4,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": "missing DATABASE_URL"}},
        }]}});
        let event = json!({"type": "Warning", "reason": "BackOff", "message": "restarting", "count": 3});
        let found = diagnose("Function", &failing_function(), &[&pod], &[&event]).unwrap();
        assert_eq!(found.cause, "Container function starts and fails again and again (4 restarts).");
        assert!(found.evidence.iter().any(|e| e.contains("missing DATABASE_URL")), "{found:?}");
        assert!(found.evidence.iter().any(|e| e == "BackOff: restarting (3 times)"), "{found:?}");
        assert_eq!(found.pod.as_deref(), Some("f-1"));
        assert!(found.advice.contains("logs"));
    }

    #[test]
    fn an_unschedulable_pod_quotes_the_scheduler() {
        let pod = json!({"metadata": {"name": "p"}, "status": {"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available: 1 Insufficient cpu."}]}});
        let found = diagnose("Pod", &pod, &[&pod], &[]).unwrap();
        assert_eq!(found.cause, "No node can take p.");
        assert_eq!(found.evidence, ["0/1 nodes are available: 1 Insufficient cpu."]);
    }

    #[test]
    fn without_pods_the_condition_speaks() {
        let found = diagnose("Function", &failing_function(), &[], &[]).unwrap();
        assert_eq!(found.cause, "pod f-1 fails");
        assert_eq!(found.pod, None);
    }

    #[test]
    fn nothing_wrong_nothing_said() {
        let pod = json!({"metadata": {}, "status": {"phase": "Running"}});
        assert_eq!(diagnose("Pod", &pod, &[&pod], &[]), None);
    }
}
