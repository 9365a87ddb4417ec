//! What has to be known of a Service's port to forward packets to its endpoints. Pure.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ketch_api::{
    k8s::api::core::v1::{Service, ServicePort, ServiceSpec},
    names::API_SERVICE,
};

use crate::{
    cidr::Cidr,
    services::{EntryPort, Key, Transport},
};

/// Seconds that a client stays with an endpoint when the Service does not say (Kubernetes: three hours).
const AFFINITY: u32 = 10_800;
/// `LocalOnly` policies.
const LOCAL: Option<&str> = Some("Local");

/// A port of a Service and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The Service.
    pub service: Key,
    /// Its port.
    pub port: EntryPort,
    /// Cluster addresses.
    pub cluster: Vec<IpAddr>,
    /// Addresses of nodes or of others that packets to the Service are sent to from outside.
    pub external: Vec<IpAddr>,
    /// The same, of its load balancer.
    pub balancer: Vec<IpAddr>,
    /// Who may use the balancer's addresses; empty: everybody.
    pub sources: Vec<Cidr>,
    /// Its port on every node.
    pub node_port: Option<u16>,
    /// Seconds that a client stays with an endpoint.
    pub affinity: Option<u32>,
    /// Clients inside the cluster only get endpoints of their own node.
    pub internal_local: bool,
    /// Clients outside only get endpoints of the node they came to, which sees their address.
    pub external_local: bool,
    /// Endpoints in use.
    pub backends: Vec<Backend>,
}

/// An endpoint of a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// Address and port.
    pub address: SocketAddr,
    /// The node it is on, if it is known.
    pub node: Option<String>,
}

/// A port of the node that leads to a pod's (`hostPort`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// Its transport.
    pub transport: Transport,
    /// Address of the node it is at; `None`: all of them.
    pub host: Option<Ipv4Addr>,
    /// Its number.
    pub port: u16,
    /// Address and port of the pod.
    pub target: (Ipv4Addr, u16),
}

impl Forward {
    /// Whether it is a port of the API, `default/kubernetes`.
    pub fn is_api(&self) -> bool {
        let (namespace, name) = &self.service;
        namespace == "default" && name == API_SERVICE
    }

    /// A port of `service`; `cluster` are its cluster addresses.
    pub(crate) fn new(
        service: &Service,
        (key, entry): (&Key, &EntryPort),
        port: &ServicePort,
        cluster: &[IpAddr],
        backends: Vec<Backend>,
    ) -> Self {
        let spec = service.spec.clone().unwrap_or_default();
        let node_port = port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
        Self {
            service: key.clone(),
            port: entry.clone(),
            cluster: cluster.to_vec(),
            external: spec.external_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).collect(),
            balancer: balancer(service),
            sources: spec
                .load_balancer_source_ranges
                .iter()
                .flatten()
                .filter_map(|range| range.trim().parse().ok())
                .collect(),
            node_port,
            affinity: affinity(&spec),
            internal_local: spec.internal_traffic_policy.as_deref() == LOCAL,
            external_local: spec.external_traffic_policy.as_deref() == LOCAL,
            backends,
        }
    }
}

/// Addresses in the status that the node forwards from; `ipMode: Proxy` says that the balancer does.
fn balancer(service: &Service) -> Vec<IpAddr> {
    let status = service.status.iter().flat_map(|status| &status.load_balancer);
    let ingress = status.flat_map(|balancer| balancer.ingress.iter().flatten());
    let direct = ingress.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
    direct.filter_map(|ingress| ingress.ip.as_deref()?.parse().ok()).collect()
}

fn affinity(spec: &ServiceSpec) -> Option<u32> {
    let sticky = spec.session_affinity.as_deref() == Some("ClientIP");
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds).and_then(|s| u32::try_from(s).ok());
    sticky.then(|| seconds.filter(|seconds| *seconds > 0).unwrap_or(AFFINITY))
}
