//! A Deployment's status and its conditions. Pure; upstream's `deployment/{progress,sync}.go`.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use ketch_api::k8s::{
    api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet},
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::size;
use crate::owner;

pub(super) const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const REPLICA_FAILURE: &str = "ReplicaFailure";
/// Reasons of `Progressing` that end the watch on the deadline.
const COMPLETE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
/// How `MaxInt32` seconds, "no deadline", is written.
const NO_DEADLINE: i32 = i32::MAX;

/// A condition as it would be now.
pub(super) fn condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// Puts `new` in the place of the condition of its type. Nothing changes while status and reason are the
/// same; the transition time changes only with the status.
pub(super) fn set_condition(conditions: &mut Vec<DeploymentCondition>, mut new: DeploymentCondition) {
    if let Some(old) = find(conditions, &new.type_) {
        if old.status == new.status && old.reason == new.reason {
            return;
        }
        if old.status == new.status {
            new.last_transition_time = old.last_transition_time.clone();
        }
    }
    conditions.retain(|condition| condition.type_ != new.type_);
    conditions.push(new);
}

pub(super) fn find<'a>(conditions: &'a [DeploymentCondition], kind: &str) -> Option<&'a DeploymentCondition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

pub(super) fn conditions(deployment: &Deployment) -> Vec<DeploymentCondition> {
    deployment.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default()
}

/// Seconds a rollout may take without progress, when there is a limit.
pub(super) fn deadline(deployment: &Deployment) -> Option<i32> {
    let seconds = deployment.spec.as_ref().and_then(|spec| spec.progress_deadline_seconds).unwrap_or(600);
    (seconds != NO_DEADLINE).then_some(seconds)
}

/// The counts and `Available`; `conditions` is where the others come from.
pub(super) fn count(
    deployment: &Deployment,
    newest: Option<&ReplicaSet>,
    all: &[&ReplicaSet],
    mut conditions: Vec<DeploymentCondition>,
    collisions: Option<i32>,
    now: Timestamp,
) -> DeploymentStatus {
    let sum = |field: fn(&ketch_api::k8s::api::apps::v1::ReplicaSetStatus) -> i32| -> i32 {
        size::total(all.iter().filter_map(|set| set.status.as_ref()).map(field))
    };
    let available = sum(|status| status.available_replicas.unwrap_or(0));
    let unavailable = size::total_asked(all.iter().copied()).saturating_sub(available).max(0);
    let enough = available >= size::wanted(deployment).saturating_sub(size::max_unavailable(deployment));
    set_condition(&mut conditions, availability(enough, now));
    let some = |n: i32| (n > 0).then_some(n);
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(sum(|status| status.replicas)),
        updated_replicas: newest.and_then(|set| set.status.as_ref()).and_then(|status| some(status.replicas)),
        ready_replicas: some(sum(|status| status.ready_replicas.unwrap_or(0))),
        available_replicas: some(available),
        unavailable_replicas: some(unavailable),
        terminating_replicas: Some(sum(|status| status.terminating_replicas.unwrap_or(0))),
        collision_count: collisions,
        conditions: Some(conditions),
    }
}

fn availability(enough: bool, now: Timestamp) -> DeploymentCondition {
    if enough {
        let message = "Deployment has minimum availability.".into();
        return condition(AVAILABLE, "True", "MinimumReplicasAvailable", message, now);
    }
    let message = "Deployment does not have minimum availability.".into();
    condition(AVAILABLE, "False", "MinimumReplicasUnavailable", message, now)
}

/// Whether the newest template runs everywhere and nothing else does.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = size::wanted(deployment);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let get = |n: Option<i32>| n.unwrap_or(0);
    let outdated =
        |status: &DeploymentStatus| get(status.replicas).saturating_sub(get(status.updated_replicas));
    get(new.updated_replicas) > get(old.updated_replicas)
        || outdated(new) < outdated(old)
        || get(new.ready_replicas) > get(old.ready_replicas)
        || get(new.available_replicas) > get(old.available_replicas)
}

/// When the deadline passes; `None` when nothing is waited for.
fn expires(deployment: &Deployment, conditions: &[DeploymentCondition]) -> Option<Timestamp> {
    let seconds = deadline(deployment)?;
    let progressing = find(conditions, PROGRESSING)?;
    if matches!(progressing.reason.as_deref(), Some(COMPLETE | TIMED_OUT)) {
        return None;
    }
    let since = progressing.last_update_time.as_ref()?.0;
    since.checked_add(SignedDuration::from_secs(i64::from(seconds))).ok()
}

/// Brings `Progressing` and `ReplicaFailure` up to date; tells when the deadline has to be looked at.
pub(super) fn progress(
    deployment: &Deployment,
    newest: Option<&ReplicaSet>,
    all: &[&ReplicaSet],
    status: &mut DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let old = deployment.status.clone().unwrap_or_default();
    let mut conditions = status.conditions.take().unwrap_or_default();
    if deadline(deployment).is_none() {
        conditions.retain(|condition| condition.type_ != PROGRESSING);
    } else {
        judge(deployment, newest, &old, status, &mut conditions, now);
    }
    conditions.retain(|condition| condition.type_ != REPLICA_FAILURE);
    conditions.extend(failure_of(newest, all));
    let paused = deployment.spec.as_ref().and_then(|spec| spec.paused).unwrap_or(false);
    let waiting =
        (!paused && !is_complete(deployment, status)).then(|| expires(deployment, &conditions)).flatten();
    status.conditions = Some(conditions);
    waiting.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default() + Duration::from_secs(1))
}

fn judge(
    deployment: &Deployment,
    newest: Option<&ReplicaSet>,
    old: &DeploymentStatus,
    status: &DeploymentStatus,
    conditions: &mut Vec<DeploymentCondition>,
    now: Timestamp,
) {
    let subject = match newest {
        Some(set) => format!("ReplicaSet \"{}\"", owner::name(&set.metadata)),
        None => format!("Deployment \"{}\"", owner::name(&deployment.metadata)),
    };
    let current = find(conditions, PROGRESSING).cloned();
    let settled = current.as_ref().is_some_and(|c| c.reason.as_deref() == Some(COMPLETE))
        && status.replicas == status.updated_replicas;
    if settled {
        return;
    }
    if is_complete(deployment, status) {
        let message = format!("{subject} has successfully progressed.");
        set_condition(conditions, condition(PROGRESSING, "True", COMPLETE, message, now));
    } else if has_progressed(old, status) {
        let mut new =
            condition(PROGRESSING, "True", "ReplicaSetUpdated", format!("{subject} is progressing."), now);
        if let Some(current) = current.filter(|c| c.status == "True") {
            new.last_transition_time = current.last_transition_time;
        }
        // Replaced even when nothing but the update time differs: the deadline counts from it.
        conditions.retain(|condition| condition.type_ != PROGRESSING);
        conditions.push(new);
    } else if expires(deployment, conditions).is_some_and(|at| at < now) {
        let message = format!("{subject} has timed out progressing.");
        set_condition(conditions, condition(PROGRESSING, "False", TIMED_OUT, message, now));
    }
}

fn failure_of(newest: Option<&ReplicaSet>, all: &[&ReplicaSet]) -> Option<DeploymentCondition> {
    let mut sets = newest.into_iter().chain(all.iter().copied());
    let failure = sets.find_map(|set| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|condition| condition.type_ == REPLICA_FAILURE)
    })?;
    Some(DeploymentCondition {
        type_: REPLICA_FAILURE.into(),
        status: failure.status.clone(),
        reason: failure.reason.clone(),
        message: failure.message.clone(),
        last_transition_time: failure.last_transition_time.clone(),
        last_update_time: failure.last_transition_time.clone(),
    })
}
