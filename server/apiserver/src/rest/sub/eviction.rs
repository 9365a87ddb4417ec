//! `pods/eviction`: a delete that asks first. There are no disruption budgets to ask yet, so it is a delete.

use std::sync::Arc;

use axum::{body::Body, response::Response};
use ketch_api::Status;
use serde_json::{Value, json};

use crate::{
    admission::Operation,
    registry::Resource,
    rest::{Call, answer, delete, write::check_names},
    wire::body,
};

/// Evicts the pod.
pub(crate) async fn create(call: &Call, resource: &Arc<Resource>, payload: Body) -> Result<Response, Status> {
    let media = body::media(&call.parts.headers)?;
    let parsed = body::parse(media, &body::read(payload).await?)?;
    let eviction = parsed.value;
    let kind = eviction.get("kind").and_then(Value::as_str).unwrap_or("Eviction");
    if kind != "Eviction" {
        return Err(Status::bad_request(format!("the body of an eviction is an Eviction, not a {kind}")));
    }
    check_names(&eviction, &call.info.namespace, &call.info.name)?;
    let options = eviction.get("deleteOptions").cloned().filter(|options| !options.is_null());
    let options = delete::Options::from_value(options.unwrap_or_else(|| json!({})))?;
    let mut write = call.write(resource, Operation::Delete)?;
    write.request.dry_run |= options.dry_run();
    delete::remove(&call.server, &write, options).await?;
    answer::value(
        call,
        201,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}),
    )
}
