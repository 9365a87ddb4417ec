//! Node.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Node;
use serde_json::Value;

use super::{
    or_none,
    pod_spec::{invalid_all, taint_effect},
};
use crate::{
    quantity,
    strategy::{Column, Context, Descriptor, FieldError, Meta, Strategy},
    validation,
};

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";
const ROLE_LABEL: &str = "kubernetes.io/role";

pub(super) struct Nodes;

impl Strategy for Nodes {
    type Kind = Node;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            short_names: &["no"],
            namespaced: false,
            status: true,
            ..Descriptor::namespaced("", "v1", "Node", "nodes", "node")
        }
    }

    fn default(&self, node: &mut Node) {
        node.spec.get_or_insert_default();
        if let Some(status) = &mut node.status {
            for list in [&mut status.capacity, &mut status.allocatable].into_iter().flatten() {
                list.values_mut().for_each(quantity::canonicalize);
            }
            if status.allocatable.is_none() {
                status.allocatable.clone_from(&status.capacity);
            }
        }
    }

    fn prepare_update(&self, _cx: &Context, new: &mut Node, old: &Node) {
        let (Some(new), Some(old)) = (&mut new.spec, &old.spec) else { return };
        // A client that does not know the range must not unset it.
        if new.pod_cidr.is_none() && new.pod_cidrs.is_none() {
            new.pod_cidr.clone_from(&old.pod_cidr);
            new.pod_cidrs.clone_from(&old.pod_cidrs);
        }
    }

    fn validate(&self, node: &Node) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut seen = BTreeSet::new();
        let taints = node.spec.iter().filter_map(|s| s.taints.as_ref()).flatten();
        for (n, taint) in taints.enumerate() {
            let path = format!("spec.taints[{n}]");
            errors.extend(invalid_all(
                &format!("{path}.key"),
                &taint.key,
                validation::qualified_name(&taint.key),
            ));
            let value = taint.value.as_deref().unwrap_or_default();
            errors.extend(invalid_all(&format!("{path}.value"), value, validation::label_value(value)));
            errors.extend(taint_effect(&format!("{path}.effect"), &taint.effect));
            if !seen.insert((&taint.key, &taint.effect)) {
                errors.push(FieldError::duplicate(path, taint));
            }
        }
        errors
    }

    fn validate_update(&self, new: &Node, old: &Node) -> Vec<FieldError> {
        let fixed = |before: Option<&String>, after: Option<&String>| {
            before.is_some_and(|b| !b.is_empty()) && before != after
        };
        let (new, old) = (new.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
        let mut errors = Vec::new();
        if fixed(old.pod_cidr.as_ref(), new.pod_cidr.as_ref()) {
            let detail = "node updates may not change podCIDR except from \"\" to valid";
            errors.push(FieldError::forbidden("spec.podCIDRs", detail));
        }
        if fixed(old.provider_id.as_ref(), new.provider_id.as_ref()) {
            let detail = "node updates may not change providerID except from \"\" to valid";
            errors.push(FieldError::forbidden("spec.providerID", detail));
        }
        errors
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            Column::NAME,
            Column::text("Status"),
            Column::text("Roles"),
            Column::AGE,
            Column::text("Version"),
            Column::wide("Internal-IP"),
            Column::wide("External-IP"),
            Column::wide("OS-Image"),
            Column::wide("Kernel-Version"),
            Column::wide("Container-Runtime"),
        ];
        COLUMNS
    }

    fn row(&self, node: &Node, metadata: &Meta<'_>) -> Vec<Value> {
        let info = node.status.as_ref().and_then(|s| s.node_info.as_ref());
        let known = |text: Option<&String>| {
            text.filter(|t| !t.is_empty()).map_or("<unknown>", String::as_str).to_owned()
        };
        vec![
            metadata.name.into(),
            status(node).into(),
            roles(node).into(),
            metadata.age().into(),
            info.map(|i| i.kubelet_version.clone()).unwrap_or_default().into(),
            or_none(address(node, "InternalIP")).into(),
            or_none(address(node, "ExternalIP")).into(),
            known(info.map(|i| &i.os_image)).into(),
            known(info.map(|i| &i.kernel_version)).into(),
            known(info.map(|i| &i.container_runtime_version)).into(),
        ]
    }

    fn fields(&self, node: &Node) -> Vec<(&'static str, String)> {
        vec![("spec.unschedulable", unschedulable(node).to_string())]
    }

    fn field_names(&self) -> &'static [&'static str] {
        &["spec.unschedulable"]
    }
}

fn unschedulable(node: &Node) -> bool {
    node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true)
}

fn status(node: &Node) -> String {
    let conditions = node.status.iter().filter_map(|s| s.conditions.as_ref()).flatten();
    let ready = conditions.filter(|c| c.type_ == "Ready").map(|c| c.status == "True").next();
    let text = match ready {
        Some(true) => "Ready",
        Some(false) => "NotReady",
        None => "Unknown",
    };
    if unschedulable(node) { format!("{text},SchedulingDisabled") } else { text.to_owned() }
}

fn roles(node: &Node) -> String {
    let role = |(key, value): (&String, &String)| match key.strip_prefix(ROLE_PREFIX) {
        Some(role) if !role.is_empty() => Some(role.to_owned()),
        _ if key == ROLE_LABEL && !value.is_empty() => Some(value.clone()),
        _ => None,
    };
    let roles: BTreeSet<_> = node.metadata.labels.iter().flatten().filter_map(role).collect();
    or_none(Some(&roles.into_iter().collect::<Vec<_>>().join(",")))
}

fn address<'a>(node: &'a Node, kind: &str) -> Option<&'a str> {
    let mut addresses = node.status.iter().filter_map(|s| s.addresses.as_ref()).flatten();
    addresses.find(|a| a.type_ == kind).map(|a| a.address.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::kinds::tests::{create, row, update};

    #[test]
    fn row_reads_as_upstream() {
        let node = json!({
            "metadata": {"name": "n1", "labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": ""}},
            "spec": {"unschedulable": true},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.35.0", "osImage": "Debian", "containerRuntimeVersion": "wasmtime://48"},
            },
        });
        assert_eq!(
            row("Node", &node),
            "n1|Ready,SchedulingDisabled|control-plane,worker|<unknown>|v1.35.0|10.0.0.1|<none>|Debian|<unknown>|wasmtime://48"
        );
        assert_eq!(
            row("Node", &json!({"metadata": {"name": "n2"}})),
            "n2|Unknown|<none>|<unknown>||<none>|<none>|<unknown>|<unknown>|<unknown>"
        );
    }

    #[test]
    fn capacity_is_allocatable_and_taints_are_checked() {
        let node =
            create("Node", json!({"metadata": {"name": "a"}, "status": {"capacity": {"memory": "1024Mi"}}}))
                .unwrap();
        assert_eq!(node["status"]["allocatable"]["memory"], "1Gi", "the status of a new node is kept");
        let bad = create(
            "Node",
            json!({"metadata": {"name": "a"}, "spec": {"taints": [{"key": "a", "effect": "Never"}]}}),
        );
        assert_eq!(
            bad.unwrap_err().message,
            "Node \"a\" is invalid: spec.taints[0].effect: Unsupported value: \"Never\": supported values: \
             \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\""
        );
        let old = json!({"metadata": {"name": "a"}, "spec": {"podCIDR": "10.0.0.0/24"}});
        assert!(update("Node", json!({"metadata": {"name": "a"}, "spec": {}}), &old).is_ok());
        assert!(
            update("Node", json!({"metadata": {"name": "a"}, "spec": {"podCIDR": "10.0.1.0/24"}}), &old)
                .is_err()
        );
    }
}
