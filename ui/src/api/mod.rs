//! Requests to the server. Every one carries the header that tells it from a forged one.

pub(crate) mod registry;
pub(crate) mod session;
pub(crate) mod socket;

use gloo_net::http::{Method, RequestBuilder, Response};
use ketch_api::Status;
use serde_json::Value;
use wasm_bindgen::JsValue;

/// A request that did not do what was asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Error {
    /// HTTP status; 0 when there was no answer.
    pub code: u16,
    /// The API's word for the cause, or the empty string.
    pub reason: String,
    /// A sentence for the user.
    pub message: String,
}

impl Error {
    fn unreachable() -> Self {
        let message = "The server does not answer. Check that ketch is running; this page goes on by itself.";
        Self { code: 0, reason: "Unreachable".to_owned(), message: message.to_owned() }
    }

    /// An error of the console's own.
    pub(crate) fn local(message: impl Into<String>) -> Self {
        Self { code: 0, reason: String::new(), message: message.into() }
    }

    /// Whether the session has ended.
    pub(crate) fn is_unauthorized(&self) -> bool {
        self.code == 401
    }

    /// Whether the object is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        self.code == 404
    }

    /// Whether trying again can help without anything being changed.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self.code, 0 | 408 | 429 | 500 | 502..=504)
    }
}

/// What a request answers.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// A request with the console's header.
pub(crate) fn request(method: Method, path: &str) -> RequestBuilder {
    RequestBuilder::new(path).method(method).header("x-ketch-console", "1")
}

/// Sends a request, with a body when there is one, and turns a failed answer into an [`Error`].
pub(crate) async fn send(request: RequestBuilder, body: Option<JsValue>) -> Result<Response> {
    let response = send_any(request, body).await?;
    if response.ok() { Ok(response) } else { Err(failure(response).await) }
}

/// Sends a request and hands back whatever is answered.
pub(crate) async fn send_any(request: RequestBuilder, body: Option<JsValue>) -> Result<Response> {
    let request = match body {
        Some(body) => request.body(body),
        None => request.build(),
    };
    let request = request.map_err(|e| Error::local(e.to_string()))?;
    request.send().await.map_err(|_| Error::unreachable())
}

/// The error behind an answer: a `Status`, a registry's error list, or plain text.
pub(crate) async fn failure(response: Response) -> Error {
    let (code, line) = (response.status(), response.status_text());
    let body = response.text().await.unwrap_or_default();
    if let Ok(status) = serde_json::from_str::<Status>(&body) {
        return Error { code, reason: status.reason, message: status.message };
    }
    let json: Value = serde_json::from_str(&body).unwrap_or_default();
    let first = json.pointer("/errors/0");
    let field =
        |name: &str| first.and_then(|e| e.get(name)).and_then(Value::as_str).unwrap_or_default().to_owned();
    let message = match (field("message"), body.trim()) {
        (message, _) if !message.is_empty() => message,
        (_, text) if !text.is_empty() && text.len() < 300 && !text.starts_with('<') => text.to_owned(),
        _ => format!("The server answered {code} {line}."),
    };
    Error { code, reason: field("code"), message }
}

/// `GET` of JSON.
pub(crate) async fn get(path: &str) -> Result<Value> {
    json(send(request(Method::GET, path).header("accept", "application/json"), None).await?).await
}

/// `GET` of a list, as a `Table` where the server can.
pub(crate) async fn get_table(path: &str) -> Result<Value> {
    json(send(request(Method::GET, path).header("accept", ketch_ui_core::table::ACCEPT), None).await?).await
}

/// `POST` of an object.
pub(crate) async fn create(path: &str, object: &Value) -> Result<Value> {
    let request = request(Method::POST, path).header("content-type", "application/json");
    json(send(request, Some(object.to_string().into())).await?).await
}

/// `PATCH` with a merge patch.
pub(crate) async fn merge(path: &str, patch: &Value) -> Result<Value> {
    let request = request(Method::PATCH, path).header("content-type", "application/merge-patch+json");
    json(send(request, Some(patch.to_string().into())).await?).await
}

/// `DELETE`; what depends on the object goes in the background.
pub(crate) async fn delete(path: &str) -> Result<()> {
    let body = r#"{"kind":"DeleteOptions","apiVersion":"v1","propagationPolicy":"Background"}"#;
    let request = request(Method::DELETE, path).header("content-type", "application/json");
    send(request, Some(body.into())).await.map(drop)
}

async fn json(response: Response) -> Result<Value> {
    let text = response.text().await.map_err(|_| Error::unreachable())?;
    serde_json::from_str(&text).map_err(|e| Error::local(format!("The server's answer is not JSON: {e}.")))
}

/// A string as one segment or value of an address.
pub(crate) fn encode(text: &str) -> String {
    js_sys::encode_uri_component(text).into()
}
