//! `/scale`: the replica count of a kind as `autoscaling/v1` `Scale`.

use std::sync::Arc;

use axum::{body::Body, response::Response};
use ketch_api::{
    Descriptor, FieldError, Status, k8s::apimachinery::pkg::apis::meta::v1::LabelSelector,
    selector::Selector, strategy::Scale,
};
use ketch_store::Versioned;
use serde_json::{Value, json};

use crate::{
    admission::Operation,
    registry::Resource,
    rest::{
        Call, answer,
        patch::{Parsed, Patch},
        transaction::{failure, transact},
        write::{Part, Write, check_names},
    },
    wire::{
        body::{self, FieldValidation},
        set, stored,
    },
};

/// The Scale kind's own descriptor, for patches of it.
const SCALE: Descriptor = Descriptor::namespaced("autoscaling", "v1", "Scale", "scales", "scale");

/// What a write does to the Scale.
enum Change {
    Replace(Value),
    Patch(Patch),
}

/// Runs the verb.
pub(crate) async fn handle(
    call: &Call,
    resource: &Arc<Resource>,
    scale: Scale,
    payload: Body,
) -> Result<Response, Status> {
    match call.info.verb.as_str() {
        "get" => get(call, resource, scale).await,
        "update" => {
            let media = body::media(&call.parts.headers)?;
            let mut parsed = body::parse(media, &body::read(payload).await?)?;
            body::check_type(&mut parsed.value, "autoscaling/v1", "Scale")?;
            resize(call, resource, scale, Change::Replace(parsed.value)).await
        }
        "patch" => {
            let Parsed { patch, .. } = Patch::parse(&call.parts.headers, &body::read(payload).await?)?;
            resize(call, resource, scale, Change::Patch(patch)).await
        }
        other => Err(Status::method_not_allowed(resource.group_resource(), other)),
    }
}

async fn get(call: &Call, resource: &Resource, scale: Scale) -> Result<Response, Status> {
    let key = resource.key(&call.info.namespace, &call.info.name);
    let found = call.server.storage.get(&key).await.map_err(failure)?;
    let object = found.ok_or_else(|| Status::not_found(resource.group_resource(), &call.info.name))?;
    answer::value(call, 200, &view(&stored::decode(&object)?, scale)?)
}

async fn resize(
    call: &Call,
    resource: &Arc<Resource>,
    scale: Scale,
    change: Change,
) -> Result<Response, Status> {
    call.accepted()?;
    let write = call.write(resource, Operation::Update)?;
    write.review(None).await?;
    let transaction = write.clone();
    let decide = move |current: Option<&Versioned>| {
        let gr = transaction.resource.group_resource();
        let current = current.ok_or_else(|| Status::not_found(gr, &transaction.request.name))?;
        let object = scaled(&transaction, scale, &change, current)?;
        transaction.change(current, object, Part::Main)
    };
    let key = resource.key(&call.info.namespace, &call.info.name);
    let (written, outcome) = transact(&call.server.storage, &key, write.request.dry_run, decide).await?;
    write.settled("", Some(&outcome.value));
    let revision = written.current.map_or(written.revision, |current| current.revision);
    let object = stored::decode_at(&outcome.value, revision, &key)?;
    answer::value(call, 200, &view(&object, scale)?)
}

/// The object with the replica count that `change` asks for.
fn scaled(write: &Write, scale: Scale, change: &Change, current: &Versioned) -> Result<Value, Status> {
    let old = stored::decode(current)?;
    let new = match change {
        Change::Replace(value) => value.clone(),
        Change::Patch(patch) => patch.apply(&SCALE, view(&old, scale)?)?,
    };
    check_names(&new, &write.request.namespace, &write.request.name)?;
    write.check_identity(current, &new, &old)?;
    let replicas = match new.pointer("/spec/replicas") {
        None | Some(Value::Null) => 0,
        Some(value) => value.as_i64().ok_or_else(|| {
            Status::bad_request(format!("Scale: spec.replicas is not a whole number: {value}"))
        })?,
    };
    if i32::try_from(replicas).is_err() || replicas < 0 {
        let detail = "must be greater than or equal to 0";
        let error = FieldError::invalid("spec.replicas", replicas, detail);
        return Err(Status::invalid("autoscaling", "Scale", &write.request.name, &[error]));
    }
    let mut object = old;
    insert(&mut object, scale.spec, replicas.into())
        .ok_or_else(|| Status::internal("the object has no place for its replica count"))?;
    Ok(write.decode(object, &[], FieldValidation::Ignore)?.object)
}

/// Sets what a pointer names, making the last member if it is missing.
fn insert(object: &mut Value, pointer: &str, value: Value) -> Option<()> {
    let (parent, last) = pointer.rsplit_once('/')?;
    object.pointer_mut(parent)?.as_object_mut()?.insert(last.to_owned(), value);
    Some(())
}

/// The Scale of an object.
fn view(object: &Value, scale: Scale) -> Result<Value, Status> {
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let metadata = object.get("metadata");
    let kept = ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"];
    let kept = kept.iter().filter_map(|field| Some(((*field).to_owned(), metadata?.get(*field)?.clone())));
    let metadata = Value::Object(kept.collect());
    let mut status = json!({"replicas": number(scale.status)});
    if let Some(selector) = object.pointer(scale.selector) {
        set(&mut status, "selector", selector_text(selector)?);
    }
    Ok(json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": number(scale.spec)}, "status": status}))
}

fn selector_text(selector: &Value) -> Result<String, Status> {
    let selector: LabelSelector = serde_json::from_value(selector.clone()).map_err(Status::internal)?;
    let selector = Selector::from_object(&selector).map_err(Status::internal)?;
    Ok(selector.to_string())
}
