//! Bodies, metadata, admission.

use axum::body::Body;
use http::Request;
use serde_json::{Value, json};

use crate::harness::{CONFIG_MAPS, Harness, PODS};

#[tokio::test]
async fn bodies_are_checked() {
    let harness = Harness::new().await;
    let json_type = [("content-type", "application/json")];
    for (body, part) in [
        ("", "the body of the request is empty"),
        ("{", "json parse error"),
        ("[]", "not an object"),
        (r#"{"apiVersion":"v2","metadata":{"name":"a"}}"#, "does not match the expected API version (v1)"),
        (r#"{"kind":"Secret","metadata":{"name":"a"}}"#, "does not match the expected kind"),
        (r#"{"metadata":{"name":"a"},"data":{"k":1}}"#, "cannot be handled as a ConfigMap"),
        (r#"{"metadata":{"name":"a","resourceVersion":"5"}}"#, "resourceVersion should not be set"),
        (r#"{"metadata":{"name":"a","namespace":"other"}}"#, "does not match the namespace"),
    ] {
        harness.send("POST", CONFIG_MAPS, &json_type, body).await.refused(400, "BadRequest", part);
    }
    let odd = [("content-type", "text/html")];
    let refused = harness.send("POST", CONFIG_MAPS, &odd, "{}").await;
    refused.refused(415, "UnsupportedMediaType", "application/json");
    let large = format!(r#"{{"metadata":{{"name":"a"}},"data":{{"k":"{}"}}}}"#, "x".repeat(3 << 20));
    let refused = harness.send("POST", CONFIG_MAPS, &json_type, &large).await;
    refused.refused(413, "RequestEntityTooLarge", "limit is 3145728");
}

/// A field of a protobuf message with a length.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
    out.extend(bytes);
    out
}

#[tokio::test]
async fn protobuf_bodies_are_read() {
    let harness = Harness::new().await;
    let metadata = field(1, &field(1, b"proto"));
    let datum = field(2, &[field(1, b"k"), field(2, b"v")].concat());
    let types = field(1, &[field(1, b"v1"), field(2, b"ConfigMap")].concat());
    let envelope = [types, field(2, &[metadata, datum].concat())].concat();
    let body = [b"k8s\0".as_slice(), &envelope].concat();
    let request = Request::post(CONFIG_MAPS)
        .header("authorization", "Bearer admin")
        .header("content-type", "application/vnd.kubernetes.protobuf")
        .header("accept", "application/vnd.kubernetes.protobuf,application/json");
    let response = harness.raw(request.body(Body::from(body)).unwrap()).await;
    assert_eq!((response.status().as_u16(), &response.headers()["content-type"]), (201, &JSON));
    let stored = harness.get(&format!("{CONFIG_MAPS}/proto")).await.expect(200);
    assert_eq!(stored["data"], json!({"k": "v"}));
}

const JSON: http::HeaderValue = http::HeaderValue::from_static("application/json");

#[tokio::test]
async fn duplicate_fields_are_noticed() {
    let harness = Harness::new().await;
    let json_type = [("content-type", "application/json")];
    let body = r#"{"metadata":{"name":"a"},"data":{"k":"1","k":"2"}}"#;
    let uri = format!("{CONFIG_MAPS}?fieldValidation=Strict");
    let strict = harness.send("POST", &uri, &json_type, body).await;
    strict.refused(400, "BadRequest", "strict decoding error: duplicate field \"data.k\"");
    let warned = harness.send("POST", CONFIG_MAPS, &json_type, body).await;
    assert_eq!(warned.expect(201)["data"]["k"], "2", "the last one counts");
    assert_eq!(warned.headers["warning"], "299 - \"duplicate field \\\"data.k\\\"\"");
    let yaml = [("content-type", "application/yaml")];
    let strict = harness.send("POST", &uri, &yaml, "metadata: {name: b}\ndata: {k: x}\ndata: {k: y}\n").await;
    strict.refused(400, "BadRequest", "duplicate field \"data\"");
}

#[tokio::test]
async fn metadata_is_validated() {
    let harness = Harness::new().await;
    for (metadata, part) in [
        (json!({"name": "Not_Valid"}), "metadata.name: Invalid value"),
        (json!({"name": "a", "labels": {"-": "x"}}), "metadata.labels"),
        (json!({"name": "a", "labels": {"a": "not valid"}}), "metadata.labels"),
        (json!({"name": "a", "finalizers": ["short"]}), "metadata.finalizers"),
    ] {
        let refused = harness.post(CONFIG_MAPS, &json!({"metadata": metadata})).await;
        let status = refused.refused(422, "Invalid", part);
        assert!(!status["details"]["causes"].as_array().unwrap().is_empty());
    }
}

#[tokio::test]
async fn namespaces_must_exist_and_live() {
    let harness = Harness::new().await;
    let body = json!({"metadata": {"name": "a"}});
    let missing = harness.post("/api/v1/namespaces/nosuch/configmaps", &body).await;
    let status = missing.refused(404, "NotFound", "namespaces \"nosuch\" not found");
    assert_eq!(status["details"]["kind"], "namespaces");
    harness.post("/api/v1/namespaces", &json!({"metadata": {"name": "ns"}})).await.expect(201);
    harness.post("/api/v1/namespaces/ns/configmaps", &body).await.expect(201);
    harness.delete("/api/v1/namespaces/ns").await.expect(200);
    let body = json!({"metadata": {"name": "b"}});
    let refused = harness.post("/api/v1/namespaces/ns/configmaps", &body).await;
    let status = refused.refused(403, "Forbidden", "because it is being terminated");
    assert_eq!(status["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let create = harness.post("/api/v1/configmaps", &body).await;
    assert_eq!(create.code, 405);
}

#[tokio::test]
async fn pods_get_what_admission_adds() {
    let harness = Harness::new().await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let pod = harness.post(PODS, &pod).await.expect(201);
    assert_eq!(pod["spec"]["tolerations"].as_array().unwrap().len(), 2);
    assert_eq!(pod["status"]["phase"], "Pending");
    let again = harness.put(&format!("{PODS}/p"), &pod).await.expect(200);
    assert_eq!(again, pod);
}

#[tokio::test]
async fn generation_counts_changes_of_the_spec() {
    let harness = Harness::new().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let created = harness.post(path, &deployment).await.expect(201);
    assert_eq!(created["metadata"]["generation"], 1);
    let one = format!("{path}/d");
    let patched = harness.patch(&one, "merge", &json!({"spec": {"replicas": 3}})).await.expect(200);
    assert_eq!(patched["metadata"]["generation"], 2);
    let patch = json!({"status": {"replicas": 1, "observedGeneration": 2}});
    let patched = harness.patch(&format!("{one}/status"), "merge", &patch).await.expect(200);
    assert_eq!((&patched["metadata"]["generation"], &patched["status"]["replicas"]), (&json!(2), &json!(1)));
    let patched = harness.patch(&one, "merge", &json!({"status": {"replicas": 9}})).await.expect(200);
    assert_eq!(patched["status"]["replicas"], 1, "only its subresource changes the status");
    let patched = harness.patch(&one, "merge", &json!({"metadata": {"generation": 9}})).await.expect(200);
    assert_eq!(patched["metadata"]["generation"], 2);
}

#[tokio::test]
async fn concurrent_patches_all_count() {
    let harness = Harness::new().await;
    harness.config_map("a", json!({})).await;
    let one = format!("{CONFIG_MAPS}/a");
    let patches = (0..50).map(|n| {
        let (one, harness) = (&one, &harness);
        async move { harness.patch(one, "merge", &json!({"data": {format!("k{n}"): "v"}})).await.expect(200) }
    });
    futures::future::join_all(patches).await;
    let object: Value = harness.get(&one).await.expect(200);
    assert_eq!(object["data"].as_object().unwrap().len(), 51);
}
