//! What a node may write: its own Node, pods and lease, without giving itself more.
//!
//! The rules and texts of `plugin/pkg/admission/noderestriction`.

use ketch_api::{
    Status,
    join::POD_RANGE_EXTRA,
    names::NODES_GROUP,
    volume::{self, DATA_FINALIZER},
};
use serde_json::Value;

use super::{LEASE_NAMESPACE, graph, node_name};
use crate::admission::{Admission, Operation, Request};

/// The admission hook; it looks at requests of nodes only.
#[derive(Debug, Default)]
pub struct NodeRestriction;

const MIRROR: &str = "kubernetes.io/config.mirror";
/// Labels in the `kubernetes.io` and `k8s.io` domains a node may set on itself.
const OWN_LABELS: &[&str] = &[
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
const OWN_LABEL_DOMAINS: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];

#[async_trait::async_trait]
impl Admission for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn validate(&self, request: &Request, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
        if !request.user.in_group(NODES_GROUP) {
            return Ok(());
        }
        let verdict = match node_name(&request.user).filter(|name| !name.is_empty()) {
            None => Err(format!("could not determine node from user \"{}\"", request.user.name)),
            Some(node) => judge(node, request, object, old),
        };
        verdict.map_err(|why| Status::forbidden(request.descriptor.group_resource(), &request.name, why))
    }
}

type Verdict = Result<(), String>;

fn judge(node: &str, request: &Request, object: Option<&Value>, old: Option<&Value>) -> Verdict {
    match (request.descriptor.group, request.descriptor.plural, request.subresource.as_str()) {
        ("", "pods", "") => pod(node, request, object, old),
        ("", "pods", "status") => pod_status(node, object, old),
        ("", "pods", "eviction") => bound(node, old.or(object), "evict"),
        ("", "pods", other) => {
            Err(format!("unexpected pod subresource \"{other}\", only 'status' and 'eviction' are allowed"))
        }
        ("", "nodes", _) => own_node(node, request, object, old),
        ("", "persistentvolumes", _) => own_volume(node, object, old),
        ("coordination.k8s.io", "leases", _) => own_lease(node, request, object),
        _ => Ok(()),
    }
}

fn text<'v>(object: Option<&'v Value>, pointer: &str) -> &'v str {
    object.and_then(|object| object.pointer(pointer)).and_then(Value::as_str).unwrap_or_default()
}

fn bound(node: &str, pod: Option<&Value>, verb: &str) -> Verdict {
    match text(pod, "/spec/nodeName") == node {
        true => Ok(()),
        false => Err(format!("node \"{node}\" can only {verb} pods with spec.nodeName set to itself")),
    }
}

fn pod(node: &str, request: &Request, object: Option<&Value>, old: Option<&Value>) -> Verdict {
    match (request.operation, object) {
        (Operation::Create, Some(pod)) => mirror_pod(node, pod),
        (Operation::Delete, _) => bound(node, old, "delete"),
        // A delete with a grace period writes the pod.
        (Operation::Update, _)
            if old.is_some() && !text(object, "/metadata/deletionTimestamp").is_empty() =>
        {
            bound(node, old, "delete")
        }
        (operation, _) => Err(format!(
            "unexpected operation \"{operation:?}\", node \"{node}\" can only create and delete mirror pods"
        )),
    }
}

/// A static pod's image in the API: bound to the node, and without access to anything.
fn mirror_pod(node: &str, pod: &Value) -> Verdict {
    let mirrored = pod.pointer("/metadata/annotations").and_then(|all| all.get(MIRROR)).is_some();
    if !mirrored {
        return Err(format!(
            "pod does not have \"{MIRROR}\" annotation, node \"{node}\" can only create mirror pods"
        ));
    }
    bound(node, Some(pod), "create")?;
    match graph::references(pod, "").is_empty() {
        true => Ok(()),
        false => Err(format!(
            "node \"{node}\" can not create pods that reference service accounts, secrets, configmaps or \
             persistentvolumeclaims"
        )),
    }
}

fn pod_status(node: &str, object: Option<&Value>, old: Option<&Value>) -> Verdict {
    bound(node, old.or(object), "update status for")?;
    let labels = |pod: Option<&Value>| {
        pod.and_then(|pod| pod.pointer("/metadata/labels"))
            .filter(|labels| labels.as_object().is_some_and(|labels| !labels.is_empty()))
            .cloned()
    };
    match labels(object) == labels(old) {
        true => Ok(()),
        false => Err(format!("node \"{node}\" cannot update labels through pod status")),
    }
}

fn own_node(node: &str, request: &Request, object: Option<&Value>, old: Option<&Value>) -> Verdict {
    let name = match request.name.as_str() {
        "" => text(object.or(old), "/metadata/name"),
        name => name,
    };
    if name != node {
        return Err(format!("node \"{node}\" is not allowed to modify node \"{name}\""));
    }
    let Some(object) = object else {
        return Err(format!("node \"{node}\" is not allowed to delete itself"));
    };
    // Such a node was given its object when it joined. Without one it has been taken out of the cluster.
    if old.is_none() && request.user.extra.contains_key(POD_RANGE_EXTRA) {
        return Err(format!("node \"{node}\" is not part of this cluster any more; join again with a token"));
    }
    labels(node, object, old)?;
    let Some(old) = old else { return Ok(()) };
    for (pointer, what) in [
        ("/spec/taints", "taints"),
        ("/metadata/ownerReferences", "ownerReferences"),
        ("/spec/configSource", "configSource"),
    ] {
        if empty_as_none(object.pointer(pointer)) != empty_as_none(old.pointer(pointer)) {
            return Err(format!("node \"{node}\" is not allowed to modify {what}"));
        }
    }
    Ok(())
}

fn empty_as_none(value: Option<&Value>) -> Option<&Value> {
    value.filter(|value| !value.is_null() && value.as_array().is_none_or(|items| !items.is_empty()))
}

/// Labels that decide where workloads go are for administrators.
fn labels(node: &str, object: &Value, old: Option<&Value>) -> Verdict {
    let all = |object: Option<&Value>| {
        object
            .and_then(|object| object.pointer("/metadata/labels"))
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default()
    };
    let (new, before) = (all(Some(object)), all(old));
    let mut forbidden: Vec<&str> = new
        .keys()
        .chain(before.keys())
        .filter(|key| new.get(*key) != before.get(*key) && !may_label(key))
        .map(String::as_str)
        .collect();
    forbidden.sort_unstable();
    forbidden.dedup();
    match forbidden.is_empty() {
        true => Ok(()),
        false => {
            let verb = if old.is_some() { "modify" } else { "set" };
            Err(format!(
                "is not allowed to {verb} the following labels: {} (node \"{node}\")",
                forbidden.join(", ")
            ))
        }
    }
}

fn may_label(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let within = |parent: &str| {
        domain == parent || domain.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'))
    };
    if within("node-restriction.kubernetes.io") {
        return false;
    }
    if !within("kubernetes.io") && !within("k8s.io") {
        return true;
    }
    OWN_LABELS.contains(&key) || OWN_LABEL_DOMAINS.iter().any(|own| within(own))
}

/// A node says of a volume on it that the data is gone, by taking its own finalizer away.
fn own_volume(node: &str, object: Option<&Value>, old: Option<&Value>) -> Verdict {
    let typed = |volume: &Value| serde_json::from_value(volume.clone()).ok();
    let place = old.and_then(typed).and_then(|volume| volume::node_of(&volume).map(str::to_owned));
    if place.as_deref() != Some(node) {
        return Err(format!("node \"{node}\" can only update persistentvolumes that are on it"));
    }
    let rest = |volume: Option<&Value>| {
        let mut volume = volume.cloned()?;
        let metadata = volume.get_mut("metadata")?.as_object_mut()?;
        metadata.remove("resourceVersion");
        if let Some(list) = metadata.get_mut("finalizers").and_then(Value::as_array_mut) {
            list.retain(|finalizer| finalizer != DATA_FINALIZER);
        }
        if metadata.get("finalizers").and_then(Value::as_array).is_some_and(Vec::is_empty) {
            metadata.remove("finalizers");
        }
        Some(volume)
    };
    match rest(object) == rest(old) {
        true => Ok(()),
        false => Err(format!(
            "node \"{node}\" can only take the finalizer {DATA_FINALIZER} from persistentvolumes"
        )),
    }
}

fn own_lease(node: &str, request: &Request, object: Option<&Value>) -> Verdict {
    if request.namespace != LEASE_NAMESPACE {
        return Err(format!("can only access leases in the \"{LEASE_NAMESPACE}\" system namespace"));
    }
    let name = match request.name.as_str() {
        "" => text(object, "/metadata/name"),
        name => name,
    };
    match name == node {
        true => Ok(()),
        false => Err("can only access node lease with the same name as the requesting node".to_owned()),
    }
}
