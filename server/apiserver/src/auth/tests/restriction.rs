//! What a node may write.

use ketch_api::Descriptor;

use super::*;
use crate::{
    admission::{Admission, Operation, Request as Write},
    auth::node::NodeRestriction,
};

fn write(operation: Operation, what: &'static str, namespace: &str, name: &str) -> Write {
    let (group, rest) = match what.split_once(':') {
        Some((group, rest)) => (group, rest),
        None => ("", what),
    };
    let (plural, subresource) = rest.split_once('/').unwrap_or((rest, ""));
    Write {
        user: User::new("system:node:n1", &["system:nodes"]),
        operation,
        descriptor: Descriptor::namespaced(group, "v1", "X", plural, "x"),
        subresource: subresource.into(),
        namespace: namespace.into(),
        name: name.into(),
        dry_run: false,
    }
}

fn pod(node: &str, more: Value) -> Value {
    let mut pod = json!({"metadata": {"name": "p", "annotations": {"kubernetes.io/config.mirror": "x"}}, "spec": {"nodeName": node}});
    if let (Some(spec), Some(more)) = (pod["spec"].as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    pod
}

fn node(labels: Value, spec: Value) -> Value {
    json!({"metadata": {"name": "n1", "labels": labels}, "spec": spec})
}

fn volume(node: &str, finalizers: &[&str]) -> Value {
    let term =
        json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]});
    json!({"metadata": {"name": "pv", "finalizers": finalizers}, "spec": {"local": {"path": "/x"},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}}}})
}

#[test]
fn nodes_write_their_own_objects_only() {
    use Operation::{Create, Delete, Update};
    let plain = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1"}});
    let labelled =
        |labels: Value| json!({"metadata": {"name": "p", "labels": labels}, "spec": {"nodeName": "n1"}});
    let lease = || Some(json!({"metadata": {"name": "n1"}}));
    let own = || Some(node(json!({}), json!({})));
    #[rustfmt::skip]
    let cases = [
        (Create, "pods", "a", "", Some(pod("n1", json!({}))), None, None),
        (Create, "pods", "a", "", Some(plain.clone()), None, Some("can only create mirror pods")),
        (Create, "pods", "a", "", Some(pod("n2", json!({}))), None, Some("spec.nodeName set to itself")),
        (Create, "pods", "a", "", Some(pod("n1", json!({"serviceAccountName": "x"}))), None, Some("can not create pods that reference")),
        (Create, "pods", "a", "", Some(pod("n1", json!({"volumes": [{"secret": {"secretName": "x"}}]}))), None, Some("can not create pods that reference")),
        (Create, "pods", "a", "", Some(pod("n1", json!({"volumes": [{"configMap": {"name": "x"}}]}))), None, Some("can not create pods that reference")),
        (Create, "pods", "a", "", Some(pod("n1", json!({"volumes": [{"persistentVolumeClaim": {"claimName": "x"}}]}))), None, Some("can not create pods that reference")),
        (Create, "pods", "a", "", Some(pod("n1", json!({"containers": [{"envFrom": [{"secretRef": {"name": "x"}}]}]}))), None, Some("can not create pods that reference")),
        (Delete, "pods", "a", "p", None, Some(plain.clone()), None),
        (Delete, "pods", "a", "p", None, Some(pod("n2", json!({}))), Some("can only delete pods")),
        (Update, "pods", "a", "p", Some(plain.clone()), Some(plain.clone()), Some("unexpected operation")),
        (Update, "pods/status", "a", "p", Some(plain.clone()), Some(plain.clone()), None),
        (Update, "pods/status", "a", "p", Some(pod("n2", json!({}))), Some(pod("n2", json!({}))), Some("can only update status for pods")),
        (Update, "pods/status", "a", "p", Some(labelled(json!({"a": "1"}))), Some(labelled(json!({"a": "1"}))), None),
        (Update, "pods/status", "a", "p", Some(labelled(json!({"a": "2"}))), Some(labelled(json!({"a": "1"}))), Some("cannot update labels")),
        (Update, "pods/status", "a", "p", Some(labelled(json!({"a": "1"}))), Some(plain.clone()), Some("cannot update labels")),
        (Create, "pods/eviction", "a", "p", None, Some(pod("n2", json!({}))), Some("can only evict pods")),
        (Create, "pods/exec", "a", "p", None, None, Some("unexpected pod subresource")),
        (Create, "nodes", "", "n1", own(), None, None),
        (Create, "nodes", "", "", own(), None, None),
        (Create, "nodes", "", "n2", Some(json!({"metadata": {"name": "n2"}})), None, Some("is not allowed to modify node \"n2\"")),
        (Update, "nodes/status", "", "n2", Some(json!({"metadata": {"name": "n2"}})), Some(json!({"metadata": {"name": "n2"}})), Some("is not allowed to modify node")),
        (Create, "nodes", "", "n1", Some(node(json!({"kubernetes.io/hostname": "h", "example.com/x": "y", "topology.kubernetes.io/zone": "z"}), json!({}))), None, None),
        (Create, "nodes", "", "n1", Some(node(json!({"node-restriction.kubernetes.io/pci": "1"}), json!({}))), None, Some("is not allowed to set the following labels: node-restriction.kubernetes.io/pci")),
        (Create, "nodes", "", "n1", Some(node(json!({"node-role.kubernetes.io/control-plane": ""}), json!({}))), None, Some("node-role.kubernetes.io/control-plane")),
        (Update, "nodes", "", "n1", Some(node(json!({}), json!({}))), Some(node(json!({"node-restriction.kubernetes.io/pci": "1"}), json!({}))), Some("is not allowed to modify the following labels")),
        (Update, "nodes", "", "n1", Some(node(json!({}), json!({"taints": [{"key": "a"}]}))), own(), Some("is not allowed to modify taints")),
        (Update, "nodes", "", "n1", own(), Some(node(json!({}), json!({"taints": [{"key": "a"}]}))), Some("is not allowed to modify taints")),
        (Update, "nodes", "", "n1", Some(node(json!({}), json!({"taints": []}))), own(), None),
        (Delete, "nodes", "", "n1", None, own(), Some("is not allowed to delete itself")),
        (Create, "coordination.k8s.io:leases", "kube-node-lease", "", lease(), None, None),
        (Update, "coordination.k8s.io:leases", "kube-node-lease", "n1", lease(), lease(), None),
        (Create, "coordination.k8s.io:leases", "kube-node-lease", "", Some(json!({"metadata": {"name": "n2"}})), None, Some("can only access node lease")),
        (Create, "coordination.k8s.io:leases", "kube-system", "", lease(), None, Some("can only access leases in the")),
        (Update, "persistentvolumes", "", "pv", Some(volume("n1", &[])), Some(volume("n1", &["ketch.dev/volume-data"])), None),
        (Update, "persistentvolumes", "", "pv", Some(volume("n1", &[])), Some(volume("n1", &["kubernetes.io/pv-protection"])), Some("can only take the finalizer")),
        (Update, "persistentvolumes", "", "pv", Some(volume("n2", &[])), Some(volume("n2", &["ketch.dev/volume-data"])), Some("that are on it")),
        (Update, "persistentvolumes", "", "pv", Some(volume("n1", &[])), Some(volume("n2", &["ketch.dev/volume-data"])), Some("that are on it")),
        (Create, "persistentvolumes", "", "", Some(volume("n1", &[])), None, Some("that are on it")),
        (Create, "events", "a", "", Some(json!({})), None, None),
    ];
    for (operation, what, namespace, name, object, old, refused) in cases {
        let request = write(operation, what, namespace, name);
        let got = NodeRestriction.validate(&request, object.as_ref(), old.as_ref());
        let case = format!("{operation:?} {what} {name} {object:?} {old:?}");
        match refused {
            None => assert_eq!(got, Ok(()), "{case}"),
            Some(text) => {
                let status = got.expect_err(&case);
                assert_eq!(status.code, 403);
                assert!(status.message.contains(text), "{case}: {}", status.message);
            }
        }
    }
}

#[test]
fn others_are_not_its_business_and_nameless_nodes_are() {
    let mut request = write(Operation::Delete, "nodes", "", "n2");
    request.user = User::new("root", &["system:masters"]);
    assert_eq!(NodeRestriction.validate(&request, None, None), Ok(()));
    for name in ["n1", "system:node:"] {
        request.user = User::new(name, &["system:nodes"]);
        let message = NodeRestriction.validate(&request, None, None).unwrap_err().message;
        assert!(message.contains("could not determine node"), "{message}");
    }
}

#[test]
fn a_node_that_was_taken_out_does_not_put_itself_back() {
    let mut request = write(Operation::Create, "nodes", "", "n1");
    let object = node(json!({}), json!({"podCIDR": "10.42.3.0/24"}));
    let verdict = |request: &Write| NodeRestriction.validate(request, Some(&object), None);
    assert!(verdict(&request).is_ok(), "the node in the server's own process registers itself");
    request.user.extra.insert("ketch.dev/pod-range".into(), vec!["10.42.3.0/24".into()]);
    assert!(verdict(&request).unwrap_err().message.contains("join again"));
    request.operation = Operation::Update;
    let update = NodeRestriction.validate(&request, Some(&object), Some(&object));
    assert!(update.is_ok(), "one that is there goes on as before");
}
