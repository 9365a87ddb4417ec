//! Starting a container.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ketch_api::{k8s::api::core::v1 as core, names, quantity::Quantity};
use ketch_runtime::{ContainerSpec, Error, Image, Mount, PodId, Port, Protocol, Reuse, Runtime};

use super::{Done, instance, lifecycle, reference, sandbox::sandbox, uid};
use crate::{
    context::{Context, Report, WASM},
    kind::Kind,
    machine::{Failure, Outcome, Unit},
    placement::Placement,
};

/// Time an HTTP request may take when the pod does not say.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

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

async fn try_start(context: &Context, pod: &core::Pod, start: &Start) -> Result<(), Failure> {
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
    runtime.start(&PodId(uid(pod).to_owned()), spec).await.map_err(|error| failure(&error))?;
    if let Some(service) = context.http(start.runtime, &id) {
        context.services.insert(SocketAddr::new(start.ip, port), id, service);
    }
    context.event(
        pod,
        reference(&start.unit),
        Report::normal("Started", format!("Started container {name}")),
    );
    lifecycle::post_start(context, pod, start).await
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
    let sandbox = sandbox(context, pod, start.ip, namespace);
    let made = runtime.create_pod(sandbox).await.map_err(|error| failure(&error))?;
    if is_owner {
        start.placement.set_namespace(made.network_namespace);
    }
    Ok(())
}

async fn container_spec(context: &Context, pod: &core::Pod, start: &Start) -> Result<ContainerSpec, Failure> {
    let container = &start.unit.container;
    let env = crate::env::resolve(context, pod, container, start.ip).await?;
    let expand = |texts: &Option<Vec<String>>| -> Vec<String> {
        texts.iter().flatten().map(|text| crate::env::expand(text, &env)).collect()
    };
    let mut mounts = crate::volumes::mounts(context, pod, container, &env)?;
    mounts.extend(message_mount(context, pod, start, &mounts));
    let log = crate::logs::file(&context.root, pod, &start.unit.name, start.attempt);
    if let Some(parent) = log.parent() {
        tokio::fs::create_dir_all(parent).await.map_err(|error| {
            config(format!("cannot make the log directory {}: {error}", parent.display()))
        })?;
    }
    let id = instance(pod, &start.unit.name, start.attempt);
    Ok(ContainerSpec {
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone(),
        mounts,
        ports: ports(container),
        memory: limit(container, "memory").and_then(|quantity| u64::try_from(quantity.value()).ok()),
        cpu_millis: limit(container, "cpu").and_then(|quantity| u64::try_from(quantity.millis()).ok()),
        request_timeout: number(pod, "timeout-seconds").map_or(REQUEST_TIMEOUT, Duration::from_secs),
        concurrency: number(pod, "concurrency").and_then(|n| u32::try_from(n).ok()),
        reuse: Reuse {
            requests: number(pod, "reuse-requests").and_then(|n| u32::try_from(n).ok()),
            concurrent: number(pod, "reuse-concurrent").and_then(|n| u32::try_from(n).ok()),
            idle: number(pod, "idle-seconds").map(Duration::from_secs),
        },
        env,
        ..ContainerSpec::new(id, start.unit.name.as_str(), start.image.clone(), log)
    })
}

pub(super) fn annotation<'a>(pod: &'a core::Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// A number in one of our annotations; one that is none counts as absent.
fn number(pod: &core::Pod, name: &str) -> Option<u64> {
    annotation(pod, &format!("{}/{name}", names::DOMAIN))?.trim().parse().ok()
}

fn limit(container: &core::Container, name: &str) -> Option<Quantity> {
    container.resources.as_ref()?.limits.as_ref()?.get(name)?.0.parse().ok()
}

fn ports(container: &core::Container) -> Vec<Port> {
    let one = |port: &core::ContainerPort| {
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some(_) => return None,
        };
        Some(Port { number: u16::try_from(port.container_port).ok()?, protocol })
    };
    container.ports.iter().flatten().filter_map(one).collect()
}

fn http_port(spec: &ContainerSpec) -> u16 {
    let tcp = spec.ports.iter().find(|port| port.protocol == Protocol::Tcp);
    tcp.map_or(names::DEFAULT_HTTP_PORT, |port| port.number)
}

/// Where a container's termination message arrives on the host; `None` when it has no place of its own.
pub(super) fn message_file(context: &Context, uid: &str, unit: &Unit) -> Option<PathBuf> {
    let path = unit.container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    let (_, name) = path.rsplit_once('/')?;
    let plain = !name.is_empty() && name != "." && name != "..";
    plain.then(|| context.pod_dir(uid).join("messages").join(&unit.name).join(name))
}

/// A directory for the termination message, unless a volume is in its place.
fn message_mount(context: &Context, pod: &core::Pod, start: &Start, mounts: &[Mount]) -> Option<Mount> {
    let path = start.unit.container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    let (target, _) = path.rsplit_once('/')?;
    if target.is_empty() || mounts.iter().any(|mount| mount.target.trim_end_matches('/') == target) {
        return None;
    }
    let file = message_file(context, uid(pod), &start.unit)?;
    let source = file.parent()?.to_owned();
    // The instance before may have left one.
    let _ = std::fs::remove_file(&file);
    std::fs::create_dir_all(&source).ok()?;
    Some(Mount { source, target: target.to_owned(), read_only: false, ..Mount::default() })
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
