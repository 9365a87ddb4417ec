//! Who may push and pull: the registry behind the API's own authentication and authorisation.
//!
//! A repository `NAMESPACE/NAME` is resource `images` of group `ketch.dev`, so that RBAC rules it like
//! anything else. OCI clients speak Basic: the password is a bearer token of the API, the user name is
//! ignored.

use std::sync::Arc;

use axum::{Router, body::Body};
use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use ketch_api::{Status, names};
use ketch_apiserver::auth::{Attributes, Auth, Authenticator, Authorizer, Decision, User};
use serde_json::json;
use tower::ServiceExt;

/// The guarded registry.
#[derive(Clone)]
pub(crate) struct Images {
    pub(crate) registry: Router,
    pub(crate) auth: Arc<Auth>,
}

impl Images {
    /// Answers a request under `/v2`.
    pub(crate) async fn serve(self, request: Request<Body>) -> Response<Body> {
        match self.admit(request).await {
            Ok(request) => {
                let Ok(response) = self.registry.oneshot(request).await;
                response
            }
            Err(status) => refusal(&status),
        }
    }

    async fn admit(&self, request: Request<Body>) -> Result<Request<Body>, Status> {
        let (mut parts, body) = request.into_parts();
        basic_to_bearer(&mut parts);
        let user = match parts.extensions.get::<User>() {
            Some(user) => user.clone(),
            None => self.auth.authenticate(&parts).await?.ok_or_else(Status::unauthorized)?,
        };
        let Some(wanted) = attributes(&parts.method, parts.uri.path()) else {
            return Ok(Request::from_parts(parts, body));
        };
        match self.auth.authorize(&user, &wanted) {
            Decision::Allow => {}
            Decision::Deny(_) => {
                return Err(Status::new(
                    403,
                    "Forbidden",
                    format!(
                        "User \"{}\" cannot {} images in namespace \"{}\"",
                        user.name, wanted.verb, wanted.namespace
                    ),
                ));
            }
        }
        Ok(Request::from_parts(parts, body))
    }
}

fn basic_to_bearer(parts: &mut http::request::Parts) {
    let Some(value) = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()) else {
        return;
    };
    let Some(encoded) = value.strip_prefix("Basic ") else { return };
    let decoded = BASE64_STANDARD.decode(encoded.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let password = decoded.as_deref().and_then(|pair| pair.split_once(':')).map(|(_, password)| password);
    if let Some(bearer) = password.and_then(|token| HeaderValue::from_str(&format!("Bearer {token}")).ok()) {
        parts.headers.insert(header::AUTHORIZATION, bearer);
    }
}

/// What a registry request wants; `None` for the ping, which any authenticated user may send.
fn attributes(method: &Method, path: &str) -> Option<Attributes> {
    let mut segments = path.trim_start_matches("/v2").trim_start_matches('/').split('/');
    let (namespace, name) = (segments.next()?, segments.next().unwrap_or_default());
    if namespace.is_empty() {
        return None;
    }
    let verb = match *method {
        Method::GET | Method::HEAD => "get",
        Method::DELETE => "delete",
        _ => "create",
    };
    Some(Attributes {
        verb: verb.into(),
        group: names::DOMAIN.into(),
        version: "v1".into(),
        resource: "images".into(),
        namespace: namespace.into(),
        name: name.into(),
        path: path.into(),
        is_resource: true,
        ..Attributes::default()
    })
}

/// The distribution API's error shape, with the challenge that makes clients send credentials.
fn refusal(status: &Status) -> Response<Body> {
    let code = if status.code == 401 { "UNAUTHORIZED" } else { "DENIED" };
    let body = json!({ "errors": [{ "code": code, "message": status.message }] });
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status.code).unwrap_or(StatusCode::FORBIDDEN);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if status.code == 401 {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"ketch\""));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_namespaced_resources() {
        let get = attributes(&Method::GET, "/v2/default/hello/manifests/latest").unwrap();
        assert_eq!(
            (get.verb.as_str(), get.namespace.as_str(), get.name.as_str()),
            ("get", "default", "hello")
        );
        assert_eq!(attributes(&Method::PATCH, "/v2/a/b/blobs/uploads/x").unwrap().verb, "create");
        assert_eq!(attributes(&Method::DELETE, "/v2/a/b/manifests/x").unwrap().verb, "delete");
        assert!(attributes(&Method::GET, "/v2/").is_none());
    }

    #[test]
    fn a_basic_password_is_a_bearer_token() {
        let request = Request::get("/v2/")
            .header("authorization", format!("Basic {}", BASE64_STANDARD.encode("u:t:x")));
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        basic_to_bearer(&mut parts);
        assert_eq!(parts.headers["authorization"], "Bearer t:x");
    }
}
