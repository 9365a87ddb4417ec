//! Subresources.

use std::sync::Arc;

use axum::{body::Body, response::Response};
use ketch_api::{Descriptor, Status};

use super::{Call, list, patch, update, write::Part};
use crate::registry::Resource;

pub(crate) mod binding;
pub(crate) mod eviction;
pub(crate) mod log;
pub(crate) mod review;
pub(crate) mod scale;
pub(crate) mod stream;

/// Runs the verb on the subresource the path names; 404 for one the kind does not have.
pub(crate) async fn handle(call: &Call, resource: &Arc<Resource>, body: Body) -> Result<Response, Status> {
    let (verb, subresource) = (call.info.verb.as_str(), call.info.subresource.as_str());
    let Descriptor { group, kind, status, scale, .. } = resource.descriptor();
    match (*group, *kind, subresource, verb) {
        (_, _, "status", "get") if *status => list::get(call, resource).await,
        (_, _, "status", "update") if *status => update::update(call, resource, Part::Status, body).await,
        (_, _, "status", "patch") if *status => patch::patch(call, resource, Part::Status, body).await,
        (_, _, "scale", _) => match scale {
            Some(scale) => scale::handle(call, resource, *scale, body).await,
            None => Err(Status::no_resource()),
        },
        ("", "Namespace", "finalize", "update") => update::update(call, resource, Part::Finalize, body).await,
        ("", "Pod", "binding", "create") => binding::create(call, resource, body).await,
        ("", "Pod", "eviction", "create") => eviction::create(call, resource, body).await,
        ("", "Pod", "log", "get") => log::get(call, resource).await,
        ("", "Pod", "exec" | "attach" | "portforward", "get" | "create") => {
            stream::connect(call, resource).await
        }
        ("", "Pod", "log" | "binding" | "eviction" | "exec" | "attach" | "portforward", _)
        | ("", "Namespace", "finalize", _) => {
            Err(Status::method_not_allowed(resource.group_resource(), verb))
        }
        (_, _, "status", _) if *status => Err(Status::method_not_allowed(resource.group_resource(), verb)),
        _ => Err(Status::no_resource()),
    }
}
