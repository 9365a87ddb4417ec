//! `metrics.k8s.io` from measurements that are given.

use std::{sync::Arc, time::Duration};

use ketch_apiserver::metrics::{Measured, Metrics, Usage};
use serde_json::json;

use crate::harness::{Harness, PODS};

const ROOT: &str = "/apis/metrics.k8s.io/v1beta1";

/// Everything uses the same, but for the node `away`.
struct Same;

fn measured<T>(usage: T) -> Measured<T> {
    Measured { at: "2026-01-01T00:00:15Z".parse().unwrap(), window: Duration::from_millis(15_020), usage }
}

const USAGE: Usage = Usage { nanocores: 1_500_000, memory: 5000 };

impl Metrics for Same {
    fn node(&self, name: &str) -> Option<Measured<Usage>> {
        (name != "away").then(|| measured(USAGE))
    }

    fn pod(&self, _uid: &str) -> Option<Measured<Vec<(String, Usage)>>> {
        Some(measured(vec![("c".to_owned(), USAGE)]))
    }
}

async fn harness() -> Harness {
    let harness = Harness::with(|config| config.metrics = Some(Arc::new(Same))).await;
    for node in ["n1", "away"] {
        let node = json!({"metadata": {"name": node, "labels": {"zone": node}}});
        harness.post("/api/v1/nodes", &node).await.expect(201);
    }
    for name in ["a", "b"] {
        let pod = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        harness.post(PODS, &pod).await.expect(201);
    }
    harness
}

#[tokio::test]
async fn pods_are_measured_by_name_and_by_label() {
    let harness = harness().await;
    let pods = format!("{ROOT}/namespaces/default/pods");
    let one = harness.get(&format!("{pods}/a")).await.expect(200);
    assert_eq!((&one["kind"], &one["apiVersion"]), (&json!("PodMetrics"), &json!("metrics.k8s.io/v1beta1")));
    assert_eq!((&one["timestamp"], &one["window"]), (&json!("2026-01-01T00:00:15Z"), &json!("15.02s")));
    assert_eq!(one["containers"], json!([{"name": "c", "usage": {"cpu": "1500000n", "memory": "5Ki"}}]));
    assert_eq!(one["metadata"]["labels"], json!({"app": "a"}));
    let names = async |uri: &str| {
        let list = harness.get(uri).await.expect(200);
        assert_eq!(list["kind"], "PodMetricsList");
        let items = list["items"].as_array().unwrap().clone();
        items.iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&pods).await, ["a", "b"]);
    assert_eq!(names(&format!("{ROOT}/pods?labelSelector=app%3Db")).await, ["b"]);
    assert_eq!(names(&format!("{ROOT}/pods?fieldSelector=metadata.name%3Da")).await, ["a"]);
    harness.get(&format!("{pods}/none")).await.refused(
        404,
        "NotFound",
        "pods.metrics.k8s.io \"none\" not found",
    );
}

#[tokio::test]
async fn nodes_that_were_not_measured_are_left_out() {
    let harness = harness().await;
    let list = harness.get(&format!("{ROOT}/nodes")).await.expect(200);
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(list["items"][0]["usage"], json!({"cpu": "1500000n", "memory": "5Ki"}));
    assert_eq!(harness.get(&format!("{ROOT}/nodes/away")).await.code, 404);
    assert_eq!(harness.delete(&format!("{ROOT}/nodes/n1")).await.code, 405);
    assert_eq!(harness.get(&format!("{ROOT}/nodes?watch=1")).await.code, 405);
    assert_eq!(harness.get(&format!("{ROOT}/namespaces/default/nodes")).await.code, 404);
}

#[tokio::test]
async fn the_group_is_found_only_where_somebody_measures() {
    let list = harness().await.get(ROOT).await.expect(200);
    let resources = list["resources"].as_array().unwrap();
    assert_eq!(resources.len(), 2);
    assert_eq!(resources[1]["verbs"], json!(["get", "list"]));
    let without = Harness::new().await;
    assert_eq!(without.get(ROOT).await.code, 404);
    assert_eq!(without.get(&format!("{ROOT}/nodes")).await.code, 404);
}
