//! The operations on a resource, as clients look them up.
//!
//! kubectl reads three things here: whether the PATCH operation of a kind takes `fieldValidation`, whether
//! it takes strategic merge patches, and which kind a path serves. The rest is for people and generators.

use ketch_api::Descriptor;
use serde_json::{Map, Value, json};

use super::schemas::{Collector, REFERENCE};
use crate::rest::sub::review::Review;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Paths by name.
pub(super) type Paths = Map<String, Value>;

/// A subresource with a schema of its own or the object's.
struct Subresource {
    name: &'static str,
    verbs: &'static [&'static str],
    /// Group, version, kind; `None`: the object itself.
    kind: Option<(&'static str, &'static str, &'static str)>,
}

/// Adds the paths of a stored resource.
pub(super) fn stored(d: &Descriptor, schemas: &mut Collector, paths: &mut Paths) {
    let Some((item, list)) = schemas.stored(d) else { return };
    let gvk = json!({"group": d.group, "version": d.version, "kind": d.kind});
    let about = About { gvk: &gvk, plural: d.plural, strategic: d.group != "ketch.dev" };
    let root = root(d.group, d.version);
    if d.namespaced {
        let all = json!({"get": about.operation("list", &list, None), "parameters": LIST.parameters()});
        paths.insert(format!("{root}/{}", d.plural), all);
    }
    let scope = if d.namespaced { format!("{root}/namespaces/{{namespace}}") } else { root };
    let collection = format!("{scope}/{}", d.plural);
    let mut value = about.methods(&["list", "create", "deletecollection"], &item, &list);
    insert(&mut value, "parameters", in_path(d.namespaced, false));
    paths.insert(collection.clone(), value);
    let mut value = about.methods(&["get", "update", "patch", "delete"], &item, &list);
    insert(&mut value, "parameters", in_path(d.namespaced, true));
    paths.insert(format!("{collection}/{{name}}"), value);
    for sub in subresources(d) {
        let (schema, kind) = match sub.kind {
            None => (Some(item.clone()), gvk.clone()),
            Some((group, version, kind)) => (
                schemas.kind(group, version, kind),
                json!({"group": group, "version": version, "kind": kind}),
            ),
        };
        let Some(schema) = schema else { continue };
        let about = About { gvk: &kind, plural: d.plural, strategic: about.strategic };
        let mut value = about.methods(sub.verbs, &schema, &schema);
        insert(&mut value, "parameters", in_path(d.namespaced, true));
        paths.insert(format!("{collection}/{{name}}/{}", sub.name), value);
    }
}

/// Adds the path of a kind that is only created.
pub(super) fn review(review: &Review, schemas: &mut Collector, paths: &mut Paths) {
    let Some(schema) = schemas.review(review) else { return };
    let gvk = json!({"group": review.group, "version": "v1", "kind": review.kind});
    let about = About { gvk: &gvk, plural: review.plural, strategic: false };
    let root = root(review.group, "v1");
    let scope = if review.namespaced { format!("{root}/namespaces/{{namespace}}") } else { root };
    let mut value = about.methods(&["create"], &schema, &schema);
    insert(&mut value, "parameters", in_path(review.namespaced, false));
    paths.insert(format!("{scope}/{}", review.plural), value);
}

fn subresources(d: &Descriptor) -> Vec<Subresource> {
    const CHANGE: &[&str] = &["get", "update", "patch"];
    let mut all = Vec::new();
    if d.status {
        all.push(Subresource { name: "status", verbs: CHANGE, kind: None });
    }
    if d.scale.is_some() {
        all.push(Subresource { name: "scale", verbs: CHANGE, kind: Some(("autoscaling", "v1", "Scale")) });
    }
    match (d.group, d.kind) {
        ("", "Pod") => {
            all.push(Subresource { name: "binding", verbs: &["create"], kind: Some(("", "v1", "Binding")) });
            all.push(Subresource {
                name: "eviction",
                verbs: &["create"],
                kind: Some(("policy", "v1", "Eviction")),
            });
        }
        ("", "Namespace") => all.push(Subresource { name: "finalize", verbs: &["update"], kind: None }),
        ("", "ServiceAccount") => {
            let kind = Some(("authentication.k8s.io", "v1", "TokenRequest"));
            all.push(Subresource { name: "token", verbs: &["create"], kind });
        }
        _ => {}
    }
    all
}

fn root(group: &str, version: &str) -> String {
    match group {
        "" => format!("/api/{version}"),
        group => format!("/apis/{group}/{version}"),
    }
}

fn insert(object: &mut Value, name: &str, value: Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(name.to_owned(), value);
    }
}

/// Query parameters of an operation.
struct Query(&'static [(&'static str, &'static str, &'static str)]);

const LIST: Query = Query(&[
    ("allowWatchBookmarks", "boolean", "Send BOOKMARK events while watching."),
    ("continue", "string", "Where the next page begins, from the last page's metadata."),
    ("fieldSelector", "string", "Only objects with these field values."),
    ("labelSelector", "string", "Only objects with these labels."),
    ("limit", "integer", "Most objects in one page."),
    ("resourceVersion", "string", "State to read, or from which to watch."),
    ("resourceVersionMatch", "string", "How resourceVersion is meant."),
    ("sendInitialEvents", "boolean", "Begin a watch with the objects there are."),
    ("timeoutSeconds", "integer", "Longest time a list or watch lasts."),
    ("watch", "boolean", "Send changes as they happen."),
]);
const WRITE: Query = Query(&[
    ("dryRun", "string", "All: do everything but storing the object."),
    ("fieldManager", "string", "Name of who makes the change."),
    ("fieldValidation", "string", "What to do about unknown and duplicate fields: Ignore, Warn or Strict."),
]);
const PATCH: Query = Query(&[
    ("dryRun", "string", "All: do everything but storing the object."),
    ("fieldManager", "string", "Name of who makes the change."),
    ("fieldValidation", "string", "What to do about unknown and duplicate fields: Ignore, Warn or Strict."),
    ("force", "boolean", "Take over fields of others; for apply patches."),
]);
const DELETE: Query = Query(&[
    ("dryRun", "string", "All: do everything but deleting the object."),
    ("gracePeriodSeconds", "integer", "Seconds the object may take to end."),
    ("propagationPolicy", "string", "What becomes of dependents: Orphan, Background or Foreground."),
]);

impl Query {
    fn parameters(&self) -> Value {
        let one = |(name, kind, description): &(&str, &str, &str)| json!({"in": "query", "name": name, "description": description, "schema": {"type": kind, "uniqueItems": true}});
        self.0.iter().map(one).collect()
    }
}

fn in_path(namespaced: bool, named: bool) -> Value {
    let one = |name: &str, description: &str| {
        json!({"in": "path", "name": name, "required": true, "description": description,
            "schema": {"type": "string", "uniqueItems": true}})
    };
    let mut all = vec![
        json!({"in": "query", "name": "pretty", "description": "Ignored.", "schema": {"type": "string", "uniqueItems": true}}),
    ];
    if named {
        all.push(one("name", "Name of the object."));
    }
    if namespaced {
        all.push(one("namespace", "Namespace of the object."));
    }
    all.into()
}

/// What the operations of one path have in common.
struct About<'a> {
    gvk: &'a Value,
    plural: &'static str,
    strategic: bool,
}

impl About<'_> {
    fn methods(&self, verbs: &[&str], item: &str, list: &str) -> Value {
        let mut path = Map::new();
        for verb in verbs {
            let (method, schema, body) = match *verb {
                "get" => ("get", item, None),
                "list" => ("get", list, None),
                "create" => ("post", item, Some(item)),
                "update" => ("put", item, Some(item)),
                "patch" => ("patch", item, None),
                "delete" | "deletecollection" => ("delete", "", None),
                _ => continue,
            };
            path.insert(method.to_owned(), self.operation(verb, schema, body));
        }
        Value::Object(path)
    }

    fn operation(&self, verb: &str, schema: &str, body: Option<&str>) -> Value {
        let query = match verb {
            "list" => LIST,
            "create" | "update" => WRITE,
            "patch" => PATCH,
            "delete" | "deletecollection" => DELETE,
            _ => Query(&[]),
        };
        let action = match verb {
            "create" => "post",
            "update" => "put",
            verb => verb,
        };
        let status = format!("{META}Status");
        let answer = if schema.is_empty() { &status } else { schema };
        let mut operation = json!({
            "description": format!("{verb} {}", self.plural),
            "parameters": query.parameters(),
            "responses": {"200": {"description": "OK", "content": content(&[JSON, YAML], answer)}},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": self.gvk,
        });
        match (verb, body) {
            (_, Some(body)) => {
                let body = json!({"content": content(&[JSON, YAML, PROTOBUF], body), "required": true});
                insert(&mut operation, "requestBody", body);
            }
            ("patch", _) => {
                let mut types = vec!["application/json-patch+json", "application/merge-patch+json"];
                types.extend(self.strategic.then_some("application/strategic-merge-patch+json"));
                let body = json!({"content": content(&types, &format!("{META}Patch")), "required": true});
                insert(&mut operation, "requestBody", body);
            }
            ("delete" | "deletecollection", _) => {
                let types = [JSON, YAML, PROTOBUF];
                insert(
                    &mut operation,
                    "requestBody",
                    json!({"content": content(&types, &format!("{META}DeleteOptions"))}),
                );
            }
            _ => {}
        }
        operation
    }
}

fn content(types: &[&str], schema: &str) -> Value {
    types
        .iter()
        .map(|name| ((*name).to_owned(), json!({"schema": {"$ref": format!("{REFERENCE}{schema}")}})))
        .collect::<Map<_, _>>()
        .into()
}
