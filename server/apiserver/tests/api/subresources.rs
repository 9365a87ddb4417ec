//! Scale, binding, eviction, log.

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use http::{Request, Response};
use ketch_api::Status;
use ketch_apiserver::NodeConnector;
use serde_json::{Value, json};

use crate::harness::{Harness, PODS};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn deployment() -> Value {
    json!({"metadata": {"name": "d"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

fn pod(containers: &[&str]) -> Value {
    let containers = containers.iter().map(|name| json!({"name": name, "image": "i"})).collect::<Vec<_>>();
    json!({"metadata": {"name": "p"}, "spec": {"containers": containers}})
}

#[tokio::test]
async fn scale_reads_and_writes_the_replica_count() {
    let harness = Harness::new().await;
    let created = harness.post(DEPLOYMENTS, &deployment()).await.expect(201);
    let uri = format!("{DEPLOYMENTS}/d/scale");
    let scale = harness.get(&uri).await.expect(200);
    assert_eq!((&scale["kind"], &scale["apiVersion"]), (&json!("Scale"), &json!("autoscaling/v1")));
    assert_eq!(scale["spec"]["replicas"], 2);
    assert_eq!(scale["status"]["selector"], "a=b");
    assert_eq!(scale["metadata"]["uid"], created["metadata"]["uid"]);
    let patched = harness.patch(&uri, "merge", &json!({"spec": {"replicas": 5}})).await.expect(200);
    assert_eq!(patched["spec"]["replicas"], 5);
    let mut stale = scale;
    stale["spec"]["replicas"] = 7.into();
    harness.put(&uri, &stale).await.refused(409, "Conflict", "the object has been modified");
    stale["metadata"]["resourceVersion"] = patched["metadata"]["resourceVersion"].clone();
    assert_eq!(harness.put(&uri, &stale).await.expect(200)["spec"]["replicas"], 7);
    let object = harness.get(&format!("{DEPLOYMENTS}/d")).await.expect(200);
    assert_eq!((&object["spec"]["replicas"], &object["metadata"]["generation"]), (&json!(7), &json!(3)));
    let refused = harness.patch(&uri, "merge", &json!({"spec": {"replicas": -1}})).await;
    refused.refused(422, "Invalid", "spec.replicas");
    harness.get("/api/v1/namespaces/default/configmaps/x/scale").await.refused(404, "NotFound", "");
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let harness = Harness::new().await;
    harness.post(PODS, &pod(&["c"])).await.expect(201);
    let binding = json!({"apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": "p", "annotations": {"x": "y"}}, "target": {"kind": "Node", "name": "n1"}});
    let uri = format!("{PODS}/p/binding");
    assert_eq!(harness.post(&uri, &binding).await.expect(201)["status"], "Success");
    let bound = harness.get(&format!("{PODS}/p")).await.expect(200);
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["metadata"]["annotations"]["x"], "y");
    let conditions = bound["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|c| c["type"] == "PodScheduled" && c["status"] == "True"));
    let again = harness.post("/api/v1/namespaces/default/bindings", &binding).await;
    again.refused(409, "Conflict", "pod p is already assigned to node \"n1\"");
    let nowhere = json!({"metadata": {"name": "p"}, "target": {"kind": "Node"}});
    harness.post(&uri, &nowhere).await.refused(422, "Invalid", "target.name");
    harness.delete(&format!("{PODS}/p")).await.expect(200);
    harness.post(&uri, &binding).await.refused(409, "Conflict", "is being deleted");
}

#[tokio::test]
async fn eviction_is_a_delete() {
    let harness = Harness::new().await;
    harness.post(PODS, &pod(&["c"])).await.expect(201);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"},
        "deleteOptions": {"dryRun": ["All"]}});
    let uri = format!("{PODS}/p/eviction");
    harness.post(&uri, &eviction).await.expect(201);
    harness.get(&format!("{PODS}/p")).await.expect(200);
    harness.post(&uri, &json!({"metadata": {"name": "p"}})).await.expect(201);
    harness.get(&format!("{PODS}/p")).await.refused(404, "NotFound", "");
}

/// Answers with what it was asked.
struct Echo;

#[async_trait]
impl NodeConnector for Echo {
    async fn request(&self, node: &str, request: Request<Body>) -> Result<Response<Body>, Status> {
        if request.uri().query() == Some("previous=true") {
            let status = Status::bad_request("previous terminated container \"c\" not found");
            return Ok(Response::builder()
                .status(400)
                .body(Body::from(status.to_json().to_string()))
                .unwrap());
        }
        Ok(Response::new(Body::from(format!("{node} {}\n", request.uri()))))
    }
}

#[tokio::test]
async fn logs_come_from_the_node() {
    let harness = Harness::with(|config| config.nodes = Some(Arc::new(Echo))).await;
    harness.post(PODS, &pod(&["a", "b"])).await.expect(201);
    let uri = format!("{PODS}/p/log");
    let unclear = harness.get(&uri).await;
    unclear.refused(400, "BadRequest", "a container name must be specified for pod p, choose one of: [a b]");
    let wrong = harness.get(&format!("{uri}?container=x")).await;
    wrong.refused(400, "BadRequest", "container x is not valid for pod p");
    let unbound = harness.get(&format!("{uri}?container=a")).await;
    assert_eq!((unbound.code, unbound.text.as_str()), (200, ""));
    let binding = json!({"target": {"kind": "Node", "name": "n1"}});
    harness.post(&format!("{PODS}/p/binding"), &binding).await.expect(201);
    let log = harness.get(&format!("{uri}?container=a&follow=true&tailLines=5&pretty=true")).await;
    assert_eq!(log.text, "n1 /containerLogs/default/p/a?follow=true&tailLines=5\n");
    assert_eq!(log.headers["content-type"], "text/plain");
    let previous = harness.get(&format!("{uri}?container=a&previous=true")).await;
    previous.refused(400, "BadRequest", "previous terminated container");
    let bad = harness.get(&format!("{uri}?container=a&tailLines=-1")).await;
    bad.refused(422, "Invalid", "tailLines");
    let missing = harness.get(&format!("{PODS}/q/log")).await;
    missing.refused(404, "NotFound", "pods \"q\" not found");
}

#[tokio::test]
async fn logs_without_a_way_to_nodes_are_unavailable() {
    let harness = Harness::new().await;
    harness.post(PODS, &pod(&["a"])).await.expect(201);
    let binding = json!({"target": {"kind": "Node", "name": "n1"}});
    harness.post(&format!("{PODS}/p/binding"), &binding).await.expect(201);
    let log = harness.get(&format!("{PODS}/p/log")).await;
    log.refused(503, "ServiceUnavailable", "no connection to nodes");
}
