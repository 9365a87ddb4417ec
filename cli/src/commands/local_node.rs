//! The node of `ketch up`: in the process of the control plane, with which it talks as any node does,
//! through the API.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use ketch_api::{
    k8s::api::core::v1 as core,
    names::{GATEWAY_GROUP, GATEWAY_USER_PREFIX, NODE_USER_PREFIX, NODES_GROUP},
};
use ketch_node::{Cidr, IdentitySource, OverlayIdentity};
use ketch_runtime_wasm::WasmRuntime;
use ketch_server::{PushHook, Server, User};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::{
    cluster_dns,
    machine::{self, FrontDoor, Machine, Membership},
    pod_range::PodRange,
    relay,
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
    server: &mut Server,
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
    machine::prepare(options, pods, range.cidr).await?;
    let endpoint = open_to_pods(server, range.cidr).await.context("let pods reach the API")?;
    let membership = Membership {
        name: name.clone(),
        data_dir: options.data_dir.clone(),
        client,
        wide: server.client(User::new(format!("{GATEWAY_USER_PREFIX}{name}"), &[GATEWAY_GROUP])),
        pods,
        services,
        overlay: overlay(server, options, range.cidr)?,
        forward: true,
        relay: watch::Sender::new(None).subscribe(),
        range,
        address: machine::address_towards(machine::OUTSIDE),
        control_plane: vec![server.api_addr, endpoint, server.ui_addr, server.quic_addr],
        containerd: options.containerd.clone(),
        registries: options.registries.clone(),
        dns: options.dns_addr,
        // Its pods reach the endpoint as it is.
        door: None,
        authority: server.pki().ca_pem().to_owned(),
    };
    let machine = Machine::start(membership, front).await?;
    let _ = precompiler.wasm.set((machine.wasm.clone(), tokio::runtime::Handle::current()));
    server.nodes().connect(name, machine.node.router());
    if let Some(address) = machine.dns.address() {
        cluster_dns::publish(server, address).await;
    }
    server.set_gateway(machine.gateway.http_addr());
    Ok(machine)
}

/// Lets pods reach the API, and says where. When it is on loopback, where they do not, the server listens on the
/// first address of the node's pods as well: it is never a pod's, and no other machine has it.
async fn open_to_pods(server: &mut Server, pods: Cidr) -> Result<SocketAddr> {
    let endpoint = match machine::reached_at(server.api_addr) {
        Some(endpoint) => endpoint,
        None => {
            let ip = pods.nth(1).with_context(|| format!("{pods} has no address for the API"))?;
            let same_port = TcpListener::bind((ip, server.api_addr.port()));
            let listener = same_port.or_else(|_| TcpListener::bind((ip, 0)))?;
            listener.set_nonblocking(true)?;
            let endpoint = listener.local_addr()?;
            server.listen_too(listener)?;
            endpoint
        }
    };
    server.publish_api(endpoint);
    Ok(endpoint)
}

/// The overlay, when nodes on other machines can come at all.
fn overlay(server: &Server, options: &Options, range: Cidr) -> Result<Option<(IdentitySource, SocketAddr)>> {
    let Some(bind) = relay::address(server.quic_addr) else { return Ok(None) };
    let (pki, name, range) = (Arc::clone(server.pki()), options.node_name.clone(), range.to_string());
    let sign = move |life: Duration| -> Result<_> {
        let (key, request) = ketch_node::membership::signing_request(&name)?;
        let signed = pki.sign_node(&request.signing_request, &name, &[&range], life)?;
        Ok(OverlayIdentity { certificate: signed.node, key, authority: pki.ca_pem().to_owned() })
    };
    Ok(Some((relay::renewed(options.node_cert_life(), sign)?, bind)))
}

/// Pod addresses of nodes on other machines.
async fn ranges_of_others(client: &kube::Client, own: &str) -> Result<Vec<Cidr>, kube::Error> {
    let nodes = kube::Api::<core::Node>::all(client.clone()).list(&Default::default()).await?;
    let others = nodes.items.into_iter().filter(|node| node.metadata.name.as_deref() != Some(own));
    let ranges = others.filter_map(|node| node.spec?.pod_cidr?.parse().ok());
    Ok(ranges.collect())
}
