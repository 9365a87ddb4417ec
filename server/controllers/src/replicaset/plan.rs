//! What a ReplicaSet asks for, decided from what there is. Pure.

use std::{cmp::Ordering, collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use ketch_api::k8s::{
    api::{
        apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus},
        core::v1::{Pod, PodTemplateSpec},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};

use crate::{owner, pod};

/// Most pods created or deleted in one go.
pub(crate) const BURST: usize = 500;
/// Pods with a lower value go first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What to do about the number of pods.
#[derive(Debug)]
pub(crate) enum Op {
    /// Create this many.
    Create(usize),
    /// Delete these, least valuable first.
    Delete(Vec<Arc<Pod>>),
}

/// Brings the number of active pods to what is wanted. `pods` are the set's own.
pub(crate) fn manage(set: &ReplicaSet, pods: &[Arc<Pod>], now: Timestamp) -> Option<Op> {
    if set.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let wanted = usize::try_from(desired(set)).unwrap_or(0);
    let active: Vec<_> = pods.iter().filter(|p| pod::is_active(p)).cloned().collect();
    match active.len().cmp(&wanted) {
        Ordering::Less => Some(Op::Create((wanted - active.len()).min(BURST))),
        Ordering::Equal => None,
        Ordering::Greater => {
            let surplus = (active.len() - wanted).min(BURST);
            let mut ranked = rank(active, now);
            ranked.truncate(surplus);
            Some(Op::Delete(ranked))
        }
    }
}

/// Pods wanted.
pub(crate) fn desired(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// Sorts pods so that those whose loss hurts least come first: the order of upstream's
/// `ActivePodsWithRanks`.
fn rank(mut pods: Vec<Arc<Pod>>, now: Timestamp) -> Vec<Arc<Pod>> {
    let mut on_node: HashMap<String, usize> = HashMap::new();
    for pod in &pods {
        *on_node.entry(pod::node(pod).to_owned()).or_default() += 1;
    }
    pods.sort_by(|a, b| {
        let crowd = |p: &Pod| on_node.get(pod::node(p)).copied().unwrap_or(0);
        pod::node(a)
            .is_empty()
            .cmp(&pod::node(b).is_empty())
            .reverse()
            .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
            .then_with(|| pod::is_ready(a).cmp(&pod::is_ready(b)))
            .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
            .then_with(|| crowd(a).cmp(&crowd(b)).reverse())
            .then_with(|| age(pod::ready_since(a), now).cmp(&age(pod::ready_since(b), now)))
            .then_with(|| pod::restarts(a).cmp(&pod::restarts(b)).reverse())
            .then_with(|| age(created(a), now).cmp(&age(created(b), now)))
            .then_with(|| owner::uid(&a.metadata).cmp(owner::uid(&b.metadata)))
    });
    pods
}

fn phase_rank(pod: &Pod) -> u8 {
    match pod::phase(pod) {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    }
}

fn deletion_cost(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(DELETION_COST)).and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

/// Age on a logarithmic scale, so that among pods of about the same age chance (the uid) decides and not
/// always the newest goes.
fn age(since: Option<Timestamp>, now: Timestamp) -> i64 {
    let Some(since) = since else { return -1 };
    let seconds = now.duration_since(since).as_secs().max(0);
    i64::from(u64::BITS - u64::try_from(seconds).unwrap_or(0).leading_zeros())
}

/// A pod made from the set's template.
pub(crate) fn new_pod(set: &ReplicaSet) -> Pod {
    let template = template(set);
    let from = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner::name(&set.metadata))),
            namespace: set.metadata.namespace.clone(),
            labels: from.labels,
            annotations: from.annotations,
            finalizers: from.finalizers,
            owner_references: Some(vec![owner::reference(set)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

fn template(set: &ReplicaSet) -> PodTemplateSpec {
    set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default()
}

/// The status, and when it will change by mere passing of time. `failure` is why pods could not be
/// created or deleted just now.
pub(crate) fn status(
    set: &ReplicaSet,
    pods: &[Arc<Pod>],
    failure: Option<(&str, String)>,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Duration>) {
    let min_ready = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let wanted_labels = template(set).metadata.and_then(|meta| meta.labels).unwrap_or_default();
    let (mut replicas, mut labelled, mut ready, mut available, mut terminating) = (0, 0, 0, 0, 0);
    let mut next: Option<Duration> = None;
    for pod in pods.iter().filter(|p| !pod::is_finished(p)) {
        if pod::is_terminating(pod) {
            terminating += 1;
            continue;
        }
        replicas += 1;
        let labels = pod.metadata.labels.as_ref();
        let has_all = wanted_labels.iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v));
        labelled += i32::from(has_all);
        ready += i32::from(pod::is_ready(pod));
        match pod::availability(pod, min_ready, now) {
            Ok(()) => available += 1,
            Err(Some(missing)) => next = Some(next.map_or(missing, |n| n.min(missing))),
            Err(None) => {}
        }
    }
    let old = set.status.clone().unwrap_or_default();
    let some = |n: i32| (n > 0).then_some(n);
    let status = ReplicaSetStatus {
        replicas,
        fully_labeled_replicas: some(labelled),
        ready_replicas: some(ready),
        available_replicas: some(available),
        terminating_replicas: Some(terminating),
        observed_generation: set.metadata.generation,
        conditions: failure_condition(old.conditions, failure, now),
    };
    (status, next)
}

fn failure_condition(
    old: Option<Vec<ReplicaSetCondition>>,
    failure: Option<(&str, String)>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let mut conditions = old.unwrap_or_default();
    let is_failure = |condition: &ReplicaSetCondition| condition.type_ == "ReplicaFailure";
    match failure {
        None => conditions.retain(|condition| !is_failure(condition)),
        // Kept as it is while the reason is the same, so that the status does not change with each try.
        Some((reason, _))
            if conditions.iter().any(|c| is_failure(c) && c.reason.as_deref() == Some(reason)) => {}
        Some((reason, message)) => {
            conditions.retain(|condition| !is_failure(condition));
            conditions.push(ReplicaSetCondition {
                type_: "ReplicaFailure".into(),
                status: "True".into(),
                reason: Some(reason.into()),
                message: Some(message),
                last_transition_time: Some(Time(now)),
            });
        }
    }
    (!conditions.is_empty()).then_some(conditions)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:01:00Z".parse().unwrap()
    }

    fn set(replicas: i32, min_ready: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "a", "uid": "u", "generation": 3},
            "spec": {"replicas": replicas, "minReadySeconds": min_ready,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}, "annotations": {"x": "y"}},
                    "spec": {"containers": [{"name": "c", "image": "i"}]}}},
        }))
        .unwrap()
    }

    fn pod(name: &str, extra: Value) -> Arc<Pod> {
        let mut object = json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:30Z"}]},
        });
        merge(&mut object, extra);
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn merge(into: &mut Value, from: Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => {
                for (key, value) in from {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, from) => *into = from,
        }
    }

    fn deleted(replicas: i32, pods: &[Arc<Pod>]) -> Vec<String> {
        match manage(&set(replicas, 0), pods, now()) {
            Some(Op::Delete(pods)) => pods.iter().map(|p| owner::name(&p.metadata).to_owned()).collect(),
            other => panic!("expected deletions, got {other:?}"),
        }
    }

    #[test]
    fn missing_pods_are_created_and_ended_ones_do_not_count() {
        let pods = [
            pod("ok", json!({})),
            pod("failed", json!({"status": {"phase": "Failed"}})),
            pod("leaving", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:50Z"}})),
        ];
        assert!(matches!(manage(&set(3, 0), &pods, now()), Some(Op::Create(2))));
        assert!(manage(&set(1, 0), &pods, now()).is_none());
        assert!(matches!(manage(&set(9999, 0), &pods, now()), Some(Op::Create(BURST))));
    }

    #[test]
    fn the_least_valuable_pods_go_first() {
        let not_ready = json!({"status": {"conditions": []}});
        let pods = [
            pod("solid", json!({})),
            pod(
                "unbound",
                json!({"spec": {"nodeName": null}, "status": {"phase": "Pending", "conditions": []}}),
            ),
            pod("pending", json!({"status": {"phase": "Pending", "conditions": []}})),
            pod("unready", not_ready),
            pod("cheap", json!({"metadata": {"annotations": {DELETION_COST: "-5"}}})),
            pod(
                "restarted",
                json!({"status": {"containerStatuses": [
                {"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 4}]}}),
            ),
        ];
        assert_eq!(deleted(0, &pods), ["unbound", "pending", "unready", "cheap", "restarted", "solid"]);
        assert_eq!(deleted(5, &pods), ["unbound"]);
    }

    #[test]
    fn crowded_nodes_give_up_pods_first() {
        let elsewhere = |name: &str| pod(name, json!({"spec": {"nodeName": "n2"}}));
        let pods = [elsewhere("b"), pod("a1", json!({})), pod("a2", json!({}))];
        assert_eq!(deleted(1, &pods), ["a1", "a2"]);
    }

    #[test]
    fn a_pod_carries_template_and_owner() {
        let pod = new_pod(&set(1, 0));
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("web-1-"));
        assert_eq!(pod.metadata.annotations.unwrap()["x"], "y");
        let owner = &pod.metadata.owner_references.unwrap()[0];
        assert_eq!(
            (owner.kind.as_str(), owner.api_version.as_str(), owner.uid.as_str()),
            ("ReplicaSet", "apps/v1", "u")
        );
        assert_eq!(owner.controller, Some(true));
    }

    #[test]
    fn status_counts_and_tells_when_to_look_again() {
        let pods = [
            pod("ready", json!({})),
            pod("unready", json!({"status": {"conditions": []}})),
            pod("leaving", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:50Z"}})),
            pod("failed", json!({"status": {"phase": "Failed"}})),
        ];
        let (status, next) = status(&set(2, 0), &pods, None, now());
        assert_eq!(
            (status.replicas, status.ready_replicas, status.available_replicas),
            (2, Some(1), Some(1))
        );
        assert_eq!((status.terminating_replicas, status.observed_generation, next), (Some(1), Some(3), None));
        let (early, next) = super::status(&set(2, 45), &pods, None, now());
        assert_eq!((early.ready_replicas, early.available_replicas), (Some(1), None));
        assert_eq!(next, Some(Duration::from_secs(15)));
    }

    #[test]
    fn a_failure_is_a_condition_until_it_is_over() {
        let (failed, _) = status(&set(1, 0), &[], Some(("FailedCreate", "quota".into())), now());
        let condition = failed.conditions.clone().unwrap().remove(0);
        assert_eq!(
            (condition.type_.as_str(), condition.message.as_deref()),
            ("ReplicaFailure", Some("quota"))
        );
        let mut again = set(1, 0);
        again.status = Some(failed.clone());
        let later = now() + Duration::from_secs(9);
        let (same, _) = status(&again, &[], Some(("FailedCreate", "other".into())), later);
        assert_eq!(same.conditions, failed.conditions);
        assert_eq!(status(&again, &[], None, later).0.conditions, None);
    }
}
