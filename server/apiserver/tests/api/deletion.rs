//! Finalizers, grace, preconditions, collections, namespaces.

use serde_json::json;

use crate::harness::{CONFIG_MAPS, Harness, PODS, version};

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_gone() {
    let harness = Harness::new().await;
    let body = json!({"metadata": {"name": "a", "finalizers": ["ketch.dev/x", "ketch.dev/y"]}});
    harness.post(CONFIG_MAPS, &body).await.expect(201);
    let one = format!("{CONFIG_MAPS}/a");
    let marked = harness.delete(&one).await.expect(200);
    assert_eq!(marked["kind"], "ConfigMap");
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(harness.delete(&one).await.expect(200), marked, "deleting twice changes nothing");
    let finalizers = |list: &[&str]| json!({"metadata": {"finalizers": list}});
    let added = finalizers(&["ketch.dev/x", "ketch.dev/y", "ketch.dev/z"]);
    let refused = harness.patch(&one, "merge", &added).await;
    refused.refused(422, "Invalid", "no new finalizers can be added if the object is being deleted");
    harness.patch(&one, "merge", &finalizers(&["ketch.dev/y"])).await.expect(200);
    harness.get(&one).await.expect(200);
    harness.patch(&one, "merge", &finalizers(&[])).await.expect(200);
    harness.get(&one).await.refused(404, "NotFound", "not found");
}

#[tokio::test]
async fn propagation_becomes_finalizers() {
    let harness = Harness::new().await;
    for (policy, wanted, code) in [("Foreground", "foregroundDeletion", 202), ("Orphan", "orphan", 200)] {
        harness.config_map("a", json!({})).await;
        let one = format!("{CONFIG_MAPS}/a");
        let body =
            json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy}).to_string();
        let marked = harness.send("DELETE", &one, &[], &body).await.expect(code);
        assert_eq!(marked["metadata"]["finalizers"], json!([wanted]));
        let done = json!({"metadata": {"finalizers": null}});
        harness.patch(&one, "merge", &done).await.expect(200);
        harness.get(&one).await.refused(404, "NotFound", "not found");
    }
    harness.config_map("a", json!({})).await;
    let uri = format!("{CONFIG_MAPS}/a?propagationPolicy=Sideways");
    harness.delete(&uri).await.refused(422, "Invalid", "propagationPolicy");
    let uri = format!("{CONFIG_MAPS}/a?propagationPolicy=Orphan&orphanDependents=true");
    harness.delete(&uri).await.refused(422, "Invalid", "cannot be both set");
    let uri = format!("{CONFIG_MAPS}/a?propagationPolicy=Background");
    assert_eq!(harness.delete(&uri).await.expect(200)["status"], "Success");
}

#[tokio::test]
async fn preconditions_are_checked() {
    let harness = Harness::new().await;
    let created = harness.config_map("a", json!({})).await;
    let one = format!("{CONFIG_MAPS}/a");
    let with = |preconditions| json!({"preconditions": preconditions}).to_string();
    let refused = harness.send("DELETE", &one, &[], &with(json!({"uid": "x"}))).await;
    refused.refused(409, "Conflict", "Precondition failed: UID in precondition: x");
    let refused = harness.send("DELETE", &one, &[], &with(json!({"resourceVersion": "1"}))).await;
    refused.refused(409, "Conflict", "Precondition failed: ResourceVersion");
    let right = json!({"uid": created["metadata"]["uid"], "resourceVersion": version(&created)});
    harness.send("DELETE", &one, &[], &with(right)).await.expect(200);
}

#[tokio::test]
async fn running_pods_end_gracefully() {
    let harness = Harness::new().await;
    let pod = |name: &str| {
        json!({"metadata": {"name": name},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}})
    };
    harness.post(PODS, &pod("p")).await.expect(201);
    let one = format!("{PODS}/p");
    let marked = harness.delete(&one).await.expect(200);
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    let longer = harness.delete(&format!("{one}?gracePeriodSeconds=60")).await.expect(200);
    assert_eq!(longer, marked, "a period is never made longer");
    let shorter = harness.delete(&format!("{one}?gracePeriodSeconds=5")).await.expect(200);
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    let patch = json!({"metadata": {"annotations": {"a": "b"}}});
    harness.patch(&one, "merge", &patch).await.expect(200);
    harness.get(&one).await.expect(200);
    let gone = harness.delete(&format!("{one}?gracePeriodSeconds=0")).await.expect(200);
    assert_eq!(gone["status"], "Success");
    harness.get(&one).await.refused(404, "NotFound", "pods \"p\" not found");
}

#[tokio::test]
async fn pods_that_do_not_run_go_at_once() {
    let harness = Harness::new().await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    harness.post(PODS, &pod).await.expect(201);
    assert_eq!(harness.delete(&format!("{PODS}/p")).await.expect(200)["status"], "Success");
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let harness = Harness::new().await;
    for n in 0..4 {
        harness.config_map(&format!("c{n}"), json!({"odd": (n % 2).to_string()})).await;
    }
    let deleted = harness.delete(&format!("{CONFIG_MAPS}?labelSelector=odd%3D1")).await.expect(200);
    assert_eq!(deleted["kind"], "ConfigMapList");
    assert_eq!(deleted["items"].as_array().unwrap().len(), 2);
    let left = harness.get(CONFIG_MAPS).await.expect(200);
    assert_eq!(left["items"].as_array().unwrap().len(), 2);
    harness.delete(&format!("{CONFIG_MAPS}?dryRun=All")).await.expect(200);
    assert_eq!(harness.get(CONFIG_MAPS).await.expect(200)["items"].as_array().unwrap().len(), 2);
    assert_eq!(harness.delete("/api/v1/configmaps").await.code, 405);
}

#[tokio::test]
async fn namespaces_end_when_they_are_finalized() {
    let harness = Harness::new().await;
    let created = harness.post("/api/v1/namespaces", &json!({"metadata": {"name": "ns"}})).await.expect(201);
    assert_eq!(created["spec"]["finalizers"], json!(["kubernetes"]));
    let marked = harness.delete("/api/v1/namespaces/ns").await.expect(200);
    assert_eq!(marked["status"]["phase"], "Terminating");
    let mut finalized = marked.clone();
    finalized["spec"]["finalizers"] = json!([]);
    harness.put("/api/v1/namespaces/ns", &finalized).await.expect(200);
    harness.get("/api/v1/namespaces/ns").await.expect(200);
    finalized["metadata"]["resourceVersion"] = json!(null);
    harness.put("/api/v1/namespaces/ns/finalize", &finalized).await.expect(200);
    harness.get("/api/v1/namespaces/ns").await.refused(404, "NotFound", "namespaces \"ns\" not found");
    for name in ["default", "kube-system", "kube-public"] {
        let refused = harness.delete(&format!("/api/v1/namespaces/{name}")).await;
        refused.refused(403, "Forbidden", "this namespace may not be deleted");
    }
}
