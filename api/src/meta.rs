//! Rules of `metadata`, the same for every kind (`k8s.io/apimachinery/pkg/api/validation`).

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    strategy::{Descriptor, FieldError},
    validation::{self, NEGATIVE},
};

/// Most bytes all annotations of an object may have together.
pub const ANNOTATIONS_MAX: usize = 256 * 1024;

/// Finalizers without a domain that upstream knows.
const STANDARD_FINALIZERS: &[&str] = &["kubernetes", "orphan", "foregroundDeletion"];

/// Every fault of an object's metadata on create. The pipeline has already turned `generateName` into a
/// name and filled in the namespace.
pub fn validate(descriptor: &Descriptor, object: &Value) -> Vec<FieldError> {
    let null = Value::Null;
    let metadata = object.get("metadata").unwrap_or(&null);
    let mut errors = name(descriptor, metadata);
    errors.extend(namespace(descriptor, metadata));
    if metadata.get("generation").and_then(Value::as_i64).is_some_and(|g| g < 0) {
        errors.push(FieldError::invalid("metadata.generation", &metadata["generation"], NEGATIVE));
    }
    errors.extend(labels(&strings(metadata, "labels"), "metadata.labels"));
    errors.extend(annotations(&strings(metadata, "annotations"), "metadata.annotations"));
    errors.extend(owner_references(metadata));
    errors.extend(finalizers(metadata));
    errors
}

/// Faults of a change of metadata; [`validate`] has run on `new`.
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let field = |object: &Value, name: &str| object.pointer(&format!("/metadata/{name}")).cloned();
    let mut errors = Vec::new();
    for name in ["name", "namespace", "uid", "creationTimestamp"] {
        let (now, before) = (field(new, name), field(old, name));
        if now != before {
            let path = format!("metadata.{name}");
            errors.push(FieldError::invalid(path, now.unwrap_or_default(), validation::IMMUTABLE));
        }
    }
    if field(old, "deletionTimestamp").is_some() {
        let before = texts(old.get("metadata"), "finalizers");
        let added: Vec<_> =
            texts(new.get("metadata"), "finalizers").into_iter().filter(|f| !before.contains(f)).collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            );
            errors.push(FieldError::forbidden("metadata.finalizers", &detail));
        }
    }
    errors
}

/// How a kind's names look.
pub fn name_faults(descriptor: &Descriptor, name: &str) -> Vec<String> {
    match (descriptor.group, descriptor.kind) {
        ("", "Namespace") => validation::dns1123_label(name),
        ("", "Service") => validation::dns1035_label(name),
        ("rbac.authorization.k8s.io", _) => validation::path_segment(name),
        ("ketch.dev", "Function") => {
            // The name is a label of the URL's host, and `-00001` is appended for revisions.
            let mut faults = validation::dns1123_label(name);
            if name.len() > FUNCTION_NAME_MAX && faults.is_empty() {
                faults.push(validation::too_long(FUNCTION_NAME_MAX));
            }
            faults
        }
        _ => validation::dns1123_subdomain(name),
    }
}

/// Longest name of a Function: a label less the suffix of its revisions.
const FUNCTION_NAME_MAX: usize = validation::LABEL_MAX - "-00001".len();

fn name(descriptor: &Descriptor, metadata: &Value) -> Vec<FieldError> {
    let text = |field: &str| metadata.get(field).and_then(Value::as_str).unwrap_or_default();
    let mut errors = Vec::new();
    let prefix = text("generateName");
    if !prefix.is_empty() {
        // A trailing dash is fine in a prefix: something follows it.
        let masked = prefix.strip_suffix('-').map_or_else(|| prefix.to_owned(), |p| format!("{p}a"));
        let faults = name_faults(descriptor, &masked);
        errors.extend(faults.iter().map(|f| FieldError::invalid("metadata.generateName", prefix, f)));
    }
    match text("name") {
        "" => errors.push(FieldError::required("metadata.name", "name or generateName is required")),
        name => {
            let faults = name_faults(descriptor, name);
            errors.extend(faults.iter().map(|f| FieldError::invalid("metadata.name", name, f)));
        }
    }
    errors
}

fn namespace(descriptor: &Descriptor, metadata: &Value) -> Vec<FieldError> {
    let path = "metadata.namespace";
    match (descriptor.namespaced, metadata.get("namespace").and_then(Value::as_str).unwrap_or_default()) {
        (true, "") => vec![FieldError::required(path, "")],
        (true, name) => {
            validation::dns1123_label(name).iter().map(|f| FieldError::invalid(path, name, f)).collect()
        }
        (false, "") => Vec::new(),
        (false, _) => vec![FieldError::forbidden(path, "not allowed on this type")],
    }
}

fn strings(metadata: &Value, field: &str) -> BTreeMap<String, String> {
    let entries = metadata.get(field).and_then(Value::as_object);
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    entries.map(|m| m.iter().map(|(k, v)| (k.clone(), text(v))).collect()).unwrap_or_default()
}

fn texts(metadata: Option<&Value>, field: &str) -> Vec<String> {
    let list = metadata.and_then(|m| m.get(field)).and_then(Value::as_array);
    list.map(|l| l.iter().filter_map(Value::as_str).map(str::to_owned).collect()).unwrap_or_default()
}

/// Faults of a map of labels.
pub fn labels(labels: &BTreeMap<String, String>, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels {
        errors.extend(validation::qualified_name(key).iter().map(|f| FieldError::invalid(path, key, f)));
        errors.extend(validation::label_value(value).iter().map(|f| FieldError::invalid(path, value, f)));
    }
    errors
}

/// Faults of a map of annotations.
pub fn annotations(annotations: &BTreeMap<String, String>, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for key in annotations.keys() {
        // Upstream accepts capitals in the prefix of an annotation.
        let faults = validation::qualified_name(&key.to_ascii_lowercase());
        errors.extend(faults.iter().map(|f| FieldError::invalid(path, key, f)));
    }
    if annotations.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() > ANNOTATIONS_MAX {
        errors.push(FieldError::too_long(path, ANNOTATIONS_MAX));
    }
    errors
}

fn owner_references(metadata: &Value) -> Vec<FieldError> {
    let path = "metadata.ownerReferences";
    let mut errors = Vec::new();
    let mut controllers = Vec::new();
    for owner in metadata.get("ownerReferences").and_then(Value::as_array).into_iter().flatten() {
        let text = |field: &str| owner.get(field).and_then(Value::as_str).unwrap_or_default();
        if text("apiVersion").is_empty() {
            errors.push(FieldError::invalid(format!("{path}.apiVersion"), "", "version must not be empty"));
        }
        for field in ["kind", "name", "uid"] {
            if text(field).is_empty() {
                errors.push(FieldError::invalid(format!("{path}.{field}"), "", "must not be empty"));
            }
        }
        if (text("apiVersion"), text("kind")) == ("v1", "Event") {
            errors.push(FieldError::invalid(
                path,
                owner,
                "/v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if owner.get("controller").and_then(Value::as_bool) == Some(true) {
            controllers.push(text("name").to_owned());
        }
    }
    if let [first, second, ..] = controllers.as_slice() {
        let detail = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
        );
        errors.push(FieldError::invalid(path, &metadata["ownerReferences"], &detail));
    }
    errors
}

fn finalizers(metadata: &Value) -> Vec<FieldError> {
    let path = "metadata.finalizers";
    let all = texts(Some(metadata), "finalizers");
    let mut errors = Vec::new();
    for finalizer in &all {
        let faults = validation::qualified_name(finalizer);
        errors.extend(faults.iter().map(|f| FieldError::invalid(path, finalizer, f)));
        if faults.is_empty() && !finalizer.contains('/') && !STANDARD_FINALIZERS.contains(&finalizer.as_str())
        {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(path, finalizer, detail));
        }
    }
    let has = |name: &str| all.iter().any(|f| f == name);
    if has("orphan") && has("foregroundDeletion") {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(FieldError::invalid(path, &all, detail));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const CONFIG_MAP: Descriptor = Descriptor::namespaced("", "v1", "ConfigMap", "configmaps", "configmap");
    const NODE: Descriptor =
        Descriptor { namespaced: false, ..Descriptor::namespaced("", "v1", "Node", "nodes", "node") };

    fn faults(descriptor: &Descriptor, metadata: Value) -> Vec<String> {
        validate(descriptor, &json!({ "metadata": metadata })).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_and_namespaces() {
        assert_eq!(faults(&CONFIG_MAP, json!({"name": "a.b", "namespace": "default"})), [""; 0]);
        assert_eq!(
            faults(&CONFIG_MAP, json!({})),
            [
                "metadata.name: Required value: name or generateName is required",
                "metadata.namespace: Required value"
            ]
        );
        assert_eq!(
            faults(&CONFIG_MAP, json!({"name": "Bad", "namespace": "x"})),
            [
                "metadata.name: Invalid value: \"Bad\": a lowercase RFC 1123 subdomain must consist of lower case \
              alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. \
              'example.com', regex used for validation is \
              '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert_eq!(
            faults(&NODE, json!({"name": "a", "namespace": "x"})),
            ["metadata.namespace: Forbidden: not allowed on this type"]
        );
        assert_eq!(faults(&NODE, json!({"name": "a-1", "generateName": "a-"})), [""; 0]);
        let function = Descriptor::namespaced("ketch.dev", "v1", "Function", "functions", "function");
        assert_eq!(
            faults(&function, json!({"name": "a".repeat(58), "namespace": "x"})).len(),
            1,
            "a revision's name must stay a label"
        );
        assert_eq!(faults(&function, json!({"name": "a".repeat(57), "namespace": "x"})), [""; 0]);
    }

    #[test]
    fn labels_annotations_owners_finalizers() {
        let with = |field: &str, value: Value| {
            let mut metadata = json!({"name": "a"});
            metadata[field] = value;
            faults(&NODE, metadata)
        };
        assert_eq!(with("labels", json!({"a/b": "c"})), [""; 0]);
        assert_eq!(with("labels", json!({"a b": "c"})).len(), 1);
        assert_eq!(with("labels", json!({"a": "c d"})).len(), 1);
        assert_eq!(with("annotations", json!({"Example.com/B": "any thing"})), [""; 0]);
        assert_eq!(
            with("annotations", json!({"a": "x".repeat(ANNOTATIONS_MAX)})),
            ["metadata.annotations: Too long: may not be more than 262144 bytes"]
        );
        let owner = |name: &str, controller: bool| json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": "u", "controller": controller});
        assert_eq!(with("ownerReferences", json!([owner("a", true), owner("b", false)])), [""; 0]);
        assert_eq!(with("ownerReferences", json!([owner("a", true), owner("b", true)])).len(), 1);
        assert_eq!(with("ownerReferences", json!([{}])).len(), 4);
        assert_eq!(with("finalizers", json!(["orphan", "a.b/c"])), [""; 0]);
        assert_eq!(with("finalizers", json!(["mine"])).len(), 1);
        assert_eq!(with("finalizers", json!(["orphan", "foregroundDeletion"])).len(), 1);
    }

    #[test]
    fn identity_never_changes() {
        let old = json!({"metadata": {"name": "a", "uid": "1"}});
        assert_eq!(validate_update(&old, &old), []);
        let new = json!({"metadata": {"name": "b", "uid": "2"}});
        let faults: Vec<_> = validate_update(&new, &old).iter().map(ToString::to_string).collect();
        assert_eq!(
            faults,
            [
                "metadata.name: Invalid value: \"b\": field is immutable",
                "metadata.uid: Invalid value: \"2\": field is immutable"
            ]
        );
        let dying = json!({"metadata": {"name": "a", "deletionTimestamp": "t", "finalizers": ["a/b"]}});
        let more = json!({"metadata": {"name": "a", "deletionTimestamp": "t", "finalizers": ["a/b", "a/c"]}});
        assert_eq!(validate_update(&more, &dying).len(), 1);
        assert_eq!(validate_update(&dying, &more), []);
    }
}
