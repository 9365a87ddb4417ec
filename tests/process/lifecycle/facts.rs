//! A pod's status as a set of lines, so that expectations are short and exact.
//!
//! `phase=Running`, `reason=…`, `message=…`; conditions `Ready=False ContainersNotReady`; for each container
//! `main=running`, `main=waiting CrashLoopBackOff`, `main=terminated Error 3`, `main.message=…`,
//! `main.last=terminated OOMKilled 137`, `main.restarts=1`, `main.ready=true`, `main.started=true`.

use std::collections::BTreeSet;

use serde_json::Value;

pub(super) type Facts = BTreeSet<String>;

/// The facts of a pod.
pub(super) fn of(pod: &Value) -> Facts {
    let status = &pod["status"];
    let mut facts = Facts::new();
    for key in ["phase", "reason", "message", "podIP", "hostIP", "qosClass"] {
        facts.extend(status[key].as_str().map(|value| format!("{key}={value}")));
    }
    for condition in list(&status["conditions"]) {
        let (kind, holds) = (text(&condition["type"]), text(&condition["status"]));
        let reason = condition["reason"].as_str().map(|reason| format!(" {reason}")).unwrap_or_default();
        facts.insert(format!("{kind}={holds}{reason}"));
    }
    for container in list(&status["initContainerStatuses"]).chain(list(&status["containerStatuses"])) {
        let name = text(&container["name"]);
        facts.insert(format!("{name}={}", state(&container["state"])));
        facts.insert(format!("{name}.last={}", state(&container["lastState"])));
        for key in ["ready", "started", "restartCount", "containerID", "imageID"] {
            let value = &container[key];
            facts.insert(format!(
                "{name}.{key}={}",
                value.as_str().map_or_else(|| value.to_string(), str::to_owned)
            ));
        }
        let message =
            |state: &Value| state.as_object()?.values().next()?["message"].as_str().map(str::to_owned);
        facts.extend(message(&container["state"]).map(|text| format!("{name}.message={text}")));
        facts.extend(message(&container["lastState"]).map(|text| format!("{name}.last.message={text}")));
    }
    facts
}

/// Whether `facts` have what is expected: a line, or, for `KEY~TEXT`, a line of that key with the text in it.
pub(super) fn hold(facts: &Facts, expected: &str) -> bool {
    match expected.split_once('~') {
        Some((key, part)) => {
            facts.iter().any(|fact| fact.split_once('=').is_some_and(|(k, v)| k == key && v.contains(part)))
        }
        None => facts.contains(expected),
    }
}

fn state(state: &Value) -> String {
    let Some((kind, detail)) = state.as_object().and_then(|state| state.iter().next()) else {
        return "none".to_owned();
    };
    match kind.as_str() {
        "terminated" => format!("terminated {} {}", text(&detail["reason"]), detail["exitCode"]),
        "waiting" => format!("waiting {}", text(&detail["reason"])),
        other => other.to_owned(),
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
