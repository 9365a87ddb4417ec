//! Ports of the node that pods ask for (`hostPort`), for whoever leads them to the pods. Pure.

use std::net::IpAddr;

use ketch_api::k8s::api::core::v1 as core;
use ketch_runtime::Protocol;

/// A port of the node and the pod's port behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// UID of the pod.
    pub pod: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address of the node it is at; `None`: all.
    pub host: Option<IpAddr>,
    /// Port of the node.
    pub port: u16,
    /// Where it leads.
    pub target: (IpAddr, u16),
}

/// Host ports of pods that have an address and have not ended, by pod. A pod on the host's network has its ports
/// there anyway.
pub(crate) fn host_ports(pod: &core::Pod) -> Vec<HostPort> {
    let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else { return Vec::new() };
    let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let Some(ip) = status.pod_ip.as_ref().and_then(|ip| ip.parse::<IpAddr>().ok()) else { return Vec::new() };
    if over || spec.host_network.unwrap_or(false) {
        return Vec::new();
    }
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let one = |port: &core::ContainerPort| {
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some(_) => return None,
        };
        Some(HostPort {
            pod: pod.metadata.uid.clone().unwrap_or_default(),
            protocol,
            host: port
                .host_ip
                .as_ref()
                .and_then(|ip| ip.parse().ok())
                .filter(|ip: &IpAddr| !ip.is_unspecified()),
            port: u16::try_from(port.host_port?).ok().filter(|port| *port > 0)?,
            target: (ip, u16::try_from(port.container_port).ok()?),
        })
    };
    containers.flat_map(|container| container.ports.iter().flatten()).filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(spec: serde_json::Value, phase: &str) -> Vec<HostPort> {
        let pod = json!({"metadata": {"uid": "u"}, "spec": spec, "status": {"phase": phase, "podIP": "10.42.0.130"}});
        host_ports(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn host_ports_lead_to_the_pod() {
        let ports = json!([{"containerPort": 80, "hostPort": 8080, "hostIP": "192.0.2.1"}, {"containerPort": 81},
            {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "0.0.0.0"},
            {"containerPort": 9, "hostPort": 9, "protocol": "SCTP"}]);
        let spec = json!({"containers": [{"name": "main", "ports": ports}]});
        let found = of(spec.clone(), "Running");
        let tcp = HostPort {
            pod: "u".into(),
            protocol: Protocol::Tcp,
            host: Some("192.0.2.1".parse().unwrap()),
            port: 8080,
            target: ("10.42.0.130".parse().unwrap(), 80),
        };
        assert_eq!(found[0], tcp);
        assert_eq!((found.len(), found[1].protocol, found[1].host), (2, Protocol::Udp, None));
        assert!(of(spec.clone(), "Failed").is_empty());
        let mut host = spec;
        host["hostNetwork"] = json!(true);
        assert!(of(host, "Running").is_empty());
    }
}
