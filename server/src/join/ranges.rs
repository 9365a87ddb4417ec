//! Which addresses a node gives to its pods, and whether a node may come under a name. Pure.

use std::time::Duration;

use ipnet::Ipv4Net;
use jiff::{SignedDuration, Timestamp};
use ketch_api::k8s::api::core::v1::Node;

/// Length of a joined node's range: 254 pods, as upstream.
const NODE_PREFIX: u8 = 24;
/// How long a node that has been let in may take to report for the first time.
const ARRIVAL: Duration = Duration::from_secs(60);

/// The first range of `cluster` that overlaps none of `taken`.
pub(super) fn free(cluster: Ipv4Net, taken: &[Ipv4Net]) -> Option<Ipv4Net> {
    let overlaps = |range: &Ipv4Net, other: &Ipv4Net| range.contains(other) || other.contains(range);
    let mut ranges = cluster.subnets(NODE_PREFIX.max(cluster.prefix_len())).ok()?;
    ranges.find(|range| !taken.iter().any(|other| overlaps(range, other)))
}

/// Ranges of a node, as far as they can be read.
pub(super) fn of(node: &Node) -> Vec<Ipv4Net> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    let mut ranges: Vec<Ipv4Net> = all.filter_map(|text| text.parse().ok()).collect();
    ranges.dedup();
    ranges
}

/// Whether a node is there, or was let in a moment ago: its name is not free.
pub(super) fn is_live(node: &Node, now: Timestamp) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    match conditions.iter().find(|condition| condition.type_ == "Ready") {
        Some(ready) if ready.last_heartbeat_time.is_some() => ready.status != "Unknown",
        _ => {
            let made = node.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
            now.duration_since(made) < SignedDuration::try_from(ARRIVAL).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn nets(texts: &[&str]) -> Vec<Ipv4Net> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn ranges_do_not_overlap() {
        for (cluster, taken, expected) in [
            ("10.42.0.0/16", vec![], Some("10.42.0.0/24")),
            ("10.42.0.0/16", vec!["10.42.0.0/24", "10.42.2.0/24"], Some("10.42.1.0/24")),
            // The server's own node has a larger part.
            ("10.42.0.0/16", vec!["10.42.0.0/19"], Some("10.42.32.0/24")),
            ("10.42.0.0/16", vec!["10.42.0.128/25"], Some("10.42.1.0/24")),
            // Others' ranges do not count.
            ("10.42.0.0/16", vec!["10.43.0.0/16"], Some("10.42.0.0/24")),
            ("10.42.0.0/16", vec!["10.0.0.0/8"], None),
            ("10.42.0.0/23", vec!["10.42.0.0/24", "10.42.1.0/24"], None),
            ("10.42.0.0/26", vec![], Some("10.42.0.0/26")),
            ("10.42.0.0/26", vec!["10.42.0.0/26"], None),
        ] {
            let found = free(cluster.parse().unwrap(), &nets(&taken));
            assert_eq!(
                found.map(|range| range.to_string()).as_deref(),
                expected,
                "{cluster} without {taken:?}"
            );
        }
    }

    #[test]
    fn every_range_of_a_cluster_is_given_once() {
        let (cluster, mut taken) = ("10.42.0.0/16".parse().unwrap(), Vec::new());
        while let Some(range) = free(cluster, &taken) {
            taken.push(range);
        }
        taken.sort();
        taken.dedup();
        assert_eq!(taken.len(), 256);
    }

    fn node(created: &str, conditions: serde_json::Value) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n", "creationTimestamp": created},
            "spec": {"podCIDR": "10.42.1.0/24", "podCIDRs": ["10.42.1.0/24"]},
            "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    #[test]
    fn a_name_is_taken_while_its_node_lives() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let ready = |status: &str| json!([{"type": "Ready", "status": status, "lastHeartbeatTime": "2026-01-01T00:00:00Z"}]);
        let silent = json!([{"type": "Ready", "status": "Unknown"}]);
        for (created, conditions, live) in [
            ("2026-01-01T00:00:00Z", ready("True"), true),
            ("2026-01-01T00:00:00Z", ready("False"), true),
            ("2026-01-01T00:00:00Z", ready("Unknown"), false),
            // Let in, but it has never come.
            ("2026-01-01T00:00:00Z", json!([]), false),
            ("2026-01-01T00:59:30Z", json!([]), true),
            ("2026-01-01T00:59:30Z", silent.clone(), true),
            ("2026-01-01T00:00:00Z", silent, false),
        ] {
            assert_eq!(is_live(&node(created, conditions.clone()), now), live, "{created} {conditions}");
        }
        assert_eq!(of(&node("2026-01-01T00:00:00Z", json!([]))), nets(&["10.42.1.0/24"]));
    }
}
