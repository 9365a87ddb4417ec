//! What of a pod's status has to be written. Pure; the worker does the writing, one request at a time, so
//! changes that come while one is under way are written together.

use ketch_api::k8s::api::core::v1 as core;
use serde_json::{Map, Value};

/// The status as the API has it and as it should be; as JSON text, which is a tenth of the size of a tree.
#[derive(Debug, Default)]
pub(crate) struct StatusWriter {
    /// The API's, with the version it was seen at.
    base: (u64, Box<[u8]>),
    /// What was sent last. A server that stores something else than what it was sent is not asked again.
    sent: Option<Box<[u8]>>,
    /// Version the last write resulted in.
    written: u64,
}

impl StatusWriter {
    /// Notes the pod as the API has it, from a watch or as the response of a write; older ones are ignored.
    pub(crate) fn saw(&mut self, pod: &core::Pod) {
        let version = version(pod);
        if version >= self.base.0 {
            self.base = (version, text(pod.status.as_ref()));
        }
    }

    /// Notes a finished write by its response.
    pub(crate) fn wrote(&mut self, pod: &core::Pod) {
        self.written = version(pod);
        self.saw(pod);
    }

    /// The merge patch that makes the API's status `wanted`; `None` when there is nothing to do.
    pub(crate) fn patch(&mut self, uid: Option<&str>, wanted: &core::PodStatus) -> Option<Value> {
        let wanted = text(Some(wanted));
        let settled = self.sent.as_ref() == Some(&wanted) && self.base.0 <= self.written;
        if settled {
            return None;
        }
        let change = difference(&tree(&self.base.1), &tree(&wanted));
        self.sent = Some(wanted);
        change.map(|status| serde_json::json!({ "metadata": { "uid": uid }, "status": status }))
    }

    /// Notes that the last write failed: it is made again.
    pub(crate) fn failed(&mut self) {
        self.sent = None;
    }
}

fn text(status: Option<&core::PodStatus>) -> Box<[u8]> {
    serde_json::to_vec(&status).unwrap_or_default().into()
}

fn tree(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap_or_default()
}

fn version(pod: &core::Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// RFC 7386: what to merge into `from` to get `to`; `None` when they are equal.
fn difference(from: &Value, to: &Value) -> Option<Value> {
    let (Value::Object(old), Value::Object(new)) = (from, to) else {
        return (from != to).then(|| to.clone());
    };
    let mut patch = Map::new();
    for (key, value) in new {
        let change = match old.get(key) {
            Some(before) => difference(before, value),
            None => Some(value.clone()),
        };
        if let Some(change) = change {
            patch.insert(key.clone(), change);
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(version: &str, phase: &str) -> core::Pod {
        serde_json::from_value(json!({"metadata": {"resourceVersion": version}, "status": {"phase": phase}}))
            .unwrap()
    }

    fn status(phase: &str) -> core::PodStatus {
        core::PodStatus { phase: Some(phase.to_owned()), ..Default::default() }
    }

    #[test]
    fn patches_name_only_what_changes_and_remove_what_goes() {
        let patch = difference(
            &json!({"phase": "Pending", "message": "x", "podIPs": [1], "same": {"a": 1}}),
            &json!({"phase": "Running", "podIPs": [1, 2], "same": {"a": 1}}),
        );
        assert_eq!(patch, Some(json!({"phase": "Running", "message": null, "podIPs": [1, 2]})));
        assert_eq!(difference(&json!({"a": {"b": 1}}), &json!({"a": {"b": 1}})), None);
    }

    #[test]
    fn a_status_is_written_once() {
        let mut writer = StatusWriter::default();
        writer.saw(&pod("5", "Pending"));
        assert!(writer.patch(Some("u"), &status("Running")).is_some());
        writer.wrote(&pod("6", "Running"));
        writer.saw(&pod("6", "Running"));
        assert!(writer.patch(Some("u"), &status("Running")).is_none());
    }

    #[test]
    fn what_another_overwrote_is_written_again_once() {
        let mut writer = StatusWriter::default();
        writer.saw(&pod("5", "Pending"));
        assert!(writer.patch(None, &status("Running")).is_some());
        writer.wrote(&pod("6", "Running"));
        writer.saw(&pod("7", "Unknown"));
        assert!(writer.patch(None, &status("Running")).is_some());
    }

    #[test]
    fn a_server_that_changes_what_it_is_sent_is_not_asked_for_ever() {
        let mut writer = StatusWriter::default();
        writer.saw(&pod("5", "Pending"));
        assert!(writer.patch(None, &status("Running")).is_some());
        writer.wrote(&pod("6", "running"));
        assert!(writer.patch(None, &status("Running")).is_none());
    }

    #[test]
    fn a_failed_write_is_made_again() {
        let mut writer = StatusWriter::default();
        writer.saw(&pod("5", "Pending"));
        assert!(writer.patch(None, &status("Running")).is_some());
        writer.failed();
        assert!(writer.patch(None, &status("Running")).is_some());
    }
}
