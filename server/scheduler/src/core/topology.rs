//! Rules between pods: affinity, anti-affinity and spreading. They need a look at the whole cluster, which
//! is taken once per decision, and only for pods that such a rule concerns.

use std::collections::{HashMap, HashSet};

use ketch_api::k8s::api::core::v1::TopologySpreadConstraint;

use super::{
    affinity::{self, Term},
    cluster::{Cluster, NodeInfo, PodInfo},
    filter::{self, Reason},
};

const NO_AFFINITY: &str = "node(s) didn't match pod affinity rules";
const OWN_ANTI: &str = "node(s) didn't match pod anti-affinity rules";
const THEIR_ANTI: &str = "node(s) didn't satisfy existing pods anti-affinity rules";
const SKEW: &str = "node(s) didn't match pod topology spread constraints";
const NO_LABEL: &str = "node(s) didn't match pod topology spread constraints (missing required label)";

/// What the rules between pods say about nodes for one pod.
#[derive(Default)]
pub(super) struct Topology<'a> {
    spread: Vec<Spread<'a>>,
    affinity: Vec<Wanted<'a>>,
    /// No pod satisfies the affinity anywhere and the pod itself would: the first of a group may go anywhere.
    first_of_group: bool,
    anti: Vec<Wanted<'a>>,
    /// Places (label, value) that pods which are there keep this one away from.
    forbidden: HashSet<(String, &'a str)>,
}

/// Values of a topology label with pods that a term means.
struct Wanted<'a> {
    key: String,
    values: HashSet<&'a str>,
}

/// How many matching pods each domain of a constraint has.
pub(super) struct Spread<'a> {
    key: String,
    max_skew: i64,
    self_match: i64,
    least: i64,
    pub(super) counts: HashMap<&'a str, i64>,
}

// === impl Topology ===

impl<'a> Topology<'a> {
    /// Looks at the cluster for `pod`. Costs nothing when no rule concerns it.
    pub(super) fn new(cluster: &'a Cluster, pod: &PodInfo) -> Self {
        let affinity = affinity::required_terms(pod, false, cluster);
        let first_of_group = !affinity.is_empty() && affinity.iter().all(|term| term.means(pod));
        let affinity = locate(cluster, affinity);
        Self {
            spread: constraints(pod, "DoNotSchedule").map(|c| Spread::new(cluster, pod, c)).collect(),
            first_of_group: first_of_group && affinity.iter().all(|wanted| wanted.values.is_empty()),
            affinity,
            anti: locate(cluster, affinity::required_terms(pod, true, cluster)),
            forbidden: forbidden(cluster, pod),
        }
    }

    pub(super) fn spread(&self, node: &NodeInfo) -> Result<(), Reason> {
        for constraint in &self.spread {
            let Some(value) = node.labels.get(&constraint.key) else { return Err(NO_LABEL.into()) };
            let there = constraint.counts.get(value.as_str()).copied().unwrap_or(0);
            if there + constraint.self_match - constraint.least > constraint.max_skew {
                return Err(SKEW.into());
            }
        }
        Ok(())
    }

    pub(super) fn affinity(&self, node: &NodeInfo) -> Result<(), Reason> {
        let value = |wanted: &Wanted<'_>| node.labels.get(&wanted.key).map(String::as_str);
        let near = |wanted: &Wanted<'_>| {
            value(wanted).is_some_and(|value| self.first_of_group || wanted.values.contains(value))
        };
        if !self.affinity.iter().all(near) {
            return Err(NO_AFFINITY.into());
        }
        if self.anti.iter().any(|wanted| value(wanted).is_some_and(|value| wanted.values.contains(value))) {
            return Err(OWN_ANTI.into());
        }
        let kept_away =
            self.forbidden.iter().any(|(key, value)| node.labels.get(key).is_some_and(|own| own == value));
        if kept_away { Err(THEIR_ANTI.into()) } else { Ok(()) }
    }
}

fn locate<'a>(cluster: &'a Cluster, terms: Vec<Term>) -> Vec<Wanted<'a>> {
    let find = |term: Term| {
        let domains = cluster.nodes().filter_map(|node| {
            let value = node.labels.get(&term.topology_key)?;
            node.pods.values().any(|pod| term.means(pod)).then_some(value.as_str())
        });
        Wanted { values: domains.collect(), key: term.topology_key.clone() }
    };
    terms.into_iter().map(find).collect()
}

fn forbidden<'a>(cluster: &'a Cluster, pod: &PodInfo) -> HashSet<(String, &'a str)> {
    let mut places = HashSet::new();
    for uid in &cluster.repelling {
        let Some((other, node)) = cluster.placed(uid) else { continue };
        for term in affinity::required_terms(other, true, cluster) {
            if let Some(value) = node.labels.get(&term.topology_key).filter(|_| term.means(pod)) {
                places.insert((term.topology_key, value.as_str()));
            }
        }
    }
    places
}

/// The pod's spread constraints of one kind.
pub(super) fn constraints<'p>(
    pod: &'p PodInfo,
    when: &'static str,
) -> impl Iterator<Item = &'p TopologySpreadConstraint> {
    let all = pod.spec().and_then(|spec| spec.topology_spread_constraints.as_ref());
    all.into_iter().flatten().filter(move |constraint| constraint.when_unsatisfiable == when)
}

// === impl Spread ===

impl<'a> Spread<'a> {
    pub(super) fn new(cluster: &'a Cluster, pod: &PodInfo, constraint: &TopologySpreadConstraint) -> Self {
        let selector = constraint.label_selector.clone().map(|mut selector| {
            affinity::narrow(&mut selector, constraint.match_label_keys.as_deref(), pod.labels(), "In");
            selector
        });
        let counted = |other: &PodInfo| {
            other.namespace() == pod.namespace()
                && !other.is_leaving()
                && affinity::label_match(selector.as_ref(), other.labels())
        };
        let mut counts: HashMap<&str, i64> = HashMap::new();
        for node in cluster.nodes().filter(|node| is_eligible(pod, node, constraint)) {
            if let Some(value) = node.labels.get(&constraint.topology_key) {
                let matching = node.pods.values().filter(|other| counted(other)).count();
                *counts.entry(value).or_default() += i64::try_from(matching).unwrap_or(i64::MAX);
            }
        }
        let domains = i32::try_from(counts.len()).unwrap_or(i32::MAX);
        let enough = domains >= constraint.min_domains.unwrap_or(1);
        Self {
            key: constraint.topology_key.clone(),
            max_skew: i64::from(constraint.max_skew),
            self_match: i64::from(affinity::label_match(selector.as_ref(), pod.labels())),
            least: if enough { counts.values().copied().min().unwrap_or(0) } else { 0 },
            counts,
        }
    }

    pub(super) fn count_at(&self, node: &NodeInfo) -> Option<i64> {
        let value = node.labels.get(&self.key)?;
        Some(self.counts.get(value.as_str()).copied().unwrap_or(0))
    }
}

/// Whether a node's domain counts for a constraint.
fn is_eligible(pod: &PodInfo, node: &NodeInfo, constraint: &TopologySpreadConstraint) -> bool {
    let by_affinity =
        constraint.node_affinity_policy.as_deref() == Some("Ignore") || affinity::selects(pod, node);
    let tolerations = pod.spec().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let tolerated = || {
        let mut hard = node.taints.iter().filter(|taint| taint.effect != "PreferNoSchedule");
        hard.all(|taint| filter::tolerates(tolerations, taint))
    };
    by_affinity && (constraint.node_taints_policy.as_deref() != Some("Honor") || tolerated())
}
