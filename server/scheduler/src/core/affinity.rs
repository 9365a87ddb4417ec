//! Selectors of nodes and of pods.

use std::collections::BTreeMap;

use ketch_api::k8s::{
    api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::core::{Selector, SelectorExt};

use super::cluster::{Cluster, NodeInfo, PodInfo};

/// Whether the pod's node selector and required node affinity allow the node.
pub(super) fn selects(pod: &PodInfo, node: &NodeInfo) -> bool {
    let Some(spec) = pod.spec() else { return true };
    let labelled =
        spec.node_selector.iter().flatten().all(|(key, value)| node.labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    labelled
        && required.is_none_or(|required| required.node_selector_terms.iter().any(|term| matches(term, node)))
}

/// Whether the node satisfies all of a term; an empty term satisfies nothing.
pub(super) fn matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let by_label = |r: &NodeSelectorRequirement| holds(r, node.labels.get(&r.key).map(String::as_str));
    let by_field = |r: &NodeSelectorRequirement| r.key == "metadata.name" && holds(r, Some(&node.name));
    expressions.iter().all(by_label) && fields.iter().all(by_field)
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = || value.is_some_and(|value| values.iter().any(|listed| listed == value));
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let bound = || number(values.first().map(String::as_str));
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number(value).zip(bound()).is_some_and(|(has, bound)| has > bound),
        "Lt" => number(value).zip(bound()).is_some_and(|(has, bound)| has < bound),
        _ => false,
    }
}

/// Whether a label selector matches; a missing one matches nothing, an empty one everything.
pub(super) fn label_match(selector: Option<&LabelSelector>, labels: &BTreeMap<String, String>) -> bool {
    let parsed = selector.and_then(|selector| Selector::try_from(selector.clone()).ok());
    parsed.is_some_and(|selector| selector.matches(labels))
}

/// A term of pod affinity, ready to be compared with many pods.
pub(super) struct Term {
    pub(super) topology_key: String,
    selector: Option<Selector>,
    namespaces: Namespaces,
}

enum Namespaces {
    All,
    These(Vec<String>),
}

// === impl Term ===

impl Term {
    /// Of a term in the spec of `owner`.
    pub(super) fn new(term: &PodAffinityTerm, owner: &PodInfo, cluster: &Cluster) -> Self {
        let selector = term.label_selector.clone().map(|mut selector| {
            narrow(&mut selector, term.match_label_keys.as_deref(), owner.labels(), "In");
            narrow(&mut selector, term.mismatch_label_keys.as_deref(), owner.labels(), "NotIn");
            selector
        });
        Self {
            topology_key: term.topology_key.clone(),
            selector: selector.and_then(|selector| Selector::try_from(selector).ok()),
            namespaces: namespaces(term, owner, cluster),
        }
    }

    /// Whether the term means `pod`.
    pub(super) fn means(&self, pod: &PodInfo) -> bool {
        let here = match &self.namespaces {
            Namespaces::All => true,
            Namespaces::These(names) => names.iter().any(|name| name == pod.namespace()),
        };
        here && self.selector.as_ref().is_some_and(|selector| selector.matches(pod.labels()))
    }
}

/// Adds the owner's own value of each key to the selector.
pub(super) fn narrow(
    selector: &mut LabelSelector,
    keys: Option<&[String]>,
    labels: &BTreeMap<String, String>,
    operator: &str,
) {
    use ketch_api::k8s::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;
    for key in keys.unwrap_or_default() {
        if let Some(value) = labels.get(key) {
            selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
                key: key.clone(),
                operator: operator.to_owned(),
                values: Some(vec![value.clone()]),
            });
        }
    }
}

fn namespaces(term: &PodAffinityTerm, owner: &PodInfo, cluster: &Cluster) -> Namespaces {
    let mut names = term.namespaces.clone().unwrap_or_default();
    match term.namespace_selector.clone().map(Selector::try_from) {
        None if names.is_empty() => names.push(owner.namespace().to_owned()),
        Some(Ok(selector)) if selector.selects_all() => return Namespaces::All,
        Some(Ok(selector)) => {
            let matching = cluster.namespaces.iter().filter(|(_, labels)| selector.matches(labels));
            names.extend(matching.map(|(name, _)| name.clone()));
        }
        None | Some(Err(_)) => {}
    }
    Namespaces::These(names)
}

fn required(pod: &PodInfo, anti: bool) -> &[PodAffinityTerm] {
    let Some(affinity) = pod.spec().and_then(|spec| spec.affinity.as_ref()) else { return &[] };
    let terms = if anti {
        affinity
            .pod_anti_affinity
            .as_ref()
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())
    } else {
        affinity
            .pod_affinity
            .as_ref()
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())
    };
    terms.map(Vec::as_slice).unwrap_or_default()
}

/// The pod's required terms, of affinity or of anti-affinity.
pub(super) fn required_terms(pod: &PodInfo, anti: bool, cluster: &Cluster) -> Vec<Term> {
    required(pod, anti).iter().map(|term| Term::new(term, pod, cluster)).collect()
}

/// Whether the pod keeps others away.
pub(super) fn repels(pod: &PodInfo) -> bool {
    !required(pod, true).is_empty()
}
