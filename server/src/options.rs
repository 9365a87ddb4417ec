//! What a server is started with. Built and checked by the command line before any port is bound.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Options of the control plane.
#[derive(Clone, Debug)]
pub struct Options {
    /// Everything is written under it.
    pub data_dir: PathBuf,
    /// TLS: Kubernetes API, console, registry, health. Port 0 picks one.
    pub api_addr: SocketAddr,
    /// Plain HTTP on a loopback address: the same routes. Port 0 picks one.
    pub ui_addr: SocketAddr,
    /// UDP: nodes on other machines connect here. Port 0 picks one.
    pub quic_addr: SocketAddr,
    /// Addresses of pods.
    pub pod_cidr: String,
    /// Addresses of Services.
    pub service_cidr: String,
    /// Further names and addresses the serving certificate is for.
    pub subject_names: Vec<String>,
    /// Where Functions answer: `localhost:8080` makes `http://NAME.NAMESPACE.localhost:8080`.
    pub function_domain: String,
    /// Life of nodes' certificates.
    pub node_cert_life: Duration,
}
