//! Tables of what fits where, and why not.

use std::sync::Arc;

use ketch_api::k8s::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::*;

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn node(name: &str, extra: Value) -> Node {
    let mut node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}});
    merge(&mut node, extra);
    serde_json::from_value(node).unwrap()
}

fn pod(name: &str, extra: Value) -> Arc<PodInfo> {
    let mut pod = json!({"metadata": {"name": name, "uid": name, "namespace": "a", "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    merge(&mut pod, extra);
    Arc::new(PodInfo::new(Arc::new(serde_json::from_value::<Pod>(pod).unwrap())))
}

fn asking(cpu: &str, memory: &str) -> Value {
    json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}})
}

fn cluster(nodes: &[Node]) -> Cluster {
    let mut cluster = Cluster::new();
    for node in nodes {
        cluster.set_node(node);
    }
    cluster
}

fn three() -> Cluster {
    cluster(&[
        node("n1", json!({"metadata": {"labels": {"zone": "x"}}})),
        node("n2", json!({"metadata": {"labels": {"zone": "x"}}})),
        node("n3", json!({"metadata": {"labels": {"zone": "y"}}})),
    ])
}

fn refusal(cluster: &Cluster, pod: &PodInfo) -> String {
    schedule(cluster, pod).unwrap_err().to_string()
}

#[test]
fn what_a_node_has_left_survives_pods_that_ask_for_everything() {
    let mut cluster = cluster(&[node("n1", json!({}))]);
    // Whoever names the node itself is not asked whether there is room.
    for (name, memory) in [("huge-1", "9E"), ("huge-2", "9E"), ("plain", "6Gi")] {
        cluster.place(pod(name, asking("1", memory)), "n1");
    }
    assert!(cluster.remove_pod("huge-1") && cluster.remove_pod("huge-2"));
    assert!(refusal(&cluster, &pod("p", asking("1", "4Gi"))).contains("Insufficient memory"));
    assert_eq!(schedule(&cluster, &pod("p", asking("1", "2Gi"))).unwrap(), "n1");
    assert!(cluster.remove_pod("plain"));
    assert_eq!(schedule(&cluster, &pod("p", asking("4", "8Gi"))).unwrap(), "n1");
}

#[test]
fn refusals_are_counted_in_upstreams_words() {
    assert_eq!(refusal(&Cluster::new(), &pod("p", json!({}))), "no nodes available to schedule pods");
    let mixed = cluster(&[
        node("n1", json!({})),
        node("n2", json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}})),
        node("n3", json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoExecute"}]}})),
        node("n4", json!({"spec": {"unschedulable": true}})),
    ]);
    assert_eq!(
        refusal(&mixed, &pod("p", asking("5", "9Gi"))),
        "0/4 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 1 node(s) were unschedulable, \
         2 node(s) had untolerated taint {k: v}."
    );
}

#[test]
fn tolerations_open_tainted_and_cordoned_nodes() {
    let closed = cluster(&[node(
        "n1",
        json!({"spec": {"unschedulable": true, "taints": [
        {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}, {"key": "k", "value": "v", "effect": "NoExecute"}]}}),
    )]);
    let tolerating = |list: Value| pod("p", json!({"spec": {"tolerations": list}}));
    assert!(schedule(&closed, &tolerating(json!([{"operator": "Exists"}]))).is_ok());
    assert!(schedule(&closed, &tolerating(json!([{"key": "k", "value": "v"}]))).is_err());
    let both = json!([{"key": "k", "value": "v", "effect": "NoExecute"},
        {"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"}]);
    assert!(schedule(&closed, &tolerating(both)).is_ok());
}

#[test]
fn requests_of_placed_pods_count_until_they_leave() {
    let mut cluster = cluster(&[node("n1", json!({}))]);
    cluster.place(pod("big", asking("3", "1Gi")), "n1");
    cluster.place(pod("big", asking("3", "1Gi")), "n1");
    assert_eq!(schedule(&cluster, &pod("fits", asking("1", "1Gi"))).as_deref(), Ok("n1"));
    assert_eq!(
        refusal(&cluster, &pod("p", asking("1001m", "0"))),
        "0/1 nodes are available: 1 Insufficient cpu."
    );
    assert!(cluster.remove_pod("big"));
    assert!(!cluster.remove_pod("big"));
    assert!(schedule(&cluster, &pod("p", asking("4", "8Gi"))).is_ok());
}

#[test]
fn pods_bound_to_a_node_that_comes_later_count() {
    let mut cluster = Cluster::new();
    cluster.place(pod("early", asking("3", "0")), "n1");
    assert_eq!(cluster.node_count(), 0);
    cluster.set_node(&node("n1", json!({})));
    assert!(schedule(&cluster, &pod("p", asking("2", "0"))).is_err());
    cluster.remove_node("n1");
    assert_eq!(refusal(&cluster, &pod("p", json!({}))), "no nodes available to schedule pods");
}

#[test]
fn the_number_of_pods_is_limited() {
    let mut cluster = cluster(&[node("n1", json!({"status": {"allocatable": {"pods": "1"}}}))]);
    cluster.place(pod("one", json!({})), "n1");
    assert_eq!(refusal(&cluster, &pod("two", json!({}))), "0/1 nodes are available: 1 Too many pods.");
}

#[test]
fn selectors_and_affinity_choose_nodes() {
    let cluster = three();
    let selecting = pod("p", json!({"spec": {"nodeSelector": {"zone": "y"}}}));
    assert_eq!(schedule(&cluster, &selecting).as_deref(), Ok("n3"));
    let nowhere = pod("p", json!({"spec": {"nodeSelector": {"zone": "z"}}}));
    assert_eq!(
        refusal(&cluster, &nowhere),
        "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."
    );
    let required = |operator: &str, values: Value| {
        pod(
            "p",
            json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": operator, "values": values}]}]}}}}}),
        )
    };
    assert_eq!(schedule(&cluster, &required("NotIn", json!(["x"]))).as_deref(), Ok("n3"));
    assert!(schedule(&cluster, &required("DoesNotExist", json!(null))).is_err());
    let preferred = pod(
        "p",
        json!({"spec": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
        [{"weight": 10, "preference": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["y"]}]}}]}}}}),
    );
    assert_eq!(schedule(&cluster, &preferred).as_deref(), Ok("n3"));
    let by_name = pod(
        "p",
        json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}]}}}}}),
    );
    assert_eq!(schedule(&cluster, &by_name).as_deref(), Ok("n2"));
}

#[test]
fn host_ports_are_taken_once_per_node() {
    let mut cluster = cluster(&[node("n1", json!({}))]);
    let with_port = |name: &str, port: i32, ip: &str| {
        pod(
            name,
            json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": port, "hostIP": ip}]}]}}),
        )
    };
    cluster.place(with_port("one", 8080, "127.0.0.1"), "n1");
    assert!(schedule(&cluster, &with_port("two", 8080, "127.0.0.2")).is_ok());
    assert!(schedule(&cluster, &with_port("two", 8081, "")).is_ok());
    assert_eq!(
        refusal(&cluster, &with_port("two", 8080, "")),
        "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."
    );
    cluster.remove_pod("one");
    assert!(schedule(&cluster, &with_port("two", 8080, "")).is_ok());
}

#[test]
fn small_clusters_are_packed_and_copies_are_spread() {
    let mut cluster = three();
    cluster.place(pod("other", asking("1", "1Gi")), "n2");
    assert_eq!(
        schedule(&cluster, &pod("p", asking("1", "1Gi"))).as_deref(),
        Ok("n2"),
        "the fullest that fits"
    );
    let copy = |name: &str| {
        pod(
            name,
            json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]}}),
        )
    };
    let mut nodes: Vec<String> = ["c1", "c2", "c3"]
        .into_iter()
        .map(|name| {
            let node = schedule(&cluster, &copy(name)).unwrap();
            cluster.place(copy(name), &node);
            node
        })
        .collect();
    nodes.sort();
    assert_eq!(nodes, ["n1", "n2", "n3"]);
}

#[test]
fn equals_are_told_apart_by_name() {
    let cluster = cluster(&[node("b", json!({})), node("a", json!({})), node("c", json!({}))]);
    assert_eq!(schedule(&cluster, &pod("p", json!({}))).as_deref(), Ok("a"));
}

#[test]
fn an_image_that_is_there_attracts() {
    let with_image = json!({"status": {"images": [{"names": ["big:1"], "sizeBytes": 900_000_000}]}});
    let cluster = cluster(&[node("a", json!({})), node("b", with_image)]);
    let wanting = pod("p", json!({"spec": {"containers": [{"name": "c", "image": "big:1"}]}}));
    assert_eq!(schedule(&cluster, &wanting).as_deref(), Ok("b"));
}

#[test]
fn soft_taints_are_avoided_but_not_closed() {
    let soft = json!({"spec": {"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}});
    let both = cluster(&[node("a", soft.clone()), node("b", json!({}))]);
    assert_eq!(schedule(&both, &pod("p", json!({}))).as_deref(), Ok("b"));
    assert_eq!(schedule(&cluster(&[node("a", soft)]), &pod("p", json!({}))).as_deref(), Ok("a"));
}

fn pod_rule(kind: &str, app: &str, key: &str) -> Value {
    json!({"spec": {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution":
        [{"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}}]}}}})
}

#[test]
fn affinity_to_pods_is_by_topology() {
    let mut cluster = three();
    let near_db = pod("web", pod_rule("podAffinity", "db", "zone"));
    assert_eq!(
        refusal(&cluster, &near_db),
        "0/3 nodes are available: 3 node(s) didn't match pod affinity rules."
    );
    cluster.place(pod("db", json!({})), "n3");
    assert_eq!(schedule(&cluster, &near_db).as_deref(), Ok("n3"));
    let elsewhere = pod("db2", json!({"metadata": {"namespace": "b", "labels": {"app": "cache"}}}));
    cluster.place(elsewhere, "n1");
    assert!(
        schedule(&cluster, &pod("web", pod_rule("podAffinity", "cache", "zone"))).is_err(),
        "another namespace"
    );
}

#[test]
fn the_first_of_a_group_may_go_anywhere() {
    let mut cluster = three();
    let first = pod("web", pod_rule("podAffinity", "web", "zone"));
    let node = schedule(&cluster, &first).unwrap();
    cluster.place(first, &node);
    let mut rule = pod_rule("podAffinity", "web", "zone");
    rule["metadata"] = json!({"labels": {"app": "web"}});
    let second = schedule(&cluster, &pod("web2", rule)).unwrap();
    assert_ne!((node.as_str() == "n3", second.as_str() == "n3"), (true, false));
    assert_ne!((node.as_str() == "n3", second.as_str() == "n3"), (false, true));
}

#[test]
fn anti_affinity_works_both_ways() {
    let mut cluster = three();
    cluster.place(pod("db", json!({})), "n1");
    let away = pod("web", pod_rule("podAntiAffinity", "db", "zone"));
    assert_eq!(schedule(&cluster, &away).as_deref(), Ok("n3"));
    cluster.place(away, "n3");
    assert_eq!(
        refusal(&cluster, &pod("db", json!({"spec": {"nodeSelector": {"zone": "y"}}}))),
        "0/3 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules, \
         2 node(s) didn't match Pod's node affinity/selector."
    );
    cluster.remove_pod("web");
    assert!(schedule(&cluster, &pod("db", json!({"spec": {"nodeSelector": {"zone": "y"}}}))).is_ok());
}

#[test]
fn namespaces_can_be_selected() {
    let mut cluster = three();
    cluster.set_namespace("b", [("team".to_owned(), "red".to_owned())].into());
    cluster.place(pod("db", json!({"metadata": {"namespace": "b"}})), "n3");
    let selecting = |team: &str| {
        pod(
            "web",
            json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "db"}}, "namespaceSelector": {"matchLabels": {"team": team}}}]}}}}),
        )
    };
    assert_eq!(schedule(&cluster, &selecting("red")).as_deref(), Ok("n3"));
    assert!(schedule(&cluster, &selecting("blue")).is_err());
}

#[test]
fn hard_spreading_keeps_the_skew() {
    let mut cluster = three();
    let copy = |name: &str| {
        pod(
            name,
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]}}),
        )
    };
    cluster.place(copy("one"), "n1");
    assert_eq!(schedule(&cluster, &copy("two")).as_deref(), Ok("n3"));
    cluster.set_node(&node(
        "n3",
        json!({"metadata": {"labels": {"zone": "y"}}, "spec": {"unschedulable": true}}),
    ));
    assert_eq!(
        refusal(&cluster, &copy("two")),
        "0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) didn't match pod topology spread constraints."
    );
}

#[test]
fn a_node_without_the_spread_label_is_named() {
    let cluster = cluster(&[node("n1", json!({}))]);
    let copy = pod(
        "p",
        json!({"spec": {"topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}]}}),
    );
    assert_eq!(
        refusal(&cluster, &copy),
        "0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label)."
    );
}

#[test]
fn soft_spreading_prefers_the_emptier_domain() {
    let mut cluster = three();
    let copy = |name: &str| {
        pod(
            name,
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": {"app": "web"}}}]}}),
        )
    };
    cluster.place(copy("one"), "n1");
    assert_eq!(schedule(&cluster, &copy("two")).as_deref(), Ok("n3"));
}

/// The whole road for many pods: no node is overfilled, everything fits, and the result is always the same.
#[test]
fn many_pods_fill_many_nodes_exactly() {
    let place_all = || {
        let mut cluster = Cluster::new();
        for i in 0..50 {
            cluster.set_node(&node(&format!("n{i:02}"), json!({"status": {"allocatable": {"pods": "10"}}})));
        }
        let template = pod("t", asking("100m", "64Mi"));
        let mut nodes = Vec::new();
        for i in 0..500 {
            let mut one = Pod::clone(&template.pod);
            one.metadata.uid = Some(i.to_string());
            let info = Arc::new(PodInfo::new(Arc::new(one)));
            let node = schedule(&cluster, &info).unwrap();
            cluster.place(info, &node);
            nodes.push(node);
        }
        assert!(schedule(&cluster, &template).is_err(), "full");
        nodes
    };
    let nodes = place_all();
    for i in 0..50 {
        assert_eq!(nodes.iter().filter(|node| **node == format!("n{i:02}")).count(), 10);
    }
    assert_eq!(nodes, place_all());
}

fn claim(more: Value) -> Value {
    let mut claim = json!({"metadata": {"namespace": "a", "name": "data", "uid": "u1"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "late",
            "resources": {"requests": {"storage": "1Gi"}}}});
    merge(&mut claim, more);
    claim
}

fn bound_to(volume: &str) -> Value {
    json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"volumeName": volume}, "status": {"phase": "Bound"}})
}

fn volume_on(name: &str, node: &str, more: Value) -> Value {
    let term =
        json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]});
    let mut volume = json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
        "storageClassName": "late", "capacity": {"storage": "1Gi"}, "local": {"path": "/x"},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}}}, "status": {"phase": "Available"}});
    merge(&mut volume, more);
    volume
}

/// Three nodes, a class that waits for the pod, a claim of it, and volumes.
fn with_claim(provisioner: &str, claim: Option<Value>, volumes: &[Value]) -> Cluster {
    let mut cluster = three();
    for (name, mode) in [("late", "WaitForFirstConsumer"), ("now", "Immediate")] {
        let class =
            json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode});
        cluster.set_class(name, Some(Arc::new(serde_json::from_value(class).unwrap())));
    }
    let claim = claim.map(|claim| Arc::new(serde_json::from_value(claim).unwrap()));
    cluster.set_claim("a", "data", claim);
    for volume in volumes {
        let volume: ketch_api::k8s::api::core::v1::PersistentVolume =
            serde_json::from_value(volume.clone()).unwrap();
        cluster.set_volume(&volume.metadata.name.clone().unwrap(), Some(Arc::new(volume)));
    }
    cluster
}

fn user(name: &str) -> Arc<PodInfo> {
    pod(name, json!({"spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}}))
}

#[test]
fn a_pod_goes_where_its_volume_is() {
    let bound = || Some(claim(bound_to("pv")));
    let cluster = with_claim("a/b", bound(), &[volume_on("pv", "n2", json!({}))]);
    assert_eq!(schedule(&cluster, &user("p")).as_deref(), Ok("n2"));
    assert!(settle(&cluster, &user("p"), "n2").is_none(), "nothing is left to do");
    let elsewhere = with_claim("a/b", bound(), &[volume_on("pv", "n9", json!({}))]);
    assert_eq!(
        refusal(&elsewhere, &user("p")),
        "0/3 nodes are available: 3 node(s) had volume node affinity conflict."
    );
    let gone = with_claim("a/b", bound(), &[]);
    assert_eq!(
        refusal(&gone, &user("p")),
        "0/3 nodes are available: 3 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)."
    );
}

#[test]
fn a_pod_waits_for_its_claims() {
    let immediate = claim(json!({"spec": {"storageClassName": "now"}}));
    let leaving = claim(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    for (claim, why) in [
        (None, "persistentvolumeclaim \"data\" not found"),
        (Some(immediate), "pod has unbound immediate PersistentVolumeClaims"),
        (Some(leaving), "persistentvolumeclaim \"data\" is being deleted"),
    ] {
        let cluster = with_claim("a/b", claim, &[]);
        assert_eq!(refusal(&cluster, &user("p")), format!("0/3 nodes are available: {why}."));
    }
}

#[test]
fn the_volume_of_a_late_claim_is_chosen_with_the_node() {
    let steps = |cluster: &Cluster| {
        let node = schedule(cluster, &user("p")).unwrap();
        let steps = settle(cluster, &user("p"), &node).unwrap();
        steps
            .iter()
            .map(|step| match step {
                Settle::Reserve(volume, _) => format!("reserve {}", volume.metadata.name.as_ref().unwrap()),
                Settle::Select(_, node) => format!("select {node}"),
            })
            .collect::<Vec<_>>()
            .join(", ")
    };
    let own = "kubernetes.io/no-provisioner";
    let fresh = || Some(claim(json!({})));
    assert!(steps(&with_claim("a/b", fresh(), &[])).starts_with("select n"));
    let disks = [volume_on("disk", "n3", json!({}))];
    assert_eq!(steps(&with_claim(own, fresh(), &disks)), "reserve disk");
    assert_eq!(
        refusal(&with_claim(own, fresh(), &[]), &user("p")),
        "0/3 nodes are available: 3 node(s) didn't find available persistent volumes to bind."
    );
    let selected = claim(json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "n2"}}}));
    let asked = with_claim("a/b", Some(selected), &[]);
    assert_eq!(schedule(&asked, &user("p")).as_deref(), Ok("n2"));
    assert_eq!(steps(&asked), "", "it has been asked for");
    let kept = json!({"spec": {"claimRef": {"namespace": "a", "name": "data", "uid": "u1"}}});
    let made = with_claim("a/b", fresh(), &[volume_on("pvc-u1", "n1", kept)]);
    assert_eq!(schedule(&made, &user("p")).as_deref(), Ok("n1"));
    assert_eq!(steps(&made), "", "it is being bound");
}

#[test]
fn a_claim_for_one_pod_has_one_pod() {
    let alone = claim(json!({"spec": {"accessModes": ["ReadWriteOncePod"], "volumeName": "pv"},
        "metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "status": {"phase": "Bound"}}));
    let mut cluster = with_claim("a/b", Some(alone), &[volume_on("pv", "n2", json!({}))]);
    cluster.place(user("first"), "n2");
    assert_eq!(
        refusal(&cluster, &user("second")),
        "0/3 nodes are available: 3 node has pod using PersistentVolumeClaim with the same name and \
         ReadWriteOncePod access mode."
    );
    assert!(schedule(&cluster, &user("first")).is_ok(), "it does not stand in its own way");
    cluster.remove_pod("first");
    assert_eq!(schedule(&cluster, &user("second")).as_deref(), Ok("n2"));
}
