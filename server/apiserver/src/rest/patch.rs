//! PATCH: the patch is applied to the current object inside the transaction, so it never has to be retried.

use std::sync::Arc;

use axum::{body::Body, response::Response};
use http::HeaderMap;
use json_patch::{PatchErrorKind, PatchOperation};
use ketch_api::{Descriptor, Status, status::GroupResource};
use serde_json::Value;

use super::{
    Call, answer,
    transaction::transact,
    write::{Part, check_names},
};
use crate::{
    admission::Operation,
    registry::Resource,
    respond,
    wire::{
        body::{self, FieldValidation},
        json, stored,
    },
};

/// What the server can apply, in the words of the 415 text.
const ACCEPTED: &str =
    "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json";
/// Most operations of a JSON patch; upstream's `maxJSONPatchOperations`.
const MAX_OPERATIONS: usize = 10_000;
/// Nesting beyond which a JSON patch may not build; the deepest kind has a dozen levels. Documents are dropped
/// level by level on the stack.
const MAX_DEPTH: usize = 64;

/// A parsed patch.
#[derive(Clone, Debug)]
pub(crate) enum Patch {
    Json(Vec<PatchOperation>),
    Merge(Value),
    Strategic(Value),
}

/// A patch and the duplicate keys it was written with.
#[derive(Clone, Debug)]
pub(crate) struct Parsed {
    pub(crate) patch: Patch,
    pub(crate) duplicates: Vec<String>,
}

impl Patch {
    /// Reads a patch by its Content-Type.
    pub(crate) fn parse(headers: &HeaderMap, bytes: &[u8]) -> Result<Parsed, Status> {
        let kind = body::content_type(headers);
        if !ACCEPTED.split(", ").any(|accepted| accepted == kind) {
            return Err(Status::unsupported_media_type(ACCEPTED));
        }
        let document =
            json::parse(bytes).map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
        let patch = match kind.as_str() {
            "application/json-patch+json" => Self::Json(operations(document.value)?),
            _ if !document.value.is_object() => {
                return Err(Status::bad_request("error decoding patch: the patch is not an object"));
            }
            "application/merge-patch+json" => Self::Merge(document.value),
            _ => Self::Strategic(document.value),
        };
        Ok(Parsed { patch, duplicates: document.duplicates })
    }

    /// `original` with the patch applied.
    pub(crate) fn apply(&self, descriptor: &Descriptor, original: Value) -> Result<Value, Status> {
        match self {
            Self::Json(operations) => apply_operations(descriptor.group_resource(), original, operations),
            Self::Merge(patch) => {
                let mut document = original;
                json_patch::merge(&mut document, patch);
                Ok(document)
            }
            Self::Strategic(patch) => strategic(descriptor, original, patch),
        }
    }
}

fn strategic(descriptor: &Descriptor, original: Value, patch: &Value) -> Result<Value, Status> {
    let Descriptor { group, version, kind, .. } = *descriptor;
    crate::patch::strategic::apply(group, version, kind, original, patch)
}

fn operations(document: Value) -> Result<Vec<PatchOperation>, Status> {
    let count = document.as_array().map_or(0, Vec::len);
    if count > MAX_OPERATIONS {
        return Err(Status::new(
            413,
            "RequestEntityTooLarge",
            format!("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {count}"),
        ));
    }
    serde_json::from_value(document).map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))
}

/// Applies one operation after the other, so that repeated copies cannot grow the document without end, nor
/// repeated moves nest it.
fn apply_operations(
    gr: GroupResource<'_>,
    mut document: Value,
    operations: &[PatchOperation],
) -> Result<Value, Status> {
    let mut carried = 0;
    for operation in operations {
        if let Some((path, value)) = placed(operation, &document)
            && path.matches('/').count() + depth(value) > MAX_DEPTH
        {
            let why = format!("at path {path}: it would be nested more than {MAX_DEPTH} levels deep");
            return Err(rejected(gr, &why));
        }
        if let PatchOperation::Copy(_) | PatchOperation::Move(_) = operation {
            carried += placed(operation, &document).map_or(0, |(_, value)| value.to_string().len());
            if carried > body::LIMIT {
                let message = format!("the patch copies and moves more than {} bytes", body::LIMIT);
                return Err(Status::new(413, "RequestEntityTooLarge", message));
            }
        }
        json_patch::patch_unsafe(&mut document, std::slice::from_ref(operation)).map_err(|error| {
            let why = match error.kind {
                PatchErrorKind::TestFailed => format!("testing path {}: test failed", error.path),
                other => format!("at path {}: {other}", error.path),
            };
            rejected(gr, &why)
        })?;
    }
    Ok(document)
}

/// What an operation puts where, if it puts anything anywhere.
fn placed<'a>(operation: &'a PatchOperation, document: &'a Value) -> Option<(&'a str, &'a Value)> {
    match operation {
        PatchOperation::Add(add) => Some((add.path.as_str(), &add.value)),
        PatchOperation::Replace(replace) => Some((replace.path.as_str(), &replace.value)),
        PatchOperation::Copy(copy) => Some((copy.path.as_str(), document.pointer(copy.from.as_str())?)),
        PatchOperation::Move(step) => Some((step.path.as_str(), document.pointer(step.from.as_str())?)),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => None,
    }
}

/// Levels of lists and objects. What is asked has few: it was parsed, or is checked here.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Upstream's generic 422 with the real cause among the causes.
fn rejected(gr: GroupResource<'_>, why: &str) -> Status {
    let message = "the server rejected our request due to an error in our request";
    let mut status =
        Status::new(422, "Invalid", format!("{message}: the JSON patch cannot be applied: {why}"));
    status.details = Some(ketch_api::status::Details {
        group: gr.group.to_owned(),
        kind: gr.resource.to_owned(),
        causes: vec![ketch_api::status::Cause {
            reason: "UnexpectedServerResponse".into(),
            message: why.to_owned(),
            field: String::new(),
        }],
        ..Default::default()
    });
    status
}

/// Patches `part` of the object.
pub(crate) async fn patch(
    call: &Call,
    resource: &Arc<Resource>,
    part: Part,
    payload: Body,
) -> Result<Response, Status> {
    if call.info.name.is_empty() {
        return Err(Status::method_not_allowed(resource.group_resource(), "patch of a collection"));
    }
    call.accepted()?;
    let validation = FieldValidation::parse(call.query.get("fieldValidation"))?;
    let write = call.write(resource, Operation::Update)?;
    let Parsed { patch, duplicates } = Patch::parse(&call.parts.headers, &body::read(payload).await?)?;
    write.review(None).await?;
    let transaction = write.clone();
    let decide = move |current: Option<&ketch_store::Versioned>| {
        let write = &transaction;
        let (gr, request) = (write.resource.group_resource(), &write.request);
        let current = current.ok_or_else(|| Status::not_found(gr, &request.name))?;
        let patched = patch.apply(write.resource.descriptor(), stored::decode(current)?)?;
        check_names(&patched, &request.namespace, &request.name)?;
        let incoming = write.decode(patched, &duplicates, validation)?;
        let (update, mut outcome) = write.change(current, incoming.object, part)?;
        outcome.warnings.splice(0..0, incoming.warnings);
        Ok((update, outcome))
    };
    let key = write.resource.key(&write.request.namespace, &write.request.name);
    let (written, outcome) = transact(&call.server.storage, &key, write.request.dry_run, decide).await?;
    write.settled("", Some(&outcome.value));
    let revision = written.current.map_or(written.revision, |current| current.revision);
    let mut response = answer::object(call, resource, 200, &outcome.value, revision)?;
    respond::warn(&mut response, &outcome.warnings);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::CONTENT_TYPE;
    use serde_json::json;

    fn parse(kind: &str, text: &str) -> Result<Parsed, Status> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, kind.parse().unwrap());
        Patch::parse(&headers, text.as_bytes())
    }

    const DESCRIPTOR: Descriptor = Descriptor::namespaced("", "v1", "ConfigMap", "configmaps", "configmap");

    #[test]
    fn json_patches_apply_in_order_and_say_what_failed() {
        let text = r#"[{"op":"add","path":"/a","value":1},{"op":"copy","from":"/a","path":"/b"}]"#;
        let patch = parse("application/json-patch+json", text).unwrap().patch;
        assert_eq!(patch.apply(&DESCRIPTOR, json!({})).unwrap(), json!({"a": 1, "b": 1}));
        let text = r#"[{"op":"test","path":"/a","value":2}]"#;
        let patch = parse("application/json-patch+json", text).unwrap().patch;
        let status = patch.apply(&DESCRIPTOR, json!({"a": 1})).unwrap_err();
        assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
        assert!(status.message.contains("/a: test failed"), "{status}");
    }

    #[test]
    fn merge_patches_report_duplicates() {
        let parsed = parse("application/merge-patch+json", r#"{"a":null,"b":1,"b":2}"#).unwrap();
        assert_eq!(parsed.duplicates, ["b"]);
        assert_eq!(parsed.patch.apply(&DESCRIPTOR, json!({"a": 1})).unwrap(), json!({"b": 2}));
    }

    #[test]
    fn bombs_and_strangers_are_refused() {
        assert_eq!(parse("application/apply-patch+yaml", "{}").unwrap_err().code, 415);
        assert_eq!(parse("application/merge-patch+json", "[]").unwrap_err().code, 400);
        let many = vec![r#"{"op":"remove","path":"/a"}"#; MAX_OPERATIONS + 1].join(",");
        assert_eq!(parse("application/json-patch+json", &format!("[{many}]")).unwrap_err().code, 413);
        let double = r#"{"op":"copy","from":"","path":"/a"},{"op":"copy","from":"/a","path":"/b"}"#;
        let bomb = format!("[{}]", vec![double; 60].join(","));
        let patch = parse("application/json-patch+json", &bomb).unwrap().patch;
        assert_eq!(patch.apply(&DESCRIPTOR, json!({"x": "y"})).unwrap_err().code, 413);
    }

    #[test]
    fn a_patch_cannot_nest_without_end() {
        // Each round puts all there is a hundred levels deeper.
        let levels = "/b".repeat(100);
        let nested = (0..99).fold(json!({}), |inner, _| json!({"b": inner}));
        let round = json!([
            {"op": "add", "path": "/b", "value": nested},
            {"op": "move", "from": "/a", "path": format!("{levels}/a")},
            {"op": "move", "from": "/b", "path": "/a"},
        ]);
        let round = round.to_string();
        let all = vec![round.trim_matches(['[', ']']); 2_000].join(",");
        let patch = parse("application/json-patch+json", &format!("[{all}]")).unwrap().patch;
        let status = patch.apply(&DESCRIPTOR, json!({"a": {}})).unwrap_err();
        assert_eq!(status.code, 422);
        let causes = status.details.unwrap().causes;
        assert!(causes[0].message.contains("levels deep"), "{causes:?}");
    }
}
