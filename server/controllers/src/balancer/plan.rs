//! Which addresses a load balancer Service has: those of the nodes that forward to it. Pure.

use ketch_api::{
    k8s::api::core::v1::{LoadBalancerIngress, Node, Service},
    names::FORWARDS_LABEL,
};

/// Nodes that the administrator keeps out.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// What an address is needed for.
pub(super) struct Observed<'a> {
    pub(super) service: &'a Service,
    /// Every Service that wants to be balanced, this one too.
    pub(super) all: &'a [&'a Service],
    pub(super) nodes: &'a [&'a Node],
    /// Whether a node has an endpoint of the Service that is ready.
    pub(super) has_endpoint: &'a dyn Fn(&str) -> bool,
}

/// What a Service gets.
#[derive(Debug, PartialEq)]
pub(super) enum Plan {
    /// It is not ours.
    Leave,
    /// These addresses, in order.
    Ingress(Vec<LoadBalancerIngress>),
    /// None: another Service has its port on the nodes.
    Taken {
        /// The port.
        port: i32,
        /// The other Service.
        by: String,
    },
}

/// Whether a Service is for us: k3s's servicelb and clouds go by class, too.
pub(super) fn is_ours(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    let class = spec.and_then(|spec| spec.load_balancer_class.as_ref());
    wants(service) && class.is_none() && service.metadata.deletion_timestamp.is_none()
}

fn wants(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer")
}

/// The plan for one Service.
pub(super) fn plan(observed: &Observed<'_>) -> Plan {
    let service = observed.service;
    if !wants(service) && !ingress(service).is_empty() {
        // It was one before.
        return Plan::Ingress(Vec::new());
    }
    if !is_ours(service) {
        return Plan::Leave;
    }
    if let Some((port, by)) = taken(observed) {
        return Plan::Taken { port, by };
    }
    let local =
        service.spec.as_ref().and_then(|spec| spec.external_traffic_policy.as_deref()) == Some("Local");
    let nodes = observed.nodes.iter().filter(|node| forwards(node));
    let nodes = nodes.filter(|node| !local || (observed.has_endpoint)(name(node)));
    let mut addresses: Vec<String> = nodes.filter_map(|node| address(node)).collect();
    addresses.sort();
    addresses.dedup();
    let entry = |ip| LoadBalancerIngress {
        ip: Some(ip),
        ip_mode: Some("VIP".to_owned()),
        ..LoadBalancerIngress::default()
    };
    Plan::Ingress(addresses.into_iter().map(entry).collect())
}

/// Addresses in the status.
pub(super) fn ingress(service: &Service) -> Vec<LoadBalancerIngress> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    status.and_then(|balancer| balancer.ingress.clone()).unwrap_or_default()
}

/// A port that an older Service has on the nodes.
fn taken(observed: &Observed<'_>) -> Option<(i32, String)> {
    let own = ports(observed.service);
    let older = observed.all.iter().filter(|other| is_ours(other) && age(other) < age(observed.service));
    for other in older {
        if let Some((port, _)) = ports(other).into_iter().find(|port| own.contains(port)) {
            let part = |text: &Option<String>| text.clone().unwrap_or_default();
            let by = format!("{}/{}", part(&other.metadata.namespace), part(&other.metadata.name));
            return Some((port, by));
        }
    }
    None
}

fn age(service: &Service) -> (Option<String>, &Option<String>, &Option<String>) {
    let meta = &service.metadata;
    let created = meta.creation_timestamp.as_ref().map(|time| time.0.to_string());
    (created, &meta.namespace, &meta.name)
}

fn ports(service: &Service) -> Vec<(i32, String)> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports.map(|port| (port.port, port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()))).collect()
}

fn name(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap_or_default()
}

fn forwards(node: &Node) -> bool {
    let label = |key: &str| node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(key));
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
    ready && label(FORWARDS_LABEL) && !label(EXCLUDED)
}

/// The address that clients outside reach a node at.
fn address(node: &Node) -> Option<String> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let reachable = |text: &str| text.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| !ip.is_loopback());
    let of = |kind: &str| addresses.iter().find(|a| a.type_ == kind && reachable(&a.address));
    of("ExternalIP").or_else(|| of("InternalIP")).map(|address| address.address.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(name: &str, created: &str, spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": name, "creationTimestamp": created}, "spec": spec})).unwrap()
    }

    fn node(name: &str, ready: &str, labels: Value, ip: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}, "status": {
            "conditions": [{"type": "Ready", "status": ready}],
            "addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": ip}]}}))
        .unwrap()
    }

    fn balanced(more: Value) -> Service {
        let mut spec = json!({"type": "LoadBalancer", "ports": [{"port": 80}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        service("web", "2026-01-02T00:00:00Z", spec)
    }

    fn ips(service: &Service, others: &[&Service]) -> Result<Vec<String>, Plan> {
        let yes = json!({FORWARDS_LABEL: "true"});
        let nodes = [
            node("b", "True", yes.clone(), "192.0.2.2"),
            node("a", "True", yes.clone(), "192.0.2.1"),
            node("lost", "Unknown", yes.clone(), "192.0.2.3"),
            node("plain", "True", json!({}), "192.0.2.4"),
            node("kept-out", "True", json!({FORWARDS_LABEL: "true", EXCLUDED: ""}), "192.0.2.5"),
        ];
        let nodes: Vec<&Node> = nodes.iter().collect();
        let all: Vec<&Service> = others.iter().copied().chain([service]).collect();
        let observed = Observed { service, all: &all, nodes: &nodes, has_endpoint: &|node| node == "b" };
        match plan(&observed) {
            Plan::Ingress(list) => Ok(list.into_iter().filter_map(|entry| entry.ip).collect()),
            other => Err(other),
        }
    }

    #[test]
    fn addresses_are_those_of_nodes_that_forward() {
        assert_eq!(ips(&balanced(json!({})), &[]).unwrap(), ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(ips(&balanced(json!({"externalTrafficPolicy": "Local"})), &[]).unwrap(), ["192.0.2.2"]);
        assert_eq!(ips(&balanced(json!({"loadBalancerClass": "example.com/other"})), &[]), Err(Plan::Leave));
        assert_eq!(ips(&balanced(json!({"type": "ClusterIP"})), &[]), Err(Plan::Leave));
        let mut before = balanced(json!({"type": "ClusterIP"}));
        before.status =
            serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}})).unwrap();
        assert_eq!(ips(&before, &[]), Ok(Vec::new()));
    }

    #[test]
    fn the_older_service_has_the_port() {
        let other = |created: &str, ports: Value| {
            service("old", created, json!({"type": "LoadBalancer", "ports": ports}))
        };
        let taken = || Err(Plan::Taken { port: 80, by: "shop/old".to_owned() });
        let web = balanced(json!({}));
        assert_eq!(ips(&web, &[&other("2026-01-01T00:00:00Z", json!([{"port": 80}]))]), taken());
        assert!(ips(&web, &[&other("2026-01-03T00:00:00Z", json!([{"port": 80}]))]).is_ok());
        assert!(ips(&web, &[&other("2026-01-01T00:00:00Z", json!([{"port": 81}]))]).is_ok());
        assert!(
            ips(&web, &[&other("2026-01-01T00:00:00Z", json!([{"port": 80, "protocol": "UDP"}]))]).is_ok()
        );
    }
}
