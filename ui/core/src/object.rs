//! Reading Kubernetes objects as JSON.
//!
//! The console shows many kinds and needs few fields of each, so it reads fields by JSON pointer
//! instead of carrying the types of all kinds to the browser.

use jiff::Timestamp;
use serde_json::Value;

/// The string at `pointer`, or the empty string.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The integer at `pointer`.
pub fn int(object: &Value, pointer: &str) -> Option<i64> {
    object.pointer(pointer).and_then(Value::as_i64)
}

/// The array at `pointer`, or an empty one.
pub fn items<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The string members of the object at `pointer`, in key order.
pub fn pairs(object: &Value, pointer: &str) -> Vec<(String, String)> {
    let map = object.pointer(pointer).and_then(Value::as_object);
    map.into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
        .collect()
}

/// `metadata.name`.
pub fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// `metadata.namespace`; empty for a cluster-scoped object.
pub fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

/// `metadata.uid`.
pub fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

/// The value of one label, or the empty string.
pub fn label<'a>(object: &'a Value, key: &str) -> &'a str {
    object.pointer("/metadata/labels").and_then(|l| l.get(key)).and_then(Value::as_str).unwrap_or_default()
}

/// When the object was created.
pub fn created(object: &Value) -> Option<Timestamp> {
    text(object, "/metadata/creationTimestamp").parse().ok()
}

/// Whether deletion has begun.
pub fn deleting(object: &Value) -> bool {
    !text(object, "/metadata/deletionTimestamp").is_empty()
}

/// The condition of this type.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    items(object, "/status/conditions").iter().find(|c| text(c, "/type") == kind)
}

/// The time an event happened last, by whichever field its reporter filled in.
pub fn event_time(event: &Value) -> Option<Timestamp> {
    [
        "/series/lastObservedTime",
        "/lastTimestamp",
        "/eventTime",
        "/firstTimestamp",
        "/metadata/creationTimestamp",
    ]
    .into_iter()
    .find_map(|pointer| text(event, pointer).parse().ok())
}

/// How often an event happened; at least 1.
pub fn event_count(event: &Value) -> i64 {
    int(event, "/series/count").or_else(|| int(event, "/count")).unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn missing_fields_read_as_empty() {
        let object = json!({"metadata": {"name": "web", "labels": {"app.kubernetes.io/name": "w"}}});
        assert_eq!(name(&object), "web");
        assert_eq!(label(&object, "app.kubernetes.io/name"), "w", "a slash in a label is not a path");
        assert_eq!(namespace(&object), "");
        assert!(items(&object, "/status/conditions").is_empty());
        assert!(!deleting(&object));
    }

    #[test]
    fn event_time_prefers_the_series() {
        let event = json!({
            "series": {"count": 7, "lastObservedTime": "2026-01-02T00:00:00.000000Z"},
            "eventTime": "2026-01-01T00:00:00.000000Z", "lastTimestamp": null,
        });
        assert_eq!(event_time(&event), "2026-01-02T00:00:00Z".parse().ok());
        assert_eq!(event_count(&event), 7);
        assert_eq!(event_count(&json!({})), 1);
    }
}
