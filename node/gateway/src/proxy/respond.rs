//! Answers the gateway gives itself.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use ketch_runtime::{Body, HttpError};

/// Longest text about a failed component that a client is shown.
const TEXT_MAX: usize = 1024;

/// Why there is no answer from behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) status: StatusCode,
    pub(crate) text: String,
    /// Seconds after which another try makes sense.
    pub(crate) retry_after: Option<u32>,
}

impl Fault {
    pub(crate) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), retry_after: None }
    }

    pub(crate) fn unavailable(text: impl Into<String>) -> Self {
        Self { retry_after: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, text) }
    }

    /// A component's failure; `what` names it.
    pub(crate) fn of(what: &str, error: &HttpError) -> Self {
        let text = format!("{what}: {error}");
        match error {
            HttpError::Failed(_) => Self::new(StatusCode::BAD_GATEWAY, text),
            HttpError::Timeout(_) => Self::new(StatusCode::GATEWAY_TIMEOUT, text),
            HttpError::Overloaded | HttpError::NotRunning => Self::unavailable(text),
        }
    }

    /// JSON for clients that ask for it, else plain text.
    pub(crate) fn into_response(self, request: &HeaderMap) -> Response<Body> {
        let text: String = self.text.chars().take(TEXT_MAX).collect();
        let accepts = request.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let (media_type, body) = if accepts.contains("application/json") {
            let body = serde_json::json!({"error": text, "status": self.status.as_u16()}).to_string();
            ("application/json", body)
        } else {
            ("text/plain; charset=utf-8", format!("{text}\n"))
        };
        let mut response = Response::new(Full::from(body).map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
