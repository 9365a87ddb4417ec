//! Ending containers, and their lifecycle hooks.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ketch_api::k8s::api::core::v1 as core;
use ketch_runtime::ContainerId;

use super::{
    Done, Start,
    exec::{self, Failed},
    http, instance, reference, title, uid,
};
use crate::{
    context::{Context, Report, WASM},
    machine::{Failure, Outcome, Unit},
};

/// What a container gets after its hook has used up the grace period (upstream's figure).
const LEAST_GRACE: Duration = Duration::from_secs(2);

/// A container to end.
pub(crate) struct Stop {
    pub(crate) unit: Unit,
    pub(crate) runtime: Option<usize>,
    pub(crate) attempt: u32,
    pub(crate) grace: Duration,
    pub(crate) why: String,
    pub(crate) ip: Option<IpAddr>,
}

/// Runs the `preStop` hook, then ends the container, within the grace period.
pub(crate) async fn stop(context: Arc<Context>, pod: Arc<core::Pod>, stop: Stop) -> Done {
    context.event(&pod, reference(&stop.unit), Report::normal("Killing", stop.why.clone()));
    let begun = Instant::now();
    let hook = stop.unit.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    if let (Some(hook), Some(ip)) = (hook, stop.ip)
        && !stop.grace.is_zero()
    {
        let id = instance(&pod, &stop.unit.name, stop.attempt);
        let target = Target { runtime: stop.runtime.unwrap_or(WASM), id: &id, ip };
        let run = run_hook(&context, &pod, &stop.unit, hook, &target);
        let result = match tokio::time::timeout(stop.grace, run).await {
            Ok(result) => result,
            Err(_) => Err("it took longer than the grace period".to_owned()),
        };
        if let Err(message) = result {
            let text = format!("PreStopHook failed: {message}");
            context.event(&pod, reference(&stop.unit), Report::warning("FailedPreStopHook", text));
        }
    }
    let left = if stop.grace.is_zero() {
        stop.grace
    } else {
        stop.grace.saturating_sub(begun.elapsed()).max(LEAST_GRACE)
    };
    let id = instance(&pod, &stop.unit.name, stop.attempt);
    // Another runtime than the container's own is not asked: it may not answer for a long time.
    let own = |index: usize| stop.runtime.is_none_or(|runtime| runtime == index);
    let concerned: Vec<_> = context.runtimes.iter().enumerate().filter(|(index, _)| own(*index)).collect();
    for (_, entry) in &concerned {
        if let Err(error) = entry.runtime.stop(&id, left).await {
            tracing::warn!(pod = %title(&pod), container = stop.unit.name, %error, "a container could not be ended");
        }
    }
    context.services.remove(&id);
    // The runtime's own report carries code and reason: give it the first word.
    for (index, entry) in concerned {
        let found = entry.runtime.list().await.unwrap_or_default().into_iter().find(|status| status.id == id);
        if let Some(status) = found {
            let (name, attempt, handle) = (stop.unit.name, stop.attempt, status.handle.as_deref());
            let id = context.shown_id(index, uid(&pod), &name, attempt, handle);
            return Done::Outcome(Outcome::State(name, attempt, id, status.state));
        }
    }
    Done::Outcome(Outcome::Stopped(stop.unit.name, stop.attempt))
}

/// Runs the `postStart` hook; a failing one fails the start.
pub(super) async fn post_start(context: &Context, pod: &core::Pod, start: &Start) -> Result<(), Failure> {
    let Some(hook) =
        start.unit.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref())
    else {
        return Ok(());
    };
    let id = instance(pod, &start.unit.name, start.attempt);
    let target = Target { runtime: start.runtime, id: &id, ip: start.ip };
    let Err(message) = run_hook(context, pod, &start.unit, hook, &target).await else { return Ok(()) };
    let text = format!("PostStartHook failed: {message}");
    context.event(pod, reference(&start.unit), Report::warning("FailedPostStartHook", text.clone()));
    if let Some(runtime) = context.runtime(start.runtime) {
        let _ = runtime.stop(&id, LEAST_GRACE).await;
    }
    Err(Failure { reason: "PostStartHookError", message: text })
}

/// The instance a hook is for.
struct Target<'a> {
    runtime: usize,
    id: &'a ContainerId,
    ip: IpAddr,
}

/// Runs a hook. Exec hooks of containers that run no further programs are skipped with an event, not failed: a
/// workload that moves here keeps running.
async fn run_hook(
    context: &Context,
    pod: &core::Pod,
    unit: &Unit,
    hook: &core::LifecycleHandler,
    target: &Target<'_>,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.as_deref().unwrap_or_default();
        return match exec::run(context, target.runtime, target.id, command).await {
            Err(Failed::Unsupported(why)) => {
                let text = format!("exec hooks are {why} and are skipped; use httpGet or sleep");
                context.event(pod, reference(unit), Report::warning("Unsupported", text));
                Ok(())
            }
            Err(Failed::Command(text)) => Err(format!("exec {command:?}: {text}")),
            Ok(()) => Ok(()),
        };
    }
    if let Some(get) = &hook.http_get {
        // Whatever the answer says, it was heard (as upstream).
        return http::get(context, &unit.container, get, target.ip).await.map(drop);
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
    }
    Ok(())
}
