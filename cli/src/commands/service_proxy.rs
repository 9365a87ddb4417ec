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
use ketch_node::{Cidr, ClusterNetwork, ProxyFacts, ServiceProxy};

use super::{
    cluster_dns,
    machine::{Membership, changes_kernel},
    traces::Traces,
};

/// The proxy, as long as this process has the Service range of the machine for itself.
pub(crate) struct LocalProxy {
    proxy: ServiceProxy,
    _claim: UnixListener,
}

impl LocalProxy {
    /// `None`, with a word to the log, when there cannot be one: pods in this process do without.
    pub(crate) async fn start(membership: &Membership, network: &Arc<ClusterNetwork>) -> Option<Self> {
        if !changes_kernel(membership.pods) {
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
        let Some(claim) = claim(services)? else {
            bail!(
                "another Ketch on this machine has the Service range {services}; choose another with --service-cidr"
            );
        };
        Traces::note(&membership.data_dir, |traces| traces.services.extend([services.to_string()]))
            .context("note the table for Services")?;
        let four = |address: &IpAddr| if let IpAddr::V4(ip) = address { Some(*ip) } else { None };
        let facts = ProxyFacts {
            node: membership.name.clone(),
            addresses: four(&membership.address).filter(|ip| !ip.is_loopback()).into_iter().collect(),
            pods: vec![membership.pods],
            local_pods: vec![membership.range.cidr],
            services: vec![services],
            served: cluster_dns::served(membership).iter().filter_map(four).collect(),
            door: membership.door,
        };
        let proxy =
            ServiceProxy::start(Arc::clone(network), facts, table(services)).await.context("nftables")?;
        Ok(Self { proxy, _claim: claim })
    }

    /// Takes the rules away.
    pub(crate) async fn shutdown(&self) {
        self.proxy.shutdown().await;
    }
}

/// The kernel's table for Services.
pub(crate) fn table(services: Cidr) -> String {
    format!("ketch-{}", services.base())
}

/// Claims a Service range of this machine as long as the value lives: two Ketches would give one address two
/// meanings. `None`: another process has it.
pub(crate) fn claim(services: Cidr) -> Result<Option<UnixListener>> {
    let name = SocketAddr::from_abstract_name(format!("ketch-services-{services}"))?;
    Ok(UnixListener::bind_addr(&name).ok())
}
