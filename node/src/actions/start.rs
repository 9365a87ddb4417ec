//! Starting a container.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ketch_api::k8s::api::core::v1 as core;
use ketch_runtime::{Error, Image, PodId, Runtime};

use super::{
    Done, lifecycle, reference,
    sandbox::sandbox,
    spec::{container_spec, http_port},
    uid,
};
use crate::{
    context::{Context, Report, WASM},
    kind::Kind,
    machine::{Failure, Outcome, Unit},
    placement::Placement,
};

/// For requests in flight when a pod's network is gone.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

/// A container to start.
pub(crate) struct Start {
    pub(crate) unit: Unit,
    pub(crate) runtime: usize,
    pub(crate) attempt: u32,
    pub(crate) image: Image,
    pub(crate) ip: IpAddr,
    pub(crate) placement: Arc<Placement>,
}

/// Starts a container; done when it runs and its `postStart` hook has passed.
pub(crate) async fn start(context: Arc<Context>, pod: Arc<core::Pod>, start: Start) -> Done {
    let result = try_start(&context, &pod, &start).await;
    if let Err(failure) = &result {
        let text = format!("Error: {}", failure.message);
        context.event(&pod, reference(&start.unit), Report::warning("Failed", text));
    }
    Done::Outcome(Outcome::Started(start.unit.name, start.attempt, result))
}

/// Starts it; what the status calls it.
async fn try_start(context: &Context, pod: &core::Pod, start: &Start) -> Result<Arc<str>, Failure> {
    let name = &start.unit.name;
    let runtime =
        context.runtime(start.runtime).ok_or_else(|| config("the container's runtime is gone".to_owned()))?;
    let spec = container_spec(context, pod, start).await?;
    create_pod(context, pod, start, &**runtime).await?;
    context.event(
        pod,
        reference(&start.unit),
        Report::normal("Created", format!("Created container: {name}")),
    );
    let (id, port) = (spec.id.clone(), http_port(&spec));
    let started = runtime.start(&PodId(uid(pod).to_owned()), spec).await;
    let handle = started.map_err(|error| failure(&error))?;
    context.index.begun(&id.0);
    if let Some(service) = context.http(start.runtime, &id) {
        context.services.insert(SocketAddr::new(start.ip, port), id, service);
    }
    context.event(
        pod,
        reference(&start.unit),
        Report::normal("Started", format!("Started container {name}")),
    );
    lifecycle::post_start(context, pod, start).await?;
    Ok(context.shown_id(start.runtime, uid(pod), name, start.attempt, handle.as_deref()))
}

/// Makes sure that the runtime has the pod. A sandbox was made when the pod was set up; before a restart it is
/// asked for again, because it may have ended with its containers.
async fn create_pod(
    context: &Context,
    pod: &core::Pod,
    start: &Start,
    runtime: &dyn Runtime,
) -> Result<(), Failure> {
    let is_owner = start.runtime != WASM;
    if is_owner && start.attempt == 0 && start.placement.kind() == Some(Kind::Sandboxed) {
        return Ok(());
    }
    let namespace = if is_owner { None } else { start.placement.namespace() };
    let sandbox = sandbox(context, pod, start.ip, start.placement.kind(), namespace);
    let made = runtime.create_pod(sandbox).await.map_err(|error| failure(&error))?;
    if is_owner {
        let now = made.network_namespace.clone();
        let before = start.placement.set_namespace(made.network_namespace);
        if before.is_some() && before != now {
            end_guests(context, pod).await;
        }
    }
    Ok(())
}

/// Ends the pod's Wasm containers, whose namespace went with its sandbox: they start again in the new one, as
/// their restart policy says.
async fn end_guests(context: &Context, pod: &core::Pod) {
    let Some(runtime) = context.runtime(WASM) else { return };
    let all = runtime.list().await.unwrap_or_default();
    for status in all.into_iter().filter(|status| status.pod.0 == uid(pod)) {
        if let Err(error) = runtime.stop(&status.id, LAST_REQUESTS).await {
            tracing::warn!(container = status.id.0, %error, "a container without network could not be ended");
        }
    }
}

fn config(message: String) -> Failure {
    Failure { reason: "CreateContainerConfigError", message }
}

fn failure(error: &Error) -> Failure {
    let reason = match error {
        Error::Config(_) | Error::Unsupported(_) => "CreateContainerConfigError",
        Error::Image(_) => "ErrImageNotRunnable",
        _ => "RunContainerError",
    };
    Failure { reason, message: error.to_string() }
}
