//! What upstream's admission adds to every pod: tolerations of short node trouble.

use ketch_api::Status;
use serde_json::{Value, json};

use super::{Admission, Operation, Request};

/// Seconds a pod stays on a node that is not ready. Upstream's default is 300: a pod that starts in milliseconds
/// should not be away for five minutes. See `docs/adr/0004-pods-leave-lost-nodes-soon.md`.
const TOLERATION_SECONDS: i64 = 2;

/// Lets pods outlive a short trouble of their node, unless they say otherwise.
pub(super) struct DefaultTolerations;

impl Admission for DefaultTolerations {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn mutate(&self, request: &Request, object: &mut Value, _old: Option<&Value>) -> Result<(), Status> {
        if request.operation != Operation::Create || !request.is("", "pods") {
            return Ok(());
        }
        let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
        let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
        if tolerations.is_null() {
            *tolerations = json!([]);
        }
        let Some(tolerations) = tolerations.as_array_mut() else { return Ok(()) };
        for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
            if !tolerations.iter().any(|toleration| covers(toleration, key)) {
                tolerations.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute",
                    "tolerationSeconds": TOLERATION_SECONDS}));
            }
        }
        Ok(())
    }
}

fn covers(toleration: &Value, key: &str) -> bool {
    let text = |field: &str| toleration.get(field).and_then(Value::as_str).unwrap_or_default();
    matches!(text("key"), own if own == key || own.is_empty()) && matches!(text("effect"), "NoExecute" | "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ketch_api::Descriptor;

    fn admitted(hook: &dyn Admission, mut pod: Value) -> Value {
        let request = Request {
            user: crate::auth::User::default(),
            operation: Operation::Create,
            descriptor: Descriptor::namespaced("", "v1", "Pod", "pods", "pod"),
            subresource: String::new(),
            namespace: "default".into(),
            name: "p".into(),
            dry_run: false,
        };
        hook.mutate(&request, &mut pod, None).unwrap();
        pod
    }

    #[test]
    fn pods_get_tolerations_once() {
        let pod = admitted(&DefaultTolerations, json!({"spec": {"tolerations": null}}));
        assert_eq!(pod["spec"]["tolerations"].as_array().unwrap().len(), 2);
        assert_eq!(admitted(&DefaultTolerations, pod.clone()), pod);
        let all = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        assert_eq!(admitted(&DefaultTolerations, all.clone()), all);
    }
}
