//! From what is known of a pod to its status, with upstream's shape, reasons and messages.

use std::time::Duration;

use jiff::Timestamp;
use ketch_api::k8s::{api::core::v1 as core, apimachinery::pkg::apis::meta::v1::Time};

use super::{
    desired::{Desired, RestartPolicy, Role, Unit},
    observed::{CRASH_LOOP, Exit, Observed, Phase, Stage, UnitState},
    plan::initialized,
};

/// What a status says about the node.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Its addresses, first one first.
    pub ips: Vec<String>,
}

/// How long a failed pull is shown as such before it is shown as a back-off.
pub(super) fn pull_failure_shown_until(since: Timestamp) -> Timestamp {
    since.checked_add(Duration::from_secs(2)).unwrap_or(since)
}

/// The pod's status. Conditions of others and the times of conditions that did not change are taken from
/// `before`.
pub fn render(
    desired: &Desired,
    observed: &Observed,
    host: &Host,
    before: &core::PodStatus,
    now: Timestamp,
) -> core::PodStatus {
    let phase = phase(desired, observed, before);
    let of = |roles: &[Role]| -> Vec<core::ContainerStatus> {
        let units = desired.units.iter().filter(|unit| roles.contains(&unit.role));
        units.map(|unit| container_status(desired, observed, unit, before, now)).collect()
    };
    let init = of(&[Role::Init, Role::Sidecar]);
    let ip = observed.ip.map(|ip| ip.to_string());
    core::PodStatus {
        conditions: Some(conditions(desired, observed, phase, before, now)),
        container_statuses: Some(of(&[Role::Main])),
        init_container_statuses: (!init.is_empty()).then_some(init),
        host_ip: host.ips.first().cloned(),
        host_ips: Some(host.ips.iter().map(|ip| core::HostIP { ip: ip.clone() }).collect()),
        message: observed.failed.as_ref().map(|(_, message)| message.clone()),
        reason: observed.failed.as_ref().map(|(reason, _)| reason.clone()),
        observed_generation: desired.pod.metadata.generation,
        phase: Some(phase.to_owned()),
        pod_ips: ip.as_ref().map(|ip| vec![core::PodIP { ip: ip.clone() }]),
        pod_ip: ip,
        qos_class: before.qos_class.clone().or_else(|| Some(qos_class(&desired.pod).to_owned())),
        start_time: Some(Time(observed.accepted)),
        ..before.clone()
    }
}

/// Upstream's `getPhase`, with its stickiness: a pod that succeeded or failed stays so.
fn phase(desired: &Desired, observed: &Observed, before: &core::PodStatus) -> &'static str {
    match before.phase.as_deref() {
        Some("Succeeded") => return "Succeeded",
        Some("Failed") => return "Failed",
        _ if observed.failed.is_some() => return "Failed",
        _ => {}
    }
    let main: Vec<(&Unit, UnitState)> = (desired.units.iter().filter(|unit| unit.role == Role::Main))
        .map(|unit| (unit, observed.unit(&unit.name)))
        .collect();
    let over = observed.cleaned == Stage::Done;
    if (over || ended_for_good(desired, observed))
        && !desired.units.iter().any(|u| observed.unit(&u.name).live())
    {
        let good =
            |(_, state): &(&Unit, UnitState)| matches!(&state.phase, Phase::Exited(exit) if exit.code == 0);
        return if main.iter().all(good) { "Succeeded" } else { "Failed" };
    }
    if !initialized(desired, observed) || !init_done(desired, observed) {
        return "Pending";
    }
    let begun = |(_, state): &(&Unit, UnitState)| {
        state.last.is_some()
            || matches!(state.phase, Phase::Running { .. } | Phase::Stopping { .. } | Phase::Exited(_))
    };
    if main.iter().all(begun) { "Running" } else { "Pending" }
}

fn ended_for_good(desired: &Desired, observed: &Observed) -> bool {
    let mut main = desired.units.iter().filter(|unit| unit.role == Role::Main);
    let failed_init = desired.units.iter().any(|unit| {
        unit.role == Role::Init
            && matches!(observed.unit(&unit.name).phase,
                Phase::Exited(exit) if exit.code != 0 && unit.restart == RestartPolicy::Never)
    });
    failed_init
        || main.all(|unit| {
            matches!(observed.unit(&unit.name).phase, Phase::Exited(exit) if !unit.restart.restarts(exit.code))
        })
}

fn init_done(desired: &Desired, observed: &Observed) -> bool {
    incomplete_init(desired, observed).is_empty()
}

fn incomplete_init<'a>(desired: &'a Desired, observed: &Observed) -> Vec<&'a str> {
    let up = initialized(desired, observed);
    let incomplete = |unit: &&Unit| {
        let state = observed.unit(&unit.name);
        match unit.role {
            Role::Init => !matches!(&state.phase, Phase::Exited(exit) if exit.code == 0),
            Role::Sidecar => !up && !state.started(unit),
            Role::Main => false,
        }
    };
    desired.units.iter().filter(incomplete).map(|unit| unit.name.as_str()).collect()
}

/// Readiness ends with the first word of deletion, so that Services let go before the container ends.
fn is_ready(desired: &Desired, observed: &Observed, unit: &Unit) -> bool {
    let state = observed.unit(&unit.name);
    match unit.role {
        Role::Init => matches!(&state.phase, Phase::Exited(exit) if exit.code == 0),
        _ => desired.deleting.is_none() && !desired.gone && state.ready(unit),
    }
}

fn container_status(
    desired: &Desired,
    observed: &Observed,
    unit: &Unit,
    before: &core::PodStatus,
    now: Timestamp,
) -> core::ContainerStatus {
    let state = observed.unit(&unit.name);
    let waiting = |reason: &str, message: Option<String>| core::ContainerState {
        waiting: Some(core::ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..Default::default()
    };
    let (current, last) = match &state.phase {
        Phase::Running { since } | Phase::Stopping { since, .. } => {
            let running = core::ContainerStateRunning { started_at: Some(Time(*since)) };
            (core::ContainerState { running: Some(running), ..Default::default() }, state.last.as_ref())
        }
        Phase::Exited(exit) if crash_looping(desired, observed, unit, now) => {
            let message = format!(
                "back-off {} restarting failed container={} pod={}",
                go_duration(state.crash.delay()),
                unit.name,
                pod_title(&desired.pod)
            );
            (waiting(CRASH_LOOP, Some(message)), Some(exit))
        }
        Phase::Exited(exit) => (terminated(exit), state.last.as_ref()),
        phase => {
            let (reason, message) = waiting_reason(desired, unit, phase, now);
            (waiting(reason, message), state.last.as_ref())
        }
    };
    let is_instance = state.live() || matches!(state.phase, Phase::Exited(_));
    // Until there is one to name, it is the one before, as upstream.
    let instance = state.id.as_ref().filter(|_| is_instance);
    let instance = instance.or(state.last.as_ref().and_then(|exit| exit.id.as_ref()));
    let kept = |list: &Option<Vec<core::ContainerStatus>>| {
        list.iter().flatten().find(|s| s.name == unit.name).cloned().unwrap_or_default()
    };
    let kept = if unit.role == Role::Main {
        kept(&before.container_statuses)
    } else {
        kept(&before.init_container_statuses)
    };
    core::ContainerStatus {
        container_id: instance.map(|id| id.to_string()),
        image: unit.container.image.clone().unwrap_or_default(),
        image_id: state.image_id.clone(),
        last_state: Some(last.map(terminated).unwrap_or_default()),
        name: unit.name.clone(),
        ready: is_ready(desired, observed, unit),
        restart_count: i32::try_from(state.attempt).unwrap_or(i32::MAX),
        started: Some(match unit.role {
            Role::Init => matches!(state.phase, Phase::Running { .. }),
            _ => state.started(unit),
        }),
        state: Some(current),
        ..kept
    }
}

/// Identity of one instance of a container in a runtime.
pub fn container_id(uid: &str, name: &str, attempt: u32) -> String {
    format!("{uid}.{name}.{attempt}")
}

/// Whether a container ended and its restart has to wait.
pub fn crash_looping(desired: &Desired, observed: &Observed, unit: &Unit, now: Timestamp) -> bool {
    let state = observed.unit(&unit.name);
    let Phase::Exited(exit) = &state.phase else { return false };
    let leaving = desired.deleting.is_some() || desired.gone || observed.failed.is_some();
    !leaving
        && unit.restart.restarts(exit.code)
        && state.crash.until(exit.finished).is_some_and(|until| until > now)
}

fn waiting_reason(
    desired: &Desired,
    unit: &Unit,
    phase: &Phase,
    now: Timestamp,
) -> (&'static str, Option<String>) {
    match phase {
        Phase::Unpullable { failure, since, .. } => {
            if failure.reason == "ErrImagePull" && pull_failure_shown_until(*since) <= now {
                let image = unit.container.image.as_deref().unwrap_or_default();
                let message =
                    format!("Back-off pulling image \"{image}\": ErrImagePull: {}", failure.message);
                return ("ImagePullBackOff", Some(message));
            }
            (failure.reason, Some(failure.message.clone()))
        }
        Phase::Unstartable(failure, _) => (failure.reason, Some(failure.message.clone())),
        // Upstream goes by whether there are any, not by whether they are done.
        _ if desired.units.iter().any(|one| one.role != Role::Main) => ("PodInitializing", None),
        _ => ("ContainerCreating", None),
    }
}

fn terminated(exit: &Exit) -> core::ContainerState {
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    let terminated = core::ContainerStateTerminated {
        container_id: exit.id.as_ref().map(|id| id.to_string()),
        exit_code: exit.code,
        finished_at: Some(Time(exit.finished)),
        message: text(&exit.message),
        reason: text(&exit.reason),
        signal: None,
        started_at: exit.started.map(Time),
    };
    core::ContainerState { terminated: Some(terminated), ..Default::default() }
}

struct Verdict {
    type_: &'static str,
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

fn conditions(
    desired: &Desired,
    observed: &Observed,
    phase: &str,
    before: &core::PodStatus,
    now: Timestamp,
) -> Vec<core::PodCondition> {
    let mut verdicts = vec![sandbox(desired, observed, phase), initialised(desired, observed, phase)];
    let containers = containers_ready(desired, observed, phase);
    verdicts.push(pod_ready(desired, before, &containers));
    verdicts.push(containers);
    let old = before.conditions.as_deref().unwrap_or_default();
    let generation = desired.pod.metadata.generation;
    let mut result: Vec<core::PodCondition> =
        verdicts.into_iter().map(|verdict| condition(verdict, old, generation, now)).collect();
    let ours: Vec<String> = result.iter().map(|c| c.type_.clone()).collect();
    let scheduled = |c: &core::PodCondition| c.type_ == "PodScheduled";
    if !old.iter().any(scheduled) {
        let verdict = Verdict { type_: "PodScheduled", holds: true, reason: None, message: None };
        result.push(condition(verdict, old, generation, now));
    }
    result.extend(old.iter().filter(|c| !ours.contains(&c.type_)).cloned());
    result
}

fn condition(
    verdict: Verdict,
    old: &[core::PodCondition],
    generation: Option<i64>,
    now: Timestamp,
) -> core::PodCondition {
    let status = if verdict.holds { "True" } else { "False" };
    let before = old.iter().find(|c| c.type_ == verdict.type_ && c.status == status);
    core::PodCondition {
        type_: verdict.type_.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        last_transition_time: before.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
        last_probe_time: None,
        observed_generation: generation,
    }
}

fn is_over(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

fn sandbox(_: &Desired, observed: &Observed, phase: &str) -> Verdict {
    let holds = observed.prepared == Stage::Done && observed.cleaned != Stage::Done && !is_over(phase);
    Verdict { type_: "PodReadyToStartContainers", holds, reason: None, message: None }
}

fn initialised(desired: &Desired, observed: &Observed, phase: &str) -> Verdict {
    let incomplete = incomplete_init(desired, observed);
    let type_ = "Initialized";
    match (phase, incomplete.is_empty()) {
        ("Succeeded", _) => Verdict { type_, holds: true, reason: Some("PodCompleted"), message: None },
        (_, true) => Verdict { type_, holds: true, reason: None, message: None },
        _ => {
            let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
            Verdict { type_, holds: false, reason: Some("ContainersNotInitialized"), message: Some(message) }
        }
    }
}

fn containers_ready(desired: &Desired, observed: &Observed, phase: &str) -> Verdict {
    let type_ = "ContainersReady";
    match phase {
        "Succeeded" => return Verdict { type_, holds: false, reason: Some("PodCompleted"), message: None },
        "Failed" => return Verdict { type_, holds: false, reason: Some("PodFailed"), message: None },
        _ => {}
    }
    let unready: Vec<&str> = (desired.units.iter())
        .filter(|unit| unit.role != Role::Init && !is_ready(desired, observed, unit))
        .map(|unit| unit.name.as_str())
        .collect();
    if unready.is_empty() {
        return Verdict { type_, holds: true, reason: None, message: None };
    }
    let message = format!("containers with unready status: [{}]", unready.join(" "));
    Verdict { type_, holds: false, reason: Some("ContainersNotReady"), message: Some(message) }
}

fn pod_ready(desired: &Desired, before: &core::PodStatus, containers: &Verdict) -> Verdict {
    let type_ = "Ready";
    if !containers.holds {
        return Verdict {
            type_,
            holds: false,
            reason: containers.reason,
            message: containers.message.clone(),
        };
    }
    let holds =
        |name: &str| before.conditions.iter().flatten().any(|c| c.type_ == name && c.status == "True");
    let gates = desired.pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let open: Vec<String> = gates
        .filter(|gate| !holds(&gate.condition_type))
        .map(|gate| {
            format!(
                "corresponding condition of pod readiness gate \"{}\" does not exist.",
                gate.condition_type
            )
        })
        .collect();
    if open.is_empty() {
        return Verdict { type_, holds: true, reason: None, message: None };
    }
    Verdict { type_, holds: false, reason: Some("ReadinessGatesNotReady"), message: Some(open.join(", ")) }
}

/// `name_namespace(uid)`, as upstream names a pod in messages.
pub fn pod_title(pod: &core::Pod) -> String {
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    format!("{}_{}({})", text(&meta.name), text(&meta.namespace), text(&meta.uid))
}

/// A duration as Go prints it: `10s`, `1m20s`, `5m0s`.
fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

/// Guaranteed when every container limits CPU and memory and requests just that, BestEffort when none names
/// either, else Burstable.
pub fn qos_class(pod: &core::Pod) -> &'static str {
    let spec = pod.spec.clone().unwrap_or_default();
    let mut any = false;
    let mut all = true;
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let resources = container.resources.clone().unwrap_or_default();
        let (requests, limits) =
            (resources.requests.unwrap_or_default(), resources.limits.unwrap_or_default());
        for name in ["cpu", "memory"] {
            let (request, limit) = (requests.get(name), limits.get(name));
            any |= request.is_some() || limit.is_some();
            all &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (_, true) => "Guaranteed",
        _ => "Burstable",
    }
}

/// The status a worker goes on from when the API shows another one than it wrote: its own, with the
/// conditions and fields that others look after.
pub fn carry(own: &core::PodStatus, latest: core::PodStatus) -> core::PodStatus {
    const OURS: [&str; 4] = ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"];
    let is_ours = |c: &&core::PodCondition| OURS.contains(&c.type_.as_str());
    let own_conditions = own.conditions.iter().flatten().filter(is_ours).cloned();
    let foreign = latest.conditions.iter().flatten().filter(|c| !is_ours(c)).cloned();
    let conditions: Vec<_> = own_conditions.chain(foreign).collect();
    core::PodStatus {
        conditions: Some(conditions),
        phase: own.phase.clone().or_else(|| latest.phase.clone()),
        start_time: own.start_time.clone(),
        container_statuses: own.container_statuses.clone(),
        init_container_statuses: own.init_container_statuses.clone(),
        ..latest
    }
}
