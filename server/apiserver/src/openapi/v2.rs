//! Version 2 of the documents, derived from version 3.
//!
//! Clients before 1.27 know no other, and ask for it as protobuf (gnostic's `openapi.v2.Document`).

use axum::{body::Body, response::Response};
use http::{HeaderMap, header};
use serde_json::{Map, Value, json};

use super::{
    Document, gnostic, info,
    operations::Paths,
    schemas::{REFERENCE, Schemas},
};

const DEFINITIONS: &str = "#/definitions/";

/// How clients ask for the protobuf form; the answer is named with dots, as upstream's.
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
const PROTOBUF_ANSWER: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The one document in its forms.
pub(super) struct Documents {
    json: Document,
    protobuf: Document,
}

impl Documents {
    pub(super) fn new(paths: Paths, schemas: Schemas) -> Self {
        let document = document(paths, schemas);
        Self {
            json: Document::new(&document),
            protobuf: Document::of_bytes(gnostic::encode(&document).into()),
        }
    }

    pub(super) fn answer(&self, headers: &HeaderMap) -> Option<Response<Body>> {
        let wanted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let protobuf = wanted.split(',').any(|clause| {
            let media = clause.split(';').next().unwrap_or_default().trim();
            media == PROTOBUF || media == PROTOBUF_ANSWER
        });
        match protobuf {
            true => self.protobuf.answer_as(headers, None, PROTOBUF_ANSWER),
            false => self.json.answer(headers, None),
        }
    }
}

/// Adds the schemas of another document. Those in both are the same but for the kinds they stand for.
pub(super) fn merge(all: &mut Schemas, more: Schemas) {
    const KINDS: &str = "x-kubernetes-group-version-kind";
    for (name, mut schema) in more {
        let Some(known) = all.get_mut(&name) else {
            all.insert(name, schema);
            continue;
        };
        let added = schema.get_mut(KINDS).map(Value::take);
        let (Some(Value::Array(added)), Some(fields)) = (added, known.as_object_mut()) else { continue };
        if let Value::Array(list) = fields.entry(KINDS).or_insert_with(|| json!([])) {
            for kind in added {
                if !list.contains(&kind) {
                    list.push(kind);
                }
            }
        }
    }
}

fn document(paths: Paths, schemas: Schemas) -> Value {
    let paths: Paths = paths.into_iter().map(|(name, path)| (name, older_path(path))).collect();
    let definitions: Schemas = schemas
        .into_iter()
        .map(|(name, mut schema)| {
            older_schema(&mut schema);
            special(&name, &mut schema);
            (name, schema)
        })
        .collect();
    json!({"swagger": "2.0", "info": info(), "paths": paths, "definitions": definitions})
}

/// Version 2 cannot say that a value is one of two types.
fn special(name: &str, schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else { return };
    fields.remove("oneOf");
    fields.remove("x-kubernetes-int-or-string");
    match name {
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => {
            fields.insert("type".into(), "string".into());
            fields.insert("format".into(), "int-or-string".into());
        }
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => {
            fields.insert("type".into(), "string".into());
        }
        _ => {}
    }
}

/// References have another path, and stand beside other keywords instead of in `allOf`.
fn older_schema(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(older_schema),
        Value::Object(fields) => {
            let only = match fields.get_mut("allOf") {
                Some(Value::Array(all)) if all.len() == 1 => all.pop(),
                _ => None,
            };
            if let Some(Value::Object(only)) = only {
                fields.remove("allOf");
                fields.extend(only);
            }
            if let Some(Value::String(reference)) = fields.get_mut("$ref")
                && let Some(name) = reference.strip_prefix(REFERENCE)
            {
                *reference = format!("{DEFINITIONS}{name}");
            }
            fields.values_mut().for_each(older_schema);
        }
        _ => {}
    }
}

fn older_path(path: Value) -> Value {
    let Value::Object(entries) = path else { return path };
    let older = entries.into_iter().map(|(name, value)| {
        let value = if name == "parameters" { older_parameters(value) } else { older_operation(value) };
        (name, value)
    });
    older.collect::<Map<_, _>>().into()
}

/// The type of a parameter is its own, not its schema's.
fn older_parameters(parameters: Value) -> Value {
    let Value::Array(parameters) = parameters else { return parameters };
    let older = parameters.into_iter().map(|mut parameter| {
        if let Some(fields) = parameter.as_object_mut()
            && let Some(Value::Object(schema)) = fields.remove("schema")
        {
            fields.extend(schema);
        }
        parameter
    });
    older.collect()
}

/// Bodies are parameters, and media types are the operation's.
fn older_operation(operation: Value) -> Value {
    let Value::Object(mut fields) = operation else { return operation };
    let mut parameters = fields.remove("parameters").map(older_parameters).unwrap_or_else(|| json!([]));
    if let (Some(body), Some(parameters)) = (fields.remove("requestBody"), parameters.as_array_mut()) {
        let (types, schema) = content(&body);
        let required = body.get("required").cloned().unwrap_or(false.into());
        parameters.push(json!({"in": "body", "name": "body", "schema": schema, "required": required}));
        fields.insert("consumes".into(), types);
    }
    if let Some(answer) = fields.get("responses").and_then(|all| all.get("200")) {
        let (types, schema) = content(answer);
        let description = answer.get("description").cloned().unwrap_or_default();
        fields.insert("produces".into(), types);
        fields.insert("responses".into(), json!({"200": {"description": description, "schema": schema}}));
    }
    fields.insert("parameters".into(), parameters);
    Value::Object(fields)
}

/// Media types and schema.
fn content(body: &Value) -> (Value, Value) {
    let all = body.get("content").and_then(Value::as_object);
    let types = all.into_iter().flat_map(Map::keys).cloned().collect();
    let mut schema = all.and_then(|all| all.values().next()?.get("schema").cloned()).unwrap_or_default();
    older_schema(&mut schema);
    (types, schema)
}
