//! Ingress and IngressClass.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, Ingress, IngressBackend, IngressClass, IngressLoadBalancerIngress, IngressRule,
    IngressSpec, IngressStatus,
};
use serde_json::Value;

use super::{or_none, pod_spec::invalid_all};
use crate::{
    strategy::{Column, Context, Descriptor, FieldError, Meta, Strategy},
    validation::{self, IMMUTABLE},
};

const GROUP: &str = "networking.k8s.io";

pub(super) struct Ingresses;

impl Strategy for Ingresses {
    type Kind = Ingress;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            short_names: &["ing"],
            status: true,
            generation: true,
            ..Descriptor::namespaced(GROUP, "v1", "Ingress", "ingresses", "ingress")
        }
    }

    fn default(&self, ingress: &mut Ingress) {
        ingress.spec.get_or_insert_default();
    }

    fn prepare_create(&self, _cx: &Context, ingress: &mut Ingress) {
        ingress.status = Some(IngressStatus { load_balancer: Some(Default::default()) });
    }

    fn validate(&self, ingress: &Ingress) -> Vec<FieldError> {
        let spec = ingress.spec.clone().unwrap_or_default();
        let mut errors = Vec::new();
        let rules = spec.rules.as_deref().unwrap_or_default();
        if rules.is_empty() && spec.default_backend.is_none() {
            let detail = "either `defaultBackend` or `rules` must be specified";
            errors.push(FieldError::invalid("spec", rules, detail));
        }
        if let Some(backend) = &spec.default_backend {
            errors.extend(self::backend(backend, "spec.defaultBackend"));
        }
        for (n, rule) in rules.iter().enumerate() {
            errors.extend(self::rule(rule, &format!("spec.rules[{n}]")));
        }
        if let Some(class) = spec.ingress_class_name.as_deref() {
            errors.extend(invalid_all("spec.ingressClassName", class, validation::dns1123_subdomain(class)));
        }
        errors.extend(tls(&spec));
        errors
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            Column::NAME,
            Column::text("Class"),
            Column::text("Hosts"),
            Column::text("Address"),
            Column::text("Ports"),
            Column::AGE,
        ];
        COLUMNS
    }

    fn row(&self, ingress: &Ingress, metadata: &Meta<'_>) -> Vec<Value> {
        let spec = ingress.spec.clone().unwrap_or_default();
        let balancer = ingress.status.as_ref().and_then(|s| s.load_balancer.as_ref());
        let given = balancer.and_then(|b| b.ingress.as_deref()).unwrap_or_default();
        let address = |i: &IngressLoadBalancerIngress| i.ip.clone().or_else(|| i.hostname.clone());
        let addresses: BTreeSet<String> = given.iter().filter_map(address).collect();
        let ports = if spec.tls.as_ref().is_some_and(|t| !t.is_empty()) { "80, 443" } else { "80" };
        vec![
            metadata.name.into(),
            or_none(spec.ingress_class_name.as_deref()).into(),
            hosts(&spec).into(),
            addresses.into_iter().collect::<Vec<_>>().join(",").into(),
            ports.into(),
            metadata.age().into(),
        ]
    }
}

/// At most three hosts; `*` when no rule names one.
fn hosts(spec: &IngressSpec) -> String {
    let named = spec.rules.iter().flatten().filter_map(|r| r.host.as_deref()).filter(|h| !h.is_empty());
    let all: Vec<&str> = named.collect();
    let shown = all.iter().take(3).copied().collect::<Vec<_>>().join(",");
    match all.len().saturating_sub(3) {
        0 if shown.is_empty() => "*".to_owned(),
        0 => shown,
        more => format!("{shown} + {more} more..."),
    }
}

fn host_faults(host: &str, path: &str) -> Vec<FieldError> {
    if host.parse::<IpAddr>().is_ok() {
        return vec![FieldError::invalid(path, host, "must be a DNS name, not an IP address")];
    }
    let faults = if host.contains('*') {
        validation::wildcard_subdomain(host)
    } else {
        validation::dns1123_subdomain(host)
    };
    invalid_all(path, host, faults)
}

fn rule(rule: &IngressRule, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(host) = rule.host.as_deref().filter(|h| !h.is_empty()) {
        errors.extend(host_faults(host, &format!("{path}.host")));
    }
    let Some(http) = &rule.http else { return errors };
    if http.paths.is_empty() {
        errors.push(FieldError::required(format!("{path}.http.paths"), ""));
    }
    for (n, one) in http.paths.iter().enumerate() {
        errors.extend(http_path(one, &format!("{path}.http.paths[{n}]")));
    }
    errors
}

fn http_path(one: &HTTPIngressPath, path: &str) -> Vec<FieldError> {
    let text = one.path.as_deref().unwrap_or_default();
    let at = format!("{path}.path");
    let mut errors = Vec::new();
    match one.path_type.as_str() {
        "" => errors.push(FieldError::required(format!("{path}.pathType"), "pathType must be specified")),
        "Exact" | "Prefix" => {
            if !text.starts_with('/') {
                errors.push(FieldError::invalid(&at, text, "must be an absolute path"));
            }
            for sequence in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|s| text.contains(**s)) {
                errors.push(FieldError::invalid(&at, text, &format!("must not contain '{sequence}'")));
            }
            for suffix in ["/..", "/."].iter().filter(|s| text.ends_with(**s)) {
                errors.push(FieldError::invalid(&at, text, &format!("cannot end with '{suffix}'")));
            }
        }
        "ImplementationSpecific" => {
            if !text.is_empty() && !text.starts_with('/') {
                errors.push(FieldError::invalid(&at, text, "must be an absolute path"));
            }
        }
        other => {
            let supported = ["Exact", "ImplementationSpecific", "Prefix"];
            errors.push(FieldError::not_supported(format!("{path}.pathType"), other, &supported));
        }
    }
    errors.extend(backend(&one.backend, &format!("{path}.backend")));
    errors
}

fn backend(backend: &IngressBackend, path: &str) -> Vec<FieldError> {
    let service = match (&backend.resource, &backend.service) {
        (Some(_), Some(_)) => {
            return vec![FieldError::invalid(path, "", "cannot set both resource and service backends")];
        }
        (None, None) => return vec![FieldError::required(format!("{path}.service.name"), "")],
        (Some(_), None) => return Vec::new(),
        (None, Some(service)) => service,
    };
    let mut errors = match service.name.as_str() {
        "" => vec![FieldError::required(format!("{path}.service.name"), "")],
        name => invalid_all(&format!("{path}.service.name"), name, validation::dns1035_label(name)),
    };
    let port = service.port.clone().unwrap_or_default();
    let (name, number) = (port.name.unwrap_or_default(), port.number.unwrap_or(0));
    let at = format!("{path}.service.port");
    match (name.as_str(), number) {
        ("", 0) => {
            errors.push(FieldError::required(format!("{path}.service"), "port name or number is required"))
        }
        ("", number) => {
            for fault in validation::port_number(number) {
                errors.push(FieldError::invalid(format!("{at}.number"), number, &fault));
            }
        }
        (name, 0) => errors.extend(invalid_all(&format!("{at}.name"), name, validation::port_name(name))),
        (name, _) => errors.push(FieldError::invalid(path, name, "cannot set both port name & port number")),
    }
    errors
}

fn tls(spec: &IngressSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (n, tls) in spec.tls.iter().flatten().enumerate() {
        for (m, host) in tls.hosts.iter().flatten().enumerate() {
            errors.extend(host_faults(host, &format!("spec.tls[{n}].hosts[{m}]")));
        }
        if let Some(name) = tls.secret_name.as_deref().filter(|s| !s.is_empty()) {
            let path = format!("spec.tls[{n}].secretName");
            errors.extend(invalid_all(&path, name, validation::dns1123_subdomain(name)));
        }
    }
    errors
}

pub(super) struct IngressClasses;

impl Strategy for IngressClasses {
    type Kind = IngressClass;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            namespaced: false,
            generation: true,
            ..Descriptor::namespaced(GROUP, "v1", "IngressClass", "ingressclasses", "ingressclass")
        }
    }

    fn validate(&self, class: &IngressClass) -> Vec<FieldError> {
        let spec = class.spec.clone().unwrap_or_default();
        let path = "spec.controller";
        match spec.controller.as_deref().unwrap_or_default() {
            "" => vec![FieldError::required(path, "")],
            name if name.len() > 250 => vec![FieldError::too_long(path, 250)],
            name if !name.contains('/') => {
                vec![FieldError::invalid(
                    path,
                    name,
                    "must be a domain-prefixed path (such as \"acme.io/foo\")",
                )]
            }
            name => {
                let domain = name.split('/').next().unwrap_or_default();
                invalid_all(path, name, validation::dns1123_subdomain(domain))
            }
        }
    }

    fn validate_update(&self, new: &IngressClass, old: &IngressClass) -> Vec<FieldError> {
        let controller =
            |c: &IngressClass| c.spec.as_ref().and_then(|s| s.controller.clone()).unwrap_or_default();
        if controller(new) == controller(old) {
            return Vec::new();
        }
        vec![FieldError::invalid("spec.controller", controller(new), IMMUTABLE)]
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] =
            &[Column::NAME, Column::text("Controller"), Column::text("Parameters"), Column::AGE];
        COLUMNS
    }

    fn row(&self, class: &IngressClass, metadata: &Meta<'_>) -> Vec<Value> {
        let spec = class.spec.clone().unwrap_or_default();
        let parameters = spec.parameters.map(|p| match p.api_group {
            Some(group) if !group.is_empty() => format!("{}.{group}/{}", p.kind, p.name),
            _ => format!("{}/{}", p.kind, p.name),
        });
        vec![
            metadata.name.into(),
            spec.controller.unwrap_or_default().into(),
            or_none(parameters.as_deref()).into(),
            metadata.age().into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::tests::{create, row, update};

    fn ingress(path_type: &str, path: &str, backend: Value) -> Value {
        json!({"metadata": {"name": "i"}, "spec": {"rules": [{"host": "a.example.com", "http": {"paths": [{"path": path, "pathType": path_type, "backend": backend}]}}]}})
    }

    #[test]
    fn rules() {
        let web = || json!({"service": {"name": "web", "port": {"number": 80}}});
        let fault = |object: Value| {
            create("Ingress", object)
                .unwrap_err()
                .message
                .replace("Ingress.networking.k8s.io \"i\" is invalid: ", "")
        };
        assert!(create("Ingress", ingress("Prefix", "/", web())).is_ok());
        assert_eq!(
            fault(ingress("", "/", web())),
            "spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"
        );
        assert_eq!(
            fault(ingress("Exact", "x", web())),
            "spec.rules[0].http.paths[0].path: Invalid value: \"x\": must be an absolute path"
        );
        assert_eq!(
            fault(ingress("Prefix", "/", json!({"service": {"name": "web"}}))),
            "spec.rules[0].http.paths[0].backend.service: Required value: port name or number is required"
        );
        assert_eq!(
            fault(json!({"metadata": {"name": "i"}, "spec": {}})),
            "spec: Invalid value: []: either `defaultBackend` or `rules` must be specified"
        );
        let mut address = ingress("Prefix", "/", web());
        address["spec"]["rules"][0]["host"] = "1.2.3.4".into();
        assert_eq!(
            fault(address),
            "spec.rules[0].host: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address"
        );
    }

    #[test]
    fn rows() {
        let mut object = ingress("Prefix", "/", json!({}));
        object["spec"]["tls"] = json!([{}]);
        object["spec"]["ingressClassName"] = "ketch".into();
        object["status"] = json!({"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}]}});
        assert_eq!(row("Ingress", &object), "i|ketch|a.example.com|10.0.0.1|80, 443|<unknown>");
        let class = |name: &str| json!({"metadata": {"name": "ketch"}, "spec": {"controller": name}});
        assert_eq!(
            row("IngressClass", &class("ketch.dev/ingress")),
            "ketch|ketch.dev/ingress|<none>|<unknown>"
        );
        assert!(
            update("IngressClass", class("a.b/c"), &class("a.b/d"))
                .unwrap_err()
                .message
                .contains("immutable")
        );
        assert!(create("IngressClass", class("plain")).is_err());
    }
}
