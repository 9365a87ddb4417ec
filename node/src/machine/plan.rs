//! [`next`]: from wanted and seen to one step.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    desired::{Desired, ProbeKind, Role, Unit},
    observed::{EVICTED, Observed, Phase, Stage, Step, UnitState},
};

/// The step to take now. Calls to [`Observed::begin`] and [`Observed::finish`] in between make progress:
/// steps of different containers overlap, and `Wait` means that nothing can be begun.
pub fn next(desired: &Desired, observed: &Observed, now: Timestamp) -> Step {
    if desired.gone || desired.deleting.is_some() {
        return leave(desired, observed, now);
    }
    if observed.failed.is_some() {
        return settle(desired, observed, now, "pod failed");
    }
    if let Some(deadline) = desired.deadline(observed.accepted)
        && deadline <= now
        && !finished(desired, observed)
    {
        let message = "Pod was active on the node longer than the specified deadline";
        return Step::Fail("DeadlineExceeded", message.to_owned());
    }
    if finished(desired, observed) {
        return settle(desired, observed, now, "pod completed");
    }
    let mut wait = Waiting(desired.deadline(observed.accepted));
    match bring_up(desired, observed, now, &mut wait) {
        Some(step) => step,
        None => Step::Wait(wait.0),
    }
}

/// Earliest time at which something is due.
struct Waiting(Option<Timestamp>);

impl Waiting {
    fn until(&mut self, time: Timestamp) {
        self.0 = Some(self.0.map_or(time, |earlier| earlier.min(time)));
    }
}

/// Whether nothing will run any more: every ordinary container ended for good, or an init container did
/// without success.
fn finished(desired: &Desired, observed: &Observed) -> bool {
    let over = |unit: &Unit| match observed.unit(&unit.name).phase {
        Phase::Exited(exit) => !unit.restart.restarts(exit.code),
        _ => false,
    };
    let failed_init = |unit: &Unit| match observed.unit(&unit.name).phase {
        Phase::Exited(exit) => exit.code != 0 && !unit.restart.restarts(exit.code),
        _ => false,
    };
    let mut main = desired.units.iter().filter(|unit| unit.role == Role::Main);
    main.all(over) || desired.units.iter().filter(|unit| unit.role == Role::Init).any(failed_init)
}

fn bring_up(desired: &Desired, observed: &Observed, now: Timestamp, wait: &mut Waiting) -> Option<Step> {
    if observed.prepared.due(now) {
        return Some(Step::Prepare);
    }
    if let Stage::Failed(_, retry) = observed.prepared {
        wait.until(retry);
    }
    for unit in &desired.units {
        let state = observed.unit(&unit.name);
        if let Some(step) = advance(desired, observed, unit, &state, now, wait) {
            return Some(step);
        }
        let passed = match unit.role {
            Role::Init => matches!(&state.phase, Phase::Exited(exit) if exit.code == 0),
            Role::Sidecar => state.started(unit),
            Role::Main => true,
        };
        // Once the ordinary containers are up, a restarting sidecar does not hold them back.
        if !passed && !initialized(desired, observed) {
            return None;
        }
    }
    None
}

/// Whether ordinary containers were ever begun.
pub(super) fn initialized(desired: &Desired, observed: &Observed) -> bool {
    desired.units.iter().filter(|unit| unit.role == Role::Main).any(|unit| {
        let state = observed.unit(&unit.name);
        state.attempt > 0 || state.last.is_some() || state.image.is_some() || state.phase != Phase::Waiting
    })
}

fn advance(
    desired: &Desired,
    observed: &Observed,
    unit: &Unit,
    state: &UnitState,
    now: Timestamp,
    wait: &mut Waiting,
) -> Option<Step> {
    let name = || unit.name.clone();
    match &state.phase {
        Phase::Waiting if state.image.is_none() => Some(Step::Pull(name())),
        Phase::Waiting => (observed.prepared == Stage::Done).then(|| Step::Start(name())),
        Phase::Unpullable { since, retry, .. } => {
            if *retry <= now {
                return Some(Step::Pull(name()));
            }
            // The reason shown changes from the failure to the back-off.
            let shown = super::status::pull_failure_shown_until(*since);
            wait.until(if shown > now { shown } else { *retry });
            None
        }
        Phase::Unstartable(_, retry) if *retry <= now => {
            (observed.prepared == Stage::Done).then(|| Step::Start(name()))
        }
        Phase::Unstartable(_, retry) => {
            wait.until(*retry);
            None
        }
        Phase::Running { since } => probe(desired, unit, state, *since, now, wait),
        Phase::Exited(exit) if unit.restart.restarts(exit.code) => match state.crash.until(exit.finished) {
            Some(until) if until > now => {
                wait.until(until);
                None
            }
            _ => Some(Step::Restart(name())),
        },
        Phase::Pulling | Phase::Starting | Phase::Stopping { .. } | Phase::Exited(_) => None,
    }
}

fn probe(
    desired: &Desired,
    unit: &Unit,
    state: &UnitState,
    since: Timestamp,
    now: Timestamp,
    wait: &mut Waiting,
) -> Option<Step> {
    for kind in [ProbeKind::Startup, ProbeKind::Liveness] {
        if unit.probe(kind).is_some() && state.probe(kind).result == Some(false) {
            let own = unit.probe(kind).and_then(|spec| spec.probe.termination_grace_period_seconds);
            let own = own.and_then(|seconds| u64::try_from(seconds).ok()).map(std::time::Duration::from_secs);
            let word = kind.title().to_lowercase();
            let why = format!("Container {} failed {word} probe, will be restarted", unit.name);
            return Some(Step::Stop { name: unit.name.clone(), grace: own.unwrap_or(desired.grace()), why });
        }
    }
    let kinds: &[ProbeKind] = if state.started(unit) {
        &[ProbeKind::Readiness, ProbeKind::Liveness]
    } else {
        &[ProbeKind::Startup]
    };
    for kind in kinds {
        let (Some(spec), probe) = (unit.probe(*kind), state.probe(*kind)) else { continue };
        if probe.busy {
            continue;
        }
        let due = probe.due(spec, since);
        if due <= now {
            return Some(Step::Probe(unit.name.clone(), *kind));
        }
        wait.until(due);
    }
    None
}

/// For containers of an evicted pod to end (upstream's `immediateEvictionGracePeriodSeconds`).
const EVICTION_GRACE: Duration = Duration::from_secs(1);

/// Ends every container: ordinary ones at once, then sidecars from last to first. `None`: all have ended.
fn stop_all(desired: &Desired, observed: &Observed, now: Timestamp, why: &str) -> Option<Step> {
    let grace = match &observed.failed {
        _ if desired.gone => Duration::ZERO,
        // It is in everybody's way.
        Some((reason, _)) if reason == EVICTED => EVICTION_GRACE.min(desired.grace()),
        _ => desired.grace(),
    };
    let (sidecars, others): (Vec<&Unit>, Vec<&Unit>) =
        desired.units.iter().partition(|u| u.role == Role::Sidecar);
    let groups = std::iter::once(others).chain(sidecars.into_iter().rev().map(|unit| vec![unit]));
    for group in groups {
        let mut busy = false;
        for unit in group {
            let state = observed.unit(&unit.name);
            busy |= state.live();
            let stop = match state.phase {
                Phase::Running { .. } => true,
                // Deletion was asked for again, with less grace.
                Phase::Stopping { until, .. } => {
                    let latest = now.checked_add(grace + Duration::from_secs(1));
                    latest.is_ok_and(|latest| latest < until)
                }
                _ => false,
            };
            if stop {
                let why = format!("Stopping container {}", unit.name)
                    + if why.is_empty() { "" } else { ": " }
                    + why;
                return Some(Step::Stop { name: unit.name.clone(), grace, why });
            }
        }
        if busy {
            return Some(Step::Wait(None));
        }
    }
    None
}

/// A pod that ended by itself: release what it holds, keep the object.
fn settle(desired: &Desired, observed: &Observed, now: Timestamp, why: &str) -> Step {
    if let Some(step) = stop_all(desired, observed, now, why) {
        return step;
    }
    match &observed.cleaned {
        _ if observed.prepared == Stage::Busy => Step::Wait(None),
        stage if stage.due(now) => Step::Cleanup,
        Stage::Failed(_, retry) => Step::Wait(Some(*retry)),
        _ => Step::Wait(None),
    }
}

/// A pod that is to go: end it, release it, delete the object.
fn leave(desired: &Desired, observed: &Observed, now: Timestamp) -> Step {
    let settled = settle(desired, observed, now, "");
    if settled != Step::Wait(None) || observed.cleaned != Stage::Done {
        return settled;
    }
    match &observed.deleted {
        _ if desired.gone => Step::Finish,
        stage if stage.due(now) => Step::Delete,
        Stage::Failed(_, retry) => Step::Wait(Some(*retry)),
        Stage::Done => Step::Finish,
        _ => Step::Wait(None),
    }
}
