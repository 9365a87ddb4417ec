//! PUT.

use std::sync::Arc;

use axum::{body::Body, response::Response};
use ketch_api::{Status, request::RequestInfo};
use ketch_store::Revision;

use super::{
    Call, answer, create, meta,
    transaction::transact,
    write::{Incoming, Outcome, Part, Write, check_names},
};
use crate::{
    admission::Operation,
    registry::Resource,
    respond,
    route::permit,
    server::ApiServer,
    wire::body::{self, FieldValidation},
};

/// Replaces `part` of the object with that of the body.
pub(crate) async fn update(
    call: &Call,
    resource: &Arc<Resource>,
    part: Part,
    payload: Body,
) -> Result<Response, Status> {
    if call.info.name.is_empty() {
        return Err(Status::method_not_allowed(resource.group_resource(), "update of a collection"));
    }
    call.accepted()?;
    let validation = FieldValidation::parse(call.query.get("fieldValidation"))?;
    let mut write = call.write(resource, Operation::Update)?;
    let media = body::media(&call.parts.headers)?;
    let parsed = body::parse(media, &body::read(payload).await?)?;
    let incoming = write.decode(parsed.value, &parsed.duplicates, validation)?;
    check_names(&incoming.object, &write.request.namespace, &write.request.name)?;
    if meta::text(&incoming.object, "name").is_empty() {
        return Err(Status::bad_request("metadata.name: name must be provided"));
    }
    // With a version or uid the client means an object it has seen.
    let seen = ["resourceVersion", "uid"].iter().any(|field| !meta::text(&incoming.object, field).is_empty());
    let creates = part == Part::Main && resource.descriptor().create_on_update && !seen;
    let (code, revision, outcome) = match replace(&call.server, &write, part, &incoming).await {
        Ok((revision, outcome)) => (200, revision, outcome),
        Err(status) if status.code == 404 && creates => {
            let info = RequestInfo { verb: "create".to_owned(), ..call.info.clone() };
            permit(&call.server, &call.user, &info, None)?;
            write.request.operation = Operation::Create;
            let (revision, outcome) = create::store(&call.server, &mut write, incoming).await?;
            (201, revision, outcome)
        }
        Err(status) => return Err(status),
    };
    let mut response = answer::object(call, resource, code, &outcome.value, revision)?;
    respond::warn(&mut response, &outcome.warnings);
    Ok(response)
}

async fn replace(
    server: &ApiServer,
    write: &Write,
    part: Part,
    incoming: &Incoming,
) -> Result<(Revision, Outcome), Status> {
    write.review(None).await?;
    let (transaction, object) = (write.clone(), incoming.object.clone());
    let key = write.resource.key(&write.request.namespace, &write.request.name);
    let decide = move |current: Option<&ketch_store::Versioned>| {
        let write = &transaction;
        let missing = || Status::not_found(write.resource.group_resource(), &write.request.name);
        write.change(current.ok_or_else(missing)?, object.clone(), part)
    };
    let (written, mut outcome) = transact(&server.storage, &key, write.request.dry_run, decide).await?;
    write.settled("", Some(&outcome.value));
    outcome.warnings.splice(0..0, incoming.warnings.iter().cloned());
    let revision = written.current.map_or(written.revision, |current| current.revision);
    Ok((revision, outcome))
}
