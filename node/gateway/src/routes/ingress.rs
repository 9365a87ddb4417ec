//! Routes of Ingresses.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ketch_api::{
    k8s::{
        api::{
            core::v1::{Service, ServicePort},
            discovery::v1::EndpointSlice,
            networking::v1::{Ingress, IngressBackend, IngressServiceBackend},
        },
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
    validation,
};

use super::{
    INGRESS_CLASS, INGRESS_CONTROLLER, Snapshot,
    table::{Builder, PathKind},
    target::{Backend, Endpoint, Target},
};

/// How long a Service may take to answer.
const TIMEOUT: Duration = Duration::from_secs(60);
const DEFAULT_CLASS_ANNOTATION: &str = "ingressclass.kubernetes.io/is-default-class";
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// `appProtocol` of a port that speaks HTTP/2 without TLS.
const H2C: &str = "kubernetes.io/h2c";

/// Namespace and name.
type Key = (String, String);

pub(super) fn add(builder: &mut Builder<'_>, snapshot: &Snapshot) {
    let services: BTreeMap<Key, &Service> =
        snapshot.services.iter().filter_map(|s| Some((key(&s.metadata)?, &**s))).collect();
    let mut slices: BTreeMap<Key, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in &snapshot.slices {
        let of = slice.metadata.labels.as_ref().and_then(|l| l.get(SERVICE_LABEL));
        if let (Some(namespace), Some(name)) = (&slice.metadata.namespace, of) {
            slices.entry((namespace.clone(), name.clone())).or_default().push(slice);
        }
    }
    let cluster = Cluster { services, slices };
    let mut ingresses: Vec<_> = snapshot
        .ingresses
        .iter()
        .filter(|i| i.metadata.deletion_timestamp.is_none() && is_ours(i, snapshot))
        .collect();
    ingresses.sort_by_key(|i| (i.metadata.creation_timestamp.clone().map(|t| t.0), key(&i.metadata)));
    for ingress in ingresses {
        cluster.add(builder, ingress);
    }
}

fn key(metadata: &ObjectMeta) -> Option<Key> {
    Some((metadata.namespace.clone()?, metadata.name.clone()?))
}

/// Whether an Ingress is for this gateway: by its class, or without one when no other class is the default.
fn is_ours(ingress: &Ingress, snapshot: &Snapshot) -> bool {
    let controller = |class: &ketch_api::k8s::api::networking::v1::IngressClass| {
        class.spec.as_ref().and_then(|s| s.controller.as_deref()) == Some(INGRESS_CONTROLLER)
    };
    let annotation = ingress.metadata.annotations.as_ref().and_then(|a| a.get(CLASS_ANNOTATION));
    let class = ingress.spec.as_ref().and_then(|s| s.ingress_class_name.as_ref()).or(annotation);
    if let Some(name) = class {
        let known = snapshot.classes.iter().find(|c| c.metadata.name.as_ref() == Some(name));
        return known.map_or(name == INGRESS_CLASS, |c| controller(c));
    }
    let is_default = |metadata: &ObjectMeta| {
        metadata.annotations.as_ref().and_then(|a| a.get(DEFAULT_CLASS_ANNOTATION)).map(String::as_str)
            == Some("true")
    };
    let mut defaults = snapshot.classes.iter().filter(|c| is_default(&c.metadata)).peekable();
    defaults.peek().is_none() || defaults.any(|c| controller(c))
}

struct Cluster<'a> {
    services: BTreeMap<Key, &'a Service>,
    slices: BTreeMap<Key, Vec<&'a EndpointSlice>>,
}

impl Cluster<'_> {
    fn add(&self, builder: &mut Builder<'_>, ingress: &Ingress) {
        let Some((namespace, name)) = key(&ingress.metadata) else { return };
        let Some(spec) = &ingress.spec else { return };
        let owner = format!("ingress {namespace}/{name}");
        let rules = spec.rules.as_deref().unwrap_or_default();
        if let Some(backend) = &spec.default_backend {
            let target = self.target(builder, &namespace, backend);
            if rules.is_empty() {
                builder.default_backend(target.clone());
            }
            // Besides rules it answers what they leave over on their hosts.
            for host in rules.iter().filter_map(|r| r.host.as_deref()) {
                let has_root = rules.iter().filter(|r| r.host.as_deref() == Some(host)).any(|r| {
                    r.http
                        .iter()
                        .flat_map(|h| &h.paths)
                        .any(|p| p.path_type != "Exact" && p.path.as_deref().unwrap_or("/") == "/")
                });
                if !has_root {
                    builder.add(&owner, &namespace, host, PathKind::Prefix, "/", target.clone());
                }
            }
        }
        for rule in rules {
            let host = rule.host.as_deref().unwrap_or_default();
            for path in rule.http.iter().flat_map(|h| &h.paths) {
                let kind = if path.path_type == "Exact" { PathKind::Exact } else { PathKind::Prefix };
                let text = path.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
                let target = self.target(builder, &namespace, &path.backend);
                builder.add(&owner, &namespace, host, kind, text, target);
            }
        }
    }

    fn target(&self, builder: &mut Builder<'_>, namespace: &str, backend: &IngressBackend) -> Target {
        let Some(wanted) = &backend.service else {
            return Target::Broken(
                "the ingress names a resource backend, which this gateway does not serve".into(),
            );
        };
        let key = (namespace.to_owned(), wanted.name.clone());
        let title = format!("service {namespace}/{}", wanted.name);
        let Some(service) = self.services.get(&key) else {
            return Target::Broken(format!("{title} does not exist"));
        };
        let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
        let Some(port) = ports.iter().find(|p| is_port(p, wanted)) else {
            return Target::Broken(format!("{title} has no such port as the ingress names"));
        };
        let slices = self.slices.get(&key).map(Vec::as_slice).unwrap_or_default();
        let mut addresses: Vec<_> = slices.iter().flat_map(|slice| addresses(slice, port)).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let h2c = port.app_protocol.as_deref() == Some(H2C);
        let endpoint = |address| Endpoint { address, load: builder.load(address), timeout: TIMEOUT, h2c };
        Target::Service(title, Backend::new(addresses.into_iter().map(endpoint).collect()))
    }
}

fn is_port(port: &ServicePort, wanted: &IngressServiceBackend) -> bool {
    match wanted.port.as_ref().map(|p| (p.name.as_deref(), p.number)) {
        Some((Some(name), _)) if !name.is_empty() => port.name.as_deref() == Some(name),
        Some((_, Some(number))) => port.port == number,
        _ => false,
    }
}

/// Ready addresses of a slice for a Service's port. What is no place for traffic (this machine, this
/// link) is left out: a slice is written by users.
fn addresses(slice: &EndpointSlice, port: &ServicePort) -> Vec<SocketAddr> {
    let name = |name: &Option<String>| name.clone().unwrap_or_default();
    let ports: Vec<u16> = slice
        .ports
        .iter()
        .flatten()
        .filter(|p| name(&p.name) == name(&port.name))
        .filter_map(|p| p.port.and_then(|n| u16::try_from(n).ok()))
        .collect();
    let ready = slice.endpoints.iter().filter(|e| e.conditions.as_ref().and_then(|c| c.ready) != Some(false));
    let ips = ready.filter_map(|e| e.addresses.first()?.parse::<IpAddr>().ok());
    let ips = ips.filter(|ip| validation::endpoint_address(*ip).is_empty());
    ips.flat_map(|ip| ports.iter().map(move |port| SocketAddr::new(ip, *port))).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::routes::{RouteTable, build};

    fn from<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn snapshot(ingress: Value) -> Snapshot {
        Snapshot {
            services: vec![from(
                json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {"ports": [
                {"name": "http", "port": 80, "targetPort": 8080}, {"name": "grpc", "port": 90, "appProtocol": "kubernetes.io/h2c"}]}}),
            )],
            slices: vec![from(json!({
            "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}, {"name": "grpc", "port": 9090}],
            "endpoints": [
                {"addresses": ["10.42.0.1"], "conditions": {"ready": true}},
                {"addresses": ["10.42.0.2"], "conditions": {"ready": false}},
                {"addresses": ["127.0.0.1"]}, {"addresses": ["169.254.169.254"]}, {"addresses": ["10.42.0.3"]},
            ]}))],
            ingresses: vec![from(ingress)],
            ..Snapshot::default()
        }
    }

    fn ingress(spec: Value) -> Value {
        json!({"metadata": {"name": "i", "namespace": "default"}, "spec": spec})
    }

    fn rule(path: &str, path_type: &str, port: Value) -> Value {
        json!({"rules": [{"host": "a.example.com", "http": {"paths": [
            {"path": path, "pathType": path_type, "backend": {"service": {"name": "web", "port": port}}}]}}]})
    }

    fn found(snapshot: &Snapshot, host: &str, path: &str) -> String {
        match build(snapshot, "localhost", &RouteTable::default()).find(host, path) {
            Some(Target::Service(_, backend)) => backend
                .endpoints()
                .iter()
                .map(|e| format!("{}{}", e.address, if e.h2c { "!" } else { "" }))
                .collect::<Vec<_>>()
                .join(" "),
            Some(Target::Broken(why)) => why.clone(),
            _ => "-".to_owned(),
        }
    }

    #[test]
    fn paths_and_ports() {
        let by_number = snapshot(ingress(rule("/app", "Prefix", json!({"number": 80}))));
        assert_eq!(found(&by_number, "a.example.com", "/app/x"), "10.42.0.1:8080 10.42.0.3:8080");
        assert_eq!(found(&by_number, "a.example.com", "/"), "-");
        assert_eq!(found(&by_number, "b.example.com", "/app"), "-");
        let by_name = snapshot(ingress(rule("/app", "Exact", json!({"name": "grpc"}))));
        assert_eq!(found(&by_name, "a.example.com", "/app"), "10.42.0.1:9090! 10.42.0.3:9090!");
        assert_eq!(found(&by_name, "a.example.com", "/app/x"), "-");
        let wrong = snapshot(ingress(rule("", "ImplementationSpecific", json!({"number": 81}))));
        assert_eq!(
            found(&wrong, "a.example.com", "/x"),
            "service default/web has no such port as the ingress names"
        );
        let mut missing = by_number.clone();
        missing.services.clear();
        assert_eq!(found(&missing, "a.example.com", "/app"), "service default/web does not exist");
    }

    #[test]
    fn default_backends() {
        let backend = json!({"service": {"name": "web", "port": {"number": 80}}});
        let alone = snapshot(ingress(json!({"defaultBackend": backend})));
        assert_eq!(found(&alone, "any", "/"), "10.42.0.1:8080 10.42.0.3:8080");
        let mut spec = rule("/app", "Prefix", json!({"name": "grpc"}));
        spec["defaultBackend"] = backend;
        let both = snapshot(ingress(spec));
        assert_eq!(found(&both, "a.example.com", "/app"), "10.42.0.1:9090! 10.42.0.3:9090!");
        assert_eq!(found(&both, "a.example.com", "/"), "10.42.0.1:8080 10.42.0.3:8080");
        assert_eq!(found(&both, "other", "/"), "-");
    }

    #[test]
    fn classes() {
        let with = |class: Option<&str>, classes: Value| {
            let mut spec = rule("/", "Prefix", json!({"number": 80}));
            spec["ingressClassName"] = json!(class);
            let mut snapshot = snapshot(ingress(spec));
            snapshot.classes = classes.as_array().unwrap().iter().map(|c| from(c.clone())).collect();
            found(&snapshot, "a.example.com", "/") != "-"
        };
        let class = |name: &str, controller: &str, default: &str| json!({"metadata": {"name": name, "annotations": {"ingressclass.kubernetes.io/is-default-class": default}}, "spec": {"controller": controller}});
        assert!(with(None, json!([])));
        assert!(with(Some("ketch"), json!([])));
        assert!(!with(Some("nginx"), json!([])));
        assert!(with(Some("mine"), json!([class("mine", INGRESS_CONTROLLER, "false")])));
        assert!(!with(None, json!([class("nginx", "k8s.io/ingress-nginx", "true")])));
        assert!(with(None, json!([class("ketch", INGRESS_CONTROLLER, "true")])));
    }
}
