//! Answers: errors, texts, and what every answer carries.

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use ketch_api::Status;
use serde_json::Value;

/// A response of any kind.
pub(crate) fn bytes(code: u16, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Body::from(body.into()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A JSON response.
pub(crate) fn json(code: u16, value: &Value) -> Response {
    bytes(code, "application/json", value.to_string())
}

/// A plain text response.
pub(crate) fn text(code: u16, body: impl Into<String>) -> Response {
    bytes(code, "text/plain; charset=utf-8", body.into())
}

/// An error.
pub(crate) fn failure(status: &Status) -> Response {
    let mut response = json(status.code, &status.to_json());
    let retry_after = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    if retry_after > 0 {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after));
    }
    response
}

/// Adds `Warning` headers (RFC 7234 §5.5) with code 299, as kube-apiserver writes them.
pub(crate) fn warn(response: &mut Response, texts: &[String]) {
    for text in texts {
        let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace(['\r', '\n'], " ");
        // What no header can hold (control characters) is dropped with the warning; the write stands.
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{escaped}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// What every answer carries; the body of an answer to HEAD is dropped.
pub(crate) fn finish(response: &mut Response, head: bool) {
    let headers = response.headers_mut();
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if head {
        *response.body_mut() = Body::empty();
    }
}
