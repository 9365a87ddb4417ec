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
    Cidr, ClusterNetwork, Node,
    dns::{Dns, DnsOptions, StartError, system_upstreams},
};
use ketch_server::{Server, User};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::options::Options;

/// A DNS server and what it is made of.
pub(crate) struct ClusterDns {
    dns: Dns,
}

impl ClusterDns {
    /// Starts it. An address that nobody chose and another program has (another Ketch on this machine) is
    /// replaced by a free one, with a warning.
    pub(crate) async fn start(
        server: &Server,
        options: &Options,
        (network, node): (&Arc<ClusterNetwork>, &Node),
        pods: Cidr,
    ) -> Result<Self> {
        let services: Cidr = options.service_cidr.parse().map_err(|why| anyhow!("--service-cidr: {why}"))?;
        let start = async |address: SocketAddr| -> Result<Dns, StartError> {
            let (network, namespaces) = (Arc::clone(network), node.namespaces());
            Dns::start(DnsOptions {
                bind: vec![address],
                source: Arc::new(move || network.table()),
                upstreams: system_upstreams(),
                namespaces,
                pod_cidrs: network_pods(options),
                service_cidrs: vec![services],
            })
            .await
        };
        let mut refused = None;
        for address in candidates(options, pods) {
            if services.contains(address.ip())
                && let Err(error) = ketch_node::make_local(Cidr::host(address.ip())).await
            {
                refused.get_or_insert(anyhow!(error));
                continue;
            }
            match start(address).await {
                Ok(dns) => {
                    let dns = Self { dns };
                    if let (Some(error), Some(address)) = (&refused, dns.address()) {
                        tracing::warn!(%address, "{error:#}; cluster names are answered at another address");
                    }
                    dns.publish(server).await;
                    return Ok(dns);
                }
                Err(error) => {
                    refused.get_or_insert(anyhow!(error));
                }
            }
        }
        Err(refused.unwrap_or_else(|| anyhow!("there is no address for DNS"))).context("option dns-addr")
    }

    /// Where it answers.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.dns.addresses().first().copied()
    }

    /// Makes this server the endpoint of the `kube-dns` Service. A loopback address cannot be one: then
    /// the Service has none, and only programs that are told the address use it.
    async fn publish(&self, server: &Server) {
        let Some(address) = self.address().filter(|address| !address.ip().is_loopback()) else { return };
        let ip = match address.ip() {
            IpAddr::V4(ip) if !ip.is_unspecified() => ip,
            _ => return,
        };
        let client = server.client(User::new("system:ketch-dns", &[ADMIN_GROUP]));
        let slices: Api<EndpointSlice> = Api::namespaced(client, SYSTEM_NAMESPACE);
        let slice = endpoints(ip, address.port());
        let apply = PatchParams::apply("ketch-dns").force();
        if let Err(error) = slices.patch(DNS_SERVICE, &apply, &Patch::Apply(&slice)).await {
            tracing::warn!(%error, "cannot write the endpoints of the Service kube-dns");
        }
    }

    /// Ends it.
    pub(crate) async fn shutdown(&self) {
        self.dns.shutdown().await;
    }
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

fn network_pods(options: &Options) -> Vec<Cidr> {
    options.pod_cidr.parse().ok().into_iter().collect()
}

/// Addresses of the Service range at which this process answers itself, if it gets what it asks for.
pub(crate) fn served(options: &Options) -> Vec<IpAddr> {
    let services = options.service_cidr.parse::<Cidr>().ok();
    let own = services.is_some_and(|services| services.contains(options.dns_addr.ip()));
    own.then(|| options.dns_addr.ip()).into_iter().collect()
}

/// Addresses to try. The first of a node's pod range is never a pod's, and no other Ketch has it.
fn candidates(options: &Options, pods: Cidr) -> Vec<SocketAddr> {
    let mut addresses = vec![options.dns_addr];
    if !options.dns_addr_given {
        let own = pods.nth(1).filter(|_| options.dns_addr.port() == 53);
        addresses.extend(own.map(|ip| SocketAddr::new(ip, 53)));
        addresses.push(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    }
    addresses
}
