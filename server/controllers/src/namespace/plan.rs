//! What is left of a namespace that is going away, and how that is told. Pure.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use ketch_api::k8s::{
    api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};

/// The finalizer that holds a namespace until it is empty.
pub(super) const FINALIZER: &str = "kubernetes";

/// What is left of one kind after an attempt to delete all of it.
#[derive(Debug, Default)]
pub(super) struct Remains {
    /// As upstream prints it: `pods.` or `deployments.apps`.
    pub(super) resource: String,
    pub(super) count: usize,
    /// How many objects wait for each finalizer.
    pub(super) finalizers: BTreeMap<String, usize>,
    pub(super) error: Option<String>,
}

pub(super) fn is_to_be_emptied(namespace: &Namespace) -> bool {
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
    namespace.metadata.deletion_timestamp.is_some()
        && finalizers.is_some_and(|finalizers| finalizers.iter().any(|finalizer| finalizer == FINALIZER))
}

pub(super) fn is_empty(remains: &[Remains]) -> bool {
    remains.iter().all(|kind| kind.count == 0 && kind.error.is_none())
}

/// How long to wait before looking again: objects with finalizers take as long as their owners need, what
/// merely has not ended yet is seen to end by the pods' watch.
pub(super) fn patience(remains: &[Remains]) -> Duration {
    let held = remains.iter().any(|kind| !kind.finalizers.is_empty());
    if held { Duration::from_secs(2) } else { Duration::from_millis(500) }
}

pub(super) fn status(namespace: &Namespace, remains: &[Remains], now: Timestamp) -> NamespaceStatus {
    let old = namespace.status.clone().unwrap_or_default().conditions.unwrap_or_default();
    let errors: Vec<&str> = remains.iter().filter_map(|kind| kind.error.as_deref()).collect();
    let left: Vec<String> = remains
        .iter()
        .filter(|kind| kind.count > 0)
        .map(|kind| format!("{} has {} resource instances", kind.resource, kind.count))
        .collect();
    let mut finalizers: BTreeMap<&str, usize> = BTreeMap::new();
    for (finalizer, count) in remains.iter().flat_map(|kind| &kind.finalizers) {
        *finalizers.entry(finalizer).or_default() += count;
    }
    let held: Vec<String> = finalizers
        .iter()
        .map(|(finalizer, count)| format!("{finalizer} in {count} resource instances"))
        .collect();
    let good = [
        ("NamespaceDeletionDiscoveryFailure", "ResourcesDiscovered", "All resources successfully discovered"),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
    ];
    let mut conditions: Vec<NamespaceCondition> = good
        .into_iter()
        .map(|(kind, reason, message)| condition(&old, kind, false, reason, message.into(), now))
        .collect();
    let mut judge = |kind: &str, bad: bool, reasons: (&str, &str), messages: (String, &str)| {
        let (reason, message) =
            if bad { (reasons.0, messages.0) } else { (reasons.1, messages.1.to_owned()) };
        conditions.push(condition(&old, kind, bad, reason, message, now));
    };
    judge(
        "NamespaceDeletionContentFailure",
        !errors.is_empty(),
        ("ContentDeletionFailed", "ContentDeleted"),
        (
            format!("Failed to delete all resource types, {} remaining: {}", errors.len(), errors.join(", ")),
            "All content successfully deleted, may be waiting on finalization",
        ),
    );
    judge(
        "NamespaceContentRemaining",
        !left.is_empty(),
        ("SomeResourcesRemain", "ContentRemoved"),
        (format!("Some resources are remaining: {}", left.join(", ")), "All content successfully removed"),
    );
    judge(
        "NamespaceFinalizersRemaining",
        !held.is_empty(),
        ("SomeFinalizersRemain", "ContentHasNoFinalizers"),
        (
            format!("Some content in the namespace has finalizers remaining: {}", held.join(", ")),
            "All content-preserving finalizers finished",
        ),
    );
    NamespaceStatus { phase: Some("Terminating".to_owned()), conditions: Some(conditions) }
}

fn condition(
    old: &[NamespaceCondition],
    kind: &str,
    value: bool,
    reason: &str,
    message: String,
    now: Timestamp,
) -> NamespaceCondition {
    let status = if value { "True" } else { "False" };
    let same = old.iter().find(|condition| condition.type_ == kind && condition.status == status);
    NamespaceCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: same.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn namespace(deleting: bool, finalizers: &[&str]) -> Namespace {
        let at = deleting.then_some("2026-01-01T00:00:00Z");
        serde_json::from_value(
            json!({"metadata": {"name": "a", "deletionTimestamp": at}, "spec": {"finalizers": finalizers}}),
        )
        .unwrap_or_else(|_| {
            serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": {"finalizers": finalizers}}))
                .unwrap()
        })
    }

    #[test]
    fn only_deleted_namespaces_with_our_finalizer_are_emptied() {
        assert!(is_to_be_emptied(&namespace(true, &["kubernetes"])));
        assert!(!is_to_be_emptied(&namespace(false, &["kubernetes"])));
        assert!(!is_to_be_emptied(&namespace(true, &["example.com/mine"])));
    }

    #[test]
    fn what_remains_is_told() {
        let remains = [
            Remains { resource: "pods.".into(), count: 2, ..Remains::default() },
            Remains {
                resource: "widgets.example.com".into(),
                count: 1,
                finalizers: [("f".to_owned(), 1)].into(),
                error: None,
            },
            Remains { resource: "secrets.".into(), error: Some("no".into()), ..Remains::default() },
        ];
        assert!(!is_empty(&remains));
        let status =
            status(&namespace(true, &["kubernetes"]), &remains, "2026-01-01T00:00:00Z".parse().unwrap());
        let text = |kind: &str| {
            let found = status.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap();
            (found.status.clone(), found.message.clone().unwrap())
        };
        assert_eq!(
            text("NamespaceContentRemaining"),
            ("True".into(), "Some resources are remaining: pods. has 2 resource instances, widgets.example.com has 1 resource instances".into())
        );
        assert_eq!(
            text("NamespaceFinalizersRemaining").1,
            "Some content in the namespace has finalizers remaining: f in 1 resource instances"
        );
        assert_eq!(text("NamespaceDeletionContentFailure").0, "True");
        assert_eq!(text("NamespaceDeletionDiscoveryFailure").0, "False");
    }
}
