//! The node's DNS server: which address it gets, and how the cluster learns of it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context, Result, anyhow};
use ketch_api::{
    k8s::api::discovery::v1::EndpointSlice,
    names::{ADMIN_GROUP, DNS_SERVICE, SYSTEM_NAMESPACE},
};
use ketch_node::{
    Cidr, ClusterNetwork,
    dns::{Dns, DnsOptions, Namespaces, system_upstreams},
};
use ketch_server::{Server, User};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{machine::Membership, traces::Traces};

/// DNS's own port, and the one for users who may not have it.
const PORT: u16 = 53;
const USER_PORT: u16 = 6453;
/// Number of the address of the Service `kube-dns` in its range.
const DNS_NUMBER: u128 = 10;

/// A DNS server and what it is made of.
pub(crate) struct ClusterDns {
    dns: Dns,
    /// An address that was made local for it.
    local: Option<IpAddr>,
}

impl ClusterDns {
    /// Starts it. An address that nobody chose and another program has (another Ketch on this machine) is
    /// replaced by a free one, with a warning.
    pub(crate) async fn start(
        membership: &Membership,
        network: &Arc<ClusterNetwork>,
        namespaces: Namespaces,
    ) -> Result<Self> {
        let mut refused = None;
        for address in candidates(membership) {
            match bind(address, membership, network, &namespaces).await {
                Ok(dns) => {
                    let local = Some(address.ip()).filter(|ip| membership.services.contains(*ip));
                    let dns = Self { dns, local };
                    if let (Some(error), Some(address)) = (&refused, dns.address()) {
                        tracing::warn!(%address, "{error:#}; cluster names are answered at another address");
                    }
                    return Ok(dns);
                }
                Err(error) => {
                    refused.get_or_insert(error);
                }
            }
        }
        Err(refused.unwrap_or_else(|| anyhow!("there is no address for DNS"))).context("option dns-addr")
    }

    /// Where it answers.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.dns.addresses().first().copied()
    }

    /// What a pod's resolver is told; it knows no other port than DNS's own.
    pub(crate) fn for_pods(&self) -> Option<IpAddr> {
        let address = self.address().filter(|address| address.port() == PORT && !address.ip().is_loopback());
        address.map(|address| address.ip())
    }

    /// Ends it. Its address is nobody's then.
    pub(crate) async fn shutdown(&self) {
        self.dns.shutdown().await;
        if let Some(address) = self.local {
            ketch_node::forget_local_address(address).await;
        }
    }
}

/// Makes `address` the endpoint of the `kube-dns` Service. A loopback address cannot be one: then the Service
/// has none, and only programs that are told the address use it.
pub(crate) async fn publish(server: &Server, address: SocketAddr) {
    let IpAddr::V4(ip) = address.ip() else { return };
    if ip.is_loopback() || ip.is_unspecified() {
        return;
    }
    let client = server.client(User::new("system:ketch-dns", &[ADMIN_GROUP]));
    let slices: Api<EndpointSlice> = Api::namespaced(client, SYSTEM_NAMESPACE);
    if let Err(error) = write(&slices, &endpoints(ip, address.port())).await {
        tracing::warn!(%error, "cannot write the endpoints of the Service kube-dns");
    }
}

/// Where every node answers itself unless it is told otherwise: all that a server without a node knows.
pub(crate) fn usual_address(services: &Cidr) -> Option<SocketAddr> {
    services.nth(DNS_NUMBER).map(|ip| SocketAddr::new(ip, PORT))
}

async fn write(slices: &Api<EndpointSlice>, slice: &serde_json::Value) -> Result<()> {
    let patched = slices.patch(DNS_SERVICE, &PatchParams::default(), &Patch::Merge(slice)).await;
    match patched {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            slices.create(&PostParams::default(), &serde_json::from_value(slice.clone())?).await?;
        }
        other => drop(other?),
    }
    Ok(())
}

fn endpoints(ip: Ipv4Addr, port: u16) -> serde_json::Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": DNS_SERVICE, "namespace": SYSTEM_NAMESPACE, "labels": {
            "kubernetes.io/service-name": DNS_SERVICE, "endpointslice.kubernetes.io/managed-by": "ketch.dev",
        }},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [ip.to_string()], "conditions": {"ready": true}}],
        "ports": [
            {"name": "dns", "port": port, "protocol": "UDP"},
            {"name": "dns-tcp", "port": port, "protocol": "TCP"},
        ],
    })
}

async fn bind(
    address: SocketAddr,
    membership: &Membership,
    network: &Arc<ClusterNetwork>,
    namespaces: &Namespaces,
) -> Result<Dns> {
    if membership.services.contains(address.ip()) {
        Traces::note(&membership.data_dir, |traces| traces.dns.extend([address]))?;
        ketch_node::make_address_local(address.ip()).await?;
    }
    let source = Arc::clone(network);
    let options = DnsOptions {
        bind: vec![address],
        source: Arc::new(move || source.table()),
        upstreams: system_upstreams(),
        namespaces: Arc::clone(namespaces),
        pod_cidrs: vec![membership.pods],
        service_cidrs: vec![membership.services],
    };
    Ok(Dns::start(options).await?)
}

/// Addresses of the Service range at which this process answers itself, if it gets what it asks for.
pub(crate) fn served(membership: &Membership) -> Vec<IpAddr> {
    let first = candidates(membership).first().map(SocketAddr::ip);
    first.filter(|ip| membership.services.contains(*ip)).into_iter().collect()
}

/// Addresses to try. The first of a node's pod range is never a pod's, and no other Ketch has it.
fn candidates(membership: &Membership) -> Vec<SocketAddr> {
    if let Some(given) = membership.dns {
        return vec![given];
    }
    let own = membership.range.cidr.nth(1).map(|ip| SocketAddr::new(ip, PORT));
    let ours = [usual_address(&membership.services), own].into_iter().flatten();
    let root = nix::unistd::Uid::effective().is_root() && !membership.services.base().is_loopback();
    let user = [USER_PORT, 0].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    ours.filter(|_| root).chain(user).collect()
}
