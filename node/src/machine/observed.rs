//! What is: the state a worker keeps of its pod.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use ketch_api::k8s::api::core::v1 as core;
use ketch_runtime::{ContainerState, Image};

use super::{
    backoff::Backoff,
    desired::{Desired, ProbeKind, Unit},
    probe::ProbeState,
};

/// Reason of a pod that the node cannot have any longer.
pub(super) const EVICTED: &str = "Evicted";

/// What a worker does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Give the pod an address, volumes and what its containers share.
    Prepare,
    /// Make a container's image present.
    Pull(String),
    /// Start a container.
    Start(String),
    /// Forget a container's ended instance, so that it is started again.
    Restart(String),
    /// End a running container.
    Stop {
        /// Container.
        name: String,
        /// Time to end by itself.
        grace: Duration,
        /// Why, for the event.
        why: String,
    },
    /// Run a probe.
    Probe(String, ProbeKind),
    /// The pod failed as a whole: reason and message.
    Fail(&'static str, String),
    /// Release what the pod holds on this node.
    Cleanup,
    /// Write the last status, then delete the object.
    Delete,
    /// The worker is done.
    Finish,
    /// Nothing until then, or until something changes.
    Wait(Option<Timestamp>),
}

/// Why something could not be done: for `waiting.reason`, `waiting.message` and events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// One word in CamelCase.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What came of a step.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Of [`Step::Prepare`].
    Prepared(Result<IpAddr, Failure>),
    /// Of [`Step::Prepare`]: this node does not take the pod.
    Rejected(Failure),
    /// Of [`Step::Pull`].
    Pulled(String, Result<Image, Failure>),
    /// Of [`Step::Start`]: name, attempt, the instance's id.
    Started(String, u32, Result<Arc<str>, Failure>),
    /// Of [`Step::Stop`]: name, attempt.
    Stopped(String, u32),
    /// What the runtime says of a container: name, attempt, the instance's id, state.
    State(String, u32, Arc<str>, ContainerState),
    /// Of [`Step::Probe`]: name, attempt, which, passed.
    Probed(String, u32, ProbeKind, bool),
    /// The pod uses more than it may: the message.
    Evicted(String),
    /// Of [`Step::Cleanup`].
    Cleaned(Result<(), Failure>),
    /// Of [`Step::Delete`].
    Deleted(Result<(), Failure>),
}

/// A thing done once per pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Not begun.
    #[default]
    Idle,
    /// Under way.
    Busy,
    /// Done.
    Done,
    /// Failed; tried again at that time.
    Failed(Failure, Timestamp),
}

impl Stage {
    /// Whether it should be begun at `now`.
    pub fn due(&self, now: Timestamp) -> bool {
        match self {
            Self::Idle => true,
            Self::Failed(_, retry) => *retry <= now,
            Self::Busy | Self::Done => false,
        }
    }
}

/// How an instance of a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Since when it ran.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Timestamp,
    /// Exit code.
    pub code: i32,
    /// One word.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Which instance.
    pub attempt: u32,
    /// Its id, as [`UnitState::id`].
    pub id: Option<Arc<str>>,
}

/// Where a container is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Not begun, or to be begun again.
    #[default]
    Waiting,
    /// Its image is being pulled.
    Pulling,
    /// The last pull failed.
    Unpullable {
        /// Why.
        failure: Failure,
        /// When it failed.
        since: Timestamp,
        /// When it is tried again.
        retry: Timestamp,
    },
    /// It is being started.
    Starting,
    /// It could not be started; tried again at that time.
    Unstartable(Failure, Timestamp),
    /// It runs.
    Running {
        /// Since when.
        since: Timestamp,
    },
    /// It is being ended.
    Stopping {
        /// Since when it ran.
        since: Timestamp,
        /// When its grace period ends.
        until: Timestamp,
    },
    /// It ended.
    Exited(Exit),
}

/// What is known of one container.
#[derive(Clone, Debug, Default)]
pub struct UnitState {
    /// Number of the current instance; the restart count.
    pub attempt: u32,
    /// Where it is.
    pub phase: Phase,
    /// The image its current instance runs, once pulled.
    pub image: Option<Image>,
    /// Image of the last instance, for the status while there is no current one.
    pub image_id: String,
    /// How the instance before ended.
    pub last: Option<Exit>,
    /// `containerID` of the current instance, once what runs it has said it: `SCHEME://ID`.
    pub id: Option<Arc<str>>,
    /// Between restarts.
    pub crash: Backoff,
    /// Between pulls.
    pub pull: Backoff,
    /// Startup probe.
    pub startup: ProbeState,
    /// Liveness probe.
    pub liveness: ProbeState,
    /// Readiness probe.
    pub readiness: ProbeState,
}

impl UnitState {
    /// A probe's results.
    pub fn probe(&self, kind: ProbeKind) -> &ProbeState {
        match kind {
            ProbeKind::Startup => &self.startup,
            ProbeKind::Liveness => &self.liveness,
            ProbeKind::Readiness => &self.readiness,
        }
    }

    fn probe_mut(&mut self, kind: ProbeKind) -> &mut ProbeState {
        match kind {
            ProbeKind::Startup => &mut self.startup,
            ProbeKind::Liveness => &mut self.liveness,
            ProbeKind::Readiness => &mut self.readiness,
        }
    }

    /// Running, and past its startup probe.
    pub fn started(&self, unit: &Unit) -> bool {
        matches!(self.phase, Phase::Running { .. })
            && (unit.startup.is_none() || self.startup.passes(ProbeKind::Startup))
    }

    /// Takes traffic: started, and its readiness probe, when it has one, passes.
    pub fn ready(&self, unit: &Unit) -> bool {
        self.started(unit) && (unit.readiness.is_none() || self.readiness.passes(ProbeKind::Readiness))
    }

    /// Whether an instance exists in the runtime.
    pub fn live(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Running { .. } | Phase::Stopping { .. })
    }

    /// Notes the id of the current instance.
    fn identify(&mut self, id: Arc<str>) {
        if let Phase::Exited(exit) = &mut self.phase {
            exit.id = Some(Arc::clone(&id));
        }
        self.id = Some(id);
    }

    /// Sets an end from a runtime's report.
    fn exit(&mut self, exit: Exit) {
        (self.startup, self.liveness, self.readiness) = Default::default();
        self.phase = Phase::Exited(exit);
    }
}

/// What is known of one pod.
#[derive(Clone, Debug)]
pub struct Observed {
    /// When this node took the pod on; `status.startTime`.
    pub accepted: Timestamp,
    /// Address, volumes, sandbox.
    pub prepared: Stage,
    /// Tries of [`Step::Prepare`] that failed in a row.
    pub prepare_failures: u32,
    /// Address.
    pub ip: Option<IpAddr>,
    /// Containers by name. Boxed: a map makes room for eleven at once.
    pub units: BTreeMap<String, Box<UnitState>>,
    /// The pod failed as a whole: reason and message.
    pub failed: Option<(String, String)>,
    /// Held resources were released.
    pub cleaned: Stage,
    /// The object was deleted.
    pub deleted: Stage,
}

impl Observed {
    /// State of a pod seen for the first time by this process: taken from its status, so that a restart of
    /// the node continues counts and does not run ended containers again. What the status calls running is
    /// taken as lost unless the runtime reports it afterwards.
    pub fn recover(pod: &core::Pod, now: Timestamp) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        let accepted = status.start_time.map_or(now, |time| time.0);
        let failed = status.reason.filter(|_| status.phase.as_deref() == Some("Failed"));
        let mut observed = Self {
            accepted,
            prepared: Stage::Idle,
            prepare_failures: 0,
            ip: status.pod_ip.and_then(|ip| ip.parse().ok()),
            units: BTreeMap::new(),
            failed: failed.map(|reason| (reason, status.message.unwrap_or_default())),
            cleaned: Stage::Idle,
            deleted: Stage::Idle,
        };
        let init = status.init_container_statuses.unwrap_or_default();
        for one in init.into_iter().chain(status.container_statuses.unwrap_or_default()) {
            observed.units.insert(one.name.clone(), Box::new(recover_unit(one, now)));
        }
        observed
    }

    /// A container's state; the initial one when nothing is known.
    pub fn unit(&self, name: &str) -> UnitState {
        self.units.get(name).map(|unit| (**unit).clone()).unwrap_or_default()
    }

    fn unit_mut(&mut self, name: &str) -> &mut UnitState {
        self.units.entry(name.to_owned()).or_default()
    }

    /// Marks a step as begun.
    pub fn begin(&mut self, step: &Step, now: Timestamp) {
        match step {
            Step::Prepare => self.prepared = Stage::Busy,
            Step::Pull(name) => self.unit_mut(name).phase = Phase::Pulling,
            Step::Start(name) => self.unit_mut(name).phase = Phase::Starting,
            Step::Restart(name) => {
                let unit = self.unit_mut(name);
                let phase = std::mem::take(&mut unit.phase);
                if let Phase::Exited(exit) = phase {
                    unit.last = Some(exit);
                }
                unit.crash.advance(now);
                unit.attempt = unit.attempt.saturating_add(1);
                unit.image = None;
                unit.id = None;
            }
            Step::Stop { name, grace, .. } => {
                let unit = self.unit_mut(name);
                let since = match unit.phase {
                    Phase::Running { since } | Phase::Stopping { since, .. } => since,
                    _ => now,
                };
                let until = now.checked_add(*grace).unwrap_or(Timestamp::MAX);
                unit.phase = Phase::Stopping { since, until };
            }
            Step::Probe(name, kind) => self.unit_mut(name).probe_mut(*kind).begin(now),
            Step::Fail(reason, message) => self.failed = Some(((*reason).to_owned(), message.clone())),
            Step::Cleanup => self.cleaned = Stage::Busy,
            Step::Delete => self.deleted = Stage::Busy,
            Step::Finish | Step::Wait(_) => {}
        }
    }

    /// Folds in what came of a step, or what a runtime reported.
    pub fn finish(&mut self, desired: &Desired, outcome: Outcome, now: Timestamp) {
        match outcome {
            Outcome::Prepared(result) => self.prepared(result, now),
            Outcome::Rejected(failure) => {
                self.failed =
                    Some((failure.reason.to_owned(), format!("Pod was rejected: {}", failure.message)));
                self.prepared(Err(failure), now);
            }
            Outcome::Pulled(name, result) => self.pulled(&name, result, now),
            Outcome::Started(name, attempt, result) => self.started(&name, attempt, result, now),
            Outcome::Stopped(name, attempt) => self.stopped(&name, attempt, now),
            Outcome::State(name, attempt, id, state) => self.report(&name, attempt, id, state),
            Outcome::Probed(name, attempt, kind, passed) => {
                let spec = desired.unit(&name).and_then(|unit| unit.probe(kind));
                let unit = self.unit_mut(&name);
                if let (Some(spec), true) = (spec, unit.attempt == attempt) {
                    unit.probe_mut(kind).finish(spec, passed);
                }
            }
            Outcome::Evicted(message) if self.failed.is_none() => {
                self.failed = Some((EVICTED.to_owned(), message));
            }
            Outcome::Evicted(_) => {}
            Outcome::Cleaned(result) => self.cleaned = settled(result, now),
            Outcome::Deleted(result) => self.deleted = settled(result, now),
        }
    }

    fn prepared(&mut self, result: Result<IpAddr, Failure>, now: Timestamp) {
        match result {
            Ok(ip) => {
                self.ip = Some(ip);
                self.prepare_failures = 0;
                self.prepared = Stage::Done;
            }
            Err(failure) => {
                let delay = retry_delay(self.prepare_failures);
                self.prepare_failures = self.prepare_failures.saturating_add(1);
                self.prepared = Stage::Failed(failure, now.checked_add(delay).unwrap_or(now));
            }
        }
    }

    fn pulled(&mut self, name: &str, result: Result<Image, Failure>, now: Timestamp) {
        let unit = self.unit_mut(name);
        if unit.phase != Phase::Pulling {
            return;
        }
        match result {
            Ok(image) => {
                unit.image_id.clone_from(&image.id);
                unit.image = Some(image);
                unit.pull = Backoff::default();
                unit.phase = Phase::Waiting;
            }
            Err(failure) => {
                unit.pull.advance(now);
                let retry = unit.pull.until(now).unwrap_or(now);
                unit.phase = Phase::Unpullable { failure, since: now, retry };
            }
        }
    }

    fn started(&mut self, name: &str, attempt: u32, result: Result<Arc<str>, Failure>, now: Timestamp) {
        let unit = self.unit_mut(name);
        // The runtime's own report may have come first.
        if unit.attempt != attempt || unit.phase != Phase::Starting {
            return;
        }
        unit.phase = match result {
            Ok(id) => {
                unit.id = Some(id);
                Phase::Running { since: now }
            }
            Err(failure) => {
                Phase::Unstartable(failure, now.checked_add(Duration::from_secs(2)).unwrap_or(now))
            }
        };
    }

    fn stopped(&mut self, name: &str, attempt: u32, now: Timestamp) {
        let unit = self.unit_mut(name);
        // Normally the runtime's report with code and reason is here before this.
        if let (Phase::Stopping { since, .. }, true) = (&unit.phase, unit.attempt == attempt) {
            let (started, reason, id) = (Some(*since), "Error".to_owned(), unit.id.clone());
            unit.exit(Exit {
                started,
                finished: now,
                code: 137,
                reason,
                message: String::new(),
                attempt,
                id,
            });
        }
    }

    fn report(&mut self, name: &str, attempt: u32, id: Arc<str>, state: ContainerState) {
        let unit = self.unit_mut(name);
        if attempt < unit.attempt {
            if let Some(last) = unit.last.as_mut().filter(|last| last.attempt == attempt) {
                last.id = Some(id);
            }
            return;
        }
        if attempt == unit.attempt && is_settled(&unit.phase, &state) {
            unit.identify(id);
            return;
        }
        unit.attempt = attempt;
        unit.id = Some(id);
        match state {
            ContainerState::Created => {}
            ContainerState::Running { started } => {
                if !matches!(unit.phase, Phase::Stopping { .. } | Phase::Starting) {
                    unit.phase = Phase::Running { since: started };
                }
            }
            ContainerState::Exited { started, finished, code, reason, message } => {
                let (started, id) = (Some(started), unit.id.clone());
                unit.exit(Exit { started, finished, code, reason, message, attempt, id });
            }
        }
    }
}

/// Whether a report about the current instance says nothing new: an instance ends once, except that one
/// taken as lost at recovery may prove to run after all.
fn is_settled(phase: &Phase, state: &ContainerState) -> bool {
    match (phase, state) {
        (Phase::Exited(exit), ContainerState::Running { .. }) => exit.reason != LOST,
        (Phase::Exited(exit), _) => exit.reason != LOST,
        (Phase::Running { since }, ContainerState::Running { started }) => since == started,
        _ => false,
    }
}

/// Reason of a container whose restart has to wait.
pub(super) const CRASH_LOOP: &str = "CrashLoopBackOff";

/// Reason upstream gives for containers that are gone without a trace.
pub(super) const LOST: &str = "ContainerStatusUnknown";

fn recover_unit(status: core::ContainerStatus, now: Timestamp) -> UnitState {
    let attempt = u32::try_from(status.restart_count).unwrap_or(0);
    let state = status.state.unwrap_or_default();
    let last = status.last_state.and_then(|s| s.terminated);
    let mut unit = UnitState {
        attempt,
        image_id: status.image_id,
        last: last.map(|t| recover_exit(t, attempt.saturating_sub(1), now)),
        ..UnitState::default()
    };
    let shown = instance_id(status.container_id);
    let waiting = state.waiting.and_then(|waiting| waiting.reason);
    if let Some(terminated) = state.terminated {
        let exit = recover_exit(terminated, attempt, now);
        unit.id = exit.id.clone().or(shown);
        unit.phase = Phase::Exited(Exit { id: unit.id.clone(), ..exit });
    } else if waiting.as_deref() == Some(CRASH_LOOP)
        && let Some(last) = unit.last.take()
    {
        // What is shown as the last state is this very instance.
        unit.id.clone_from(&last.id);
        unit.phase = Phase::Exited(Exit { attempt, ..last });
    } else if let Some(running) = state.running {
        unit.id.clone_from(&shown);
        unit.phase = Phase::Exited(Exit {
            started: running.started_at.map(|t| t.0),
            finished: now,
            code: 137,
            reason: LOST.to_owned(),
            message: "The container was running when the node stopped and could not be located afterwards"
                .to_owned(),
            attempt,
            id: shown,
        });
    } else if unit.last.is_some() {
        // It waited for its restart: the instance with this number never ran.
        unit.phase = Phase::Waiting;
    }
    unit
}

fn recover_exit(state: core::ContainerStateTerminated, attempt: u32, now: Timestamp) -> Exit {
    Exit {
        started: state.started_at.map(|t| t.0),
        finished: state.finished_at.map_or(now, |t| t.0),
        code: state.exit_code,
        reason: state.reason.unwrap_or_default(),
        message: state.message.unwrap_or_default(),
        attempt,
        id: instance_id(state.container_id),
    }
}

/// An id as a status shows it.
fn instance_id(shown: Option<String>) -> Option<Arc<str>> {
    shown.filter(|id| !id.is_empty()).map(Arc::from)
}

fn settled(result: Result<(), Failure>, now: Timestamp) -> Stage {
    match result {
        Ok(()) => Stage::Done,
        Err(failure) => Stage::Failed(failure, now.checked_add(Duration::from_secs(2)).unwrap_or(now)),
    }
}

/// 0.1 s, doubling to 25.6 s: what blocks a pod's preparation is mostly an object that is about to be
/// created, such as a new namespace's certificates.
fn retry_delay(failures: u32) -> Duration {
    Duration::from_millis(100 << failures.min(8))
}
