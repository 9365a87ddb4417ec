//! Tables in the shape of upstream's.

use super::*;
use serde_json::json;

/// Patches the pod template's containers and friends through a Deployment, as `kubectl apply` does.
fn deployment(pod_spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"template": {"spec": pod_spec}}})
}

fn patch_pod_spec(original: Value, patch: Value) -> Result<Value, Status> {
    let patched = apply("apps", "v1", "Deployment", deployment(original), &deployment(patch))?;
    Ok(patched.pointer("/spec/template/spec").cloned().unwrap_or_default())
}

#[test]
fn pod_spec_table() {
    let two = || json!([{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:1"}]);
    #[rustfmt::skip]
    let cases = [
        ("scalars replace", json!({"hostname": "x", "nodeName": "n"}), json!({"hostname": "y"}), json!({"hostname": "y", "nodeName": "n"})),
        ("null deletes", json!({"hostname": "x", "nodeName": "n"}), json!({"hostname": null, "subdomain": null}), json!({"nodeName": "n"})),
        ("maps merge", json!({"nodeSelector": {"a": "1", "b": "2"}}), json!({"nodeSelector": {"b": null, "c": "3"}}), json!({"nodeSelector": {"a": "1", "c": "3"}})),
        ("map replaced by directive", json!({"nodeSelector": {"a": "1"}}), json!({"nodeSelector": {"$patch": "replace", "b": "2"}}), json!({"nodeSelector": {"b": "2"}})),
        ("map emptied by directive", json!({"nodeSelector": {"a": "1"}}), json!({"nodeSelector": {"$patch": "delete"}}), json!({"nodeSelector": {}})),
        ("items merge by key", json!({"containers": two()}), json!({"containers": [{"name": "b", "image": "b:2"}]}),
            json!({"containers": [{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:2"}]})),
        ("an item is added", json!({"containers": two()}), json!({"containers": [{"name": "c", "image": "c:1"}]}),
            json!({"containers": [{"name": "c", "image": "c:1"}, {"name": "a", "image": "a:1"}, {"name": "b", "image": "b:1"}]})),
        ("an item is deleted", json!({"containers": two()}), json!({"containers": [{"name": "a", "$patch": "delete"}]}),
            json!({"containers": [{"name": "b", "image": "b:1"}]})),
        ("deleting what is not there", json!({"containers": two()}), json!({"containers": [{"name": "z", "$patch": "delete"}]}), json!({"containers": two()})),
        ("the list is replaced", json!({"containers": two()}), json!({"containers": [{"name": "c"}, {"$patch": "replace"}]}), json!({"containers": [{"name": "c"}]})),
        ("a list is added without its directives", json!({}), json!({"containers": [{"name": "c", "image": null}, {"name": "d", "$patch": "delete"}, {"$patch": "replace"}]}),
            json!({"containers": [{"name": "c"}]})),
        ("nested lists merge", json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]}]}),
            json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "9"}]}]}),
            json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "9"}, {"name": "Y", "value": "2"}]}]})),
        ("numeric merge keys", json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "w"}]}]}),
            json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "protocol": "UDP"}]}]}),
            json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "w", "protocol": "UDP"}]}]})),
        ("atomic lists are replaced", json!({"tolerations": [{"key": "a"}, {"key": "b"}]}), json!({"tolerations": [{"key": "c"}]}), json!({"tolerations": [{"key": "c"}]})),
        ("args are atomic", json!({"containers": [{"name": "a", "args": ["1", "2"]}]}), json!({"containers": [{"name": "a", "args": ["3"]}]}),
            json!({"containers": [{"name": "a", "args": ["3"]}]})),
        ("inlined volume sources", json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
            json!({"volumes": [{"$retainKeys": ["name", "configMap"], "name": "v", "configMap": {"name": "c"}}]}),
            json!({"volumes": [{"name": "v", "configMap": {"name": "c"}}]})),
        ("order is set", json!({"containers": two()}), json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}),
            json!({"containers": [{"name": "b", "image": "b:1"}, {"name": "a", "image": "a:1"}]})),
        ("order with change", json!({"containers": two()}),
            json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}, {"name": "b"}], "containers": [{"name": "c", "image": "c:1"}, {"name": "b", "image": "b:2"}]}),
            json!({"containers": [{"name": "c", "image": "c:1"}, {"name": "a", "image": "a:1"}, {"name": "b", "image": "b:2"}]})),
        ("server's own items keep their place", json!({"containers": [{"name": "a"}, {"name": "sidecar"}, {"name": "b"}]}),
            json!({"$setElementOrder/containers": [{"name": "a"}, {"name": "b"}], "containers": [{"name": "b", "image": "b:2"}]}),
            json!({"containers": [{"name": "a"}, {"name": "sidecar"}, {"name": "b", "image": "b:2"}]})),
        ("order of an absent list", json!({}), json!({"$setElementOrder/containers": [{"name": "b"}]}), json!({})),
        ("a type changes", json!({"hostname": "x"}), json!({"hostname": {"a": null, "b": 1}}), json!({"hostname": {"b": 1}})),
    ];
    for (name, original, patch, wanted) in cases {
        assert_eq!(patch_pod_spec(original, patch).unwrap(), wanted, "{name}");
    }
}

#[test]
fn whole_object_table() {
    #[rustfmt::skip]
    let cases = [
        ("", "Service", json!({"spec": {"ports": [{"port": 80, "targetPort": 8080}, {"port": 443}]}}), json!({"spec": {"ports": [{"port": 80, "targetPort": "http"}]}}),
            json!({"spec": {"ports": [{"port": 80, "targetPort": "http"}, {"port": 443}]}})),
        ("", "Pod", json!({"metadata": {"finalizers": ["a", "b", "c"]}}), json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"], "finalizers": ["d"]}}),
            json!({"metadata": {"finalizers": ["d", "a", "c"]}})),
        ("", "Pod", json!({"metadata": {"finalizers": ["a", "b"]}}), json!({"metadata": {"$setElementOrder/finalizers": ["c", "b", "a"], "finalizers": ["c"]}}),
            json!({"metadata": {"finalizers": ["c", "b", "a"]}})),
        ("", "Pod", json!({"metadata": {"finalizers": ["a"]}}), json!({"metadata": {"finalizers": ["a", "b"]}}), json!({"metadata": {"finalizers": ["a", "b"]}})),
        ("", "Pod", json!({"metadata": {"ownerReferences": [{"uid": "1", "name": "x"}]}}), json!({"metadata": {"ownerReferences": [{"uid": "1", "$patch": "delete"}]}}),
            json!({"metadata": {"ownerReferences": []}})),
        ("", "Node", json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "False"}]}}),
            json!({"status": {"$setElementOrder/conditions": [{"type": "DiskPressure"}, {"type": "Ready"}], "conditions": [{"type": "Ready", "status": "False"}]}}),
            json!({"status": {"conditions": [{"type": "DiskPressure", "status": "False"}, {"type": "Ready", "status": "False"}]}})),
        ("", "ServiceAccount", json!({"secrets": [{"name": "a"}]}), json!({"secrets": [{"name": "b"}]}), json!({"secrets": [{"name": "b"}, {"name": "a"}]})),
        ("", "ServiceAccount", json!({"imagePullSecrets": [{"name": "a"}]}), json!({"imagePullSecrets": [{"name": "b"}]}), json!({"imagePullSecrets": [{"name": "b"}]})),
        ("", "ConfigMap", json!({"data": {"a": "1", "b": "2"}}), json!({"data": {"a": null, "c": "3"}}), json!({"data": {"b": "2", "c": "3"}})),
        ("apps", "Deployment", json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
            json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}), json!({"spec": {"strategy": {"type": "Recreate"}}})),
    ];
    for (group, kind, original, patch, wanted) in cases {
        let got = apply(group, "v1", kind, original.clone(), &patch).unwrap();
        assert_eq!(got, wanted, "{kind} {original} {patch}");
    }
}

#[test]
fn malformed_patches_are_the_clients_fault() {
    let original = || json!({"containers": [{"name": "a"}], "volumes": [{"name": "v", "emptyDir": {}}]});
    #[rustfmt::skip]
    let cases = [
        (json!({"containers": [{"image": "x"}]}), "merge key \"name\""),
        (json!({"containers": [{"$patch": "delete"}]}), "merge key \"name\""),
        (json!({"containers": [{"name": "a", "$patch": "explode"}]}), "$patch"),
        (json!({"containers": ["a"]}), "objects or all scalars"),
        (json!({"$patch": "explode"}), "$patch"),
        (json!({"$setElementOrder/containers": {}}), "must be a list"),
        (json!({"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "a"}]}), "$setElementOrder"),
        (json!({"$deleteFromPrimitiveList/containers": 1}), "must be a list"),
        (json!({"volumes": [{"name": "v", "$retainKeys": ["name"], "hostPath": {}}]}), "$retainKeys"),
    ];
    for (patch, wanted) in cases {
        let status = patch_pod_spec(original(), patch.clone()).unwrap_err();
        assert_eq!(status.code, 400, "{patch}");
        assert!(status.message.contains(wanted), "{patch}: {}", status.message);
    }
    assert_eq!(apply("", "v1", "Pod", json!({}), &json!([])).unwrap_err().code, 400);
    assert_eq!(apply("ketch.dev", "v1", "Function", json!({}), &json!({})).unwrap_err().code, 415);
}

#[test]
fn long_lists_are_refused_before_the_work() {
    let many: Vec<Value> = (0..MAX_MERGED + 1).map(|n| json!({"name": n.to_string()})).collect();
    let status =
        patch_pod_spec(json!({"containers": [{"name": "a"}]}), json!({"containers": many})).unwrap_err();
    assert!(status.message.contains("more than 4096 items"), "{}", status.message);
}
