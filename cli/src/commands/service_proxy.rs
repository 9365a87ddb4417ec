//! Services for whatever dials through the kernel, when this process may change the kernel's rules.

use std::{
    net::IpAddr,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use ketch_node::{ClusterNetwork, ProxyFacts, ServiceProxy};

use super::{cluster_dns, machine::Membership};

/// The proxy, as long as this process has the Service range of the machine for itself.
pub(crate) struct LocalProxy {
    proxy: ServiceProxy,
    _claim: UnixListener,
}

impl LocalProxy {
    /// `None`, with a word to the log, when there cannot be one: pods in this process do without.
    pub(crate) async fn start(membership: &Membership, network: &Arc<ClusterNetwork>) -> Option<Self> {
        if membership.pods.base().is_loopback() || !nix::unistd::Uid::effective().is_root() {
            // Pods are programs of this user, on loopback addresses that no rule may rewrite.
            return None;
        }
        let started = Self::try_start(membership, network).await;
        started
            .inspect_err(|error| {
                tracing::warn!("Services answer pods in this process only, not containers, NodePorts or load balancers: {error:#}");
            })
            .ok()
    }

    async fn try_start(membership: &Membership, network: &Arc<ClusterNetwork>) -> Result<Self> {
        let services = membership.services;
        // Two Ketches would give one Service address two meanings.
        let name = SocketAddr::from_abstract_name(format!("ketch-services-{services}"))?;
        let Ok(claim) = UnixListener::bind_addr(&name) else {
            bail!(
                "another Ketch on this machine has the Service range {services}; choose another with --service-cidr"
            );
        };
        let four = |address: &IpAddr| if let IpAddr::V4(ip) = address { Some(*ip) } else { None };
        let facts = ProxyFacts {
            node: membership.name.clone(),
            addresses: four(&membership.address).filter(|ip| !ip.is_loopback()).into_iter().collect(),
            pods: vec![membership.pods],
            local_pods: vec![membership.range.cidr],
            services: vec![services],
            served: cluster_dns::served(membership).iter().filter_map(four).collect(),
        };
        let table = format!("ketch-{}", services.base());
        let proxy = ServiceProxy::start(Arc::clone(network), facts, table).await.context("nftables")?;
        Ok(Self { proxy, _claim: claim })
    }

    /// Takes the rules away.
    pub(crate) async fn shutdown(&self) {
        self.proxy.shutdown().await;
    }
}
