//! The node of `ketch up`: put together in the process of the control plane, with which it talks as any
//! node does, through the API.

use std::{
    net::{IpAddr, Ipv4Addr, TcpListener},
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use ketch_api::names::{
    GATEWAY_GROUP, NODE_USER_PREFIX, NODES_GROUP, WASM_RUNTIME_CLASS, WASM_RUNTIME_CLASS_ALIASES,
};
use ketch_node::{
    ApiAddress, Cidr, ClusterNetwork, LocalRegistry, NetworkConfig, Node, NodeOptions, Registries,
    RuntimeEntry,
    gateway::{self, Bind, Gateway, GatewayOptions},
};
use ketch_runtime_oci::{OciRuntime, Unavailable};
use ketch_runtime_wasm::{ProcessCompiler, WasmRuntime};
use ketch_server::{PushHook, Server, User};
use tokio_util::task::TaskTracker;

use super::pod_range::PodRange;
use crate::options::Options;

/// For requests in flight when Ketch is told to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// An idle Wasm pod costs tens of KiB; the field's usual 110 would be an arbitrary limit.
const MAX_PODS: u32 = 10_000;

/// A node, its gateway and its runtime.
pub(crate) struct LocalNode {
    node: Node,
    gateway: Gateway,
    network: Arc<ClusterNetwork>,
    wasm: Arc<WasmRuntime>,
    containers: Result<Arc<OciRuntime>, Unavailable>,
    _range: PodRange,
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

impl LocalNode {
    /// Starts the node on a server in this process.
    pub(crate) async fn start(
        server: &Server,
        options: &Options,
        front: FrontDoor,
        precompiler: &Precompiler,
    ) -> Result<Self> {
        let user = format!("{NODE_USER_PREFIX}{}", options.node_name);
        let client = server.client(User::new(user, &[NODES_GROUP]));
        let pods: Cidr = options.pod_cidr.parse().map_err(|why| anyhow!("--pod-cidr: {why}"))?;
        let services: Cidr = options.service_cidr.parse().map_err(|why| anyhow!("--service-cidr: {why}"))?;
        let addresses = vec![address_of_this_machine()];
        let range = PodRange::claim(pods, &options.data_dir)?;
        ketch_node::make_local(range.cidr).await.context("prepare pod addresses")?;
        // The network and the gateway look at more than a node may see of other nodes' pods.
        let wide = server.client(User::new("system:ketch-gateway", &[GATEWAY_GROUP]));
        let network = ClusterNetwork::start(
            wide.clone(),
            NetworkConfig {
                pod_cidrs: vec![pods],
                local_pods: vec![range.cidr],
                service_cidrs: vec![services],
                node_addresses: addresses.clone(),
                control_plane: vec![server.api_addr, server.ui_addr],
            },
        );
        let compiler = Arc::new(ProcessCompiler::current_exe().context("find this program")?);
        let dir = options.data_dir.join("node/wasm");
        let wasm = WasmRuntime::new(ketch_runtime_wasm::Options::new(dir, network.clone(), compiler));
        let wasm = Arc::new(wasm.context("start the Wasm runtime")?);
        let _ = precompiler.wasm.set((wasm.clone(), tokio::runtime::Handle::current()));
        let containers = containers(options).await;
        let node = Node::start(NodeOptions {
            name: options.node_name.clone(),
            client: client.clone(),
            data_dir: options.data_dir.clone(),
            runtimes: runtimes(&wasm, containers.as_ref().ok()),
            images: Arc::new(Registries::new(LocalRegistry::Client(client))),
            network: Some(network.clone()),
            pod_cidr: range.cidr,
            addresses,
            api: ApiAddress { host: server.api_addr.ip().to_string(), port: server.api_addr.port() },
            max_pods: MAX_PODS,
            labels: Vec::new(),
        })
        .context("start the node")?;
        server.nodes().connect(&options.node_name, node.router());
        let local = node.services();
        let tls = gateway::self_signed(&[format!("*.{}", FrontDoor::SUFFIX), FrontDoor::SUFFIX.to_owned()])
            .context("make the gateway's certificate")?;
        let gateway = GatewayOptions {
            https: Some((Bind::Listener(front.https), tls)),
            local,
            ..GatewayOptions::new(Bind::Listener(front.http))
        };
        let gateway = Gateway::start(wide, gateway).context("start the gateway")?;
        server.set_gateway(gateway.http_addr());
        Ok(Self { node, gateway, network, wasm, containers, _range: range })
    }

    /// Why there are no containers here.
    pub(crate) fn no_containers(&self) -> Option<&Unavailable> {
        self.containers.as_ref().err()
    }

    /// Ends everything: first no new requests, then the pods' workers, then the pods.
    pub(crate) async fn shutdown(self) {
        self.gateway.shutdown(DRAIN).await;
        self.node.shutdown().await;
        self.network.shutdown().await;
        self.wasm.shutdown().await;
        if let Ok(containers) = &self.containers {
            containers.shutdown().await;
        }
    }
}

/// Runtimes in the order in which the node expects them: WebAssembly, then containers.
fn runtimes(wasm: &Arc<WasmRuntime>, containers: Option<&Arc<OciRuntime>>) -> Vec<RuntimeEntry> {
    let handlers = std::iter::once(WASM_RUNTIME_CLASS).chain(WASM_RUNTIME_CLASS_ALIASES.iter().copied());
    let first = RuntimeEntry { handlers: handlers.map(str::to_owned).collect(), runtime: wasm.clone() };
    let second = containers.map(|containers| RuntimeEntry {
        handlers: ["runc", "containerd"].map(str::to_owned).to_vec(),
        runtime: containers.clone(),
    });
    std::iter::once(first).chain(second).collect()
}

async fn containers(options: &Options) -> Result<Arc<OciRuntime>, Unavailable> {
    let plugin = std::env::current_exe().map_err(|error| Unavailable {
        cause: format!("this program cannot find itself: {error}"),
        fix: "start it by its path".to_owned(),
    })?;
    let wanted = ketch_runtime_oci::Options { data_dir: options.data_dir.clone(), plugin };
    ketch_runtime_oci::connect(&options.containerd, &wanted).await.map(Arc::new)
}

/// The address other machines would reach this one at: that of the interface of the default route. Sends
/// nothing.
fn address_of_this_machine() -> IpAddr {
    let probe = || -> std::io::Result<IpAddr> {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok(socket.local_addr()?.ip())
    };
    probe().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}
