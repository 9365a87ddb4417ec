//! Building an environment. Pure.

use std::collections::{BTreeMap, BTreeSet};

use ketch_api::k8s::api::core::v1 as core;
use ketch_net::{Transport, services::Entry};

use super::{
    Found,
    expand::{MOST, expand},
};
use crate::{
    fields::{self, Place},
    sources::Kind,
};

/// What an environment is built from.
pub(super) struct Inputs<'a> {
    pub(super) pod: &'a core::Pod,
    pub(super) container: &'a core::Container,
    pub(super) place: &'a Place<'a>,
    /// Variables of Services, which the container's own ones go over.
    pub(super) services: Vec<(String, String)>,
    pub(super) found: &'a Found,
}

/// An environment.
#[derive(Debug, Default)]
pub(super) struct Built {
    pub(super) env: Vec<(String, String)>,
    /// Keys that are no names of variables.
    pub(super) skipped: Vec<String>,
}

/// Objects a container's environment refers to.
pub(super) fn references(container: &core::Container) -> BTreeSet<(Kind, String)> {
    let mut all = BTreeSet::new();
    for from in container.env_from.iter().flatten() {
        all.extend(from.config_map_ref.iter().map(|one| (Kind::ConfigMap, one.name.clone())));
        all.extend(from.secret_ref.iter().map(|one| (Kind::Secret, one.name.clone())));
    }
    for from in container.env.iter().flatten().filter_map(|one| one.value_from.as_ref()) {
        all.extend(from.config_map_key_ref.iter().map(|one| (Kind::ConfigMap, one.name.clone())));
        all.extend(from.secret_key_ref.iter().map(|one| (Kind::Secret, one.name.clone())));
    }
    all
}

/// The variables so far.
#[derive(Default)]
struct Variables {
    values: BTreeMap<String, String>,
    /// Names in the order in which they came first.
    order: Vec<String>,
    size: usize,
}

impl Variables {
    /// Sets one, over what it was.
    fn set(&mut self, name: String, value: String) -> Result<(), String> {
        self.size += name.len() + value.len();
        if self.size > MOST {
            return Err(format!(
                "the environment has more than {MOST} bytes; leave something out, or mount it as a volume"
            ));
        }
        if self.values.insert(name.clone(), value).is_none() {
            self.order.push(name);
        }
        Ok(())
    }
}

/// Builds the environment; `Err` with upstream's text for what is missing.
pub(super) fn build(inputs: &Inputs<'_>) -> Result<Built, String> {
    let mut all = Variables::default();
    let mut skipped = Vec::new();
    for (name, value) in &inputs.services {
        all.set(name.clone(), value.clone())?;
    }
    for from in inputs.container.env_from.iter().flatten() {
        for (key, value) in from_all(inputs, from)? {
            let name = format!("{}{key}", from.prefix.as_deref().unwrap_or_default());
            if is_name(&name) {
                all.set(name, String::from_utf8_lossy(&value).into_owned())?;
            } else {
                skipped.push(name);
            }
        }
    }
    for one in inputs.container.env.iter().flatten() {
        let value = match (&one.value, &one.value_from) {
            (Some(value), _) if !value.is_empty() => {
                let expanded = expand(value, |name| all.values.get(name).map(String::as_str));
                expanded.map_err(|why| format!("variable {}: {why}", one.name))?
            }
            (_, Some(from)) => match from_one(inputs, from)? {
                Some(value) => value,
                None => continue,
            },
            _ => String::new(),
        };
        all.set(one.name.clone(), value)?;
    }
    let Variables { mut values, order, .. } = all;
    let env = order.into_iter().filter_map(|name| values.remove(&name).map(|value| (name, value))).collect();
    Ok(Built { env, skipped })
}

fn from_all(inputs: &Inputs<'_>, from: &core::EnvFromSource) -> Result<Vec<(String, Vec<u8>)>, String> {
    let (kind, name, optional) = if let Some(one) = &from.config_map_ref {
        (Kind::ConfigMap, &one.name, one.optional)
    } else if let Some(one) = &from.secret_ref {
        (Kind::Secret, &one.name, one.optional)
    } else {
        return Ok(Vec::new());
    };
    match inputs.found.get(&(kind, name.clone())) {
        Some(Some(data)) => Ok(data.clone().into_iter().collect()),
        _ if optional == Some(true) => Ok(Vec::new()),
        _ => Err(format!("{} \"{name}\" not found", kind.noun())),
    }
}

/// The value of one `valueFrom`; `None`: an optional one that is not there.
fn from_one(inputs: &Inputs<'_>, from: &core::EnvVarSource) -> Result<Option<String>, String> {
    if let Some(one) = &from.field_ref {
        return fields::field(inputs.pod, inputs.place, &one.field_path).map(Some);
    }
    if let Some(one) = &from.resource_field_ref {
        return fields::resource(inputs.pod, Some(inputs.container), inputs.place, one).map(Some);
    }
    if let Some(one) = &from.config_map_key_ref {
        return key(inputs, Kind::ConfigMap, &one.name, &one.key, one.optional);
    }
    if let Some(one) = &from.secret_key_ref {
        return key(inputs, Kind::Secret, &one.name, &one.key, one.optional);
    }
    Err("valueFrom of a kind that is not supported on this node".to_owned())
}

fn key(
    inputs: &Inputs<'_>,
    kind: Kind,
    name: &str,
    key: &str,
    optional: Option<bool>,
) -> Result<Option<String>, String> {
    let namespace = inputs.pod.metadata.namespace.as_deref().unwrap_or("default");
    match inputs.found.get(&(kind, name.to_owned())).and_then(Option::as_ref).map(|data| data.get(key)) {
        Some(Some(value)) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        _ if optional == Some(true) => Ok(None),
        None => Err(format!("{} \"{name}\" not found", kind.noun())),
        Some(None) => {
            let noun = if kind == Kind::Secret { "Secret" } else { "ConfigMap" };
            Err(format!("couldn't find key {key} in {noun} {namespace}/{name}"))
        }
    }
}

/// What upstream takes for the name of a variable: printable ASCII without `=`.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=')
}

/// Variables of the Kubernetes API's own Service.
pub(super) fn api_env(host: &str, port: u16) -> Vec<(String, String)> {
    let mut env = vec![
        ("KUBERNETES_SERVICE_HOST".to_owned(), host.to_owned()),
        ("KUBERNETES_SERVICE_PORT".to_owned(), port.to_string()),
        ("KUBERNETES_SERVICE_PORT_HTTPS".to_owned(), port.to_string()),
    ];
    env.extend(port_env("KUBERNETES", host, port, "tcp", true));
    env
}

/// Variables of one Service, in the form Docker links had.
pub(super) fn link_env(name: &str, entry: &Entry) -> Vec<(String, String)> {
    let (Some(address), Some(first)) = (entry.addresses.first(), entry.ports.first()) else {
        return Vec::new();
    };
    let (upper, host) = (variable(name), address.to_string());
    let mut env = vec![
        (format!("{upper}_SERVICE_HOST"), host.clone()),
        (format!("{upper}_SERVICE_PORT"), first.number.to_string()),
    ];
    for port in entry.ports.iter().filter(|port| !port.name.is_empty()) {
        env.push((format!("{upper}_SERVICE_PORT_{}", variable(&port.name)), port.number.to_string()));
    }
    for (index, port) in entry.ports.iter().enumerate() {
        let protocol = if port.transport == Transport::Tcp { "tcp" } else { "udp" };
        env.extend(port_env(&upper, &host, port.number, protocol, index == 0));
    }
    env
}

fn port_env(upper: &str, host: &str, port: u16, protocol: &str, first: bool) -> Vec<(String, String)> {
    let url = format!("{protocol}://{host}:{port}");
    let prefix = format!("{upper}_PORT_{port}_{}", protocol.to_uppercase());
    let mut env = if first { vec![(format!("{upper}_PORT"), url.clone())] } else { Vec::new() };
    env.extend([
        (prefix.clone(), url),
        (format!("{prefix}_PROTO"), protocol.to_owned()),
        (format!("{prefix}_PORT"), port.to_string()),
        (format!("{prefix}_ADDR"), host.to_owned()),
    ]);
    env
}

fn variable(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn env(container: serde_json::Value) -> Result<BTreeMap<String, String>, String> {
        let mut container = container;
        container["name"] = json!("main");
        let container: core::Container = serde_json::from_value(container).unwrap();
        let pod: core::Pod =
            serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop"}})).unwrap();
        let data = |pairs: &[(&str, &str)]| {
            Some(pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect())
        };
        let found = Found::from([
            ((Kind::ConfigMap, "cfg".to_owned()), data(&[("mode", "fast"), ("a=b", "x")])),
            ((Kind::Secret, "key".to_owned()), data(&[("token", "s3cret")])),
            ((Kind::ConfigMap, "none".to_owned()), None),
            ((Kind::ConfigMap, "large".to_owned()), data(&[("k", &"x".repeat(1 << 20))])),
        ]);
        let place = Place { ip: None, host_ips: &[], cpus: 1, memory: 1 };
        let services = api_env("10.43.0.1", 443);
        build(&Inputs { pod: &pod, container: &container, place: &place, services, found: &found })
            .map(|built| built.env.into_iter().collect())
    }

    #[test]
    fn values_come_from_everywhere_and_later_ones_win() {
        let env = env(json!({
            "envFrom": [{"prefix": "CFG_", "configMapRef": {"name": "cfg"}}, {"configMapRef": {"name": "none", "optional": true}}],
            "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "value": "$(A)-$(MISSING)-$$(A)-$(CFG_mode)"},
                {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "key", "key": "token"}}},
                {"name": "OPTIONAL", "valueFrom": {"secretKeyRef": {"name": "key", "key": "no", "optional": true}}},
                {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "KUBERNETES_SERVICE_PORT", "value": "1"},
                {"name": "A", "value": "2"},
            ]
        }))
        .unwrap();
        assert_eq!(env["B"], "1-$(MISSING)-$(A)-fast");
        assert_eq!(env["A"], "2");
        assert_eq!(env["TOKEN"], "s3cret");
        assert_eq!(env["NAME"], "web");
        assert_eq!(env["CFG_mode"], "fast");
        assert_eq!(env["KUBERNETES_SERVICE_PORT"], "1");
        assert_eq!(env["KUBERNETES_PORT_443_TCP_ADDR"], "10.43.0.1");
        assert!(!env.contains_key("OPTIONAL"));
        assert!(!env.keys().any(|name| name.contains('=')));
    }

    #[test]
    fn what_is_missing_is_named_as_upstream_does() {
        let from =
            |from: serde_json::Value| env(json!({"env": [{"name": "X", "valueFrom": from}]})).unwrap_err();
        assert_eq!(
            from(json!({"configMapKeyRef": {"name": "none", "key": "k"}})),
            "configmap \"none\" not found"
        );
        assert_eq!(
            from(json!({"secretKeyRef": {"name": "key", "key": "k"}})),
            "couldn't find key k in Secret shop/key"
        );
        let error = env(json!({"envFrom": [{"configMapRef": {"name": "none"}}]})).unwrap_err();
        assert_eq!(error, "configmap \"none\" not found");
    }

    #[test]
    fn values_made_of_values_have_a_limit() {
        // Each has the one before twice.
        let mut list = vec![json!({"name": "V0", "value": "x".repeat(64)})];
        list.extend(
            (1..40).map(|n| json!({"name": format!("V{n}"), "value": format!("$(V{0})$(V{0})", n - 1)})),
        );
        let error = env(json!({ "env": list })).unwrap_err();
        assert!(error.starts_with("variable V15: ") && error.contains("bytes"), "{error}");
        // The same object again and again, under other names.
        let prefixed: Vec<_> =
            (0..9).map(|n| json!({"prefix": format!("P{n}_"), "configMapRef": {"name": "large"}})).collect();
        let error = env(json!({ "envFrom": prefixed })).unwrap_err();
        assert!(error.starts_with("the environment has more than"), "{error}");
    }

    #[test]
    fn services_have_link_variables() {
        let entry = Entry {
            addresses: vec!["10.43.0.10".parse().unwrap()],
            ports: vec![ketch_net::services::EntryPort {
                name: "http".into(),
                number: 80,
                transport: Transport::Tcp,
            }],
            ..Entry::default()
        };
        let env: BTreeMap<String, String> = link_env("my-web", &entry).into_iter().collect();
        assert_eq!(env["MY_WEB_SERVICE_HOST"], "10.43.0.10");
        assert_eq!(env["MY_WEB_SERVICE_PORT_HTTP"], "80");
        assert_eq!(env["MY_WEB_PORT"], "tcp://10.43.0.10:80");
        assert_eq!(env["MY_WEB_PORT_80_TCP_PROTO"], "tcp");
    }
}
