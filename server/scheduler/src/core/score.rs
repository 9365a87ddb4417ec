//! Which of the possible nodes is best. Each rule gives every node 0 to 100; rules add up by weight.
//!
//! Small clusters pay per node, so pods are packed; copies of one workload are spread before that, so that
//! one node's end does not take all of them.

use super::{
    affinity::{self, Term},
    cluster::{Cluster, NodeInfo, PodInfo},
    filter,
    topology::{self, Spread},
};

const BEST: i64 = 100;
const PACKING: i64 = 1;
const SPREADING: i64 = 2;
const NODE_AFFINITY: i64 = 2;
const POD_AFFINITY: i64 = 2;
const SOFT_SPREAD: i64 = 2;
const SOFT_TAINTS: i64 = 3;
const IMAGES: i64 = 1;
/// Upstream's bounds between which the bytes of present images count.
const SMALL_IMAGE: i64 = 23 << 20;
const LARGE_IMAGE: i64 = 1000 << 20;

/// The best of `candidates`; of equals the one whose name sorts first. `None` when there is none.
pub(super) fn best<'a>(
    cluster: &Cluster,
    pod: &PodInfo,
    candidates: &[&'a NodeInfo],
) -> Option<&'a NodeInfo> {
    let mut scores: Vec<i64> = candidates.iter().map(|node| PACKING * packing(pod, node)).collect();
    add(&mut scores, SPREADING, siblings(cluster, pod, candidates));
    add(&mut scores, NODE_AFFINITY, preferred_nodes(pod, candidates));
    add(&mut scores, POD_AFFINITY, preferred_pods(cluster, pod, candidates));
    add(&mut scores, SOFT_SPREAD, soft_spread(cluster, pod, candidates));
    add(&mut scores, SOFT_TAINTS, soft_taints(pod, candidates));
    add(&mut scores, IMAGES, images(pod, candidates));
    let ranked = candidates.iter().zip(scores);
    ranked
        .max_by(|(a, a_score), (b, b_score)| a_score.cmp(b_score).then_with(|| b.name.cmp(&a.name)))
        .map(|(n, _)| *n)
}

fn add(scores: &mut [i64], weight: i64, more: Option<Vec<i64>>) {
    for (score, more) in scores.iter_mut().zip(more.into_iter().flatten()) {
        *score += weight * more;
    }
}

/// How full the node would be: the mean of CPU and memory.
fn packing(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let share = |used: i64, more: i64, has: i64| {
        if has <= 0 { 0 } else { (used.saturating_add(more).min(has)).saturating_mul(BEST) / has }
    };
    let cpu = share(node.nominal.0, pod.nominal.0, node.allocatable.cpu);
    let memory = share(node.nominal.1, pod.nominal.1, node.allocatable.memory);
    i64::midpoint(cpu, memory)
}

/// Stretches values so that the largest becomes 100, or the smallest when `less` is better. `None` when
/// they are all the same.
fn stretch(values: Vec<i64>, less: bool) -> Option<Vec<i64>> {
    let (min, max) = (values.iter().copied().min()?, values.iter().copied().max()?);
    if min == max {
        return None;
    }
    let scaled = |value: i64| if less { max - value } else { value - min } * BEST / (max - min);
    Some(values.into_iter().map(scaled).collect())
}

/// Fewer pods of the same controller are better.
fn siblings(cluster: &Cluster, pod: &PodInfo, candidates: &[&NodeInfo]) -> Option<Vec<i64>> {
    let counts = cluster.siblings(pod.controller.as_ref()?)?;
    let count = |node: &&NodeInfo| counts.get(&node.index).copied().unwrap_or(0);
    stretch(candidates.iter().map(count).collect(), true)
}

fn preferred_nodes(pod: &PodInfo, candidates: &[&NodeInfo]) -> Option<Vec<i64>> {
    let affinity = pod.spec()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = affinity.preferred_during_scheduling_ignored_during_execution.as_ref()?;
    let weight = |node: &&NodeInfo| {
        let met = terms.iter().filter(|term| affinity::matches(&term.preference, node));
        met.map(|term| i64::from(term.weight)).sum()
    };
    stretch(candidates.iter().map(weight).collect(), false)
}

fn preferred_pods(cluster: &Cluster, pod: &PodInfo, candidates: &[&NodeInfo]) -> Option<Vec<i64>> {
    let affinity = pod.spec()?.affinity.as_ref()?;
    let near = affinity
        .pod_affinity
        .iter()
        .filter_map(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let far = affinity
        .pod_anti_affinity
        .iter()
        .filter_map(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let signed = near.flatten().map(|term| (1, term)).chain(far.flatten().map(|term| (-1, term)));
    let mut totals = vec![0; candidates.len()];
    for (sign, weighted) in signed {
        let term = Term::new(&weighted.pod_affinity_term, pod, cluster);
        let mut domains = std::collections::HashMap::<&str, i64>::new();
        for node in cluster.nodes() {
            if let Some(value) = node.labels.get(&term.topology_key) {
                let meant = node.pods.values().filter(|other| term.means(other)).count();
                *domains.entry(value).or_default() += i64::try_from(meant).unwrap_or(i64::MAX);
            }
        }
        for (total, node) in totals.iter_mut().zip(candidates) {
            let there = node.labels.get(&term.topology_key).and_then(|value| domains.get(value.as_str()));
            *total += sign * i64::from(weighted.weight) * there.copied().unwrap_or(0);
        }
    }
    stretch(totals, false)
}

fn soft_spread(cluster: &Cluster, pod: &PodInfo, candidates: &[&NodeInfo]) -> Option<Vec<i64>> {
    let spreads: Vec<Spread<'_>> = topology::constraints(pod, "ScheduleAnyway")
        .map(|constraint| Spread::new(cluster, pod, constraint))
        .collect();
    if spreads.is_empty() {
        return None;
    }
    // A node without the label is worse than any with it.
    let count = |node: &&NodeInfo| {
        spreads.iter().map(|s| s.count_at(node).unwrap_or_else(|| s.counts.values().sum::<i64>() + 1)).sum()
    };
    stretch(candidates.iter().map(count).collect(), true)
}

fn soft_taints(pod: &PodInfo, candidates: &[&NodeInfo]) -> Option<Vec<i64>> {
    let tolerations = pod.spec()?.tolerations.as_deref().unwrap_or_default();
    let count = |node: &&NodeInfo| {
        let soft = node.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
        i64::try_from(soft.filter(|taint| !filter::tolerates(tolerations, taint)).count()).unwrap_or(i64::MAX)
    };
    stretch(candidates.iter().map(count).collect(), true)
}

/// Bytes that need not be fetched.
fn images(pod: &PodInfo, candidates: &[&NodeInfo]) -> Option<Vec<i64>> {
    if candidates.iter().all(|node| node.images.is_empty()) {
        return None;
    }
    let names: Vec<&str> = pod.spec()?.containers.iter().filter_map(|c| c.image.as_deref()).collect();
    let present = |node: &&NodeInfo| {
        let sizes = names.iter().filter_map(|name| node.images.get(*name));
        let bytes = sizes.fold(0_i64, |sum, size| sum.saturating_add(*size));
        (bytes.clamp(SMALL_IMAGE, LARGE_IMAGE) - SMALL_IMAGE) * BEST / (LARGE_IMAGE - SMALL_IMAGE)
    };
    Some(candidates.iter().map(present).collect())
}
