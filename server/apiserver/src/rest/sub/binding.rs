//! `pods/binding` and `bindings`: the scheduler's word on where a pod runs.

use std::sync::Arc;

use axum::{body::Body, response::Response};
use jiff::Timestamp;
use ketch_api::{Status, request::RequestInfo};
use serde_json::{Map, Value, json};

use crate::{
    admission::Operation,
    registry::Resource,
    rest::{
        Call, answer, meta,
        transaction::transact,
        write::{Write, check_names},
    },
    wire::{body, stored},
};

/// Whether a request is about `/api/v1/namespaces/NS/bindings`.
pub(crate) fn is_collection(info: &RequestInfo) -> bool {
    info.group.is_empty() && info.version == "v1" && info.resource == "bindings" && info.name.is_empty()
}

/// POST to `bindings`: the pod is the one the body names.
pub(crate) async fn create_by_body(call: &Call, payload: Body) -> Result<Response, Status> {
    let gr = ketch_api::status::GroupResource { group: "", resource: "bindings" };
    if call.info.verb != "create" || call.info.namespace.is_empty() {
        return Err(Status::method_not_allowed(gr, &call.info.verb));
    }
    let pods = call.server.registry.get("", "v1", "pods").cloned().ok_or_else(Status::no_resource)?;
    let binding = read(call, payload).await?;
    let name = meta::text(&binding, "name").to_owned();
    bind(call, &pods, &name, binding).await
}

/// POST to `pods/NAME/binding`.
pub(crate) async fn create(call: &Call, resource: &Arc<Resource>, payload: Body) -> Result<Response, Status> {
    let binding = read(call, payload).await?;
    bind(call, resource, &call.info.name, binding).await
}

async fn read(call: &Call, payload: Body) -> Result<Value, Status> {
    let media = body::media(&call.parts.headers)?;
    let mut parsed = body::parse(media, &body::read(payload).await?)?;
    body::check_type(&mut parsed.value, "v1", "Binding")?;
    Ok(parsed.value)
}

async fn bind(call: &Call, pods: &Arc<Resource>, name: &str, binding: Value) -> Result<Response, Status> {
    check_names(&binding, &call.info.namespace, name)?;
    let target = |field: &str| {
        binding.pointer(&format!("/target/{field}")).and_then(Value::as_str).unwrap_or_default()
    };
    if !matches!(target("kind"), "" | "Node") || target("name").is_empty() {
        let error = match target("name") {
            "" => ketch_api::FieldError::required("target.name", ""),
            _ => ketch_api::FieldError::not_supported("target.kind", target("kind"), &["Node", ""]),
        };
        return Err(Status::invalid("", "Binding", name, &[error]));
    }
    let mut write = call.write(pods, Operation::Update)?;
    write.request.name = name.to_owned();
    write.request.subresource = "binding".to_owned();
    write.review(None).await?;
    let transaction = write.clone();
    let decide = move |current: Option<&ketch_store::Versioned>| {
        let write = &transaction;
        let gr = write.resource.group_resource();
        let current = current.ok_or_else(|| Status::not_found(gr, &write.request.name))?;
        let old = stored::decode(current)?;
        write.check_identity(current, &identity(&binding), &old)?;
        let object = assign(write, &old, &binding)?;
        write.conclude(current, &object, &old)
    };
    let key = pods.key(&call.info.namespace, name);
    transact(&call.server.storage, &key, write.request.dry_run, decide).await?;
    answer::value(
        call,
        201,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}),
    )
}

/// The binding's preconditions, as an object: its uid and resourceVersion are those of the pod it means.
fn identity(binding: &Value) -> Value {
    let field = |name: &str| meta::text(binding, name);
    json!({"metadata": {"uid": field("uid"), "resourceVersion": field("resourceVersion")}})
}

/// The pod, bound.
fn assign(write: &Write, old: &Value, binding: &Value) -> Result<Value, Status> {
    let (gr, name) = (write.resource.group_resource(), &write.request.name);
    if meta::deleting(old) {
        let why = format!("pod {name} is being deleted, cannot be assigned to a host");
        return Err(Status::conflict(gr, name, why));
    }
    let node = old.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
    if !node.is_empty() {
        let why = format!("pod {name} is already assigned to node \"{node}\"");
        return Err(Status::conflict(gr, name, why));
    }
    let mut pod = old.clone();
    let target = binding.pointer("/target/name").cloned().unwrap_or_default();
    if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("nodeName".into(), target);
    }
    let annotations = binding.pointer("/metadata/annotations").and_then(Value::as_object);
    if let Some(added) = annotations.filter(|map| !map.is_empty()) {
        let own = meta::of_mut(&mut pod)?.entry("annotations").or_insert_with(|| Value::Object(Map::new()));
        if let Some(own) = own.as_object_mut() {
            own.extend(added.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
    }
    scheduled(&mut pod, write.cx.now);
    Ok(pod)
}

/// Sets the condition `PodScheduled`.
fn scheduled(pod: &mut Value, now: Timestamp) {
    let Some(map) = pod.as_object_mut() else { return };
    let status = map.entry("status").or_insert_with(|| Value::Object(Map::new()));
    let Some(status) = status.as_object_mut() else { return };
    let conditions = status.entry("conditions").or_insert_with(|| Value::Array(Vec::new()));
    let Some(conditions) = conditions.as_array_mut() else { return };
    conditions.retain(|condition| condition.get("type").and_then(Value::as_str) != Some("PodScheduled"));
    conditions.push(json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null,
        "lastTransitionTime": meta::timestamp(now)}));
}
