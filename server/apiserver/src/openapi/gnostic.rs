//! Version 2 as protobuf: gnostic's `openapi.v2.Document` (`openapiv2/OpenAPIv2.proto`), written from the
//! JSON of the same document. Only what such documents here contain.

use serde_json::{Map, Value};

/// The document in protobuf.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, document.get("swagger"));
    out.message(2, &info(document.get("info")));
    let mut paths = Message::default();
    for (name, path) in fields(document.get("paths")) {
        paths.message(2, &named(name, &path_item(path)));
    }
    out.message(8, &paths);
    out.message(9, &named_schemas(document.get("definitions")));
    out.bytes
}

/// A message being written.
#[derive(Default)]
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    fn length_delimited(&mut self, tag: u64, bytes: &[u8]) {
        self.varint(tag << 3 | 2);
        self.varint(bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    fn message(&mut self, tag: u64, message: &Message) {
        self.length_delimited(tag, &message.bytes);
    }

    /// A string; nothing when the value is none.
    fn text(&mut self, tag: u64, value: Option<&Value>) {
        if let Some(text) = value.and_then(Value::as_str).filter(|text| !text.is_empty()) {
            self.length_delimited(tag, text.as_bytes());
        }
    }

    fn texts(&mut self, tag: u64, value: Option<&Value>) {
        for text in value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            self.length_delimited(tag, text.as_bytes());
        }
    }

    fn truth(&mut self, tag: u64, value: Option<&Value>) {
        if value.and_then(Value::as_bool) == Some(true) {
            self.varint(tag << 3);
            self.varint(1);
        }
    }

    /// `vendor_extension`: fields that begin with `x-`, each as YAML, of which JSON is a part.
    fn extensions(&mut self, tag: u64, value: &Value) {
        for (name, value) in fields(Some(value)).filter(|(name, _)| name.starts_with("x-")) {
            self.message(tag, &named(name, &any(value)));
        }
    }
}

fn fields(value: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    value.and_then(Value::as_object).into_iter().flat_map(Map::iter)
}

/// `Named…`: a key and a message.
fn named(name: &str, value: &Message) -> Message {
    let mut out = Message::default();
    out.length_delimited(1, name.as_bytes());
    out.message(2, value);
    out
}

fn any(value: &Value) -> Message {
    let mut out = Message::default();
    out.length_delimited(2, value.to_string().as_bytes());
    out
}

/// A message in field `tag` of another: what `oneof` wrappers are.
fn wrapped(tag: u64, value: &Message) -> Message {
    let mut out = Message::default();
    out.message(tag, value);
    out
}

fn info(value: Option<&Value>) -> Message {
    let mut out = Message::default();
    out.text(1, value.and_then(|info| info.get("title")));
    out.text(2, value.and_then(|info| info.get("version")));
    out
}

fn path_item(path: &Value) -> Message {
    let mut out = Message::default();
    for (method, tag) in [("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 8)] {
        if let Some(value) = path.get(method) {
            out.message(tag, &operation(value));
        }
    }
    for value in path.get("parameters").and_then(Value::as_array).into_iter().flatten() {
        out.message(9, &wrapped(1, &parameter(value)));
    }
    out
}

fn operation(value: &Value) -> Message {
    let mut out = Message::default();
    out.text(3, value.get("description"));
    out.texts(6, value.get("produces"));
    out.texts(7, value.get("consumes"));
    for value in value.get("parameters").and_then(Value::as_array).into_iter().flatten() {
        out.message(8, &wrapped(1, &parameter(value)));
    }
    let mut responses = Message::default();
    for (code, value) in fields(value.get("responses")) {
        let mut response = Message::default();
        response.text(1, value.get("description"));
        if let Some(value) = value.get("schema") {
            response.message(2, &wrapped(1, &schema(value)));
        }
        responses.message(1, &named(code, &wrapped(1, &response)));
    }
    out.message(9, &responses);
    out.extensions(13, value);
    out
}

fn parameter(value: &Value) -> Message {
    let mut out = Message::default();
    let place = value.get("in").and_then(Value::as_str).unwrap_or_default();
    if place == "body" {
        out.text(1, value.get("description"));
        out.text(2, value.get("name"));
        out.text(3, value.get("in"));
        out.truth(4, value.get("required"));
        if let Some(value) = value.get("schema") {
            out.message(5, &schema(value));
        }
        return wrapped(1, &out);
    }
    // Query and path parameters differ in where the type stands, and whether a value may be empty.
    let (of, kind, unique) = if place == "path" { (4, 5, 19) } else { (3, 6, 20) };
    out.truth(1, value.get("required"));
    out.text(2, value.get("in"));
    out.text(3, value.get("description"));
    out.text(4, value.get("name"));
    out.text(kind, value.get("type"));
    out.truth(unique, value.get("uniqueItems"));
    wrapped(2, &wrapped(of, &out))
}

fn named_schemas(value: Option<&Value>) -> Message {
    let mut out = Message::default();
    for (name, value) in fields(value) {
        out.message(1, &named(name, &schema(value)));
    }
    out
}

fn schema(value: &Value) -> Message {
    let mut out = Message::default();
    out.text(1, value.get("$ref"));
    out.text(2, value.get("format"));
    out.text(4, value.get("description"));
    if let Some(value) = value.get("default") {
        out.message(5, &any(value));
    }
    out.texts(19, value.get("required"));
    for value in value.get("enum").and_then(Value::as_array).into_iter().flatten() {
        out.message(20, &any(value));
    }
    match value.get("additionalProperties") {
        Some(Value::Bool(allowed)) => {
            let mut item = Message::default();
            item.varint(2 << 3);
            item.varint(u64::from(*allowed));
            out.message(21, &item);
        }
        Some(value @ Value::Object(_)) => out.message(21, &wrapped(1, &schema(value))),
        _ => {}
    }
    if let Some(kind) = value.get("type") {
        let mut kinds = Message::default();
        kinds.text(1, Some(kind));
        out.message(22, &kinds);
    }
    if let Some(value) = value.get("items") {
        out.message(23, &wrapped(1, &schema(value)));
    }
    for value in value.get("allOf").and_then(Value::as_array).into_iter().flatten() {
        out.message(24, &schema(value));
    }
    if value.get("properties").is_some() {
        out.message(25, &named_schemas(value.get("properties")));
    }
    out.extensions(31, value);
    out
}
