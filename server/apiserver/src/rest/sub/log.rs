//! `pods/log`: what a container wrote, streamed from its node.

use std::sync::Arc;

use axum::{body::Body, response::Response};
use futures::StreamExt;
use http::{HeaderValue, Request, header};
use ketch_api::{FieldError, Status};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::{
    registry::Resource,
    respond,
    rest::{Call, transaction::failure},
    route::query::Query,
    wire::stored,
};

/// Parameters a node understands.
const PASSED: &[&str] =
    &["follow", "previous", "tailLines", "sinceSeconds", "sinceTime", "timestamps", "limitBytes"];

/// Streams the log.
pub(crate) async fn get(call: &Call, resource: &Arc<Resource>) -> Result<Response, Status> {
    let name = &call.info.name;
    let key = resource.key(&call.info.namespace, name);
    let found = call.server.storage.get(&key).await.map_err(failure)?;
    let pod = stored::decode(&found.ok_or_else(|| Status::not_found(resource.group_resource(), name))?)?;
    check(&call.query, name)?;
    let container = container(&pod, name, call.query.get("container"))?;
    let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
    if node.is_empty() {
        // Upstream: a pod without a node has an empty log.
        return Ok(respond::text(200, ""));
    }
    let nodes = call.server.nodes.as_ref();
    let nodes = nodes.ok_or_else(|| Status::unavailable("this server has no connection to nodes"))?;
    let request = request(call, name, &container)?;
    let stop = call.server.stopping.clone();
    let answer = nodes.request(node, request).await?;
    if !answer.status().is_success() {
        return Err(refusal(answer).await);
    }
    let data = answer.into_body().into_data_stream();
    let mut response = respond::text(200, "");
    // A follower must not hold up the shutdown of the server.
    *response.body_mut() = Body::from_stream(data.take_until(stop.cancelled_owned()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

fn request(call: &Call, pod: &str, container: &str) -> Result<Request<Body>, Status> {
    let escape = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let passed =
        PASSED.iter().filter_map(|key| call.query.get(key).map(|value| format!("{key}={}", escape(value))));
    let path = ["containerLogs", &call.info.namespace, pod, container].map(escape).join("/");
    let query = passed.collect::<Vec<_>>().join("&");
    let uri = format!("/{path}{}{query}", if query.is_empty() { "" } else { "?" });
    Request::get(uri).body(Body::empty()).map_err(Status::internal)
}

/// The node's refusal: a `Status` if it sent one, else its text.
pub(super) async fn refusal(answer: http::Response<Body>) -> Status {
    const LONGEST: usize = 64 << 10;
    let code = answer.status().as_u16();
    let bytes = axum::body::to_bytes(answer.into_body(), LONGEST).await.unwrap_or_default();
    match serde_json::from_slice::<Status>(&bytes) {
        Ok(status) => status,
        Err(_) => {
            let text = String::from_utf8_lossy(&bytes).trim().to_owned();
            let reason = match code {
                400 => "BadRequest",
                404 => "NotFound",
                503 => "ServiceUnavailable",
                _ => "InternalError",
            };
            Status::new(code, reason, text)
        }
    }
}

/// Upstream's `ValidatePodLogOptions`.
fn check(query: &Query, pod: &str) -> Result<(), Status> {
    let mut errors = Vec::new();
    let mut at_least = |field: &str, least: i64, why: &str| -> Result<(), Status> {
        if let Some(value) = query.integer(field)?.filter(|value| *value < least) {
            errors.push(FieldError::invalid(field, value, why));
        }
        Ok(())
    };
    at_least("tailLines", 0, "must be greater than or equal to 0")?;
    at_least("limitBytes", 1, "must be greater than 0")?;
    at_least("sinceSeconds", 1, "must be greater than 0")?;
    if query.get("sinceSeconds").is_some() && query.get("sinceTime").is_some() {
        errors.push(FieldError::forbidden(
            "sinceTime",
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        ));
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Status::invalid("", "PodLogOptions", pod, &errors)),
    }
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    let containers = pod.pointer(&format!("/spec/{list}")).and_then(Value::as_array);
    let names = containers.into_iter().flatten().filter_map(|c| c.get("name").and_then(Value::as_str));
    names.map(str::to_owned).collect()
}

/// The container that is meant, in upstream's words where that is not clear (`pkg/registry/core/pod/strategy.go`).
pub(super) fn container(pod: &Value, name: &str, wanted: Option<&str>) -> Result<String, Status> {
    let (own, init) = (names(pod, "containers"), names(pod, "initContainers"));
    let ephemeral = names(pod, "ephemeralContainers");
    if let Some(wanted) = wanted {
        let known = own.iter().chain(&init).chain(&ephemeral).any(|other| other == wanted);
        return match known {
            true => Ok(wanted.to_owned()),
            false => Err(Status::bad_request(format!("container {wanted} is not valid for pod {name}"))),
        };
    }
    let marked = pod.pointer("/metadata/annotations/kubectl.kubernetes.io~1default-container");
    if let Some(marked) = marked.and_then(Value::as_str).filter(|marked| own.iter().any(|one| one == marked))
    {
        return Ok(marked.to_owned());
    }
    match own.as_slice() {
        [only] if init.is_empty() => Ok(only.clone()),
        [] => Err(Status::bad_request(format!("pod {name} has no containers"))),
        _ => {
            let mut text = format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                own.join(" ")
            );
            if !init.is_empty() {
                text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(Status::bad_request(text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_container_must_be_clear() {
        let one = json!({"spec": {"containers": [{"name": "a"}]}});
        assert_eq!(container(&one, "p", None).unwrap(), "a");
        assert_eq!(
            container(&one, "p", Some("b")).unwrap_err().message,
            "container b is not valid for pod p"
        );
        let mut two = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}],
            "initContainers": [{"name": "i"}]}});
        assert_eq!(
            container(&two, "p", None).unwrap_err().message,
            "a container name must be specified for pod p, choose one of: [a b] or one of the init \
             containers: [i]"
        );
        assert_eq!(container(&two, "p", Some("i")).unwrap(), "i");
        two["metadata"] = json!({"annotations": {"kubectl.kubernetes.io/default-container": "b"}});
        assert_eq!(container(&two, "p", None).unwrap(), "b");
    }

    #[test]
    fn options_are_checked() {
        assert!(check(&Query::parse("tailLines=0&sinceSeconds=1"), "p").is_ok());
        assert_eq!(check(&Query::parse("tailLines=-1&limitBytes=0"), "p").unwrap_err().code, 422);
        assert_eq!(check(&Query::parse("sinceSeconds=1&sinceTime=x"), "p").unwrap_err().code, 422);
    }
}
