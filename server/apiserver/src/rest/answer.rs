//! One object as an answer, in the form the client asked for.

use axum::response::Response;
use bytes::Bytes;
use ketch_api::Status;
use ketch_store::Revision;
use serde_json::{Value, json};

use super::Call;
use crate::{
    registry::Resource,
    respond,
    wire::{
        negotiate::{Accepted, Encoding, Form, MetaVersion},
        stored,
        table::{self, Include, Style},
        yaml,
    },
};

/// How this request's tables look.
pub(crate) fn style(call: &Call, version: MetaVersion) -> Result<Style, Status> {
    Ok(Style { version, include: Include::parse(call.query.get("includeObject"))?, now: call.now })
}

/// The stored `value` as of `revision`.
pub(crate) fn object(
    call: &Call,
    resource: &Resource,
    code: u16,
    value: &[u8],
    revision: Revision,
) -> Result<Response, Status> {
    let accepted = call.accepted()?;
    if accepted == Accepted::default() {
        return Ok(respond::bytes(code, Encoding::Json.content_type(), stored::serve(value, revision)));
    }
    let object = stored::decode_at(value, revision, "of the answer")?;
    let value = match accepted.form {
        Form::Object => object,
        Form::Metadata(version) => table::partial(&object, version),
        Form::Table(version) => {
            let metadata = json!({"resourceVersion": revision.to_string()});
            table::table(resource.strategy(), style(call, version)?, metadata, vec![object], true)
        }
    };
    encoded(code, accepted.encoding, &value)
}

/// Any value in the encoding the client asked for.
pub(crate) fn value(call: &Call, code: u16, value: &Value) -> Result<Response, Status> {
    encoded(code, call.accepted()?.encoding, value)
}

/// `value` in `encoding`.
pub(crate) fn encoded(code: u16, encoding: Encoding, value: &Value) -> Result<Response, Status> {
    let body: Bytes = match encoding {
        Encoding::Json => value.to_string().into(),
        Encoding::Yaml => yaml::render(value)?.into(),
    };
    Ok(respond::bytes(code, encoding.content_type(), body))
}

/// `Status` `Success` about a resource's object.
pub(crate) fn success(resource: &Resource, name: &str, uid: &str) -> Value {
    let descriptor = resource.descriptor();
    let mut details = json!({"name": name, "kind": descriptor.plural});
    if let Some(map) = details.as_object_mut() {
        for (key, text) in [("group", descriptor.group), ("uid", uid)] {
            if !text.is_empty() {
                map.insert(key.into(), text.into());
            }
        }
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}
