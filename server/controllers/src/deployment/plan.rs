//! The next step of a Deployment, decided from it and its ReplicaSets. Pure.
//!
//! Upstream's `deployment/{deployment_controller,sync,rolling,recreate}.go`. A step is small: the changes
//! it makes come back as events and bring the next one.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use ketch_api::k8s::{
    api::{
        apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetSpec},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};

use super::{size, status, template};
use crate::{owner, pod};

/// Number of the rollout a set belongs to.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Annotations of the Deployment that its sets do not get.
const NOT_COPIED: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    size::DESIRED,
    size::MAXIMUM,
    "deprecated.deployment.rollback.to",
];

/// A change to make.
#[derive(Debug, PartialEq)]
pub(super) enum Op {
    /// Create the newest set.
    Create(Box<ReplicaSet>),
    /// Change a set's size and annotations.
    Scale { set: String, from: i32, to: i32, annotations: BTreeMap<String, String> },
    /// Change a set's annotations and `minReadySeconds`.
    Update { set: String, annotations: BTreeMap<String, String>, min_ready_seconds: Option<i32> },
    /// Delete a set nobody needs any more.
    Delete(String),
    /// Write the revision on the Deployment.
    Revision(String),
}

/// What to do now.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) ops: Vec<Op>,
    pub(super) status: DeploymentStatus,
    /// When to look again if nothing changes.
    pub(super) again: Option<Duration>,
}

/// What there is: the Deployment, its sets and the pods of those sets.
pub(super) struct Observed<'a> {
    pub(super) deployment: &'a Deployment,
    /// In any order.
    pub(super) sets: Vec<&'a ReplicaSet>,
    /// Pods by the uid of their set; used by `Recreate` only.
    pub(super) pods: &'a dyn Fn(&ReplicaSet) -> Vec<std::sync::Arc<Pod>>,
}

/// The sets of a Deployment, told apart.
struct Sets<'a> {
    newest: Option<&'a ReplicaSet>,
    /// Oldest first.
    older: Vec<&'a ReplicaSet>,
}

pub(super) fn plan(observed: &Observed<'_>, now: Timestamp) -> Plan {
    let deployment = observed.deployment;
    let sets = sort(deployment, &observed.sets);
    let mut conditions = status::conditions(deployment);
    let mut ops = Vec::new();
    if deployment.metadata.deletion_timestamp.is_none() {
        pausing(deployment, &mut conditions, now);
        if is_paused(deployment) || size::is_scaling(deployment, observed.sets.iter().copied()) {
            ops = resize(deployment, &sets);
        } else {
            ops = roll(observed, &sets, &mut conditions, now);
        }
    }
    finish(deployment, &sets, ops, conditions, now)
}

fn finish(
    deployment: &Deployment,
    sets: &Sets<'_>,
    mut ops: Vec<Op>,
    conditions: Vec<DeploymentCondition>,
    now: Timestamp,
) -> Plan {
    let all: Vec<&ReplicaSet> = sets.older.iter().copied().chain(sets.newest).collect();
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let mut status = status::count(deployment, sets.newest, &all, conditions, collisions, now);
    let again = status::progress(deployment, sets.newest, &all, &mut status, now);
    if ops.is_empty() && deployment.metadata.deletion_timestamp.is_none() {
        let settled = status::is_complete(deployment, &status) || is_paused(deployment);
        if settled {
            ops = clean_up(deployment, &sets.older);
        }
    }
    Plan { ops, status, again }
}

fn is_paused(deployment: &Deployment) -> bool {
    deployment.spec.as_ref().and_then(|spec| spec.paused).unwrap_or(false)
}

/// The newest set is the oldest one with the Deployment's template.
fn sort<'a>(deployment: &Deployment, sets: &[&'a ReplicaSet]) -> Sets<'a> {
    let mut ordered = sets.to_vec();
    ordered.sort_by(|a, b| {
        let key = |set: &ReplicaSet| (set.metadata.creation_timestamp.clone(), set.metadata.name.clone());
        key(a).cmp(&key(b))
    });
    let newest = deployment.spec.as_ref().and_then(|spec| {
        ordered.iter().copied().find(|set| {
            let theirs = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
            theirs.is_some_and(|theirs| template::same(theirs, &spec.template))
        })
    });
    let uid = newest.map(|set| owner::uid(&set.metadata));
    ordered.retain(|set| Some(owner::uid(&set.metadata)) != uid);
    Sets { newest, older: ordered }
}

fn pausing(deployment: &Deployment, conditions: &mut Vec<DeploymentCondition>, now: Timestamp) {
    if status::deadline(deployment).is_none() {
        return;
    }
    let current = status::find(conditions, status::PROGRESSING).and_then(|c| c.reason.clone());
    if current.as_deref() == Some("ProgressDeadlineExceeded") {
        return;
    }
    let was_paused = current.as_deref() == Some("DeploymentPaused");
    let (reason, message) = match (is_paused(deployment), was_paused) {
        (true, false) => ("DeploymentPaused", "Deployment is paused"),
        (false, true) => ("DeploymentResumed", "Deployment is resumed"),
        _ => return,
    };
    let new = status::condition(status::PROGRESSING, "Unknown", reason, message.into(), now);
    status::set_condition(conditions, new);
}

fn resize(deployment: &Deployment, sets: &Sets<'_>) -> Vec<Op> {
    let sizes = size::rescale(deployment, sets.newest, &sets.older);
    sizes.into_iter().filter_map(|(set, to)| scale(deployment, set, to)).collect()
}

/// The operation that gives `set` its size and the annotations that go with it; `None` when it has them.
fn scale(deployment: &Deployment, set: &ReplicaSet, to: i32) -> Option<Op> {
    let mut annotations = set.metadata.annotations.clone().unwrap_or_default();
    annotations.extend(size_annotations(deployment));
    let unchanged = set.metadata.annotations.as_ref() == Some(&annotations) && size::asked(set) == to;
    (!unchanged).then(|| Op::Scale {
        set: owner::name(&set.metadata).to_owned(),
        from: size::asked(set),
        to,
        annotations,
    })
}

fn size_annotations(deployment: &Deployment) -> [(String, String); 2] {
    let wanted = size::wanted(deployment);
    let most = wanted.saturating_add(size::max_surge(deployment));
    [(size::DESIRED.into(), wanted.to_string()), (size::MAXIMUM.into(), most.to_string())]
}

fn roll(
    observed: &Observed<'_>,
    sets: &Sets<'_>,
    conditions: &mut Vec<DeploymentCondition>,
    now: Timestamp,
) -> Vec<Op> {
    let deployment = observed.deployment;
    if !size::is_rolling(deployment) {
        let shrinking: Vec<Op> = sets
            .older
            .iter()
            .filter(|set| size::asked(set) > 0)
            .filter_map(|set| scale(deployment, set, 0))
            .collect();
        let still_running =
            sets.older.iter().any(|set| (observed.pods)(set).iter().any(|p| !pod::is_finished(p)));
        if !shrinking.is_empty() || still_running {
            return shrinking;
        }
    }
    let Some(newest) = sets.newest else {
        return create(deployment, sets, conditions, now);
    };
    let mut ops = update_newest(deployment, newest, &sets.older, conditions, now);
    let size = size::newest(deployment, size::asked(newest), &sets.older);
    if size != size::asked(newest) {
        // Its other annotations can wait for the step after: one write per set and step.
        ops.retain(|op| !matches!(op, Op::Update { .. }));
        ops.extend(scale(deployment, newest, size));
        return ops;
    }
    if size::is_rolling(deployment) {
        let smaller = size::older(deployment, newest, &sets.older);
        ops.extend(smaller.into_iter().filter_map(|(set, to)| scale(deployment, set, to)));
    }
    ops
}

fn create(
    deployment: &Deployment,
    sets: &Sets<'_>,
    conditions: &mut Vec<DeploymentCondition>,
    now: Timestamp,
) -> Vec<Op> {
    let revision = newest_revision(&sets.older).saturating_add(1).to_string();
    let set = new_set(deployment, &sets.older, &revision);
    if status::deadline(deployment).is_some() {
        let message = format!("Created new replica set \"{}\"", owner::name(&set.metadata));
        let new = status::condition(status::PROGRESSING, "True", "NewReplicaSetCreated", message, now);
        status::set_condition(conditions, new);
    }
    let mut ops = vec![Op::Create(Box::new(set))];
    ops.extend(revision_op(deployment, &revision));
    ops
}

fn new_set(deployment: &Deployment, older: &[&ReplicaSet], revision: &str) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    let hash = template::hash(&spec.template, collisions);
    let with_hash = |labels: Option<BTreeMap<String, String>>| {
        let mut labels = labels.unwrap_or_default();
        labels.insert(template::HASH_LABEL.into(), hash.clone());
        Some(labels)
    };
    let mut template = spec.template.clone();
    let meta = template.metadata.get_or_insert_default();
    meta.labels = with_hash(meta.labels.take());
    let labels = meta.labels.clone();
    let selector =
        LabelSelector { match_labels: with_hash(spec.selector.match_labels.clone()), ..spec.selector };
    let mut annotations = copied_annotations(deployment, BTreeMap::new());
    annotations.extend(size_annotations(deployment));
    annotations.insert(REVISION.into(), revision.to_owned());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", owner::name(&deployment.metadata))),
            namespace: deployment.metadata.namespace.clone(),
            owner_references: Some(vec![owner::reference(deployment)]),
            labels,
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(size::newest(deployment, 0, older)),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

/// Keeps what the newest set says about itself up to date: rolled back to, an old set becomes the newest
/// revision again.
fn update_newest(
    deployment: &Deployment,
    newest: &ReplicaSet,
    older: &[&ReplicaSet],
    conditions: &mut Vec<DeploymentCondition>,
    now: Timestamp,
) -> Vec<Op> {
    if status::deadline(deployment).is_some() && status::find(conditions, status::PROGRESSING).is_none() {
        let message = format!("Found new replica set \"{}\"", owner::name(&newest.metadata));
        let found = status::condition(status::PROGRESSING, "True", "FoundNewReplicaSet", message, now);
        status::set_condition(conditions, found);
    }
    let before = newest.metadata.annotations.clone().unwrap_or_default();
    let mut annotations = copied_annotations(deployment, before.clone());
    let own = before.get(REVISION).cloned().unwrap_or_default();
    let next = newest_revision(older).saturating_add(1);
    let number: i64 = own.parse().unwrap_or(0);
    let revision = if number < next { next.to_string() } else { own.clone() };
    if revision != own {
        annotations.insert(REVISION.into(), revision.clone());
        if !own.is_empty() {
            let past = before.get(REVISION_HISTORY).filter(|past| !past.is_empty());
            annotations
                .insert(REVISION_HISTORY.into(), past.map_or(own.clone(), |past| format!("{past},{own}")));
        }
    }
    let min_ready = deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
    let has_min_ready = newest.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
    let mut ops = Vec::new();
    if annotations != before || min_ready.unwrap_or(0) != has_min_ready.unwrap_or(0) {
        let set = owner::name(&newest.metadata).to_owned();
        ops.push(Op::Update { set, annotations, min_ready_seconds: min_ready });
    }
    ops.extend(revision_op(deployment, &revision));
    ops
}

fn revision_op(deployment: &Deployment, revision: &str) -> Option<Op> {
    let current = deployment.metadata.annotations.as_ref().and_then(|a| a.get(REVISION));
    (current.map(String::as_str) != Some(revision)).then(|| Op::Revision(revision.to_owned()))
}

fn copied_annotations(
    deployment: &Deployment,
    mut into: BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let annotations = deployment.metadata.annotations.iter().flatten();
    for (key, value) in annotations.filter(|(key, _)| !NOT_COPIED.contains(&key.as_str())) {
        into.insert(key.clone(), value.clone());
    }
    into
}

fn revision_of(set: &ReplicaSet) -> i64 {
    let annotations = set.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(REVISION)).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn newest_revision(sets: &[&ReplicaSet]) -> i64 {
    sets.iter().map(|set| revision_of(set)).max().unwrap_or(0)
}

/// Deletes sets beyond the history limit, oldest revision first; only those without pods.
fn clean_up(deployment: &Deployment, older: &[&ReplicaSet]) -> Vec<Op> {
    let limit = deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(10);
    let mut alive: Vec<_> = older.iter().filter(|set| set.metadata.deletion_timestamp.is_none()).collect();
    let surplus = alive.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
    alive.sort_by_key(|set| revision_of(set));
    let unused = |set: &ReplicaSet| {
        let status = set.status.clone().unwrap_or_default();
        status.replicas == 0 && size::asked(set) == 0 && set.metadata.generation <= status.observed_generation
    };
    let surplus = alive.into_iter().take(surplus).filter(|set| unused(set));
    surplus.map(|set| Op::Delete(owner::name(&set.metadata).to_owned())).collect()
}
