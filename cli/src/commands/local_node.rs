//! The node of `ketch up`: in the process of the control plane, with which it talks as any node does,
//! through the API.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use ketch_api::{
    k8s::api::core::v1 as core,
    names::{GATEWAY_GROUP, GATEWAY_USER_PREFIX, NODE_USER_PREFIX, NODES_GROUP},
};
use ketch_node::{ApiAddress, Cidr, IdentitySource, OverlayIdentity};
use ketch_runtime_wasm::WasmRuntime;
use ketch_server::{PushHook, Server, User};
use tokio_util::task::TaskTracker;

use super::{
    machine::{self, FrontDoor, Machine, Membership},
    pod_range::PodRange,
};
use crate::options::Options;

/// Where the push hook finds the runtime, once there is one.
#[derive(Clone, Default)]
pub(crate) struct Precompiler {
    wasm: Arc<OnceLock<(Arc<WasmRuntime>, tokio::runtime::Handle)>>,
    compilations: TaskTracker,
}

impl Precompiler {
    /// Compiles what is pushed at once, so that the pod that will want it does not wait.
    pub(crate) fn hook(&self) -> PushHook {
        let Self { wasm, compilations } = self.clone();
        Arc::new(move |pushed| {
            let Some((wasm, runtime)) = wasm.get() else { return };
            let wasm = wasm.clone();
            // Bounded by the compiler's own limits; a failure is reported by the pod that pulls.
            let compilation = async move {
                if let Err(error) = wasm.precompile(&pushed.path).await {
                    tracing::info!(%error, "a pushed component cannot be compiled");
                }
            };
            compilations.spawn_on(compilation, runtime);
        })
    }
}

/// Starts the node on a server in this process.
pub(crate) async fn start(
    server: &Server,
    options: &Options,
    front: FrontDoor,
    precompiler: &Precompiler,
) -> Result<Machine> {
    let name = &options.node_name;
    let client = server.client(User::new(format!("{NODE_USER_PREFIX}{name}"), &[NODES_GROUP]));
    let pods: Cidr = options.pod_cidr.parse().map_err(|why| anyhow!("--pod-cidr: {why}"))?;
    let services: Cidr = options.service_cidr.parse().map_err(|why| anyhow!("--service-cidr: {why}"))?;
    let others = ranges_of_others(&client, name).await.context("look at the cluster's nodes")?;
    let range = PodRange::claim(pods, &options.data_dir, &others)?;
    let membership = Membership {
        name: name.clone(),
        data_dir: options.data_dir.clone(),
        client,
        wide: server.client(User::new(format!("{GATEWAY_USER_PREFIX}{name}"), &[GATEWAY_GROUP])),
        pods,
        services,
        overlay: overlay(server, options, range.cidr)?,
        relay: true,
        range,
        address: machine::address_towards(machine::OUTSIDE),
        control_plane: vec![server.api_addr, server.ui_addr, server.quic_addr],
        api: ApiAddress { host: server.api_addr.ip().to_string(), port: server.api_addr.port() },
        containerd: options.containerd.clone(),
        registries: options.registries.clone(),
        dns: options.dns_addr,
    };
    let machine = Machine::start(membership, front).await?;
    let _ = precompiler.wasm.set((machine.wasm.clone(), tokio::runtime::Handle::current()));
    server.nodes().connect(name, machine.node.router());
    machine.dns.publish(server).await;
    server.set_gateway(machine.gateway.http_addr());
    Ok(machine)
}

/// Life of the certificate that this node shows to others. It is made at each start.
const OVERLAY_LIFE: Duration = Duration::from_secs(365 * 86_400);

/// The overlay, when nodes on other machines can come at all: on loopback they cannot.
fn overlay(server: &Server, options: &Options, range: Cidr) -> Result<Option<(IdentitySource, SocketAddr)>> {
    if server.quic_addr.ip().is_loopback() {
        return Ok(None);
    }
    let name = &options.node_name;
    let (key, request) = ketch_node::membership::signing_request(name)?;
    let signed = server.sign_node(&request.signing_request, name, &[&range.to_string()], OVERLAY_LIFE)?;
    let identity =
        OverlayIdentity { certificate: signed.node, key, authority: server.authority().to_owned() };
    // The control tunnel has the port itself.
    let port = server.quic_addr.port().checked_add(1).unwrap_or(0);
    let bind = SocketAddr::new(server.quic_addr.ip(), port);
    Ok(Some((Arc::new(move || Some(identity.clone())), bind)))
}

/// Pod addresses of nodes on other machines.
async fn ranges_of_others(client: &kube::Client, own: &str) -> Result<Vec<Cidr>, kube::Error> {
    let nodes = kube::Api::<core::Node>::all(client.clone()).list(&Default::default()).await?;
    let others = nodes.items.into_iter().filter(|node| node.metadata.name.as_deref() != Some(own));
    let ranges = others.filter_map(|node| node.spec?.pod_cidr?.parse().ok());
    Ok(ranges.collect())
}
