//! Which revisions a Function has, which of them run, and which get the traffic. Pure.
//!
//! Traffic moves to a revision only when it is available, and a revision that lost its traffic runs on
//! for a while: nowhere on the way is there a moment without an answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use ketch_api::{
    function::{Function, FunctionRevision, FunctionRevisionStatus, FunctionStatus, TrafficTarget},
    k8s::{
        api::{apps::v1::Deployment, core::v1::Pod},
        apimachinery::pkg::apis::meta::v1::{Condition, Time},
    },
};

use super::revision::{self, State};
use crate::owner;

/// How long a revision keeps running after its traffic moved away: gateways need time to notice.
pub(super) const LINGER: Duration = Duration::from_secs(10);
/// On a Deployment: when its revision stopped being needed.
pub(super) const RETIRED: &str = "ketch.dev/retired-at";
/// Revisions kept besides those in use, when the Function does not say.
const HISTORY: i32 = 10;

/// A change to make.
#[derive(Debug, PartialEq)]
pub(super) enum Op {
    CreateRevision(Box<FunctionRevision>),
    DeleteRevision(String),
    CreateDeployment(Box<Deployment>),
    /// Also takes [`RETIRED`] off.
    Scale {
        deployment: String,
        to: i32,
    },
    /// Writes [`RETIRED`].
    Retire {
        deployment: String,
        at: Timestamp,
    },
}

/// What to do now.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) ops: Vec<Op>,
    pub(super) status: FunctionStatus,
    /// By revision.
    pub(super) revisions: BTreeMap<String, FunctionRevisionStatus>,
    /// When to look again if nothing changes.
    pub(super) again: Option<Duration>,
}

/// What there is.
pub(super) struct Observed<'a> {
    pub(super) function: &'a Function,
    /// The Function's own, in any order.
    pub(super) revisions: Vec<Arc<FunctionRevision>>,
    /// By revision.
    pub(super) deployments: BTreeMap<String, Arc<Deployment>>,
    pub(super) pods: &'a dyn Fn(&Deployment) -> Vec<Arc<Pod>>,
    /// What follows `NAME.NAMESPACE.` in URLs, port included.
    pub(super) domain: &'a str,
}

pub(super) fn plan(observed: &Observed<'_>, now: Timestamp) -> Plan {
    let function = observed.function;
    let name = owner::name(&function.metadata);
    let mut revisions: Vec<&FunctionRevision> = observed.revisions.iter().map(Arc::as_ref).collect();
    revisions.sort_by_key(|revision| revision.spec.revision);
    let mut plan =
        Plan { ops: Vec::new(), status: FunctionStatus::default(), revisions: BTreeMap::new(), again: None };

    let created = next_revision(function, name, revisions.last().copied());
    let revisions: Vec<&FunctionRevision> = revisions.into_iter().chain(created.as_ref()).collect();
    let newest =
        revisions.last().map(|revision| owner::name(&revision.metadata).to_owned()).unwrap_or_default();

    let states: BTreeMap<&str, State> =
        revisions.iter().map(|r| (owner::name(&r.metadata), state_of(observed, r))).collect();
    let wanted = wanted_traffic(function, &newest);
    let traffic = next_traffic(function, &wanted, &states);
    let needed: BTreeSet<&str> =
        traffic.iter().chain(&wanted).map(|t| t.revision_name.as_str()).chain([newest.as_str()]).collect();

    for revision in &revisions {
        run(observed, revision, needed.contains(owner::name(&revision.metadata)), now, &mut plan);
        let status = revision_status(observed, revision, &states, now);
        plan.revisions.insert(owner::name(&revision.metadata).to_owned(), status);
    }
    plan.ops.extend(surplus(observed, &revisions, &needed));
    plan.status = status(observed, &newest, &wanted, traffic, &states, now);
    // The revision must exist before its Deployment refers to it by uid.
    if let Some(revision) = created {
        let own = owner::name(&revision.metadata).to_owned();
        plan.revisions.remove(&own);
        plan.ops.retain(|op| !matches!(op, Op::CreateDeployment(d) if owner::name(&d.metadata) == own));
        plan.ops.push(Op::CreateRevision(Box::new(revision)));
    }
    plan
}

/// The revision to make, when the template is not that of the newest one.
fn next_revision(
    function: &Function,
    name: &str,
    newest: Option<&FunctionRevision>,
) -> Option<FunctionRevision> {
    if newest.is_some_and(|newest| newest.spec.template == function.spec.template()) {
        return None;
    }
    // The status remembers a newest revision that somebody deleted; its number is not used again.
    let remembered = function.status.as_ref().and_then(|status| status.latest_revision.as_deref());
    let last =
        newest.map(|newest| newest.spec.revision).max(remembered.and_then(|r| revision::number(name, r)));
    Some(revision::new(function, last.unwrap_or(0).saturating_add(1)))
}

fn state_of(observed: &Observed<'_>, revision: &FunctionRevision) -> State {
    let deployment = observed.deployments.get(owner::name(&revision.metadata));
    revision::state(deployment.map(Arc::as_ref), || {
        deployment.map(|d| (observed.pods)(d)).unwrap_or_default()
    })
}

/// What the user asked for.
fn wanted_traffic(function: &Function, newest: &str) -> Vec<TrafficTarget> {
    if function.spec.traffic.is_empty() {
        return vec![TrafficTarget { revision_name: newest.to_owned(), percent: 100 }];
    }
    function.spec.traffic.clone()
}

/// What is wanted once all of it is available; until then what is there, as far as it still exists.
fn next_traffic(
    function: &Function,
    wanted: &[TrafficTarget],
    states: &BTreeMap<&str, State>,
) -> Vec<TrafficTarget> {
    let is_available =
        |target: &TrafficTarget| states.get(target.revision_name.as_str()) == Some(&State::Available);
    let current = function.status.as_ref().map(|status| status.traffic.clone()).unwrap_or_default();
    // What already gets its traffic keeps it through a crash: moving it elsewhere is the user's decision.
    let moved = wanted == current.as_slice();
    if moved || wanted.iter().filter(|target| target.percent > 0).all(is_available) {
        return wanted.to_vec();
    }
    let exists = |target: &TrafficTarget| states.contains_key(target.revision_name.as_str());
    current.into_iter().filter(exists).collect()
}

/// Pods a needed revision runs. An idle Wasm pod costs next to nothing, so there is always one to answer.
fn replicas(function: &Function) -> i32 {
    function.spec.scaling.as_ref().and_then(|scaling| scaling.min).unwrap_or(1).max(1)
}

/// Gives a revision the pods it needs, or takes them away when it is needed no more.
fn run(observed: &Observed<'_>, revision: &FunctionRevision, needed: bool, now: Timestamp, plan: &mut Plan) {
    let own = owner::name(&revision.metadata);
    let to = replicas(observed.function);
    let Some(deployment) = observed.deployments.get(own) else {
        if needed {
            plan.ops.push(Op::CreateDeployment(Box::new(revision::deployment(revision, to))));
        }
        return;
    };
    let has = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let retired = retired_at(deployment);
    match (needed, retired) {
        (true, retired) => {
            if has != to || retired.is_some() {
                plan.ops.push(Op::Scale { deployment: own.to_owned(), to });
            }
        }
        (false, _) if has == 0 => {}
        (false, None) => {
            plan.ops.push(Op::Retire { deployment: own.to_owned(), at: now });
            look_again(plan, LINGER);
        }
        (false, Some(at)) => match LINGER.checked_sub(since(at, now)) {
            Some(left) if !left.is_zero() => look_again(plan, left),
            _ => plan.ops.push(Op::Scale { deployment: own.to_owned(), to: 0 }),
        },
    }
}

fn retired_at(deployment: &Deployment) -> Option<Timestamp> {
    deployment.metadata.annotations.as_ref()?.get(RETIRED)?.parse().ok()
}

fn since(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(at)).unwrap_or_default()
}

fn look_again(plan: &mut Plan, after: Duration) {
    plan.again = Some(plan.again.map_or(after, |again| again.min(after)));
}

/// Deletes revisions beyond the history limit, oldest first; only those that no longer run.
fn surplus(observed: &Observed<'_>, revisions: &[&FunctionRevision], needed: &BTreeSet<&str>) -> Vec<Op> {
    let limit = observed.function.spec.revision_history_limit.unwrap_or(HISTORY);
    let limit = usize::try_from(limit).unwrap_or(0);
    let names = revisions.iter().map(|revision| owner::name(&revision.metadata));
    let idle: Vec<&str> = names.filter(|name| !needed.contains(name)).collect();
    let stopped = |name: &&str| {
        observed
            .deployments
            .get(*name)
            .is_none_or(|d| d.spec.as_ref().and_then(|spec| spec.replicas) == Some(0))
    };
    let surplus = idle.iter().take(idle.len().saturating_sub(limit)).filter(|name| stopped(name));
    surplus.map(|name| Op::DeleteRevision((*name).to_owned())).collect()
}

fn revision_status(
    observed: &Observed<'_>,
    revision: &FunctionRevision,
    states: &BTreeMap<&str, State>,
    now: Timestamp,
) -> FunctionRevisionStatus {
    let own = owner::name(&revision.metadata);
    let deployment = observed.deployments.get(own);
    let desired = deployment.and_then(|d| d.spec.as_ref()).and_then(|spec| spec.replicas).unwrap_or(0);
    let (status, reason, message) = match states.get(own) {
        _ if deployment.is_some() && desired == 0 => {
            ("False", "Retired", "nothing needs this revision".to_owned())
        }
        Some(State::Available) => ("True", "Available", String::new()),
        Some(State::Failing(reason, message)) => ("False", reason.as_str(), message.clone()),
        _ => ("Unknown", "Starting", "its pods are starting".to_owned()),
    };
    let old = revision.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    FunctionRevisionStatus {
        observed_generation: revision.metadata.generation,
        replicas: Some(desired),
        ready_replicas: Some(
            deployment.and_then(|d| d.status.as_ref()).and_then(|s| s.ready_replicas).unwrap_or(0),
        ),
        conditions: vec![ready(old, (status, reason, message), revision.metadata.generation, now)],
    }
}

fn status(
    observed: &Observed<'_>,
    newest: &str,
    wanted: &[TrafficTarget],
    traffic: Vec<TrafficTarget>,
    states: &BTreeMap<&str, State>,
    now: Timestamp,
) -> FunctionStatus {
    let function = observed.function;
    let old = function.status.clone().unwrap_or_default();
    let (name, namespace) = (owner::name(&function.metadata), function.metadata.namespace.as_deref());
    let newest_ready = states
        .iter()
        .rev()
        .find(|(_, state)| **state == State::Available)
        .map(|(name, _)| (*name).to_owned());
    let verdict = verdict(wanted, &traffic, states);
    let verdict = (verdict.0, verdict.1.as_str(), verdict.2);
    FunctionStatus {
        observed_generation: function.metadata.generation,
        url: Some(format!("http://{name}.{}.{}", namespace.unwrap_or("default"), observed.domain)),
        latest_revision: Some(newest.to_owned()),
        ready_revision: newest_ready.or(old.ready_revision.filter(|name| states.contains_key(name.as_str()))),
        traffic,
        conditions: vec![ready(&old.conditions, verdict, function.metadata.generation, now)],
    }
}

/// Status, reason and message of the Function's `Ready` condition.
fn verdict(
    wanted: &[TrafficTarget],
    traffic: &[TrafficTarget],
    states: &BTreeMap<&str, State>,
) -> (&'static str, String, String) {
    let served = match traffic {
        [] => String::new(),
        some => format!("; {} still answers", list(some)),
    };
    for target in wanted.iter().filter(|target| target.percent > 0) {
        let name = target.revision_name.as_str();
        let still = if wanted == traffic { "" } else { served.as_str() };
        match states.get(name) {
            Some(State::Available) => {}
            None => {
                let message = format!("revision {name} in spec.traffic does not exist{still}");
                return ("False", "RevisionMissing".into(), message);
            }
            Some(State::Starting) => {
                return ("Unknown", "Starting".into(), format!("revision {name} is starting{still}"));
            }
            Some(State::Failing(reason, cause)) => {
                let cause = if cause.is_empty() { reason } else { cause };
                return ("False", reason.clone(), format!("revision {name}: {cause}{still}"));
            }
        }
    }
    ("True", "Serving".into(), format!("{} answers", list(traffic)))
}

fn list(traffic: &[TrafficTarget]) -> String {
    match traffic {
        [one] => format!("revision {}", one.revision_name),
        many => {
            let shares = many.iter().map(|t| format!("{} ({} %)", t.revision_name, t.percent));
            shares.collect::<Vec<_>>().join(", ")
        }
    }
}

/// The `Ready` condition; its transition time changes only with its status.
fn ready(
    old: &[Condition],
    (status, reason, message): (&str, &str, String),
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    let same = old.iter().find(|condition| condition.type_ == "Ready" && condition.status == status);
    Condition {
        type_: "Ready".into(),
        status: status.into(),
        reason: reason.into(),
        message,
        observed_generation: generation,
        last_transition_time: same.map_or(Time(now), |condition| condition.last_transition_time.clone()),
    }
}
