//! What a stream is about: a pod, a running container, a program in it.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    http::{Response, StatusCode},
    response::IntoResponse,
};
use ketch_api::{Status, k8s::api::core::v1 as core};
use ketch_runtime::{ContainerId, Error, Session, Streams};

use super::options::Options;
use crate::{context::Context, machine::container_id};

/// An answer instead of an upgrade.
#[derive(Clone, Debug)]
pub(super) struct Refusal(pub(super) Status);

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self(status)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response<Body> {
        let code = StatusCode::from_u16(self.0.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (code, Json(self.0.to_json())).into_response()
    }
}

/// The pod of a request.
pub(super) fn pod(context: &Context, namespace: &str, name: &str) -> Result<Arc<core::Pod>, Refusal> {
    let pod = context.index.get(namespace, name);
    pod.ok_or_else(|| Refusal(Status::new(404, "NotFound", "pod does not exist")))
}

/// The instance of a container that runs.
pub(super) fn container(context: &Context, pod: &core::Pod, name: &str) -> Result<ContainerId, Refusal> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let attempt = context.index.attempts(uid, name).into_iter().max();
    let id = attempt.map(|attempt| container_id(uid, name, attempt));
    id.filter(|id| context.index.runs(id) == Some(true)).map(ContainerId).ok_or_else(|| not_found(name))
}

fn not_found(name: &str) -> Refusal {
    Refusal(Status::internal(format!("unable to upgrade connection: container not found (\"{name}\")")))
}

/// The streams of a container that a client joins: it has a terminal or not, whatever the client has.
fn joined(pod: &core::Pod, container: &str, wanted: &Streams) -> Streams {
    let specs = pod.spec.iter().flat_map(|spec| {
        spec.containers.iter().chain(spec.init_containers.iter().flatten()).map(|one| (&one.name, one.tty))
    });
    let tty = specs.into_iter().any(|(name, tty)| name == container && tty == Some(true));
    Streams { tty, stderr: wanted.stderr && !tty, ..wanted.clone() }
}

/// Starts the program, or joins the container. What the runtime cannot do at all is a refusal; a program
/// that did not start is told over the error stream, as upstream, hence the inner result.
pub(super) async fn open(
    context: &Context,
    pod: &core::Pod,
    (container, id): (&str, &ContainerId),
    options: &Options,
    exec: bool,
) -> Result<Result<Session, Error>, Refusal> {
    let mut unsupported = None;
    for entry in &context.runtimes {
        let wanted = &options.streams;
        let session = match exec {
            true => entry.runtime.exec(id, options.command.clone(), wanted.clone()).await,
            false => entry.runtime.attach(id, joined(pod, container, wanted)).await,
        };
        match session {
            Err(Error::NotFound(_)) => {}
            // Perhaps it is another runtime's container.
            Err(Error::Unsupported(text)) => {
                unsupported.get_or_insert(text);
            }
            other => return Ok(other),
        }
    }
    Err(match unsupported {
        Some(text) => Status::bad_request(text).into(),
        None => not_found(&id.0),
    })
}
