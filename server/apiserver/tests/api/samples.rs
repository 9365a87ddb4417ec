//! A smallest valid object of every kind.

use ketch_api::Descriptor;
use serde_json::{Value, json};

/// Fields besides `metadata`, by `group/plural`.
pub(crate) fn sample(descriptor: &Descriptor) -> Value {
    let template = json!({"metadata": {"labels": {"app": "a"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let selector = json!({"matchLabels": {"app": "a"}});
    let workload = json!({"spec": {"replicas": 1, "selector": selector, "template": template}});
    let role_ref =
        |kind: &str| json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": "r"}});
    match (descriptor.group, descriptor.plural) {
        ("", "pods") => json!({"spec": {"containers": [{"name": "c", "image": "i"}]}}),
        ("", "services") => json!({"spec": {"ports": [{"port": 80}], "selector": {"app": "a"}}}),
        ("", "events") => json!({"involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"},
            "reason": "R", "message": "m", "type": "Normal"}),
        ("events.k8s.io", "events") => json!({"eventTime": "2026-01-01T00:00:00.000000Z",
            "reportingController": "ketch.dev/c", "reportingInstance": "i", "action": "a", "reason": "R",
            "type": "Normal", "regarding": {"kind": "Pod", "namespace": "default", "name": "p"}}),
        ("discovery.k8s.io", "endpointslices") => json!({"addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.9"]}], "ports": [{"name": "http", "port": 80}]}),
        ("apps", _) => workload,
        ("networking.k8s.io", "ingresses") => json!({"spec": {"defaultBackend":
            {"service": {"name": "s", "port": {"number": 80}}}}}),
        ("networking.k8s.io", "ingressclasses") => json!({"spec": {"controller": "ketch.dev/gateway"}}),
        ("", "persistentvolumeclaims") => json!({"spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}}),
        ("", "persistentvolumes") => json!({"spec": {"accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"}}}),
        ("storage.k8s.io", "storageclasses") => json!({"provisioner": "example.com/p"}),
        ("node.k8s.io", "runtimeclasses") => json!({"handler": "wasm"}),
        ("rbac.authorization.k8s.io", "rolebindings") => role_ref("Role"),
        ("rbac.authorization.k8s.io", "clusterrolebindings") => role_ref("ClusterRole"),
        ("rbac.authorization.k8s.io", _) => {
            json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]})
        }
        ("ketch.dev", "functions") => json!({"spec": {"image": "ketch.local/default/f:1"}}),
        ("ketch.dev", "functionrevisions") => {
            json!({"spec": {"function": "f", "revision": 1, "template": {"image": "ketch.local/default/f:1"}}})
        }
        _ => json!({}),
    }
}

/// The sample as an object called `name`, labelled `case: NAME`.
pub(crate) fn object(descriptor: &Descriptor, name: &str) -> Value {
    let mut object = sample(descriptor);
    object["apiVersion"] = descriptor.api_version().into();
    object["kind"] = descriptor.kind.into();
    object["metadata"] = json!({"name": name, "labels": {"case": name}});
    object
}

/// Path of the kind's collection, in the namespace `default` if it has one.
pub(crate) fn collection(descriptor: &Descriptor) -> String {
    let root = match descriptor.group {
        "" => format!("/api/{}", descriptor.version),
        group => format!("/apis/{group}/{}", descriptor.version),
    };
    let namespace = if descriptor.namespaced { "/namespaces/default" } else { "" };
    format!("{root}{namespace}/{}", descriptor.plural)
}
