//! Objects as the store keeps them, and their way to the client.
//!
//! A stored value is a JSON object that begins exactly with `{"metadata":{` and has no
//! `metadata.resourceVersion`. Serving one is therefore a splice, not a parse.

use bytes::{BufMut, Bytes, BytesMut};
use ketch_api::Status;
use ketch_store::{Revision, Versioned};
use serde_json::Value;

const PREFIX: &[u8] = b"{\"metadata\":{";

/// Encodes `object` for the store. `object` must have a non-empty `metadata`.
pub(crate) fn encode(object: &Value) -> Result<Bytes, Status> {
    let map = object.as_object().ok_or_else(|| Status::internal("an object is not a JSON object"))?;
    let metadata = map.get("metadata").and_then(Value::as_object);
    let metadata = metadata.ok_or_else(|| Status::internal("an object has no metadata"))?;
    let mut out = BytesMut::with_capacity(512);
    out.put_slice(PREFIX);
    let fields = metadata.iter().filter(|(key, value)| *key != "resourceVersion" && !value.is_null());
    put_fields(&mut out, fields)?;
    out.put_u8(b'}');
    let rest = map.iter().filter(|(key, value)| *key != "metadata" && !value.is_null()).collect::<Vec<_>>();
    if !rest.is_empty() {
        out.put_u8(b',');
        put_fields(&mut out, rest.into_iter())?;
    }
    out.put_u8(b'}');
    Ok(out.freeze())
}

fn put_fields<'a>(
    out: &mut BytesMut,
    fields: impl Iterator<Item = (&'a String, &'a Value)>,
) -> Result<(), Status> {
    for (index, (key, value)) in fields.enumerate() {
        if index > 0 {
            out.put_u8(b',');
        }
        let mut writer = (&mut *out).writer();
        serde_json::to_writer(&mut writer, key).map_err(Status::internal)?;
        out.put_u8(b':');
        let mut writer = (&mut *out).writer();
        serde_json::to_writer(&mut writer, value).map_err(Status::internal)?;
    }
    Ok(())
}

/// Appends `value` as clients see it at `revision`. Revision 0, which no stored object has (dry runs), is
/// left out.
pub(crate) fn splice(out: &mut BytesMut, value: &[u8], revision: Revision) {
    match value.strip_prefix(PREFIX) {
        Some(rest) if revision > 0 => {
            out.reserve(value.len() + 48);
            out.put_slice(PREFIX);
            out.put_slice(b"\"resourceVersion\":\"");
            out.put_slice(revision.to_string().as_bytes());
            out.put_slice(if rest.first() == Some(&b'}') { b"\"" } else { b"\"," });
            out.put_slice(rest);
        }
        _ => out.put_slice(value),
    }
}

/// [`splice`] into a buffer of its own.
pub(crate) fn serve(value: &[u8], revision: Revision) -> Bytes {
    let mut out = BytesMut::with_capacity(value.len() + 48);
    splice(&mut out, value, revision);
    out.freeze()
}

/// Parses a stored value; the result carries `metadata.resourceVersion`.
pub(crate) fn decode(stored: &Versioned) -> Result<Value, Status> {
    decode_at(&stored.value, stored.revision, &stored.key)
}

/// [`decode`], as of another revision.
pub(crate) fn decode_at(value: &[u8], revision: Revision, key: &str) -> Result<Value, Status> {
    let mut object: Value = serde_json::from_slice(value)
        .map_err(|e| Status::internal(format!("the stored object {key} is damaged: {e}")))?;
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut)
        && revision > 0
    {
        metadata.insert("resourceVersion".into(), revision.to_string().into());
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn encoded_objects_are_served_with_their_revision() {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b"},
            "metadata": {"name": "x", "resourceVersion": "3", "labels": null}});
        let bytes = encode(&object).unwrap();
        assert!(bytes.starts_with(b"{\"metadata\":{\"name\":\"x\"}"));
        let served: Value = serde_json::from_slice(&serve(&bytes, 7)).unwrap();
        assert_eq!(served["metadata"], json!({"name": "x", "resourceVersion": "7"}));
        assert_eq!(served["data"], json!({"a": "b"}));
        assert_eq!(serve(&bytes, 0), bytes);
        assert_eq!(&serve(b"{\"metadata\":{}}", 4)[..], b"{\"metadata\":{\"resourceVersion\":\"4\"}}");
    }
}
