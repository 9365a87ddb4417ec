//! Service.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec, ServiceStatus},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::Value;

use super::{
    or_none,
    pod_spec::{invalid_all, one_of, port_or_name},
};
use crate::{
    meta, selector,
    strategy::{Column, Context, Descriptor, FieldError, Meta, Strategy},
    validation,
};

const EXTERNAL_NAME: &str = "ExternalName";
const LOAD_BALANCER: &str = "LoadBalancer";
const NODE_PORT: &str = "NodePort";
/// Seconds a client sticks to an endpoint by default.
const AFFINITY_SECONDS: i32 = 10_800;

pub(super) struct Services;

fn kind(spec: &ServiceSpec) -> &str {
    spec.type_.as_deref().unwrap_or_default()
}

fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

fn or_text(field: &mut Option<String>, value: &str) {
    if field.as_deref().unwrap_or_default().is_empty() {
        *field = Some(value.to_owned());
    }
}

/// `clusterIP` and `clusterIPs[0]` say the same.
fn sync_cluster_ips(spec: &mut ServiceSpec) {
    if kind(spec) == EXTERNAL_NAME {
        (spec.cluster_ip, spec.cluster_ips) = (None, None);
        return;
    }
    match (&spec.cluster_ip, &spec.cluster_ips) {
        (Some(ip), None) if !ip.is_empty() => spec.cluster_ips = Some(vec![ip.clone()]),
        (None, Some(ips)) => spec.cluster_ip = ips.first().cloned(),
        _ => {}
    }
}

fn families(spec: &mut ServiceSpec) {
    if kind(spec) == EXTERNAL_NAME {
        (spec.ip_families, spec.ip_family_policy) = (None, None);
        return;
    }
    let v6 =
        spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()).is_some_and(|ip| ip.is_ipv6());
    spec.ip_families.get_or_insert_with(|| vec![if v6 { "IPv6" } else { "IPv4" }.to_owned()]);
    spec.ip_family_policy.get_or_insert_with(|| "SingleStack".to_owned());
}

impl Strategy for Services {
    type Kind = Service;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            short_names: &["svc"],
            categories: &["all"],
            status: true,
            ..Descriptor::namespaced("", "v1", "Service", "services", "service")
        }
    }

    fn default(&self, service: &mut Service) {
        let spec = service.spec.get_or_insert_default();
        or_text(&mut spec.type_, "ClusterIP");
        or_text(&mut spec.session_affinity, "None");
        match spec.session_affinity.as_deref() {
            Some("ClientIP") => {
                let config = spec.session_affinity_config.get_or_insert_default();
                config.client_ip.get_or_insert_default().timeout_seconds.get_or_insert(AFFINITY_SECONDS);
            }
            _ => spec.session_affinity_config = None,
        }
        for port in spec.ports.iter_mut().flatten() {
            or_text(&mut port.protocol, "TCP");
            let unset = match &port.target_port {
                None | Some(IntOrString::Int(0)) => true,
                Some(IntOrString::String(name)) => name.is_empty(),
                Some(IntOrString::Int(_)) => false,
            };
            if unset {
                port.target_port = Some(IntOrString::Int(port.port));
            }
        }
        if matches!(kind(spec), NODE_PORT | LOAD_BALANCER) {
            or_text(&mut spec.external_traffic_policy, "Cluster");
        }
        if kind(spec) != EXTERNAL_NAME {
            or_text(&mut spec.internal_traffic_policy, "Cluster");
        }
        if kind(spec) == LOAD_BALANCER {
            spec.allocate_load_balancer_node_ports.get_or_insert(true);
        }
    }

    fn prepare_create(&self, _cx: &Context, service: &mut Service) {
        service.status = Some(ServiceStatus { load_balancer: Some(Default::default()), conditions: None });
        let spec = service.spec.get_or_insert_default();
        sync_cluster_ips(spec);
        families(spec);
    }

    fn prepare_update(&self, _cx: &Context, new: &mut Service, old: &Service) {
        let spec = new.spec.get_or_insert_default();
        if let Some(old) = &old.spec {
            keep_allocated(spec, old);
        }
        sync_cluster_ips(spec);
        families(spec);
    }

    fn validate(&self, service: &Service) -> Vec<FieldError> {
        let spec = service.spec.clone().unwrap_or_default();
        let types = ["ClusterIP", EXTERNAL_NAME, LOAD_BALANCER, NODE_PORT];
        let mut errors = ports(&spec);
        errors.extend(one_of("spec.type", spec.type_.as_deref(), &types));
        errors.extend(one_of(
            "spec.sessionAffinity",
            spec.session_affinity.as_deref(),
            &["ClientIP", "None"],
        ));
        if let Some(labels) = &spec.selector {
            errors.extend(meta::labels(labels, "spec.selector"));
        }
        errors.extend(addresses(&spec));
        errors.extend(by_type(&spec));
        errors.extend(policies(&spec));
        errors
    }

    fn validate_update(&self, new: &Service, old: &Service) -> Vec<FieldError> {
        let (new, old) = (new.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
        let set = |ip: &Option<String>| ip.clone().unwrap_or_default();
        let (now, before) = (set(&new.cluster_ip), set(&old.cluster_ip));
        let named = kind(&old) == EXTERNAL_NAME || kind(&new) == EXTERNAL_NAME;
        if named || before.is_empty() || now == before {
            return Vec::new();
        }
        vec![FieldError::invalid("spec.clusterIPs[0]", vec![now], "may not change once set")]
    }

    fn warnings(&self, service: &Service) -> Vec<String> {
        let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()).enumerate();
        let sctp = ports.filter(|(_, port)| port.protocol.as_deref() == Some("SCTP"));
        let text =
            |n| format!("spec.ports[{n}].protocol: nodes do not forward SCTP; connections are refused");
        sctp.map(|(n, _)| text(n)).collect()
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            Column::NAME,
            Column::text("Type"),
            Column::text("Cluster-IP"),
            Column::text("External-IP"),
            Column::text("Port(s)"),
            Column::AGE,
            Column::wide("Selector"),
        ];
        COLUMNS
    }

    fn row(&self, service: &Service, metadata: &Meta<'_>) -> Vec<Value> {
        let spec = service.spec.clone().unwrap_or_default();
        vec![
            metadata.name.into(),
            kind(&spec).into(),
            or_none(spec.cluster_ip.as_deref()).into(),
            external_ip(&spec, service.status.as_ref()).into(),
            or_none(Some(&port_list(&spec))).into(),
            metadata.age().into(),
            selector::display_labels(spec.selector.as_ref()).into(),
        ]
    }

    fn fields(&self, service: &Service) -> Vec<(&'static str, String)> {
        let spec = service.spec.clone().unwrap_or_default();
        vec![
            ("spec.clusterIP", spec.cluster_ip.unwrap_or_default()),
            ("spec.type", spec.type_.unwrap_or_default()),
        ]
    }

    fn field_names(&self) -> &'static [&'static str] {
        &["spec.clusterIP", "spec.type"]
    }
}

/// An update written without knowing what the server allocated keeps it.
fn keep_allocated(new: &mut ServiceSpec, old: &ServiceSpec) {
    if kind(new) == EXTERNAL_NAME || kind(old) == EXTERNAL_NAME {
        return;
    }
    if new.cluster_ip.as_deref().unwrap_or_default().is_empty()
        && new.cluster_ips.as_ref().is_none_or(Vec::is_empty)
    {
        new.cluster_ip.clone_from(&old.cluster_ip);
        new.cluster_ips.clone_from(&old.cluster_ips);
    }
    if new.ip_families.is_none() {
        new.ip_families.clone_from(&old.ip_families);
    }
    if new.ip_family_policy.is_none() {
        new.ip_family_policy.clone_from(&old.ip_family_policy);
    }
    let needs = |spec: &ServiceSpec| matches!(kind(spec), NODE_PORT | LOAD_BALANCER);
    if needs(new) && needs(old) {
        for port in new.ports.iter_mut().flatten().filter(|p| p.node_port.unwrap_or(0) == 0) {
            let same = |o: &&ServicePort| o.port == port.port && o.protocol == port.protocol;
            port.node_port = old.ports.iter().flatten().find(same).and_then(|o| o.node_port);
        }
        new.health_check_node_port = new.health_check_node_port.or(old.health_check_node_port);
    }
}

fn ports(spec: &ServiceSpec) -> Vec<FieldError> {
    let list = spec.ports.as_deref().unwrap_or_default();
    let mut errors = Vec::new();
    if list.is_empty() && !is_headless(spec) && kind(spec) != EXTERNAL_NAME {
        errors.push(FieldError::required("spec.ports", ""));
    }
    let (mut names, mut numbers, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (n, port) in list.iter().enumerate() {
        let path = format!("spec.ports[{n}]");
        errors.extend(self::port(port, &path, list.len() > 1));
        let name = port.name.as_deref().unwrap_or_default();
        if !name.is_empty() && !names.insert(name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        let key = (port.protocol.as_deref().unwrap_or_default(), port.port);
        if !numbers.insert(key) {
            let value = serde_json::json!({"port": port.port, "protocol": key.0});
            errors.push(FieldError::duplicate(&path, value));
        }
        let node_port = port.node_port.unwrap_or(0);
        if node_port != 0 && !node_ports.insert((key.0, node_port)) {
            errors.push(FieldError::duplicate(format!("{path}.nodePort"), node_port));
        }
        if node_port != 0 && !matches!(kind(spec), NODE_PORT | LOAD_BALANCER) {
            let detail = format!("may not be used when `type` is '{}'", kind(spec));
            errors.push(FieldError::forbidden(format!("{path}.nodePort"), &detail));
        }
    }
    errors
}

fn port(port: &ServicePort, path: &str, name_required: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match port.name.as_deref().unwrap_or_default() {
        "" if name_required => errors.push(FieldError::required(format!("{path}.name"), "")),
        "" => {}
        name => errors.extend(invalid_all(&format!("{path}.name"), name, validation::dns1123_label(name))),
    }
    let numbers = [("port", Some(port.port)), ("nodePort", port.node_port.filter(|p| *p != 0))];
    for (field, number) in numbers {
        for fault in number.map(validation::port_number).into_iter().flatten() {
            errors.push(FieldError::invalid(format!("{path}.{field}"), number, &fault));
        }
    }
    errors.extend(one_of(&format!("{path}.protocol"), port.protocol.as_deref(), &["SCTP", "TCP", "UDP"]));
    if let Some(target) = &port.target_port {
        errors.extend(port_or_name(target, &format!("{path}.targetPort")));
    }
    if let Some(protocol) = port.app_protocol.as_deref() {
        errors.extend(invalid_all(
            &format!("{path}.appProtocol"),
            protocol,
            validation::qualified_name(protocol),
        ));
    }
    errors
}

fn addresses(spec: &ServiceSpec) -> Vec<FieldError> {
    const ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
    let mut errors = Vec::new();
    for (n, ip) in spec.cluster_ips.iter().flatten().enumerate() {
        if ip != "None" && ip.parse::<IpAddr>().is_err() {
            errors.push(FieldError::invalid(format!("spec.clusterIPs[{n}]"), ip, ADDRESS));
        }
    }
    let first = spec.cluster_ips.as_ref().and_then(|ips| ips.first());
    if let (Some(ip), Some(first)) = (&spec.cluster_ip, first)
        && ip != first
    {
        errors.push(FieldError::invalid(
            "spec.clusterIPs",
            &spec.cluster_ips,
            "first value must match `clusterIP`",
        ));
    }
    for (n, ip) in spec.external_ips.iter().flatten().enumerate() {
        if ip.parse::<IpAddr>().is_err() {
            errors.push(FieldError::invalid(format!("spec.externalIPs[{n}]"), ip, ADDRESS));
        }
    }
    errors
}

fn by_type(spec: &ServiceSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match kind(spec) {
        EXTERNAL_NAME => match spec.external_name.as_deref().unwrap_or_default().trim_end_matches('.') {
            "" => errors.push(FieldError::required("spec.externalName", "")),
            name => {
                errors.extend(invalid_all("spec.externalName", name, validation::dns1123_subdomain(name)))
            }
        },
        LOAD_BALANCER | NODE_PORT if is_headless(spec) => {
            let detail = format!("may not be set to 'None' for {} services", kind(spec));
            errors.push(FieldError::invalid("spec.clusterIPs[0]", "None", &detail));
        }
        _ => {}
    }
    let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
    if let Some(seconds) = config.and_then(|c| c.timeout_seconds).filter(|s| !(1..=86_400).contains(s)) {
        let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        errors.push(FieldError::invalid(
            path,
            seconds,
            "must be greater than 0 and less than or equal to 86400",
        ));
    }
    errors
}

fn policies(spec: &ServiceSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let values = ["Cluster", "Local"];
    if let Some(policy) = spec.internal_traffic_policy.as_deref() {
        errors.extend(one_of("spec.internalTrafficPolicy", Some(policy), &values));
    }
    if let Some(policy) = spec.external_traffic_policy.as_deref() {
        if matches!(kind(spec), NODE_PORT | LOAD_BALANCER)
            || spec.external_ips.as_ref().is_some_and(|e| !e.is_empty())
        {
            errors.extend(one_of("spec.externalTrafficPolicy", Some(policy), &values));
        } else {
            let detail = "may only be set for externally-accessible services";
            errors.push(FieldError::invalid("spec.externalTrafficPolicy", policy, detail));
        }
    }
    errors
}

fn external_ip(spec: &ServiceSpec, status: Option<&ServiceStatus>) -> String {
    let own = spec.external_ips.clone().unwrap_or_default();
    match kind(spec) {
        "ClusterIP" | NODE_PORT => or_none(Some(&own.join(","))),
        LOAD_BALANCER => {
            let ingress = status.and_then(|s| s.load_balancer.as_ref()).and_then(|l| l.ingress.as_ref());
            let address = |i: &k8s_openapi::api::core::v1::LoadBalancerIngress| {
                i.ip.clone().or_else(|| i.hostname.clone())
            };
            let given: BTreeSet<String> = ingress.into_iter().flatten().filter_map(address).collect();
            let all: Vec<String> = given.into_iter().chain(own).collect();
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        EXTERNAL_NAME => spec.external_name.clone().unwrap_or_default(),
        _ => "<unknown>".to_owned(),
    }
}

fn port_list(spec: &ServiceSpec) -> String {
    let one = |port: &ServicePort| {
        let protocol = port.protocol.as_deref().unwrap_or_default();
        match port.node_port.unwrap_or(0) {
            0 => format!("{}/{protocol}", port.port),
            node => format!("{}:{node}/{protocol}", port.port),
        }
    };
    spec.ports.iter().flatten().map(one).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::tests::{create, row, update};

    fn service(spec: Value) -> Value {
        json!({"metadata": {"name": "web"}, "spec": spec})
    }

    #[test]
    fn defaults() {
        let spec = create(
            "Service",
            service(json!({"selector": {"a": "b"}, "ports": [{"port": 80}], "clusterIP": "10.43.0.9"})),
        )
        .unwrap()["spec"]
            .clone();
        assert_eq!(
            spec,
            json!({
                "selector": {"a": "b"}, "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}],
                "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            })
        );
    }

    #[test]
    fn what_is_not_forwarded_is_warned_about() {
        let ports = json!([{"port": 80}, {"name": "s", "port": 81, "protocol": "SCTP"}]);
        let service = serde_json::from_value(service(json!({"ports": ports}))).unwrap();
        let expected = "spec.ports[1].protocol: nodes do not forward SCTP; connections are refused";
        assert_eq!(Services.warnings(&service), [expected]);
    }

    #[test]
    fn rules() {
        let fault = |spec: Value| {
            create("Service", service(spec)).unwrap_err().message.replace("Service \"web\" is invalid: ", "")
        };
        assert_eq!(fault(json!({})), "spec.ports: Required value");
        assert_eq!(
            fault(json!({"ports": [{"port": 80}, {"port": 81, "name": "b"}]})),
            "spec.ports[0].name: Required value"
        );
        assert_eq!(
            fault(json!({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]})),
            "spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}"
        );
        assert_eq!(
            fault(json!({"ports": [{"port": 0}]})),
            "[spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive, spec.ports[0].targetPort: \
             Invalid value: 0: must be between 1 and 65535, inclusive]"
        );
        assert_eq!(
            fault(json!({"ports": [{"port": 80, "nodePort": 30000}]})),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"
        );
        assert_eq!(fault(json!({"type": "ExternalName"})), "spec.externalName: Required value");
        assert_eq!(
            fault(json!({"type": "Magic", "ports": [{"port": 1}]})),
            "spec.type: Unsupported value: \"Magic\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\""
        );
        assert!(create("Service", service(json!({"clusterIP": "None"}))).is_ok(), "headless without ports");
    }

    #[test]
    fn the_address_is_kept() {
        let old = service(
            json!({"ports": [{"port": 80, "nodePort": 30001}], "type": "NodePort", "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"]}),
        );
        let new =
            update("Service", service(json!({"ports": [{"port": 80}], "type": "NodePort"})), &old).unwrap();
        assert_eq!(new["spec"]["clusterIP"], "10.43.0.9");
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30001);
        let moved =
            update("Service", service(json!({"ports": [{"port": 80}], "clusterIP": "10.43.0.10"})), &old);
        assert_eq!(
            moved.unwrap_err().message,
            "Service \"web\" is invalid: spec.clusterIPs[0]: Invalid value: [\"10.43.0.10\"]: may not change once set"
        );
    }

    #[test]
    fn rows() {
        let object =
            service(json!({"type": "LoadBalancer", "clusterIP": "10.43.0.9", "selector": {"a": "b"},
            "ports": [{"port": 80, "nodePort": 30001, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}));
        assert_eq!(
            row("Service", &object),
            "web|LoadBalancer|10.43.0.9|<pending>|80:30001/TCP,53/UDP|<unknown>|a=b"
        );
        let named = service(json!({"type": "ExternalName", "externalName": "a.example.com"}));
        assert_eq!(row("Service", &named), "web|ExternalName|<none>|a.example.com|<none>|<unknown>|<none>");
    }
}
