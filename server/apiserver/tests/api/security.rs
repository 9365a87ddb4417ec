//! Identity, permission, faults, limits, reviews.

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use http::Request;
use ketch_api::Status;
use ketch_apiserver::auth::{Reviews, User};
use serde_json::{Value, json};

use crate::harness::{CONFIG_MAPS, Harness};

async fn bare(harness: &Harness, uri: &str) -> u16 {
    harness.raw(Request::get(uri).body(Body::empty()).unwrap()).await.status().as_u16()
}

#[tokio::test]
async fn only_health_is_for_everybody() {
    let harness = Harness::new().await;
    for uri in ["/livez", "/readyz", "/healthz"] {
        assert_eq!(bare(&harness, uri).await, 200, "{uri}");
    }
    for uri in ["/", "/api", "/apis", "/api/v1/pods", CONFIG_MAPS, "/nosuch", "/version"] {
        assert_eq!(bare(&harness, uri).await, 401, "{uri}");
    }
}

#[tokio::test]
async fn the_transport_can_say_who_it_is() {
    let harness = Harness::new().await;
    let mut request = Request::get(CONFIG_MAPS).body(Body::empty()).unwrap();
    request.extensions_mut().insert(User::new("me", &["system:masters"]));
    assert_eq!(harness.raw(request).await.status(), 200);
    let mut request = Request::get(CONFIG_MAPS).body(Body::empty()).unwrap();
    request.headers_mut().insert("authorization", "Bearer admin".parse().unwrap());
    request.extensions_mut().insert(User::new("me", &[]));
    assert_eq!(harness.raw(request).await.status(), 403, "headers do not add to it");
}

#[tokio::test]
async fn refusals_are_worded_as_upstream_words_them() {
    let harness = Harness::new().await;
    let refused = harness.get(&format!("{CONFIG_MAPS}/forbidden")).await;
    let status = refused.refused(
        403,
        "Forbidden",
        "configmaps \"forbidden\" is forbidden: User \"admin\" cannot get resource \"configmaps\" in API \
         group \"\" in the namespace \"default\"",
    );
    assert_eq!(status["details"]["name"], "forbidden");
    let refused = harness.get("/apis/apps/v1/namespaces/default/deployments/forbidden/scale").await;
    refused.refused(
        403,
        "Forbidden",
        "deployments.apps \"forbidden\" is forbidden: User \"admin\" cannot get resource \"deployments/scale\" \
         in API group \"apps\" in the namespace \"default\"",
    );
}

#[tokio::test]
async fn a_fault_in_a_handler_is_an_answer() {
    let harness = Harness::new().await;
    harness.get(&format!("{CONFIG_MAPS}/panic")).await.refused(500, "InternalError", "a fault in the server");
    harness.get(CONFIG_MAPS).await.expect(200);
}

#[tokio::test]
async fn odd_paths_and_methods_are_refused() {
    let harness = Harness::new().await;
    let unknown = harness.get("/nosuch").await;
    assert_eq!((unknown.code, unknown.text.trim()), (404, "404 page not found"));
    harness.get("/apis/nosuch.dev/v1/things").await.refused(404, "NotFound", "could not find");
    harness.get("/api/v1/namespaces/default/nodes").await.refused(404, "NotFound", "could not find");
    harness.get("/api/v1/namespaces/a%2Fb/pods").await.refused(400, "BadRequest", "");
    assert_eq!(harness.send("TRACE", CONFIG_MAPS, &[], "").await.code, 405);
    assert_eq!(harness.send("POST", &format!("{CONFIG_MAPS}/a"), &[], "{}").await.code, 405);
    assert_eq!(harness.send("PUT", CONFIG_MAPS, &[], "{}").await.code, 405);
    assert_eq!(harness.send("POST", "/version", &[], "").await.code, 405);
}

/// Answers every question with who asked what.
struct Oracle;

#[async_trait]
impl Reviews for Oracle {
    async fn create(
        &self,
        user: &User,
        group: &str,
        kind: &str,
        namespace: &str,
        name: &str,
        mut body: Value,
    ) -> Result<Value, Status> {
        body["status"] = json!(format!("{} {group} {kind} {namespace} {name}", user.name));
        Ok(body)
    }
}

#[tokio::test]
async fn reviews_are_answered_and_not_stored() {
    let harness = Harness::with(|config| config.reviews = Some(Arc::new(Oracle))).await;
    let uri = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let answer = harness.post(uri, &json!({"spec": {}})).await.expect(201);
    assert_eq!(answer["kind"], "SelfSubjectAccessReview");
    assert_eq!(answer["status"], "admin authorization.k8s.io SelfSubjectAccessReview  ");
    assert_eq!(harness.get(uri).await.code, 405);
    let uri = "/api/v1/namespaces/default/serviceaccounts/robot/token";
    let answer = harness.post(uri, &json!({"spec": {}})).await.expect(201);
    assert_eq!(answer["status"], "admin authentication.k8s.io TokenRequest default robot");
    let local = "/apis/authorization.k8s.io/v1/localsubjectaccessreviews";
    assert_eq!(harness.post(local, &json!({})).await.code, 404, "it needs a namespace");
}
