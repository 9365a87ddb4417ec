//! Ports of the node that pods ask for (`hostPort`). Pure: `ketch-net` has the rules for them, [`crate::loopback`] the
//! sockets at loopback addresses.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
};

use ketch_api::k8s::api::core::v1 as core;
use ketch_net::{Cidr, Transport, forward::HostPort};

/// A port that a pod asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    transport: Transport,
    /// Address of the node it is at; `None`: all.
    host: Option<Ipv4Addr>,
    port: u16,
    container_port: u16,
}

/// Ports that pods of this node have, by UID.
#[derive(Debug, Default)]
pub(crate) struct HostPorts {
    pods: BTreeMap<String, Claim>,
}

#[derive(Debug)]
struct Claim {
    /// `namespace/name`.
    title: String,
    ports: Vec<Wanted>,
    /// The pod's address, once it has one.
    target: Option<Ipv4Addr>,
}

impl HostPorts {
    /// Gives a pod what it asks for; whether it asks for anything. A pod on the host's network has its ports
    /// there anyway.
    ///
    /// # Errors
    /// The port that another pod has, as a text, and then the pod has none.
    pub(crate) fn claim(&mut self, title: &str, pod: &core::Pod) -> Result<bool, String> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let ports = wanted(pod);
        for port in &ports {
            let mut others = self.pods.iter().filter(|(other, _)| **other != uid).map(|(_, claim)| claim);
            if let Some(claim) = others.find(|claim| claim.ports.iter().any(|other| port.meets(other))) {
                return Err(format!("host port {} is taken by pod {}", port.port, claim.title));
            }
        }
        let asks = !ports.is_empty();
        if asks {
            let claim = || Claim { title: title.to_owned(), ports, target: None };
            self.pods.entry(uid).or_insert_with(claim);
        }
        Ok(asks)
    }

    /// Leads a pod's ports to its address; whether that is news.
    pub(crate) fn lead(&mut self, uid: &str, target: IpAddr) -> bool {
        let (Some(claim), IpAddr::V4(target)) = (self.pods.get_mut(uid), target) else { return false };
        claim.target.replace(target) != Some(target)
    }

    /// Takes a pod's ports back; whether it had any.
    pub(crate) fn release(&mut self, uid: &str) -> bool {
        self.pods.remove(uid).is_some()
    }

    /// Ports that lead somewhere by rules of the kernel, which leave loopback addresses alone.
    pub(crate) fn for_kernel(&self) -> Vec<HostPort> {
        let ports = self.pods.values().flat_map(Claim::led);
        ports.filter(|port| !port.host.is_some_and(|host| host.is_loopback())).collect()
    }

    /// Ports of a pod that are at loopback addresses, and where: a port that is at all addresses of the node is at
    /// 127.0.0.1, too. Addresses of the cluster are not the node's, also where they are loopback addresses.
    pub(crate) fn at_loopback(&self, uid: &str, cluster: &[Cidr]) -> Vec<(SocketAddrV4, HostPort)> {
        let ports = self.pods.get(uid).into_iter().flat_map(Claim::led);
        let place = |port: HostPort| {
            let host = port.host.unwrap_or(Ipv4Addr::LOCALHOST);
            let free = !cluster.iter().any(|range| range.contains(host.into()));
            (host.is_loopback() && free).then(|| (SocketAddrV4::new(host, port.port), port))
        };
        ports.filter_map(place).collect()
    }
}

impl Claim {
    /// Its ports, once they lead somewhere.
    fn led(&self) -> impl Iterator<Item = HostPort> {
        let one = |target: Ipv4Addr, port: &Wanted| HostPort {
            transport: port.transport,
            host: port.host,
            port: port.port,
            target: (target, port.container_port),
        };
        self.target.into_iter().flat_map(move |target| self.ports.iter().map(move |port| one(target, port)))
    }
}

impl Wanted {
    fn meets(&self, other: &Self) -> bool {
        let same_host = self.host.is_none() || other.host.is_none() || self.host == other.host;
        (self.transport, self.port) == (other.transport, other.port) && same_host
    }
}

fn wanted(pod: &core::Pod) -> Vec<Wanted> {
    let Some(spec) = pod.spec.as_ref().filter(|spec| !spec.host_network.unwrap_or(false)) else {
        return Vec::new();
    };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let one = |port: &core::ContainerPort| {
        let transport = match port.protocol.as_deref() {
            None | Some("TCP") => Transport::Tcp,
            Some("UDP") => Transport::Udp,
            Some(_) => return None,
        };
        let host = match port.host_ip.as_deref().filter(|ip| !ip.is_empty()).map(str::parse::<IpAddr>) {
            None => None,
            Some(Ok(ip)) if ip.is_unspecified() => None,
            Some(Ok(IpAddr::V4(ip))) => Some(ip),
            Some(_) => return None,
        };
        Some(Wanted {
            transport,
            host,
            port: u16::try_from(port.host_port?).ok().filter(|port| *port > 0)?,
            container_port: u16::try_from(port.container_port).ok()?,
        })
    };
    containers.flat_map(|container| container.ports.iter().flatten()).filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(uid: &str, ports: &Value) -> core::Pod {
        let spec = json!({"containers": [{"name": "main", "ports": ports}]});
        serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": spec})).unwrap()
    }

    #[test]
    fn ports_lead_to_the_pod_until_it_is_gone() {
        let ports = json!([{"containerPort": 80, "hostPort": 8080, "hostIP": "192.0.2.1"}, {"containerPort": 81},
            {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "0.0.0.0"},
            {"containerPort": 9, "hostPort": 9, "protocol": "SCTP"}]);
        let mut all = HostPorts::default();
        assert_eq!(all.claim("shop/a", &pod("a", &ports)), Ok(true));
        assert!(all.for_kernel().is_empty(), "the pod has no address yet");
        let target = Ipv4Addr::new(10, 42, 0, 130);
        assert!(all.lead("a", target.into()) && !all.lead("a", target.into()));
        let tcp = HostPort {
            transport: Transport::Tcp,
            host: Some(Ipv4Addr::new(192, 0, 2, 1)),
            port: 8080,
            target: (target, 80),
        };
        let udp = HostPort { transport: Transport::Udp, host: None, port: 53, target: (target, 53) };
        assert_eq!(all.for_kernel(), [tcp, udp]);
        assert!(all.release("a") && !all.release("a"));
        assert!(all.for_kernel().is_empty());
    }

    #[test]
    fn a_port_is_one_pods() {
        let at = |host: &str, protocol: &str| json!([{"containerPort": 80, "hostPort": 8080, "hostIP": host, "protocol": protocol}]);
        let mut all = HostPorts::default();
        let first = pod("a", &at("127.0.0.1", "TCP"));
        assert_eq!((all.claim("shop/a", &first), all.claim("shop/a", &first)), (Ok(true), Ok(true)));
        assert_eq!(all.claim("shop/b", &pod("b", &at("127.0.0.2", "TCP"))), Ok(true));
        assert_eq!(all.claim("shop/c", &pod("c", &at("", "UDP"))), Ok(true));
        let taken = all.claim("shop/d", &pod("d", &at("", "TCP")));
        assert_eq!(taken, Err("host port 8080 is taken by pod shop/a".to_owned()));
        assert_eq!(all.claim("shop/e", &pod("e", &json!([{"containerPort": 80}]))), Ok(false));
    }

    #[test]
    fn loopback_addresses_are_not_the_kernels() {
        let ports = json!([{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81, "hostPort": 8081, "hostIP": "127.0.0.1"},
            {"containerPort": 82, "hostPort": 8082, "hostIP": "192.0.2.1"}, {"containerPort": 83, "hostPort": 8083, "hostIP": "127.42.0.9"},
            {"containerPort": 53, "hostPort": 53, "hostIP": "0.0.0.0", "protocol": "UDP"}]);
        let cluster = ["127.42.0.0/16".parse().unwrap()];
        let mut all = HostPorts::default();
        all.claim("shop/a", &pod("a", &ports)).unwrap();
        assert!(all.at_loopback("a", &cluster).is_empty(), "the pod has no address yet");
        all.lead("a", [10, 42, 0, 130].into());
        let there: Vec<String> =
            all.at_loopback("a", &cluster).iter().map(|(at, _)| at.to_string()).collect();
        assert_eq!(there, ["127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.1:53"]);
        let elsewhere: Vec<u16> = all.for_kernel().iter().map(|port| port.port).collect();
        assert_eq!(elsewhere, [8080, 8082, 53]);
        assert!(all.at_loopback("b", &cluster).is_empty());
    }
}
