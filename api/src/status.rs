//! [`Status`]: the one error shape of the API, with upstream's reasons, codes and message templates.
//!
//! Clients match on `reason` and on the text, so constructors here reproduce `k8s.io/apimachinery`'s
//! `api/errors` package; add one there before you format a message anywhere else.

use serde::{Deserialize, Serialize};

use crate::strategy::FieldError;

/// A failed request, as `v1.Status` with `status: Failure`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{message}")]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable cause, one word in CamelCase.
    pub reason: String,
    /// What a person reads: names the object, the field, the cause and, where there is one, the next step.
    pub message: String,
    /// What the failure is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
}

/// The object and the causes behind a [`Status`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    /// Name of the object.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// API group; empty for core.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Upstream puts the resource's plural, or for `Invalid` the kind, here.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// UID of the object.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// One entry per field at fault.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// When to try again, in seconds; 0 when unknown.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

/// One field's fault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cause {
    /// For instance `FieldValueRequired`.
    pub reason: String,
    /// What is wrong.
    pub message: String,
    /// Dotted path; empty when the cause is not a field.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// A resource and its group, printed as `deployments.apps` or `pods`.
#[derive(Clone, Copy, Debug)]
pub struct GroupResource<'a> {
    /// Empty for core.
    pub group: &'a str,
    /// Plural.
    pub resource: &'a str,
}

impl std::fmt::Display for GroupResource<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.group {
            "" => f.write_str(self.resource),
            group => write!(f, "{}.{group}", self.resource),
        }
    }
}

impl Status {
    /// A status of any kind; prefer the named constructors.
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self { code, reason: reason.to_owned(), message: message.into(), details: None }
    }

    fn about(mut self, gr: GroupResource<'_>, name: &str) -> Self {
        self.details = Some(Details {
            name: name.to_owned(),
            group: gr.group.to_owned(),
            kind: gr.resource.to_owned(),
            ..Details::default()
        });
        self
    }

    /// 400: the request itself cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403, in the words `kubectl` users know. `why` is appended after a colon.
    pub fn forbidden(gr: GroupResource<'_>, name: &str, why: impl std::fmt::Display) -> Self {
        let message = match (gr.resource, name) {
            ("", _) => format!("forbidden: {why}"),
            (_, "") => format!("{gr} is forbidden: {why}"),
            _ => format!("{gr} \"{name}\" is forbidden: {why}"),
        };
        Self::new(403, "Forbidden", message).about(gr, name)
    }

    /// 404 for an object.
    pub fn not_found(gr: GroupResource<'_>, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{gr} \"{name}\" not found")).about(gr, name)
    }

    /// 404 for a resource or path the server does not have.
    pub fn no_resource() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// 405.
    pub fn method_not_allowed(gr: GroupResource<'_>, action: &str) -> Self {
        Self::new(405, "MethodNotAllowed", format!("{action} is not supported on resources of kind \"{gr}\""))
            .about(gr, "")
    }

    /// 406.
    pub fn not_acceptable(accepted: &str) -> Self {
        Self::new(406, "NotAcceptable", format!("only the following media types are accepted: {accepted}"))
    }

    /// 409 on create.
    pub fn already_exists(gr: GroupResource<'_>, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{gr} \"{name}\" already exists")).about(gr, name)
    }

    /// 409 on update; `why` tells which precondition failed.
    pub fn conflict(gr: GroupResource<'_>, name: &str, why: impl std::fmt::Display) -> Self {
        Self::new(409, "Conflict", format!("Operation cannot be fulfilled on {gr} \"{name}\": {why}"))
            .about(gr, name)
    }

    /// 409 for a stale `resourceVersion`.
    pub fn stale(gr: GroupResource<'_>, name: &str) -> Self {
        Self::conflict(
            gr,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 410: the revision or continue token is older than the history that is kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 413; `limit` in bytes.
    pub fn too_large(limit: usize) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    /// 415.
    pub fn unsupported_media_type(accepted: &str) -> Self {
        Self::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {accepted}"
            ),
        )
    }

    /// 422 with one cause per field.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let list = errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        let text = match list.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let qualified = GroupResource { group, resource: kind };
        let causes = errors.iter().map(FieldError::to_cause).collect();
        let mut status = Self::new(422, "Invalid", format!("{qualified} \"{name}\" is invalid: {text}"))
            .about(qualified, name);
        if let Some(details) = status.details.as_mut() {
            details.causes = causes;
        }
        status
    }

    /// 429; the client may retry after `seconds`.
    pub fn too_many_requests(message: impl Into<String>, seconds: u32) -> Self {
        let mut status = Self::new(429, "TooManyRequests", message);
        status.details = Some(Details { retry_after_seconds: seconds, ..Details::default() });
        status
    }

    /// 500. The message reaches the client: no secrets, no paths.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {message}"))
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 504 with upstream's cause for a revision from the future.
    pub fn revision_too_large(requested: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {requested}, current: {current}");
        let mut status = Self::new(504, "Timeout", message.clone());
        status.details = Some(Details {
            causes: vec![Cause { reason: "ResourceVersionTooLarge".into(), message, field: String::new() }],
            retry_after_seconds: 1,
            ..Details::default()
        });
        status
    }

    /// The wire form: `v1.Status`.
    pub fn to_json(&self) -> serde_json::Value {
        let mut value = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let (Some(details), Some(object)) = (&self.details, value.as_object_mut()) {
            object.insert("details".into(), serde_json::json!(details));
        }
        value
    }
}
