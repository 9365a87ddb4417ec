//! Objects that clients send as protobuf, turned into JSON.
//!
//! Since client-go 0.32 generated clients send protobuf unless told otherwise (`kubectl create`, `kubectl
//! auth`, Helm, controllers in Go); all of them accept JSON answers. One decoder driven by the table of
//! [`crate::typegraph`] serves every kind: the result is what Go's JSON encoder would have written for the
//! same object, so what follows cannot tell how an object arrived.
//!
//! The body is `k8s\0` and a `runtime.Unknown` (`k8s.io/apimachinery/pkg/runtime/generated.proto`).

mod wire;

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use ketch_api::Status;
use serde_json::{Map, Value, json};

use crate::typegraph::{Field, GRAPH, Kind, Message, Presence, Shape};
use wire::{Reader, Value as Raw};

const MAGIC: &[u8] = b"k8s\0";
/// Nesting beyond which a body is refused; the deepest kind has a dozen levels.
const MAX_DEPTH: usize = 64;
/// Largest body, in bytes; the server's limit on any body.
const MAX_SIZE: usize = 3 << 20;
/// What an object of a kind without a protobuf form may be sent as.
const OTHER_FORMS: &str = "application/json, application/yaml";

/// The object as JSON, with `apiVersion` and `kind`.
///
/// # Errors
/// 400 for bytes that are no such message, 413 when there are too many, 415 for a kind that has no
/// protobuf form.
pub fn decode(bytes: &[u8]) -> Result<Value, Status> {
    if bytes.len() > MAX_SIZE {
        return Err(Status::too_large(MAX_SIZE));
    }
    envelope(bytes, 0).map_err(|fault| match fault {
        Fault::NoForm => Status::unsupported_media_type(OTHER_FORMS),
        fault => Status::bad_request(format!("the protobuf body cannot be read: {fault}")),
    })
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("it does not begin with the bytes k8s\\0")]
    Magic,
    #[error("{0}")]
    Wire(#[from] wire::Fault),
    #[error("field \"{0}\" has a value of another type")]
    Type(&'static str),
    #[error("field \"{0}\" is not UTF-8")]
    Text(&'static str),
    #[error("field \"{0}\" is not JSON")]
    Json(&'static str),
    #[error("field \"{0}\" is out of range")]
    Range(&'static str),
    #[error("it is nested more than {MAX_DEPTH} levels deep")]
    TooDeep,
    #[error("the content encoding is not supported")]
    Encoding,
    #[error("the kind has no protobuf form")]
    NoForm,
}

/// What a `runtime.Unknown` holds.
#[derive(Default)]
struct Unknown<'b> {
    api_version: &'b str,
    kind: &'b str,
    raw: &'b [u8],
    encoding: &'b str,
    content_type: &'b str,
}

impl<'b> Unknown<'b> {
    fn read(bytes: &'b [u8]) -> Result<Self, Fault> {
        let mut unknown = Self::default();
        let mut reader = Reader::new(bytes);
        while let Some(field) = reader.field()? {
            match field {
                (1, Raw::Bytes(type_meta)) => {
                    let mut reader = Reader::new(type_meta);
                    while let Some(field) = reader.field()? {
                        match field {
                            (1, Raw::Bytes(text)) => unknown.api_version = utf8(text, "apiVersion")?,
                            (2, Raw::Bytes(text)) => unknown.kind = utf8(text, "kind")?,
                            _ => {}
                        }
                    }
                }
                (2, Raw::Bytes(raw)) => unknown.raw = raw,
                (3, Raw::Bytes(text)) => unknown.encoding = utf8(text, "contentEncoding")?,
                (4, Raw::Bytes(text)) => unknown.content_type = utf8(text, "contentType")?,
                _ => {}
            }
        }
        Ok(unknown)
    }
}

fn envelope(bytes: &[u8], depth: usize) -> Result<Value, Fault> {
    let unknown = Unknown::read(bytes.strip_prefix(MAGIC).ok_or(Fault::Magic)?)?;
    if !unknown.encoding.is_empty() {
        return Err(Fault::Encoding);
    }
    if unknown.content_type == "application/json" {
        return serde_json::from_slice(unknown.raw).map_err(|_| Fault::Json("raw"));
    }
    let (group, version) = unknown.api_version.split_once('/').unwrap_or(("", unknown.api_version));
    let message = GRAPH.kind(group, version, unknown.kind).ok_or(Fault::NoForm)?;
    let mut object = Map::new();
    object.insert("apiVersion".into(), unknown.api_version.into());
    object.insert("kind".into(), unknown.kind.into());
    read_message(message, unknown.raw, &mut object, depth + 1)?;
    Ok(Value::Object(object))
}

/// Adds the fields of a message to `object`.
fn read_message(
    message: &Message,
    bytes: &[u8],
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), Fault> {
    if depth > MAX_DEPTH {
        return Err(Fault::TooDeep);
    }
    let mut reader = Reader::new(bytes);
    while let Some((tag, raw)) = reader.field()? {
        // Tags of a newer version: dropped, as Go's decoder does.
        let Some(field) = message.fields.iter().find(|field| field.tag == tag) else { continue };
        match field.shape {
            Shape::One => read_one(field, raw, object, depth)?,
            Shape::Repeated => {
                let list = object.entry(field.json).or_insert_with(|| json!([]));
                if let Value::Array(items) = list {
                    read_item(field, raw, items, depth)?;
                }
            }
            Shape::Map => {
                let map = object.entry(field.json).or_insert_with(|| json!({}));
                if let Value::Object(entries) = map {
                    read_entry(field, raw, entries, depth)?;
                }
            }
        }
    }
    Ok(())
}

fn read_one(field: &Field, raw: Raw<'_>, object: &mut Map<String, Value>, depth: usize) -> Result<(), Fault> {
    if let Kind::Message(index) = field.kind {
        let bytes = message_bytes(field, raw)?;
        let Some(message) = GRAPH.message(index) else { return Ok(()) };
        if field.json.is_empty() {
            return read_message(message, bytes, object, depth + 1);
        }
        // A message that comes in pieces is one message.
        let entry = object.entry(field.json).or_insert_with(|| json!({}));
        return match entry {
            Value::Object(inner) => read_message(message, bytes, inner, depth + 1),
            _ => Err(Fault::Type(field.json)),
        };
    }
    let value = read_value(field, raw, depth)?;
    if value.is_null() || (field.presence == Presence::OmitZero && is_zero(&value)) {
        object.remove(field.json);
    } else {
        object.insert(field.json.to_owned(), value);
    }
    Ok(())
}

fn read_item(field: &Field, raw: Raw<'_>, items: &mut Vec<Value>, depth: usize) -> Result<(), Fault> {
    // Lists of numbers may come packed.
    if let (Kind::Int | Kind::Bool, Raw::Bytes(packed)) = (field.kind, raw) {
        let mut reader = Reader::new(packed);
        while !reader.is_empty() {
            let number = reader.varint()?;
            items.push(read_value(field, Raw::Varint(number), depth)?);
        }
        return Ok(());
    }
    items.push(read_value(field, raw, depth)?);
    Ok(())
}

/// A map is a list of messages with a key (1) and a value (2).
fn read_entry(
    field: &Field,
    raw: Raw<'_>,
    entries: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), Fault> {
    let mut reader = Reader::new(message_bytes(field, raw)?);
    let (mut key, mut value) = (String::new(), None);
    while let Some((tag, raw)) = reader.field()? {
        match (tag, raw) {
            (1, Raw::Bytes(text)) => utf8(text, field.json)?.clone_into(&mut key),
            (2, raw) => value = Some(raw),
            _ => {}
        }
    }
    // An entry without a value has the empty one.
    let empty = if field.kind == Kind::Int { Raw::Varint(0) } else { Raw::Bytes(&[]) };
    entries.insert(key, read_value(field, value.unwrap_or(empty), depth)?);
    Ok(())
}

/// One value of the field's type; null for a time that is not set.
fn read_value(field: &Field, raw: Raw<'_>, depth: usize) -> Result<Value, Fault> {
    let name = field.json;
    match (field.kind, raw) {
        (Kind::Bool, Raw::Varint(number)) => Ok((number != 0).into()),
        (Kind::Int, Raw::Varint(number)) => Ok((number as i64).into()),
        (Kind::Double, Raw::Fixed64(bits)) => {
            serde_json::Number::from_f64(f64::from_bits(bits)).map(Value::Number).ok_or(Fault::Range(name))
        }
        (Kind::String, Raw::Bytes(text)) => Ok(utf8(text, name)?.into()),
        (Kind::Bytes, Raw::Bytes(bytes)) => Ok(STANDARD.encode(bytes).into()),
        (Kind::Quantity, Raw::Bytes(bytes)) => quantity(bytes, name),
        (Kind::IntOrString, Raw::Bytes(bytes)) => int_or_string(bytes, name),
        (Kind::Time, Raw::Bytes(bytes)) => time(bytes, name, "%Y-%m-%dT%H:%M:%SZ"),
        (Kind::MicroTime, Raw::Bytes(bytes)) => time(bytes, name, "%Y-%m-%dT%H:%M:%S.%6fZ"),
        (Kind::Raw | Kind::FieldsV1, Raw::Bytes(bytes)) => free_form(bytes, name, depth),
        (Kind::Strings, Raw::Bytes(bytes)) => strings(bytes, name),
        (Kind::Message(index), raw) => {
            let mut object = Map::new();
            if let Some(message) = GRAPH.message(index) {
                read_message(message, message_bytes(field, raw)?, &mut object, depth + 1)?;
            }
            Ok(Value::Object(object))
        }
        _ => Err(Fault::Type(name)),
    }
}

/// Whether Go's `omitempty` would leave it out. Messages are never left out.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn message_bytes<'b>(field: &Field, raw: Raw<'b>) -> Result<&'b [u8], Fault> {
    match raw {
        Raw::Bytes(bytes) => Ok(bytes),
        _ => Err(Fault::Type(field.json)),
    }
}

fn utf8<'b>(bytes: &'b [u8], name: &'static str) -> Result<&'b str, Fault> {
    std::str::from_utf8(bytes).map_err(|_| Fault::Text(name))
}

// === messages with a JSON form of their own ===

/// `resource.Quantity { string = 1 }`
fn quantity(bytes: &[u8], name: &'static str) -> Result<Value, Fault> {
    let mut text = "0";
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.field()? {
        if let (1, Raw::Bytes(value)) = field {
            text = utf8(value, name)?;
        }
    }
    Ok(text.into())
}

/// `intstr.IntOrString { type = 1, intVal = 2, strVal = 3 }`
fn int_or_string(bytes: &[u8], name: &'static str) -> Result<Value, Fault> {
    let (mut is_text, mut number, mut text) = (false, 0i64, "");
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.field()? {
        match field {
            (1, Raw::Varint(kind)) => is_text = kind == 1,
            (2, Raw::Varint(value)) => number = value as i64,
            (3, Raw::Bytes(value)) => text = utf8(value, name)?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

/// `metav1.Time { seconds = 1, nanos = 2 }`; without fields it is Go's zero time, which is no time.
fn time(bytes: &[u8], name: &'static str, format: &str) -> Result<Value, Fault> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0i64, 0i64);
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.field()? {
        match field {
            (1, Raw::Varint(value)) => seconds = value as i64,
            (2, Raw::Varint(value)) => nanos = value as i64,
            _ => {}
        }
    }
    let nanos = i32::try_from(nanos).map_err(|_| Fault::Range(name))?;
    let at = Timestamp::new(seconds, nanos).map_err(|_| Fault::Range(name))?;
    Ok(at.strftime(format).to_string().into())
}

/// `runtime.RawExtension { raw = 1 }` and `metav1.FieldsV1 { Raw = 1 }`: JSON, or an object in the same
/// envelope as the body.
fn free_form(bytes: &[u8], name: &'static str, depth: usize) -> Result<Value, Fault> {
    if depth > MAX_DEPTH {
        return Err(Fault::TooDeep);
    }
    let mut content: &[u8] = &[];
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.field()? {
        if let (1, Raw::Bytes(value)) = field {
            content = value;
        }
    }
    match content {
        [] => Ok(Value::Null),
        content if content.starts_with(MAGIC) => envelope(content, depth + 1),
        content => serde_json::from_slice(content).map_err(|_| Fault::Json(name)),
    }
}

/// `{ items = 1 }`
fn strings(bytes: &[u8], name: &'static str) -> Result<Value, Fault> {
    let mut items = Vec::new();
    let mut reader = Reader::new(bytes);
    while let Some(field) = reader.field()? {
        if let (1, Raw::Bytes(value)) = field {
            items.push(Value::from(utf8(value, name)?));
        }
    }
    Ok(Value::Array(items))
}

#[cfg(test)]
mod tests;
