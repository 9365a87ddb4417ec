//! The endpoints of a Service, and how they are laid out in slices. Pure; upstream's
//! `endpointslice/{reconciler,utils}.go` and `endpoint/endpoints_controller.go`.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use ketch_api::k8s::{
    api::{
        core::v1::{
            EndpointAddress, EndpointPort as OldPort, EndpointSubset, Endpoints, ObjectReference, Pod,
            Service, ServicePort,
        },
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use crate::{owner, pod};

/// Endpoints in a slice, as upstream's default.
const PER_SLICE: usize = 100;
/// Addresses in an Endpoints object, as upstream's limit.
const PER_ENDPOINTS: usize = 1000;
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(super) const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Marks Endpoints objects whose capacity was exceeded.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const ENDPOINTS_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";

/// A change to make.
#[derive(Debug, PartialEq)]
pub(super) enum Op {
    Create(Box<EndpointSlice>),
    Replace(Box<EndpointSlice>),
    Delete(String),
}

/// What there is.
pub(super) struct Observed<'a> {
    pub(super) service: &'a Service,
    /// Those the selector means.
    pub(super) pods: Vec<Arc<Pod>>,
    /// Ours, for this Service.
    pub(super) slices: Vec<Arc<EndpointSlice>>,
    /// Zone of a node.
    pub(super) zone: &'a dyn Fn(&str) -> Option<String>,
}

/// Endpoints with the same ports and address family share slices.
#[derive(PartialEq, Eq, Hash, Clone, PartialOrd, Ord)]
struct Group {
    family: &'static str,
    ports: Vec<Port>,
}

#[derive(PartialEq, Eq, Hash, Clone, PartialOrd, Ord)]
struct Port {
    name: String,
    protocol: String,
    number: i32,
    app: Option<String>,
}

/// Whether endpoints are ours to make: the Service selects pods of this cluster.
pub(super) fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector.as_ref().filter(|selector| !selector.is_empty())
}

/// Whether the pod has what an endpoint needs.
fn is_endpoint(pod: &Pod) -> bool {
    !pod::is_finished(pod) && !pod::node(pod).is_empty() && addresses(pod).next().is_some()
}

fn addresses(pod: &Pod) -> impl Iterator<Item = &str> {
    let status = pod.status.as_ref();
    let many =
        status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten().map(|ip| ip.ip.as_str());
    let one = status.and_then(|status| status.pod_ip.as_deref());
    let first =
        one.filter(|_| status.is_some_and(|status| status.pod_ips.as_ref().is_none_or(Vec::is_empty)));
    many.chain(first).filter(|ip| !ip.is_empty())
}

fn family(address: &str) -> &'static str {
    if address.contains(':') { "IPv6" } else { "IPv4" }
}

/// Families the Service wants; all when it does not say.
fn wants_family(service: &Service, family: &str) -> bool {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.as_ref());
    families.is_none_or(|families| families.is_empty() || families.iter().any(|wanted| wanted == family))
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

fn service_ports(service: &Service) -> &[ServicePort] {
    service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default()
}

/// The port of a pod that a service port means; `None` when the pod has none of that name.
fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    match &port.target_port {
        Some(IntOrString::Int(number)) if *number != 0 => Some(*number),
        None | Some(IntOrString::Int(_)) => Some(port.port),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec.init_containers.iter().flatten();
            let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
            let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
            let mut named = ports.filter(|p| p.protocol.as_deref().unwrap_or("TCP") == protocol);
            named.find(|p| p.name.as_deref() == Some(name)).map(|p| p.container_port)
        }
    }
}

fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let resolve = |port: &ServicePort| {
        Some(Port {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            number: target(port, pod)?,
            app: port.app_protocol.clone(),
        })
    };
    service_ports(service).iter().filter_map(resolve).collect()
}

fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// A pod's own name under a headless Service.
fn host_name(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let ours = spec.subdomain.as_deref() == service.metadata.name.as_deref();
    spec.hostname.clone().filter(|name| ours && !name.is_empty())
}

fn endpoint(service: &Service, pod: &Pod, address: &str, zone: Option<String>) -> Endpoint {
    let publish = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
    let (serving, terminating) = (pod::is_ready(pod), pod::is_terminating(pod));
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(publish || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: host_name(service, pod),
        node_name: Some(pod::node(pod).to_owned()),
        target_ref: Some(reference(pod)),
        zone,
        ..Endpoint::default()
    }
}

/// Brings the slices to what the pods are, touching as few as it can.
pub(super) fn slices(observed: &Observed<'_>) -> Vec<Op> {
    let service = observed.service;
    let mut groups: BTreeMap<Group, Vec<Endpoint>> = BTreeMap::new();
    for pod in observed.pods.iter().filter(|pod| is_endpoint(pod)) {
        let ports = ports(service, pod);
        for address in addresses(pod).filter(|address| wants_family(service, family(address))) {
            let zone = (observed.zone)(pod::node(pod));
            let group = Group { family: family(address), ports: ports.clone() };
            groups.entry(group).or_default().push(endpoint(service, pod, address, zone));
        }
    }
    if groups.is_empty() {
        // One empty slice tells clients that there is nobody, and not that we have not looked yet.
        groups.insert(Group { family: first_family(service), ports: Vec::new() }, Vec::new());
    }
    let mut existing: HashMap<Group, Vec<&EndpointSlice>> = HashMap::new();
    for slice in &observed.slices {
        existing.entry(group_of(slice)).or_default().push(slice);
    }
    let mut ops = Vec::new();
    for (group, endpoints) in groups {
        let have = existing.remove(&group).unwrap_or_default();
        lay_out(service, &group, endpoints, have, &mut ops);
    }
    let leftover = existing.into_values().flatten().map(|slice| owner::name(&slice.metadata).to_owned());
    ops.extend(leftover.map(Op::Delete));
    ops
}

fn first_family(service: &Service) -> &'static str {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.as_ref());
    let first = families.and_then(|families| families.first());
    if first.is_some_and(|family| family == "IPv6") { "IPv6" } else { "IPv4" }
}

fn group_of(slice: &EndpointSlice) -> Group {
    let ports = slice.ports.iter().flatten().map(|port| Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        number: port.port.unwrap_or(0),
        app: port.app_protocol.clone(),
    });
    Group { family: if slice.address_type == "IPv6" { "IPv6" } else { "IPv4" }, ports: ports.collect() }
}

/// Keeps endpoints in the slices they are in, fills the gaps with new ones, then opens new slices.
fn lay_out(
    service: &Service,
    group: &Group,
    endpoints: Vec<Endpoint>,
    have: Vec<&EndpointSlice>,
    ops: &mut Vec<Op>,
) {
    let id = |endpoint: &Endpoint| {
        let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone()).unwrap_or_default();
        (uid, endpoint.addresses.first().cloned().unwrap_or_default())
    };
    let mut waiting: BTreeMap<_, Endpoint> =
        endpoints.into_iter().map(|endpoint| (id(&endpoint), endpoint)).collect();
    let mut planned: Vec<(&EndpointSlice, Vec<Endpoint>)> = Vec::new();
    for slice in have {
        let kept = slice.endpoints.iter().filter_map(|old| waiting.remove(&id(old)));
        planned.push((slice, kept.collect()));
    }
    let mut waiting = waiting.into_values();
    for (_, endpoints) in &mut planned {
        let room = PER_SLICE.saturating_sub(endpoints.len());
        endpoints.extend(waiting.by_ref().take(room));
    }
    let mut kept_any = false;
    for (slice, endpoints) in planned {
        if endpoints.is_empty() && (kept_any || waiting.len() > 0 || !group.ports.is_empty()) {
            ops.push(Op::Delete(owner::name(&slice.metadata).to_owned()));
            continue;
        }
        kept_any = true;
        let wanted =
            EndpointSlice { metadata: slice.metadata.clone(), ..new_slice(service, group, endpoints) };
        let labels = new_slice(service, group, Vec::new()).metadata.labels;
        if *slice != wanted || slice.metadata.labels != labels {
            let metadata = ObjectMeta { labels, ..wanted.metadata };
            ops.push(Op::Replace(Box::new(EndpointSlice { metadata, ..wanted })));
        }
    }
    while waiting.len() > 0 || !kept_any {
        kept_any = true;
        let endpoints = waiting.by_ref().take(PER_SLICE).collect();
        ops.push(Op::Create(Box::new(new_slice(service, group, endpoints))));
    }
}

fn new_slice(service: &Service, group: &Group, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let name = owner::name(&service.metadata);
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name.to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    let ports = group.ports.iter().map(|port| EndpointPort {
        name: Some(port.name.clone()),
        protocol: Some(port.protocol.clone()),
        port: Some(port.number),
        app_protocol: port.app.clone(),
    });
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![owner::reference(service)]),
            ..ObjectMeta::default()
        },
        address_type: group.family.to_owned(),
        endpoints,
        ports: Some(ports.collect()),
    }
}

/// The Endpoints object, for clients that do not know slices. First address family only.
pub(super) fn endpoints(service: &Service, pods: &[Arc<Pod>]) -> Endpoints {
    let publish = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
    let family_wanted = first_family(service);
    let mut groups: BTreeMap<Vec<Port>, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    let mut left = PER_ENDPOINTS;
    let mut seen = HashSet::new();
    let candidates = pods.iter().filter(|pod| is_endpoint(pod) && (publish || !pod::is_terminating(pod)));
    for pod in candidates {
        let Some(ip) = addresses(pod).find(|ip| family(ip) == family_wanted) else { continue };
        if left == 0 || !seen.insert(ip.to_owned()) {
            continue;
        }
        left -= 1;
        let address = EndpointAddress {
            ip: ip.to_owned(),
            hostname: host_name(service, pod),
            node_name: Some(pod::node(pod).to_owned()),
            target_ref: Some(reference(pod)),
        };
        let (ready, not_ready) = groups.entry(ports(service, pod)).or_default();
        if publish || pod::is_ready(pod) { ready.push(address) } else { not_ready.push(address) }
    }
    let truncated = left == 0 && pods.len() > PER_ENDPOINTS;
    Endpoints {
        metadata: endpoints_meta(service, truncated),
        subsets: (!groups.is_empty()).then(|| groups.into_iter().map(subset).collect()),
    }
}

fn endpoints_meta(service: &Service, truncated: bool) -> ObjectMeta {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(ENDPOINTS_MANAGED_BY.to_owned(), "endpoint-controller".to_owned());
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        labels: Some(labels),
        annotations: truncated.then(|| BTreeMap::from([(OVER_CAPACITY.to_owned(), "truncated".to_owned())])),
        ..ObjectMeta::default()
    }
}

fn subset(
    (ports, (mut ready, mut not_ready)): (Vec<Port>, (Vec<EndpointAddress>, Vec<EndpointAddress>)),
) -> EndpointSubset {
    let some = |list: &mut Vec<EndpointAddress>| {
        list.sort_by(|a, b| a.ip.cmp(&b.ip));
        (!list.is_empty()).then(|| std::mem::take(list))
    };
    let ports = ports.into_iter().map(|port| OldPort {
        name: (!port.name.is_empty()).then_some(port.name),
        protocol: Some(port.protocol),
        port: port.number,
        app_protocol: port.app,
    });
    EndpointSubset {
        addresses: some(&mut ready),
        not_ready_addresses: some(&mut not_ready),
        ports: Some(ports.collect()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "a", "uid": "s", "labels": {"team": "red"}}, "spec": spec})).unwrap()
    }

    fn plain() -> Service {
        service(
            json!({"selector": {"app": "web"}, "clusterIP": "10.43.0.9", "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]}),
        )
    }

    fn pod(name: &str, port: i32, ready: bool, extra: Value) -> Arc<Pod> {
        let mut pod = json!({"metadata": {"name": name, "namespace": "a", "uid": name},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIP": format!("10.42.0.{}", name.len()), "podIPs": [{"ip": format!("10.42.0.{}", name.len())}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}});
        for (key, value) in extra.as_object().cloned().unwrap_or_default() {
            for (field, value) in value.as_object().cloned().unwrap() {
                pod[&key][field] = value;
            }
        }
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn plan(service: &Service, pods: &[Arc<Pod>], slices: &[Arc<EndpointSlice>]) -> Vec<Op> {
        let zone = |node: &str| (node == "n1").then(|| "z1".to_owned());
        super::slices(&Observed { service, pods: pods.to_vec(), slices: slices.to_vec(), zone: &zone })
    }

    fn apply(ops: Vec<Op>, slices: &[Arc<EndpointSlice>]) -> Vec<Arc<EndpointSlice>> {
        let mut slices = slices.to_vec();
        for op in ops {
            match op {
                Op::Create(mut slice) => {
                    slice.metadata.name = Some(format!("web-{}", slices.len()));
                    slices.push(Arc::new(*slice));
                }
                Op::Replace(slice) => {
                    slices.retain(|old| old.metadata.name != slice.metadata.name);
                    slices.push(Arc::new(*slice));
                }
                Op::Delete(name) => slices.retain(|old| owner::name(&old.metadata) != name),
            }
        }
        slices
    }

    fn conditions(slice: &EndpointSlice) -> Vec<(bool, bool, bool)> {
        let one = |e: &Endpoint| {
            let c = e.conditions.clone().unwrap();
            (c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap())
        };
        slice.endpoints.iter().map(one).collect()
    }

    #[test]
    fn pods_become_endpoints_with_their_own_ports() {
        let pods = [pod("p", 8080, true, json!({})), pod("pp", 9090, true, json!({}))];
        let slices = apply(plan(&plain(), &pods, &[]), &[]);
        let mut ports: Vec<_> = slices.iter().map(|s| s.ports.as_ref().unwrap()[0].port.unwrap()).collect();
        ports.sort();
        assert_eq!(ports, [8080, 9090]);
        let slice = slices.iter().find(|s| s.ports.as_ref().unwrap()[0].port == Some(8080)).unwrap();
        let labels = slice.metadata.labels.as_ref().unwrap();
        assert_eq!(
            (labels[SERVICE_NAME].as_str(), labels[MANAGED_BY].as_str(), labels["team"].as_str()),
            ("web", MANAGER, "red")
        );
        let endpoint = &slice.endpoints[0];
        assert_eq!((endpoint.addresses[0].as_str(), endpoint.zone.as_deref()), ("10.42.0.1", Some("z1")));
        assert_eq!(slice.address_type, "IPv4");
        assert!(plan(&plain(), &pods, &slices).is_empty(), "nothing more to do");
    }

    #[test]
    fn conditions_follow_the_pod() {
        let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let pods =
            [pod("a", 80, true, json!({})), pod("bb", 80, false, json!({})), pod("ccc", 80, true, leaving)];
        let slices = apply(plan(&plain(), &pods, &[]), &[]);
        assert_eq!(conditions(&slices[0]), [(true, true, false), (false, false, false), (false, true, true)]);
        let mut publishing = plain();
        publishing.spec.as_mut().unwrap().publish_not_ready_addresses = Some(true);
        let slices = apply(plan(&publishing, &pods, &slices), &slices);
        assert!(conditions(&slices[0]).iter().all(|c| c.0));
    }

    #[test]
    fn ended_unbound_and_addressless_pods_are_no_endpoints() {
        let pods = [
            pod("a", 80, true, json!({"status": {"phase": "Succeeded"}})),
            pod("b", 80, true, json!({"spec": {"nodeName": null}})),
            pod("c", 80, true, json!({"status": {"podIP": null, "podIPs": null}})),
        ];
        let slices = apply(plan(&plain(), &pods, &[]), &[]);
        assert_eq!((slices.len(), slices[0].endpoints.len()), (1, 0), "an empty slice");
        assert!(plan(&plain(), &pods, &slices).is_empty());
        let slices = apply(plan(&plain(), &[pod("d", 80, true, json!({}))], &slices), &slices);
        assert_eq!((slices.len(), slices[0].endpoints.len()), (1, 1), "the placeholder went");
    }

    #[test]
    fn a_full_slice_is_followed_by_another_and_gaps_are_filled() {
        let many: Vec<_> = (0..150)
            .map(|i| {
                pod(
                    &format!("p{i:03}"),
                    80,
                    true,
                    json!({"status": {"podIPs": [{"ip": format!("10.42.1.{i}")}]}}),
                )
            })
            .collect();
        let slices = apply(plan(&plain(), &many, &[]), &[]);
        let sizes = |slices: &[Arc<EndpointSlice>]| {
            let mut sizes: Vec<_> = slices.iter().map(|s| s.endpoints.len()).collect();
            sizes.sort_unstable();
            sizes
        };
        assert_eq!(sizes(&slices), [50, 100]);
        let ops = plan(&plain(), &many[1..], &slices);
        assert_eq!(ops.len(), 1, "one slice is touched");
        let slices = apply(ops, &slices);
        assert_eq!(sizes(&slices), [50, 99]);
        let ops = plan(&plain(), &many, &slices);
        assert_eq!(ops.len(), 1);
    }

    #[test]
    fn headless_services_name_pods() {
        let headless = service(json!({"selector": {"app": "web"}, "clusterIP": "None"}));
        let named = pod("a", 80, true, json!({"spec": {"hostname": "web-0", "subdomain": "web"}}));
        let slices = apply(plan(&headless, &[named], &[]), &[]);
        assert_eq!(slices[0].endpoints[0].hostname.as_deref(), Some("web-0"));
        assert!(slices[0].metadata.labels.as_ref().unwrap().contains_key(HEADLESS));
        assert_eq!(slices[0].ports.as_deref(), Some([].as_slice()));
        assert!(
            plan(
                &headless,
                &[pod("a", 80, true, json!({"spec": {"hostname": "web-0", "subdomain": "web"}}))],
                &slices
            )
            .is_empty()
        );
    }

    #[test]
    fn old_style_endpoints_sort_by_readiness() {
        let pods = [pod("a", 80, true, json!({})), pod("bb", 80, false, json!({}))];
        let endpoints = endpoints(&plain(), &pods);
        let subset = &endpoints.subsets.unwrap()[0];
        assert_eq!(subset.addresses.as_ref().unwrap()[0].ip, "10.42.0.1");
        assert_eq!(subset.not_ready_addresses.as_ref().unwrap()[0].ip, "10.42.0.2");
        assert_eq!(subset.ports.as_ref().unwrap()[0].name.as_deref(), Some("http"));
        assert_eq!(super::endpoints(&plain(), &[]).subsets, None);
    }

    #[test]
    fn services_without_a_selector_are_left_alone() {
        assert!(selector(&plain()).is_some());
        assert!(selector(&service(json!({"ports": []}))).is_none());
        assert!(selector(&service(json!({"type": "ExternalName", "selector": {"a": "b"}}))).is_none());
    }
}
