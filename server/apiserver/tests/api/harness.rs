//! A server in this process and a client for it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::{Router, body::Body};
use futures::{Stream, StreamExt};
use http::{HeaderMap, Request, Response, header, request::Parts};
use http_body_util::BodyExt;
use ketch_api::Status;
use ketch_apiserver::{
    ApiServer, Config,
    auth::{Attributes, Authenticator, Authorizer, Decision, User},
};
use ketch_store::MemoryStore;
use serde_json::{Value, json};
use tower::ServiceExt;

/// Everybody with a bearer token is an administrator called by it.
pub(crate) struct ByToken;

#[async_trait]
impl Authenticator for ByToken {
    async fn authenticate(&self, parts: &Parts) -> Result<Option<User>, Status> {
        let header = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        Ok(header
            .and_then(|text| text.strip_prefix("Bearer "))
            .map(|name| User::new(name, &["system:masters"])))
    }
}

/// Users may do everything but what is called forbidden; others see health only.
pub(crate) struct Simple;

impl Authorizer for Simple {
    fn authorize(&self, user: &User, attributes: &Attributes) -> Decision {
        assert!(attributes.name != "panic", "asked to");
        let health = !attributes.is_resource && attributes.path.ends_with("z");
        if health || (user.in_group("system:masters") && attributes.name != "forbidden") {
            return Decision::Allow;
        }
        Decision::Deny(String::new())
    }
}

pub(crate) struct Harness {
    pub(crate) server: Arc<ApiServer>,
    router: Router,
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// Asserts the code and returns the body.
    pub(crate) fn expect(&self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.text);
        self.json()
    }

    /// Asserts a failure with code, reason and a part of the message.
    pub(crate) fn refused(&self, code: u16, reason: &str, part: &str) -> Value {
        let value = self.expect(code);
        assert_eq!(value["kind"], "Status", "{value}");
        assert_eq!(value["reason"], reason, "{value}");
        assert_eq!(value["code"], code, "{value}");
        let message = value["message"].as_str().unwrap();
        assert!(message.contains(part), "{message:?} does not say {part:?}");
        value
    }
}

impl Harness {
    /// All kinds, bootstrapped.
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(adjust: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new(Arc::new(ByToken), Arc::new(Simple));
        adjust(&mut config);
        let server = ApiServer::new(Arc::new(MemoryStore::default()), config);
        server.bootstrap(6443).await.unwrap();
        Self { router: server.router(), server }
    }

    pub(crate) async fn raw(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub(crate) async fn send(&self, method: &str, uri: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut request = Request::builder().method(method).uri(uri);
        request = request.header("authorization", "Bearer admin");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.raw(request.body(Body::from(body.to_owned())).unwrap()).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            text: String::from_utf8(bytes.to_vec()).unwrap(),
        }
    }

    pub(crate) async fn get(&self, uri: &str) -> Answer {
        self.send("GET", uri, &[], "").await
    }

    pub(crate) async fn post(&self, uri: &str, body: &Value) -> Answer {
        self.send("POST", uri, &[("content-type", "application/json")], &body.to_string()).await
    }

    pub(crate) async fn put(&self, uri: &str, body: &Value) -> Answer {
        self.send("PUT", uri, &[("content-type", "application/json")], &body.to_string()).await
    }

    pub(crate) async fn patch(&self, uri: &str, kind: &str, body: &Value) -> Answer {
        let content_type = format!("application/{kind}-patch+json");
        self.send("PATCH", uri, &[("content-type", &content_type)], &body.to_string()).await
    }

    pub(crate) async fn delete(&self, uri: &str) -> Answer {
        self.send("DELETE", uri, &[], "").await
    }

    /// Creates a ConfigMap with one datum and labels.
    pub(crate) async fn config_map(&self, name: &str, labels: Value) -> Value {
        let body = json!({"metadata": {"name": name, "labels": labels}, "data": {"k": "v"}});
        self.post(CONFIG_MAPS, &body).await.expect(201)
    }

    /// Opens a watch.
    pub(crate) async fn watch(&self, uri: &str) -> Events {
        self.watch_as(uri, "application/json").await
    }

    pub(crate) async fn watch_as(&self, uri: &str, accept: &str) -> Events {
        let request = Request::get(uri).header("authorization", "Bearer admin").header("accept", accept);
        let response = self.raw(request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), 200);
        let chunks = response.into_body().into_data_stream().map(|chunk| chunk.unwrap().to_vec());
        Events { chunks: Box::pin(chunks), buffer: Vec::new() }
    }
}

/// The events of a watch.
pub(crate) struct Events {
    chunks: Pin<Box<dyn Stream<Item = Vec<u8>> + Send>>,
    buffer: Vec<u8>,
}

impl Events {
    /// The next event; `None` when the watch has ended.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.drain(..=end).collect::<Vec<_>>();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let chunk = tokio::time::timeout(Duration::from_secs(10), self.chunks.next());
            self.buffer.extend(chunk.await.expect("an event within ten seconds")?);
        }
    }

    /// Type and name of the next event's object.
    pub(crate) async fn next_of(&mut self) -> (String, String) {
        let event = self.next().await.expect("an event");
        let text =
            |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        (text("/type"), text("/object/metadata/name"))
    }
}

pub(crate) const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
pub(crate) const PODS: &str = "/api/v1/namespaces/default/pods";

/// `resourceVersion` of an object or a list.
pub(crate) fn version(object: &Value) -> &str {
    object["metadata"]["resourceVersion"].as_str().unwrap()
}
