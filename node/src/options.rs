//! What a node is started with.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use ketch_net::Cidr;
use ketch_runtime::Runtime;

use crate::{images::PodImages, network::ClusterNetwork};

/// A runtime and the runtime class names that force it.
#[derive(Clone)]
pub struct RuntimeEntry {
    /// Values of `spec.runtimeClassName`.
    pub handlers: Vec<String>,
    /// What runs the containers.
    pub runtime: Arc<dyn Runtime>,
}

/// A runtime that this node could have and has not.
#[derive(Clone, Debug)]
pub struct Unavailable {
    /// Values of `spec.runtimeClassName` that would force it.
    pub handlers: Vec<String>,
    /// What is missing and how to mend it.
    pub text: String,
}

/// Where the Kubernetes API is reached from pods: `KUBERNETES_SERVICE_HOST` and `…_PORT`.
#[derive(Clone, Debug)]
pub struct ApiAddress {
    /// Address or name.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// What a node is started with.
#[derive(Clone)]
pub struct NodeOptions {
    /// Name of the Node object.
    pub name: String,
    /// Client with the node's identity.
    pub client: kube::Client,
    /// Everything the node writes is under `<data_dir>/node`.
    pub data_dir: PathBuf,
    /// Runtimes: the first one runs WebAssembly, the second one, when there is one, containers.
    pub runtimes: Vec<RuntimeEntry>,
    /// Runtimes that are missing, for the messages of pods that need them.
    pub unavailable: Vec<Unavailable>,
    /// Where images come from.
    pub images: Arc<dyn PodImages>,
    /// The network that the runtimes dial through; Services for environments are looked up there.
    pub network: Option<Arc<ClusterNetwork>>,
    /// Range of pod addresses on this node; see [`PodRanges`](ketch_net::PodRanges) for its two halves.
    pub pod_cidr: Cidr,
    /// Addresses of the cluster's DNS, for pods with containers; `None`: they have the host's.
    pub dns: Option<Vec<IpAddr>>,
    /// Addresses of the node, first one first.
    pub addresses: Vec<IpAddr>,
    /// The API as pods see it.
    pub api: ApiAddress,
    /// Most pods the node takes.
    pub max_pods: u32,
    /// Labels besides the well-known ones.
    pub labels: Vec<(String, String)>,
    /// Annotations of the Node object.
    pub annotations: Vec<(String, String)>,
}

impl NodeOptions {
    /// `<data_dir>/node`.
    pub fn root(&self) -> PathBuf {
        self.data_dir.join("node")
    }
}

/// Why a node could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error("cannot use {path} for the node's data: {source}")]
    DataDir {
        /// Directory.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// There is nothing that could run a container.
    #[error("node {0:?} has no runtime")]
    NoRuntime(String),
}
