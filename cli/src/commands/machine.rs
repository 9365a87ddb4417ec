//! A node put together: network, runtime, agent and gateway, whichever way its server is reached.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket},
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context, Result};
use ketch_api::names::{FORWARDS_LABEL, WASM_RUNTIME_CLASS, WASM_RUNTIME_CLASS_ALIASES};
use ketch_node::{
    ApiAddress, Cidr, ClusterNetwork, IdentitySource, LocalRegistry, NetworkConfig, Node, NodeOptions,
    NodeOverlay, OverlayOptions, PodRanges, PolicyRules, Registries, RegistryHosts, RelayHost, RuntimeEntry,
    dns::Namespaces,
    gateway::{self, Bind, Gateway, GatewayOptions},
};
use ketch_runtime_oci::{Choice, OciRuntime, Unavailable};
use ketch_runtime_wasm::{ProcessCompiler, WasmRuntime};
use tokio::sync::watch;

use super::{
    cluster_dns::ClusterDns, pod_range::PodRange, process::own_addresses, service_proxy::LocalProxy,
    traces::Traces,
};
use crate::options::Options;

/// For requests in flight when Ketch is told to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// An idle Wasm pod costs tens of KiB; the field's usual 110 would be an arbitrary limit.
const MAX_PODS: u32 = 10_000;

/// What a node is to its cluster.
pub(crate) struct Membership {
    pub(crate) name: String,
    pub(crate) data_dir: PathBuf,
    /// With the node's rights.
    pub(crate) client: kube::Client,
    /// With a gateway's rights: the network and the gateway look at more than a node may see of others.
    pub(crate) wide: kube::Client,
    /// Addresses of all pods, and of Services.
    pub(crate) pods: Cidr,
    pub(crate) services: Cidr,
    /// Addresses of this node's pods.
    pub(crate) range: PodRange,
    /// Where other machines reach this one.
    pub(crate) address: IpAddr,
    /// What pods must not reach.
    pub(crate) control_plane: Vec<SocketAddr>,
    /// Who runs containers.
    pub(crate) containerd: Choice,
    /// How other registries are reached.
    pub(crate) registries: RegistryHosts,
    /// Who this node is to other nodes, and where they reach it; `None`: it has no others.
    pub(crate) overlay: Option<(IdentitySource, SocketAddr)>,
    /// Whether nodes that cannot reach each other may use this one.
    pub(crate) forward: bool,
    /// Where this node meets others that it cannot reach.
    pub(crate) relay: watch::Receiver<Option<RelayHost>>,
    /// Where to answer DNS; `None`: where it suits.
    pub(crate) dns: Option<SocketAddr>,
    /// Where pods of this node reach the API; `None`: at the endpoint of its Service.
    pub(crate) door: Option<SocketAddrV4>,
    /// Certificate of the cluster's authority, PEM.
    pub(crate) authority: String,
}

/// A node, its gateway and its runtime.
pub(crate) struct Machine {
    pub(crate) node: Node,
    pub(crate) gateway: Gateway,
    pub(crate) wasm: Arc<WasmRuntime>,
    pub(crate) range: Cidr,
    pub(crate) dns: ClusterDns,
    containers: Result<Arc<OciRuntime>, Unavailable>,
    proxy: Option<LocalProxy>,
    policies: Option<PolicyRules>,
    overlay: Option<NodeOverlay>,
    network: Arc<ClusterNetwork>,
    _claim: PodRange,
}

/// Where the gateway listens.
pub(crate) struct FrontDoor {
    pub(crate) http: TcpListener,
    pub(crate) https: TcpListener,
}

impl FrontDoor {
    /// Domain of default function hosts.
    const SUFFIX: &str = "localhost";

    /// Binds both, before anything is written.
    pub(crate) fn bind(options: &Options) -> Result<Self, ketch_server::BindError> {
        Ok(Self {
            http: ketch_server::bind(options.http_addr, "http-addr")?,
            https: ketch_server::bind(options.https_addr, "https-addr")?,
        })
    }
}

// === impl Machine ===

impl Machine {
    /// Starts everything, where [`prepare`] has been. The node registers by itself; the API may be away.
    pub(crate) async fn start(membership: Membership, front: FrontDoor) -> Result<Self> {
        let range = membership.range.cidr;
        let halves = PodRanges::of(range);
        let network = ClusterNetwork::start(
            membership.wide.clone(),
            NetworkConfig {
                pod_cidrs: vec![membership.pods],
                local_pods: vec![halves.wasm],
                service_cidrs: vec![membership.services],
                node_addresses: vec![membership.address],
                control_plane: membership.control_plane.clone(),
                door: membership.door,
            },
        );
        let compiler = Arc::new(ProcessCompiler::current_exe().context("find this program")?);
        let dir = membership.data_dir.join("node/wasm");
        let wasm = ketch_runtime_wasm::Options {
            authority: Some(membership.authority.clone()),
            ..ketch_runtime_wasm::Options::new(dir, network.clone(), compiler)
        };
        let wasm = Arc::new(WasmRuntime::new(wasm).context("start the Wasm runtime")?);
        let proxy = LocalProxy::start(&membership, &network).await;
        // The node tells its pods where DNS is, and DNS asks the node whose an address is.
        let pods = Arc::new(OnceLock::<Namespaces>::new());
        let dns = ClusterDns::start(&membership, &network, later(&pods)).await?;
        let policies = start_policies(&membership, &network, &dns).await;
        let containers = containers(&membership).await;
        let runtimes = Runtimes { wasm: &wasm, containers: &containers };
        let overlay = start_overlay(&membership).await;
        let node = start_node(&membership, &network, runtimes, &dns, (proxy.is_some(), overlay.as_ref()))?;
        let _ = pods.set(node.namespaces());
        let gateway = start_gateway(membership.wide, &node, front)?;
        Ok(Self {
            node,
            gateway,
            wasm,
            range,
            dns,
            containers,
            proxy,
            policies,
            overlay,
            network,
            _claim: membership.range,
        })
    }

    /// Why there are no containers here.
    pub(crate) fn no_containers(&self) -> Option<&Unavailable> {
        self.containers.as_ref().err()
    }

    /// UDP port of its end of the overlay; `None`: pods of other nodes are not reached.
    pub(crate) fn overlay_port(&self) -> Option<u16> {
        self.overlay.as_ref().map(NodeOverlay::port)
    }

    /// Ends everything but containers: first no new requests, then the pods' workers, then the pods.
    pub(crate) async fn shutdown(self) {
        self.gateway.shutdown(DRAIN).await;
        self.node.shutdown().await;
        self.dns.shutdown().await;
        if let Some(proxy) = self.proxy {
            proxy.shutdown().await;
        }
        if let Some(overlay) = self.overlay {
            overlay.shutdown().await;
        }
        self.network.shutdown().await;
        self.wasm.shutdown().await;
        let stay = match &self.containers {
            Ok(containers) => containers.shutdown().await,
            Err(_) => false,
        };
        if let Some(policies) = self.policies {
            policies.shutdown(stay).await;
        }
        // Containers that stay get a refusal from the pods that do not, not silence.
        if !stay {
            ketch_node::forget_local(PodRanges::of(self.range)).await;
        }
    }
}

/// Makes addresses of pods local, those in `range` out of all `pods`, when it is noted what will be there.
pub(crate) async fn prepare(options: &Options, pods: Cidr, range: Cidr) -> Result<()> {
    if changes_kernel(pods) {
        let note = |traces: &mut Traces| {
            traces.pods.insert(range.to_string());
            traces.containerd.insert(options.containerd.to_string());
        };
        Traces::note(&options.data_dir, note).context("note what is made on this machine")?;
    }
    ketch_node::make_local(PodRanges::of(range)).await.context("prepare pod addresses")
}

/// Whether this process may have rules in the kernel: pods of an ordinary user are programs of that user, on
/// loopback addresses that no rule may rewrite.
pub(crate) fn changes_kernel(pods: Cidr) -> bool {
    !pods.base().is_loopback() && nix::unistd::Uid::effective().is_root()
}

/// The kernel's table for NetworkPolicies. No other process of the machine has the range.
pub(crate) fn policy_table(range: Cidr) -> String {
    format!("ketch-pods-{}", range.base())
}

/// `None`, with a word to the log, when there can be none: then guests in this process are held back, and nobody
/// else.
async fn start_policies(
    membership: &Membership,
    network: &ClusterNetwork,
    dns: &ClusterDns,
) -> Option<PolicyRules> {
    if !changes_kernel(membership.pods) {
        return None;
    }
    let range = membership.range.cidr;
    let dns = dns.address().map(|address| address.ip()).into_iter().collect();
    let started = PolicyRules::start(network, range, dns, policy_table(range)).await;
    started
        .inspect_err(|error| {
            tracing::warn!(%error, "NetworkPolicies hold back WebAssembly pods only, not containers");
        })
        .ok()
}

fn start_node(
    membership: &Membership,
    network: &Arc<ClusterNetwork>,
    runtimes: Runtimes<'_>,
    dns: &ClusterDns,
    (forwards, overlay): (bool, Option<&NodeOverlay>),
) -> Result<Node> {
    let range = membership.range.cidr;
    // Neither the first nor the last address of a range is given to a pod.
    let addresses = u32::try_from(range.size().saturating_sub(2)).unwrap_or(u32::MAX);
    Node::start(NodeOptions {
        name: membership.name.clone(),
        client: membership.client.clone(),
        data_dir: membership.data_dir.clone(),
        runtimes: runtimes.entries(),
        unavailable: runtimes.missing(),
        dns: dns.for_pods().map(|address| vec![address]),
        images: Arc::new(Registries::new(
            LocalRegistry::Client(membership.client.clone()),
            membership.registries.clone(),
        )),
        network: Some(network.clone()),
        pod_cidr: range,
        addresses: vec![membership.address],
        api: ApiAddress { host: first_service(membership.services)?.to_string(), port: SERVICE_PORT },
        max_pods: MAX_PODS.min(addresses),
        labels: forwards.then(|| (FORWARDS_LABEL.to_owned(), "true".to_owned())).into_iter().collect(),
        annotations: overlay.map(|overlay| overlay.annotation(membership.address)).into_iter().collect(),
    })
    .context("start the node")
}

/// `None`, with a word to the log, when there can be none: pods of other nodes are not reached then.
async fn start_overlay(membership: &Membership) -> Option<NodeOverlay> {
    let (identity, bind) = membership.overlay.clone()?;
    if !changes_kernel(membership.pods) {
        // Loopback addresses mean something else on every machine.
        return None;
    }
    let options = OverlayOptions {
        name: membership.name.clone(),
        client: membership.wide.clone(),
        identity,
        bind,
        range: Some(membership.range.cidr),
        forward: membership.forward,
        relay: membership.relay.clone(),
    };
    let started = NodeOverlay::start(options).await;
    started.inspect_err(|error| tracing::warn!(%error, "pods of other nodes are not reached")).ok().flatten()
}

/// What runs containers of each kind here.
struct Runtimes<'a> {
    wasm: &'a Arc<WasmRuntime>,
    containers: &'a Result<Arc<OciRuntime>, Unavailable>,
}

impl Runtimes<'_> {
    /// In the order in which the node expects them: WebAssembly, then containers.
    fn entries(&self) -> Vec<RuntimeEntry> {
        let handlers = std::iter::once(WASM_RUNTIME_CLASS).chain(WASM_RUNTIME_CLASS_ALIASES.iter().copied());
        let wasm =
            RuntimeEntry { handlers: handlers.map(str::to_owned).collect(), runtime: self.wasm.clone() };
        let containers = self.containers.as_ref().ok();
        let containers = containers
            .map(|runtime| RuntimeEntry { handlers: container_handlers(), runtime: runtime.clone() });
        std::iter::once(wasm).chain(containers).collect()
    }

    fn missing(&self) -> Vec<ketch_node::Unavailable> {
        let why = self.containers.as_ref().err();
        let missing = |why: &Unavailable| ketch_node::Unavailable {
            handlers: container_handlers(),
            text: format!("{}; to run containers, {}", why.cause, why.fix),
        };
        why.map(missing).into_iter().collect()
    }
}

/// Runtime classes that mean containers.
fn container_handlers() -> Vec<String> {
    ["runc", "containerd"].map(str::to_owned).to_vec()
}

async fn containers(membership: &Membership) -> Result<Arc<OciRuntime>, Unavailable> {
    let plugin = std::env::current_exe().map_err(|error| Unavailable {
        cause: format!("this program cannot find itself: {error}"),
        fix: "start it by its path".to_owned(),
    })?;
    let wanted = ketch_runtime_oci::Options { data_dir: membership.data_dir.clone(), plugin };
    ketch_runtime_oci::connect(&membership.containerd, &wanted).await.map(Arc::new)
}

/// Answers once there is somebody to ask.
fn later(pods: &Arc<OnceLock<Namespaces>>) -> Namespaces {
    let pods = Arc::clone(pods);
    Arc::new(move |address| pods.get().and_then(|namespaces| namespaces(address)))
}

fn start_gateway(client: kube::Client, node: &Node, front: FrontDoor) -> Result<Gateway> {
    let tls = gateway::self_signed(&[format!("*.{}", FrontDoor::SUFFIX), FrontDoor::SUFFIX.to_owned()])
        .context("make the gateway's certificate")?;
    let options = GatewayOptions {
        https: Some((Bind::Listener(front.https), tls)),
        local: node.services(),
        ..GatewayOptions::new(Bind::Listener(front.http))
    };
    Gateway::start(client, options).context("start the gateway")
}

/// The address other machines would reach this one at: that of the interface towards `target`. Sends
/// nothing.
pub(crate) fn address_towards(target: IpAddr) -> IpAddr {
    let any: SocketAddr = if target.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let probe = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind(any)?;
        socket.connect((target, 9))?;
        Ok(socket.local_addr()?.ip())
    };
    // A local route may name an address that no interface has.
    let own: Vec<IpAddr> = own_addresses().into_iter().map(|(_, ip)| ip).collect();
    let probed = probe().ok().filter(|ip| own.contains(ip));
    let other = || own.iter().copied().find(|ip| ip.is_ipv4() && !ip.is_loopback());
    probed.or_else(other).unwrap_or(IpAddr::from([127, 0, 0, 1]))
}

/// Where other machines, and pods, reach a server that listens on `address`: with every address, that of the
/// default route, else of some interface. `None`: on loopback they do not.
pub(crate) fn reached_at(address: SocketAddr) -> Option<SocketAddr> {
    let outward = |ip: &IpAddr| !ip.is_loopback();
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => Some(ip),
        _ => std::iter::once(address_towards(OUTSIDE))
            .chain(own_addresses().into_iter().map(|(_, ip)| ip))
            .find(|ip| ip.is_ipv4() && outward(ip)),
    };
    ip.filter(outward).map(|ip| SocketAddr::new(ip, address.port()))
}

/// The port of the Service `kubernetes`.
const SERVICE_PORT: u16 = 443;

/// The address of the Service `kubernetes`.
fn first_service(services: Cidr) -> Result<IpAddr> {
    services.nth(1).with_context(|| format!("{services} has no address for the Service kubernetes"))
}

/// An address outside of every network (RFC 5737): towards it is the default route.
pub(crate) const OUTSIDE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
