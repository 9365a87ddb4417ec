//! POST.

use std::sync::Arc;

use axum::{body::Body, response::Response};
use ketch_api::Status;
use ketch_store::{Revision, Update};
use serde_json::Value;

use super::{
    Call, answer, meta,
    transaction::transact,
    write::{Incoming, Outcome, Write},
};
use crate::{
    admission::Operation,
    registry::Resource,
    respond,
    server::ApiServer,
    wire::body::{self, FieldValidation},
};

/// How often a generated name is tried before the conflict is reported; upstream's number.
const NAME_TRIES: usize = 8;

/// Creates the object in the body.
pub(crate) async fn create(call: &Call, resource: &Arc<Resource>, payload: Body) -> Result<Response, Status> {
    if !call.info.name.is_empty() {
        return Err(Status::method_not_allowed(resource.group_resource(), "create with a name in the path"));
    }
    call.accepted()?;
    let validation = FieldValidation::parse(call.query.get("fieldValidation"))?;
    let mut write = call.write(resource, Operation::Create)?;
    let media = body::media(&call.parts.headers)?;
    let parsed = body::parse(media, &body::read(payload).await?)?;
    let incoming = write.decode(parsed.value, &parsed.duplicates, validation)?;
    let (revision, outcome) = store(&call.server, &mut write, incoming).await?;
    let mut response = answer::object(call, resource, 201, &outcome.value, revision)?;
    respond::warn(&mut response, &outcome.warnings);
    Ok(response)
}

/// Stores a new object whose namespace is the request's, under its own or a generated name. The revision is
/// 0 in a dry run.
pub(crate) async fn store(
    server: &ApiServer,
    write: &mut Write,
    incoming: Incoming,
) -> Result<(Revision, Outcome), Status> {
    let Incoming { mut object, warnings } = incoming;
    check(&object, &write.request.namespace)?;
    let given = meta::text(&object, "name").to_owned();
    let prefix = meta::text(&object, "generateName").to_owned();
    write.request.name.clone_from(&given);
    write.review(Some(&mut object)).await?;
    let generated = given.is_empty() && !prefix.is_empty();
    let mut tries = if generated { NAME_TRIES } else { 1 };
    loop {
        tries -= 1;
        write.request.name = if generated { meta::generate_name(&prefix)? } else { given.clone() };
        match attempt(server, write, object.clone()).await {
            Ok((revision, mut outcome)) => {
                outcome.warnings.splice(0..0, warnings);
                return Ok((revision, outcome));
            }
            Err(status) if status.reason == "AlreadyExists" && tries > 0 => {}
            Err(status) => return Err(status),
        }
    }
}

/// What must be right before anything is looked up.
fn check(object: &Value, namespace: &str) -> Result<(), Status> {
    if !meta::text(object, "resourceVersion").is_empty() {
        return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let own = meta::text(object, "namespace");
    if !namespace.is_empty() && !own.is_empty() && own != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

async fn attempt(
    server: &ApiServer,
    write: &Write,
    mut object: Value,
) -> Result<(Revision, Outcome), Status> {
    let descriptor = write.resource.descriptor();
    let (namespace, name) = (&write.request.namespace, &write.request.name);
    meta::initialise(&mut object, namespace, name, descriptor.generation, write.cx.now)?;
    let uid = meta::text(&object, "uid").to_owned();
    let result = match write.creation(object) {
        Ok(outcome) => insert(server, write, &outcome).await.map(|revision| (revision, outcome)),
        Err(status) => Err(status),
    };
    write.settled(&uid, result.as_ref().ok().map(|(_, outcome)| outcome.value.as_ref()));
    result
}

async fn insert(server: &ApiServer, write: &Write, outcome: &Outcome) -> Result<Revision, Status> {
    let gr = write.resource.group_resource();
    let (value, name) = (outcome.value.clone(), write.request.name.clone());
    let key = write.resource.key(&write.request.namespace, &name);
    let decide = move |current: Option<&ketch_store::Versioned>| match current {
        Some(_) => Err(Status::already_exists(gr, &name)),
        None => Ok((Update::Put(value.clone()), ())),
    };
    let (written, ()) = transact(&server.storage, &key, write.request.dry_run, decide).await?;
    Ok(written.current.map_or(0, |current| current.revision))
}
