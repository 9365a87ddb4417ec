//! One pod's worker: observes, asks [`next`], acts, and writes the status.
//!
//! Actions run beside each other in one set of futures that the worker owns; dropping the worker cancels
//! them. The status is written when something changed, one request at a time.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use ketch_api::k8s::api::core::v1 as core;
use ketch_runtime::{ContainerId, ContainerState};
use kube::api::{Api, Patch, PatchParams};
use tokio::sync::{mpsc, watch};

use crate::{
    actions::{self, Done},
    context::{Context, Report, WASM},
    kind::Kind,
    machine::{self, Desired, Observed, Outcome, Phase, Role, Step, Unit, next, render},
    placement::Placement,
    volumes,
    writer::StatusWriter,
};

/// What the API wants of a pod.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// The object.
    Pod(Arc<core::Pod>),
    /// The object is gone.
    Gone,
}

/// What a worker is told besides what the API wants.
pub(crate) enum News {
    /// A runtime has looked.
    Seen(Seen),
    /// The node cannot have the pod any longer; why.
    Evict(String),
}

/// What a runtime says of one of the pod's containers: name, attempt, handle, state, which runtime.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) attempt: u32,
    pub(crate) handle: Option<Arc<str>>,
    pub(crate) state: ContainerState,
    pub(crate) runtime: usize,
}

/// While a pod is being started for the first time, its status waits this long for the start to be done:
/// a quick start is then one write instead of three.
const HOLD: Duration = Duration::from_millis(150);
/// Before a failed write is made again.
const REWRITE: Duration = Duration::from_secs(1);
/// Between looks at how much of the disk a pod uses (upstream's figure).
const MEASURE: Duration = Duration::from_secs(10);

/// One pod's worker.
pub(crate) struct Worker {
    context: Arc<Context>,
    targets: watch::Receiver<Target>,
    news: mpsc::UnboundedReceiver<News>,
    desired: Desired,
    observed: Observed,
    status: core::PodStatus,
    writer: StatusWriter,
    writing: bool,
    write_after: Option<Instant>,
    hold_until: Instant,
    refresh_at: Option<Instant>,
    /// `None`: nothing the pod writes is limited.
    measure_at: Option<Instant>,
    runtimes: HashMap<String, usize>,
    placement: Arc<Placement>,
    running: FuturesUnordered<BoxFuture<'static, Done>>,
}

impl Worker {
    /// A worker for `pod`, which continues where the pod's status says it was.
    pub(crate) fn new(
        context: Arc<Context>,
        pod: Arc<core::Pod>,
        targets: watch::Receiver<Target>,
        news: mpsc::UnboundedReceiver<News>,
    ) -> Self {
        let now = Timestamp::now();
        let observed = Observed::recover(&pod, now);
        let mut writer = StatusWriter::default();
        writer.saw(&pod);
        Self {
            context,
            targets,
            news,
            observed,
            status: pod.status.clone().unwrap_or_default(),
            writer,
            writing: false,
            write_after: None,
            hold_until: Instant::now() + HOLD,
            refresh_at: None,
            measure_at: None,
            runtimes: HashMap::new(),
            placement: Arc::default(),
            running: FuturesUnordered::new(),
            desired: Desired::new(pod),
        }
    }

    /// Works until the pod is gone. Cancel-safe in the sense that nothing but what the runtime and the API
    /// know is needed to go on.
    pub(crate) async fn run(mut self: Box<Self>) {
        // What the runtime has already, after a restart of the agent, comes before the first decision.
        while let Ok(news) = self.news.try_recv() {
            self.hear(news);
        }
        while let Some(wait) = self.advance() {
            let wake = self.sync(wait);
            let timer = tokio::time::sleep_until(wake.into());
            tokio::select! {
                Some(done) = self.running.next(), if !self.running.is_empty() => self.done(done),
                Some(news) = self.news.recv() => self.hear(news),
                changed = self.targets.changed() => match changed {
                    Ok(()) => self.retarget(),
                    Err(_) => return,
                },
                () = timer => {}
            }
        }
        self.context.services.remove_pod(self.uid());
    }

    fn uid(&self) -> &str {
        self.desired.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    fn retarget(&mut self) {
        let target = self.targets.borrow_and_update().clone();
        match target {
            Target::Gone => self.desired.gone = true,
            Target::Pod(pod) => {
                self.writer.saw(&pod);
                let latest = pod.status.clone().unwrap_or_default();
                self.status = machine::carry(&self.status, latest);
                self.desired = Desired::new(pod);
            }
        }
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Seen(seen) => self.see(seen),
            News::Evict(message) => self.finish(Outcome::Evicted(message)),
        }
    }

    fn see(&mut self, seen: Seen) {
        let Seen { name, attempt, handle, mut state, runtime } = seen;
        let Some(unit) = self.desired.unit(&name) else { return };
        if let ContainerState::Exited { code, message, .. } = &mut state {
            let id = ContainerId(machine::container_id(self.uid(), &name, attempt));
            self.context.services.remove(&id);
            if let Some(text) =
                actions::termination_message(&self.context, &self.desired.pod, unit, attempt, *code)
            {
                *message = text;
            }
        }
        self.runs_on(&name, runtime);
        let id = self.context.shown_id(runtime, self.uid(), &name, attempt, handle.as_deref());
        self.finish(Outcome::State(name, attempt, id, state));
    }

    /// Folds an outcome in. A container whose restart has to wait from now on leaves an event.
    fn finish(&mut self, outcome: Outcome) {
        let now = Timestamp::now();
        let ended = match &outcome {
            Outcome::State(name, ..) | Outcome::Stopped(name, _) => self.desired.unit(name).cloned(),
            _ => None,
        };
        let waits =
            |worker: &Self, unit: &Unit| machine::crash_looping(&worker.desired, &worker.observed, unit, now);
        let ended = ended.filter(|unit| !waits(self, unit));
        self.observed.finish(&self.desired, outcome, now);
        if let Some(unit) = ended.filter(|unit| waits(self, unit)) {
            actions::note_back_off(&self.context, &self.desired, &unit);
        }
    }

    /// Notes which runtime has a container.
    fn runs_on(&mut self, name: &str, runtime: usize) {
        self.runtimes.insert(name.to_owned(), runtime);
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Outcome(outcome) => self.finish(outcome),
            Done::Pulled { name, runtime, result } => {
                if let Some(runtime) = runtime {
                    self.runs_on(&name, runtime);
                }
                self.observed.finish(&self.desired, Outcome::Pulled(name, result), Timestamp::now());
                if self.desired.units.iter().all(|unit| self.observed.unit(&unit.name).image.is_some()) {
                    self.placement.forget();
                }
            }
            Done::Wrote(result) => self.wrote(*result),
            Done::Refreshed => {}
            Done::Measured(excess) => {
                self.measure_at = Some(Instant::now() + MEASURE);
                if let Some(message) = excess {
                    self.finish(Outcome::Evicted(message));
                }
            }
        }
    }

    fn wrote(&mut self, result: Result<core::Pod, kube::Error>) {
        self.writing = false;
        match result {
            Ok(pod) => self.writer.wrote(&pod),
            // The watch will tell that the pod is gone.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => {
                tracing::warn!(pod = %actions::title(&self.desired.pod), %error, "cannot write the pod's status");
                self.writer.failed();
                self.write_after = Some(Instant::now() + REWRITE);
            }
        }
    }

    /// Begins what can be begun. `None`: the worker is done.
    fn advance(&mut self) -> Option<Option<Timestamp>> {
        loop {
            let now = Timestamp::now();
            let step = next(&self.desired, &self.observed, now);
            match &step {
                Step::Finish => return None,
                Step::Wait(until) => return Some(*until),
                // The last status is written first; the end of that write brings us back here.
                Step::Delete if self.writing => return Some(None),
                Step::Delete if self.write_after.is_some_and(|after| after > Instant::now()) => {
                    return Some(Some(now));
                }
                Step::Delete if self.begin_write(now) => return Some(None),
                _ => {}
            }
            self.observed.begin(&step, now);
            if let Some(action) = self.action(step) {
                self.running.push(action);
            }
        }
    }

    fn action(&mut self, step: Step) -> Option<BoxFuture<'static, Done>> {
        let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.desired.pod));
        let state = |name: &str| self.observed.unit(name);
        match step {
            Step::Prepare => {
                self.refresh_at = self.next_refresh();
                self.measure_at = actions::has_limits(&context, &pod).then(|| Instant::now() + MEASURE);
                let runs_containers = self.runtimes.values().any(|runtime| *runtime != WASM);
                let placement = Arc::clone(&self.placement);
                Some(Box::pin(actions::prepare(context, pod, placement, runs_containers)))
            }
            Step::Pull(name) => {
                let unit = self.desired.unit(&name)?.clone();
                let placement = Arc::clone(&self.placement);
                Some(Box::pin(actions::pull(context, pod, unit, placement)))
            }
            Step::Start(name) => {
                let (unit, state) = (self.desired.unit(&name)?.clone(), state(&name));
                let runtime = self.runtimes.get(&name).copied().unwrap_or(0);
                let start = actions::Start {
                    unit,
                    runtime,
                    attempt: state.attempt,
                    image: state.image?,
                    ip: self.observed.ip?,
                    placement: Arc::clone(&self.placement),
                };
                Some(Box::pin(actions::start(context, pod, start)))
            }
            Step::Restart(name) => {
                let runtime = self.runtimes.get(&name).copied().unwrap_or(0);
                let last = state(&name).last?;
                Some(Box::pin(actions::forget(context, pod, name, last.attempt, runtime)))
            }
            Step::Stop { name, grace, why } => {
                let unit = self.desired.unit(&name)?.clone();
                let runtime = self.runtimes.get(&name).copied();
                let stop = actions::Stop {
                    unit,
                    runtime,
                    attempt: state(&name).attempt,
                    grace,
                    why,
                    ip: self.observed.ip,
                };
                Some(Box::pin(actions::stop(context, pod, stop)))
            }
            Step::Probe(name, kind) => {
                let unit = self.desired.unit(&name)?.clone();
                let runtime = self.runtimes.get(&name).copied().unwrap_or(WASM);
                let (attempt, ip) = (state(&name).attempt, self.observed.ip?);
                let target = actions::ProbeTarget { unit, runtime, attempt, ip };
                Some(Box::pin(actions::probe(context, pod, target, kind)))
            }
            Step::Fail(reason, message) => {
                context.event(&pod, None, Report::warning(reason, message));
                None
            }
            Step::Cleanup => {
                let keep = self.desired.deleting.is_none() && !self.desired.gone;
                Some(Box::pin(actions::cleanup(context, pod, self.is_only_wasm(), keep)))
            }
            Step::Delete => Some(Box::pin(actions::delete(context, pod))),
            Step::Finish | Step::Wait(_) => None,
        }
    }

    /// Whether the runtime for containers has surely nothing of the pod.
    fn is_only_wasm(&self) -> bool {
        let kind = self.placement.kind().or_else(|| self.context.addresses.kind(self.uid()));
        kind == Some(Kind::Wasm) && self.runtimes.values().all(|runtime| *runtime == WASM)
    }

    /// When the sources of the pod's volumes are to be looked at again.
    fn next_refresh(&self) -> Option<Instant> {
        volumes::refresh_interval(&self.desired.pod).map(|interval| Instant::now() + interval)
    }

    /// Begins a write and a refresh when they are due; when to look again.
    fn sync(&mut self, wait: Option<Timestamp>) -> Instant {
        let (now, clock) = (Timestamp::now(), Instant::now());
        let mut wake = clock + Duration::from_secs(3600);
        if let Some(until) = wait {
            wake = wake.min(clock + Duration::try_from(until.duration_since(now)).unwrap_or(Duration::ZERO));
        }
        if let Some(at) = self.refresh_at {
            if at <= clock && !self.desired.gone {
                let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.desired.pod));
                self.running.push(Box::pin(actions::refresh(context, pod)));
                self.refresh_at = self.next_refresh();
            }
            wake = wake.min(self.refresh_at.unwrap_or(wake));
        }
        if let Some(at) = self.measure_at {
            if at <= clock {
                // Again once it is done.
                self.measure_at = None;
                self.measure();
            }
            wake = wake.min(self.measure_at.unwrap_or(wake));
        }
        let blocked = self.write_after.filter(|after| *after > clock);
        let held = (self.starting() && self.hold_until > clock).then_some(self.hold_until);
        match blocked.max(held) {
            Some(after) => wake.min(after).max(blocked.unwrap_or(clock)),
            None => {
                if !self.writing && !self.desired.gone {
                    self.begin_write(now);
                }
                wake
            }
        }
    }

    /// Begins a look at how much of the disk the pod uses, unless it is on its way out.
    fn measure(&mut self) {
        if self.desired.gone
            || self.desired.deleting.is_some()
            || self.observed.cleaned != machine::Stage::Idle
        {
            return;
        }
        let running =
            (self.observed.units.iter()).filter(|(_, unit)| matches!(unit.phase, Phase::Running { .. })).map(
                |(name, unit)| (name.clone(), unit.attempt, self.runtimes.get(name).copied().unwrap_or(WASM)),
            );
        let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.desired.pod));
        self.running.push(Box::pin(actions::measure(context, pod, running.collect())));
    }

    /// Whether the pod is on its way up for the first time and nothing failed.
    fn starting(&self) -> bool {
        let fresh = self.status.start_time.is_none()
            && self.desired.deleting.is_none()
            && self.observed.failed.is_none();
        let units = self.desired.units.iter().filter(|unit| unit.role == Role::Main);
        let troubled = matches!(self.observed.prepared, machine::Stage::Failed(..))
            || self.observed.units.values().any(|unit| {
                matches!(unit.phase, Phase::Unpullable { .. } | Phase::Unstartable(..) | Phase::Exited(_))
            });
        let pending = units.into_iter().any(|unit| {
            let state = self.observed.unit(&unit.name);
            // A readiness probe's first try counts as part of the start.
            let probing =
                unit.readiness.is_some() && state.readiness.busy && state.readiness.result.is_none();
            probing || matches!(state.phase, Phase::Waiting | Phase::Pulling | Phase::Starting)
        });
        fresh && pending && !troubled
    }

    /// Begins a write when the status changed; whether it did.
    fn begin_write(&mut self, now: Timestamp) -> bool {
        let status = render(&self.desired, &self.observed, &self.context.host, &self.status, now);
        let patch = self.writer.patch(self.desired.pod.metadata.uid.as_deref(), &status);
        self.status = status;
        let Some(patch) = patch else { return false };
        let meta = &self.desired.pod.metadata;
        let api: Api<core::Pod> =
            Api::namespaced(self.context.client.clone(), meta.namespace.as_deref().unwrap_or("default"));
        let name = meta.name.clone().unwrap_or_default();
        self.writing = true;
        self.running.push(Box::pin(async move {
            let result = api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
            Done::Wrote(Box::new(result))
        }));
        true
    }
}
