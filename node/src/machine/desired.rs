//! The wanted side: a pod object, digested once per change.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use ketch_api::k8s::api::core::v1 as core;

/// When an ended container is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever its exit code.
    Always,
    /// When it failed.
    OnFailure,
    /// Never.
    Never,
}

impl RestartPolicy {
    fn parse(text: Option<&str>) -> Self {
        match text {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }

    /// Whether a container that ended with `code` is started again.
    pub fn restarts(self, code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => code != 0,
            Self::Never => false,
        }
    }
}

/// A container's place in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to completion before the next one.
    Init,
    /// An init container with `restartPolicy: Always`: starts in order, runs beside the others.
    Sidecar,
    /// The others.
    Main,
}

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeKind {
    /// Holds back the others until it passes.
    Startup,
    /// Restarts the container when it fails.
    Liveness,
    /// Takes the pod out of Services while it fails.
    Readiness,
}

impl ProbeKind {
    /// As events say it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// A probe with its defaults filled in.
#[derive(Clone, Debug)]
pub struct ProbeSpec {
    /// What to call.
    pub probe: Arc<core::Probe>,
    /// From the start of the container to the first try.
    pub initial_delay: Duration,
    /// Between tries.
    pub period: Duration,
    /// Longest try.
    pub timeout: Duration,
    /// Successes in a row that make it pass.
    pub successes: u32,
    /// Failures in a row that make it fail.
    pub failures: u32,
}

impl ProbeSpec {
    fn new(probe: &core::Probe) -> Self {
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default))
        };
        let count =
            |value: Option<i32>, default: u32| value.and_then(|v| u32::try_from(v).ok()).unwrap_or(default);
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
            successes: count(probe.success_threshold, 1).max(1),
            failures: count(probe.failure_threshold, 3).max(1),
            probe: Arc::new(probe.clone()),
        }
    }
}

/// One container, init or not.
#[derive(Clone, Debug)]
pub struct Unit {
    /// Name in the pod.
    pub name: String,
    /// Place in the pod.
    pub role: Role,
    /// Restart rule that applies to it.
    pub restart: RestartPolicy,
    /// As the pod has it.
    pub container: Arc<core::Container>,
    /// Startup, liveness and readiness probes.
    pub startup: Option<ProbeSpec>,
    /// See [`Unit::startup`].
    pub liveness: Option<ProbeSpec>,
    /// See [`Unit::startup`].
    pub readiness: Option<ProbeSpec>,
}

impl Unit {
    fn new(container: &core::Container, init: bool, pod: RestartPolicy) -> Self {
        let sidecar = init && container.restart_policy.as_deref() == Some("Always");
        let role = match (init, sidecar) {
            (true, true) => Role::Sidecar,
            (true, false) => Role::Init,
            (false, _) => Role::Main,
        };
        let restart = match role {
            Role::Sidecar => RestartPolicy::Always,
            // An init container that failed is tried again unless the pod never restarts anything.
            Role::Init if pod != RestartPolicy::Never => RestartPolicy::OnFailure,
            Role::Init => RestartPolicy::Never,
            Role::Main => container.restart_policy.as_deref().map_or(pod, |p| RestartPolicy::parse(Some(p))),
        };
        let probes = role != Role::Init;
        let probe = |probe: &Option<core::Probe>| probe.as_ref().filter(|_| probes).map(ProbeSpec::new);
        Self {
            name: container.name.clone(),
            role,
            restart,
            startup: probe(&container.startup_probe),
            liveness: probe(&container.liveness_probe),
            readiness: probe(&container.readiness_probe),
            container: Arc::new(container.clone()),
        }
    }

    /// The probe of a kind.
    pub fn probe(&self, kind: ProbeKind) -> Option<&ProbeSpec> {
        match kind {
            ProbeKind::Startup => self.startup.as_ref(),
            ProbeKind::Liveness => self.liveness.as_ref(),
            ProbeKind::Readiness => self.readiness.as_ref(),
        }
    }
}

/// What is wanted of one pod.
#[derive(Clone, Debug)]
pub struct Desired {
    /// The object.
    pub pod: Arc<core::Pod>,
    /// Init containers and sidecars in order, then the others.
    pub units: Vec<Unit>,
    /// Grace period, once deletion was asked for.
    pub deleting: Option<Duration>,
    /// The object is gone from the API: end everything, write nothing.
    pub gone: bool,
    /// Longest the pod may be active.
    pub active: Option<Duration>,
}

impl Desired {
    /// Digests a pod object.
    pub fn new(pod: Arc<core::Pod>) -> Self {
        let spec = pod.spec.as_ref();
        let policy = RestartPolicy::parse(spec.and_then(|s| s.restart_policy.as_deref()));
        let init = spec.and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
        let main = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
        let units = (init.iter().map(|c| Unit::new(c, true, policy)))
            .chain(main.iter().map(|c| Unit::new(c, false, policy)))
            .collect();
        let seconds = |s: i64| Duration::from_secs(u64::try_from(s).unwrap_or(0));
        let active = spec.and_then(|s| s.active_deadline_seconds).map(seconds);
        let grace = pod.metadata.deletion_grace_period_seconds;
        let fallback = spec.and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
        let deleting = pod.metadata.deletion_timestamp.as_ref().map(|_| seconds(grace.unwrap_or(fallback)));
        Self { units, deleting, active, gone: false, pod }
    }

    /// Grace for containers that are ended for another reason than deletion.
    pub fn grace(&self) -> Duration {
        let spec = self.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
        self.deleting.unwrap_or(Duration::from_secs(spec.and_then(|s| u64::try_from(s).ok()).unwrap_or(30)))
    }

    /// When the pod's time is up, given when it was accepted.
    pub fn deadline(&self, accepted: Timestamp) -> Option<Timestamp> {
        accepted.checked_add(self.active?).ok()
    }

    /// A unit by name.
    pub fn unit(&self, name: &str) -> Option<&Unit> {
        self.units.iter().find(|unit| unit.name == name)
    }
}
