//! What may change in a pod that exists: images, tolerations that are added, and times.

use k8s_openapi::api::core::v1::{Container, PodSpec, Toleration};
use serde_json::Value;

use crate::strategy::FieldError;

const FROZEN: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
                      `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
                      tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Faults of a change of `spec`.
pub(super) fn validate(new: &PodSpec, old: &PodSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let count = |list: &Option<Vec<Container>>| list.as_ref().map_or(0, Vec::len);
    if new.containers.len() != old.containers.len() {
        errors.push(FieldError::forbidden("spec.containers", "pod updates may not add or remove containers"));
    }
    if count(&new.init_containers) != count(&old.init_containers) {
        errors.push(FieldError::forbidden(
            "spec.initContainers",
            "pod updates may not add or remove containers",
        ));
    }
    if !errors.is_empty() {
        return errors;
    }
    errors.extend(deadline(new, old));
    let none: &[Toleration] = &[];
    let (now, before) =
        (new.tolerations.as_deref().unwrap_or(none), old.tolerations.as_deref().unwrap_or(none));
    if before.iter().any(|t| !now.iter().any(|n| same_but_seconds(n, t))) {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden("spec.tolerations", detail));
    }
    let masked = masked(new, old);
    if masked != *old {
        errors.push(FieldError::forbidden("spec", &format!("{FROZEN}\nchanged: {}", changed(&masked, old))));
    }
    errors
}

fn deadline(new: &PodSpec, old: &PodSpec) -> Vec<FieldError> {
    let path = "spec.activeDeadlineSeconds";
    match (new.active_deadline_seconds, old.active_deadline_seconds) {
        (Some(now), Some(before)) if now > before => {
            let detail = format!("must be less than or equal to previous value: {before}");
            vec![FieldError::invalid(path, now, &detail)]
        }
        (None, Some(_)) => {
            vec![FieldError::invalid(
                path,
                Value::Null,
                "must not update from a positive integer to nil value",
            )]
        }
        _ => Vec::new(),
    }
}

fn same_but_seconds(a: &Toleration, b: &Toleration) -> bool {
    Toleration { toleration_seconds: b.toleration_seconds, ..a.clone() } == *b
}

/// `new` with what may change taken from `old`.
fn masked(new: &PodSpec, old: &PodSpec) -> PodSpec {
    let mut masked = new.clone();
    let images = |now: &mut [Container], before: &[Container]| {
        for (now, before) in now.iter_mut().zip(before) {
            now.image.clone_from(&before.image);
        }
    };
    images(&mut masked.containers, &old.containers);
    if let (Some(now), Some(before)) = (&mut masked.init_containers, &old.init_containers) {
        images(now, before);
    }
    masked.active_deadline_seconds = old.active_deadline_seconds;
    masked.tolerations.clone_from(&old.tolerations);
    // Scheduling gates may only be taken away.
    let left = |gate: &k8s_openapi::api::core::v1::PodSchedulingGate| {
        old.scheduling_gates.iter().flatten().any(|o| o == gate)
    };
    if masked.scheduling_gates.iter().flatten().all(left) {
        masked.scheduling_gates.clone_from(&old.scheduling_gates);
    }
    if old.termination_grace_period_seconds.is_some_and(|s| s < 0)
        && new.termination_grace_period_seconds == Some(1)
    {
        masked.termination_grace_period_seconds = old.termination_grace_period_seconds;
    }
    masked
}

/// Names of the top-level fields that differ.
fn changed(a: &PodSpec, b: &PodSpec) -> String {
    let fields = |spec: &PodSpec| match serde_json::to_value(spec) {
        Ok(Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (a, b) = (fields(a), fields(b));
    let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let differ = keys.into_iter().filter(|key| a.get(*key) != b.get(*key));
    differ.map(|key| format!("spec.{key}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::tests::update;

    #[test]
    fn only_a_few_fields_change() {
        let old = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "i:1"}], "tolerations": [{"key": "k", "operator": "Exists"}]}});
        let with = |edit: fn(&mut Value)| {
            let mut new = old.clone();
            edit(&mut new["spec"]);
            update("Pod", new, &old).map_err(|s| s.message)
        };
        assert!(with(|s| s["containers"][0]["image"] = "i:2".into()).is_ok());
        assert!(
            with(|s| s["tolerations"] =
                json!([{"key": "k", "operator": "Exists"}, {"key": "l", "operator": "Exists"}]))
            .is_ok()
        );
        assert!(
            with(|s| s["tolerations"] = json!([]))
                .unwrap_err()
                .contains("existing toleration can not be modified")
        );
        assert!(
            with(|s| s["containers"] = json!([])).unwrap_err().contains("may not add or remove containers")
        );
        let fault = with(|s| s["nodeName"] = "n".into()).unwrap_err();
        assert!(
            fault.contains("pod updates may not change fields other than")
                && fault.ends_with("changed: spec.nodeName"),
            "{fault}"
        );
        assert!(
            with(|s| s["containers"][0]["args"] = json!(["x"]))
                .unwrap_err()
                .ends_with("changed: spec.containers")
        );
    }
}
