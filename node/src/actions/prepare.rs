//! Setting a pod up: its kind, its address, its volumes and, for pods with containers, its sandbox.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use futures::future::join_all;
use ketch_api::k8s::api::core::v1 as core;

use super::{Done, sandbox, title, uid};
use crate::{
    context::{Context, Report, WASM},
    images::Wanted,
    kind::{Content, Kind, Known, content},
    machine::{Failure, Outcome},
    placement::Placement,
};

/// Gives the pod its address, its volumes and its sandbox. `runs_containers`: the runtime for containers has
/// some of it already.
pub(crate) async fn prepare(
    context: Arc<Context>,
    pod: Arc<core::Pod>,
    placement: Arc<Placement>,
    runs_containers: bool,
) -> Done {
    if let Err(failure) = host_ports(&context, &pod) {
        context.event(&pod, None, Report::warning(failure.reason, failure.message.clone()));
        return Done::Outcome(Outcome::Rejected(failure));
    }
    let result = try_prepare(&context, &pod, &placement, runs_containers).await;
    if let Err(failure) = &result {
        context.event(&pod, None, Report::warning(failure.reason, failure.message.clone()));
    }
    Done::Outcome(Outcome::Prepared(result))
}

async fn try_prepare(
    context: &Context,
    pod: &core::Pod,
    placement: &Placement,
    runs_containers: bool,
) -> Result<IpAddr, Failure> {
    let kind = kind(context, pod, placement, runs_containers).await?;
    let ip = address(context, pod, kind)?;
    let made = async {
        match kind {
            Kind::Wasm => Ok(()),
            Kind::Sandboxed => create(context, pod, placement, ip).await,
        }
    };
    let (volumes, made, settled) =
        tokio::join!(crate::volumes::prepare(context, pod, ip), made, settle(context, pod, ip));
    volumes?;
    made?;
    settled?;
    if let Some(network) = &context.network {
        for why in network.lead_host_ports(uid(pod), ip).await {
            let text = format!("hostPort does not lead to the pod at {why}");
            context.event(pod, None, Report::warning("HostPortUnavailable", text));
        }
    }
    Ok(ip)
}

/// Gives the pod its ports of the node. The scheduler sees to it that they are free; who names the node does not
/// ask it.
fn host_ports(context: &Context, pod: &core::Pod) -> Result<(), Failure> {
    let Some(network) = &context.network else { return Ok(()) };
    let claimed = network.with_host_ports(|ports| (ports.claim(&title(pod), pod), false));
    let asks = claimed.map_err(|why| Failure {
        reason: "NodePorts",
        message: format!(
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports: {why}"
        ),
    })?;
    if asks && !network.forwards() {
        let text = "hostPort leads to the pod at loopback addresses of this node only: for the others Ketch has to run as root, with the program nft, and a --pod-cidr outside of 127.0.0.0/8";
        context.event(pod, None, Report::warning("HostPortUnavailable", text));
    }
    Ok(())
}

/// The pod's kind. Images are looked at only where it matters, and what is read of them is kept for the pull.
async fn kind(
    context: &Context,
    pod: &core::Pod,
    placement: &Placement,
    runs_containers: bool,
) -> Result<Kind, Failure> {
    let forced = context.forced_runtime(pod).await?;
    if let Some(kind) = placement.kind() {
        return Ok(kind);
    }
    let known = Known {
        containers: context.containers().is_some(),
        forced: forced.map(|runtime| if runtime == WASM { Kind::Wasm } else { Kind::Sandboxed }),
        runs_containers,
        held: context.addresses.kind(uid(pod)),
    };
    let kind = match known.kind() {
        Some(kind) => kind,
        None => known.kind_of(&contents(context, pod, placement).await),
    };
    Ok(placement.decide(kind))
}

/// What the pod's images are, each read once.
async fn contents(context: &Context, pod: &core::Pod, placement: &Placement) -> Vec<Content> {
    let spec = pod.spec.as_ref();
    let containers =
        spec.into_iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let images: BTreeSet<(&str, &str)> = containers
        .map(|one| {
            let policy = one.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
            (one.image.as_deref().unwrap_or_default(), policy)
        })
        .collect();
    // With a runtime class nobody asks: it decides.
    let wanted = Wanted { keyring: context.sources.keyring(pod).await.0, native: false };
    let look = async |(image, policy): (&str, &str)| {
        let source = context.images.source(policy, &wanted);
        let read = placement.manifest(&source, image).await;
        read.map_or(Content::Unknown, |manifest| content(&manifest.bytes))
    };
    join_all(images.into_iter().map(look)).await
}

fn address(context: &Context, pod: &core::Pod, kind: Kind) -> Result<IpAddr, Failure> {
    if !sandbox::on_host_network(pod) {
        return context.addresses.allocate(uid(pod), kind);
    }
    let own = context.host.ips.first().and_then(|ip| ip.parse().ok());
    own.ok_or_else(|| Failure {
        reason: "FailedCreatePodSandBox",
        message: "hostNetwork: the node's address is not known".to_owned(),
    })
}

/// Nothing of a pod runs before its NetworkPolicies are in force.
async fn settle(context: &Context, pod: &core::Pod, ip: IpAddr) -> Result<(), Failure> {
    let Some(network) = &context.network else { return Ok(()) };
    let settled = network.judge().settle(pod, ip).await;
    settled.map_err(|message| Failure { reason: "FailedCreatePodSandBox", message })
}

/// Makes the sandbox. Idempotent.
async fn create(
    context: &Context,
    pod: &core::Pod,
    placement: &Placement,
    ip: IpAddr,
) -> Result<(), Failure> {
    let failed = |message: String| Failure { reason: "FailedCreatePodSandBox", message };
    let runtime = context.containers().and_then(|index| context.runtime(index));
    let runtime = runtime.ok_or_else(|| failed(context.no_containers()))?;
    let made = runtime.create_pod(sandbox::sandbox(context, pod, ip, Some(Kind::Sandboxed), None)).await;
    let made = made.map_err(|error| failed(format!("Failed to create pod sandbox: {error}")))?;
    placement.set_namespace(made.network_namespace);
    Ok(())
}
