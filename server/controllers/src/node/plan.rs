//! What a node's silence and its conditions mean for it and its pods. Pure; upstream's `nodelifecycle` and
//! `tainteviction`.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use ketch_api::k8s::{
    api::core::v1::{Node, NodeCondition, Pod, Taint, Toleration},
    apimachinery::pkg::apis::meta::v1::Time,
};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that become a `NoSchedule` taint when they are true.
const PRESSURES: &[(&str, &str)] = &[
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
/// Conditions a node reports; of a silent one nobody knows them.
const REPORTED: &[&str] = &["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// What a node should look like.
#[derive(Debug, PartialEq)]
pub(super) struct Plan {
    /// `None`: as they are.
    pub(super) conditions: Option<Vec<NodeCondition>>,
    /// `None`: as they are.
    pub(super) taints: Option<Vec<Taint>>,
    /// Whether its pods must not get traffic.
    pub(super) lost: bool,
}

/// `silent`: it has not been heard of for longer than the grace period. `refuge`: another node is ready. Without
/// one nothing is evicted: the pods have nowhere to go, and when all nodes fall silent at once it is the server
/// that was away (upstream's full disruption).
pub(super) fn plan(node: &Node, silent: bool, refuge: bool, now: Timestamp) -> Plan {
    let current = node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let conditions = if silent { unknown(&current, now) } else { current.clone() };
    let taints = taints(node, &conditions, refuge, now);
    let had = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    Plan {
        lost: status_of(&conditions, "Ready") != Some("True"),
        conditions: (conditions != current).then_some(conditions),
        taints: (!same(&taints, &had)).then_some(taints),
    }
}

fn status_of<'a>(conditions: &'a [NodeCondition], kind: &str) -> Option<&'a str> {
    conditions.iter().find(|condition| condition.type_ == kind).map(|condition| condition.status.as_str())
}

fn unknown(current: &[NodeCondition], now: Timestamp) -> Vec<NodeCondition> {
    let mut conditions = current.to_vec();
    for kind in REPORTED {
        match conditions.iter_mut().find(|condition| condition.type_ == *kind) {
            Some(condition) if condition.status == "Unknown" => {}
            Some(condition) => {
                condition.status = "Unknown".into();
                condition.reason = Some("NodeStatusUnknown".into());
                condition.message = Some("Kubelet stopped posting node status.".into());
                condition.last_transition_time = Some(Time(now));
            }
            None => conditions.push(NodeCondition {
                type_: (*kind).into(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_heartbeat_time: None,
                last_transition_time: Some(Time(now)),
            }),
        }
    }
    conditions
}

fn same(a: &[Taint], b: &[Taint]) -> bool {
    let view = |taints: &[Taint]| {
        let mut keys: Vec<_> = taints
            .iter()
            .map(|t| (t.key.clone(), t.effect.clone(), t.value.clone().unwrap_or_default()))
            .collect();
        keys.sort();
        keys
    };
    view(a) == view(b)
}

/// The node's taints with ours brought up to date; one that stays keeps its time.
fn taints(node: &Node, conditions: &[NodeCondition], refuge: bool, now: Timestamp) -> Vec<Taint> {
    let spec = node.spec.clone().unwrap_or_default();
    let had = spec.taints.unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let trouble = match status_of(conditions, "Ready") {
        Some("True") => None,
        Some("Unknown") => Some(UNREACHABLE),
        _ => Some(NOT_READY),
    };
    if let Some(key) = trouble {
        wanted.push((key, "NoSchedule"));
        wanted.extend(refuge.then_some((key, "NoExecute")));
    }
    let pressed = PRESSURES.iter().filter(|(kind, _)| status_of(conditions, kind) == Some("True"));
    wanted.extend(pressed.map(|(_, key)| (*key, "NoSchedule")));
    if spec.unschedulable.unwrap_or(false) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let mut taints: Vec<Taint> = had.iter().filter(|taint| !is_ours(taint)).cloned().collect();
    for (key, effect) in wanted {
        let kept = had.iter().find(|taint| taint.key == key && taint.effect == effect);
        taints.push(kept.cloned().unwrap_or_else(|| Taint {
            key: key.into(),
            effect: effect.into(),
            value: None,
            time_added: Some(Time(now)),
        }));
    }
    taints
}

fn is_ours(taint: &Taint) -> bool {
    matches!(taint.key.as_str(), NOT_READY | UNREACHABLE | UNSCHEDULABLE)
        || PRESSURES.iter().any(|(_, key)| taint.key == *key)
}

/// When a pod must leave a node with these taints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Eviction {
    /// It may stay.
    Never,
    /// In this time, if the taint is still there.
    In(Duration),
    Now,
}

pub(super) fn eviction(pod: &Pod, taints: &[Taint], now: Timestamp) -> Eviction {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut verdict = Eviction::Never;
    for taint in taints.iter().filter(|taint| taint.effect == "NoExecute") {
        let tolerating: Vec<&Toleration> = tolerations.iter().filter(|t| tolerates(t, taint)).collect();
        if tolerating.is_empty() {
            return Eviction::Now;
        }
        // A toleration without a limit does not lengthen one that has one, as upstream.
        let Some(seconds) = tolerating.iter().filter_map(|t| t.toleration_seconds).min() else { continue };
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        // Negative ones count as none, as upstream.
        let left = SignedDuration::from_secs(seconds.max(0)).saturating_sub(now.duration_since(since));
        let Some(left) = Duration::try_from(left).ok().filter(|left| !left.is_zero()) else {
            return Eviction::Now;
        };
        verdict = match verdict {
            Eviction::In(earlier) => Eviction::In(earlier.min(left)),
            _ => Eviction::In(left),
        };
    }
    verdict
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    let matches = (effect.is_empty() || effect == taint.effect) && (key.is_empty() || key == taint.key);
    matches
        && match toleration.operator.as_deref() {
            Some("Exists") => true,
            _ => !key.is_empty() && text(&toleration.value) == text(&taint.value),
        }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:10:00Z".parse().unwrap()
    }

    fn node(ready: Option<&str>, spec: Value) -> Node {
        let conditions =
            ready.map(|ready| json!([{"type": "Ready", "status": ready, "reason": "KubeletReady"}]));
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec, "status": {"conditions": conditions.unwrap_or(json!([]))}})).unwrap()
    }

    fn keys(plan: &Plan) -> Vec<String> {
        plan.taints.iter().flatten().map(|t| format!("{}:{}", t.key, t.effect)).collect()
    }

    #[test]
    fn a_ready_node_is_left_alone() {
        let plan = plan(
            &node(Some("True"), json!({"taints": [{"key": "mine", "effect": "NoSchedule"}]})),
            false,
            true,
            now(),
        );
        assert_eq!(plan, Plan { conditions: None, taints: None, lost: false });
    }

    #[test]
    fn a_silent_node_becomes_unknown_and_unreachable() {
        let plan = plan(
            &node(Some("True"), json!({"taints": [{"key": "mine", "effect": "NoSchedule"}]})),
            true,
            true,
            now(),
        );
        assert!(plan.lost);
        let conditions = plan.conditions.clone().unwrap();
        assert!(conditions.iter().all(|c| c.status == "Unknown") && conditions.len() == 4);
        assert_eq!(conditions[0].reason.as_deref(), Some("NodeStatusUnknown"));
        assert_eq!(conditions[1].reason.as_deref(), Some("NodeStatusNeverUpdated"));
        assert_eq!(
            keys(&plan),
            [
                "mine:NoSchedule",
                "node.kubernetes.io/unreachable:NoSchedule",
                "node.kubernetes.io/unreachable:NoExecute"
            ]
        );
        assert_eq!(plan.taints.unwrap()[2].time_added, Some(Time(now())));
    }

    #[test]
    fn silence_is_told_once_and_taints_keep_their_time() {
        let mut silent = node(Some("True"), json!({}));
        let first = plan(&silent, true, true, now());
        silent.status.as_mut().unwrap().conditions = first.conditions;
        silent.spec.as_mut().unwrap().taints = first.taints;
        let again = plan(&silent, true, true, now() + Duration::from_secs(60));
        assert_eq!((again.conditions, again.taints), (None, None));
    }

    #[test]
    fn nothing_is_evicted_when_there_is_nowhere_to_go() {
        let mut silent = node(Some("True"), json!({}));
        silent.spec.as_mut().unwrap().taints = plan(&silent, true, true, now()).taints;
        let alone = plan(&silent, true, false, now());
        assert_eq!(keys(&alone), ["node.kubernetes.io/unreachable:NoSchedule"]);
        assert!(alone.lost, "it gets no traffic all the same");
    }

    #[test]
    fn a_node_that_comes_back_loses_the_taints() {
        let unreachable = json!({"taints": [{"key": UNREACHABLE, "effect": "NoExecute"}, {"key": NOT_READY, "effect": "NoSchedule"}]});
        let plan = plan(&node(Some("True"), unreachable), false, true, now());
        assert_eq!(plan.taints, Some(vec![]));
    }

    #[test]
    fn a_node_that_says_it_is_not_ready_is_tainted_so() {
        let not_ready = plan(&node(Some("False"), json!({"unschedulable": true})), false, true, now());
        assert_eq!(
            keys(&not_ready),
            [
                "node.kubernetes.io/not-ready:NoSchedule",
                "node.kubernetes.io/not-ready:NoExecute",
                "node.kubernetes.io/unschedulable:NoSchedule"
            ]
        );
        assert_eq!(not_ready.conditions, None);
    }

    #[test]
    fn pods_leave_when_their_toleration_ends() {
        let taint = |added: &str| {
            vec![Taint {
                key: UNREACHABLE.into(),
                effect: "NoExecute".into(),
                value: None,
                time_added: Some(Time(added.parse().unwrap())),
            }]
        };
        let pod = |tolerations: Value| -> Pod {
            serde_json::from_value(
                json!({"metadata": {}, "spec": {"containers": [], "tolerations": tolerations}}),
            )
            .unwrap()
        };
        let default = pod(
            json!([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]),
        );
        assert_eq!(
            eviction(&default, &taint("2026-01-01T00:08:00Z"), now()),
            Eviction::In(Duration::from_secs(180))
        );
        assert_eq!(eviction(&default, &taint("2026-01-01T00:05:00Z"), now()), Eviction::Now);
        assert_eq!(eviction(&default, &[], now()), Eviction::Never);
        assert_eq!(eviction(&pod(json!([])), &taint("2026-01-01T00:10:00Z"), now()), Eviction::Now);
        assert_eq!(
            eviction(&pod(json!([{"operator": "Exists"}])), &taint("2026-01-01T00:00:00Z"), now()),
            Eviction::Never
        );
        let until = |seconds: i64| {
            let toleration =
                json!([{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}]);
            ["2026-01-01T00:08:00Z", "2026-01-01T00:20:00Z"]
                .map(|added| eviction(&pod(toleration.clone()), &taint(added), now()))
        };
        assert_eq!(until(i64::MIN)[0], Eviction::Now);
        assert!(until(i64::MAX).iter().all(|one| matches!(one, Eviction::In(_))));
        let other = vec![Taint { key: "k".into(), effect: "NoSchedule".into(), ..Taint::default() }];
        assert_eq!(eviction(&pod(json!([])), &other, now()), Eviction::Never);
    }
}
