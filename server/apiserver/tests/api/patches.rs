//! Patches beyond what every kind's conformance covers.

use serde_json::json;

use crate::harness::{CONFIG_MAPS, Harness, PODS};

#[tokio::test]
async fn failed_json_patches_say_where() {
    let harness = Harness::new().await;
    harness.config_map("a", json!({})).await;
    let one = format!("{CONFIG_MAPS}/a");
    let test = json!([{"op": "test", "path": "/data/k", "value": "w"}]);
    let refused = harness.patch(&one, "json", &test).await;
    refused.refused(422, "Invalid", "testing path /data/k: test failed");
    let remove = json!([{"op": "remove", "path": "/data/nosuch"}]);
    harness.patch(&one, "json", &remove).await.refused(422, "Invalid", "/data/nosuch");
    harness.patch(&one, "json", &json!({"op": "x"})).await.refused(400, "BadRequest", "error decoding patch");
    let kind = json!({"kind": "Secret"});
    harness.patch(&one, "merge", &kind).await.refused(400, "BadRequest", "does not match the expected kind");
}

#[tokio::test]
async fn strategic_patches_merge_lists_by_key() {
    let harness = Harness::new().await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [
        {"name": "a", "image": "i:1"}, {"name": "b", "image": "i:1"}]}});
    harness.post(PODS, &pod).await.expect(201);
    let patch = json!({"spec": {"containers": [{"name": "b", "image": "i:2"}]}});
    let patched = harness.patch(&format!("{PODS}/p"), "strategic-merge", &patch).await.expect(200);
    let images = patched["spec"]["containers"].as_array().unwrap();
    let images = images.iter().map(|c| c["image"].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(images, ["i:1", "i:2"]);
}
