//! Containers of a pod: names, images, ports, environment, mounts, probes, hooks.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerPort, EnvFromSource, EnvVar, EnvVarSource, HTTPGetAction, Lifecycle, PodSpec,
        Probe, VolumeMount,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{invalid_all, not_negative, one_of, resources, volumes};
use crate::{strategy::FieldError, validation};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
/// What `fieldRef` may name in an environment variable, besides single labels and annotations.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Faults of all containers of a pod.
pub(super) fn validate_all(spec: &PodSpec, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let volumes: BTreeSet<&str> = spec.volumes.iter().flatten().map(|v| v.name.as_str()).collect();
    let mut names = BTreeSet::new();
    if spec.containers.is_empty() {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    let init = spec.init_containers.as_deref().unwrap_or_default();
    for (list, field) in [(spec.containers.as_slice(), "containers"), (init, "initContainers")] {
        for (n, container) in list.iter().enumerate() {
            let path = format!("{path}.{field}[{n}]");
            errors.extend(self::container(container, &path, &volumes));
            if !container.name.is_empty() && !names.insert(container.name.as_str()) {
                errors.push(FieldError::duplicate(format!("{path}.name"), &container.name));
            }
            if field == "initContainers" {
                errors.extend(init_container(container, &path));
            }
        }
    }
    errors.extend(host_ports(&spec.containers, path));
    errors
}

fn container(container: &Container, path: &str, volumes: &BTreeSet<&str>) -> Vec<FieldError> {
    let name = format!("{path}.name");
    let mut errors = match container.name.as_str() {
        "" => vec![FieldError::required(&name, "")],
        text => invalid_all(&name, text, validation::dns1123_label(text)),
    };
    let image = container.image.as_deref().unwrap_or_default();
    if image.is_empty() {
        errors.push(FieldError::required(format!("{path}.image"), ""));
    } else if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(format!("{path}.image"), image, detail));
    }
    let policy = container.image_pull_policy.as_deref();
    errors.extend(one_of(&format!("{path}.imagePullPolicy"), policy, &["Always", "IfNotPresent", "Never"]));
    let policy = container.termination_message_policy.as_deref();
    errors.extend(one_of(
        &format!("{path}.terminationMessagePolicy"),
        policy,
        &["FallbackToLogsOnError", "File"],
    ));
    errors.extend(ports(container.ports.as_deref().unwrap_or_default(), &format!("{path}.ports")));
    errors.extend(env_vars(container.env.as_deref().unwrap_or_default(), &format!("{path}.env")));
    errors.extend(env_from(container.env_from.as_deref().unwrap_or_default(), &format!("{path}.envFrom")));
    let mounts = container.volume_mounts.as_deref().unwrap_or_default();
    errors.extend(self::mounts(mounts, &format!("{path}.volumeMounts"), volumes));
    if let Some(resources) = &container.resources {
        errors.extend(resources::requirements(resources, &format!("{path}.resources")));
    }
    errors.extend(probes(container, path));
    if let Some(hooks) = &container.lifecycle {
        errors.extend(lifecycle(hooks, &format!("{path}.lifecycle")));
    }
    errors
}

/// An init container that is no sidecar runs to its end: probes and hooks make no sense.
fn init_container(container: &Container, path: &str) -> Vec<FieldError> {
    if container.restart_policy.as_deref() == Some("Always") {
        return Vec::new();
    }
    let detail = "may not be set for init containers without restartPolicy=Always";
    [
        (container.lifecycle.is_some(), "lifecycle"),
        (container.liveness_probe.is_some(), "livenessProbe"),
        (container.readiness_probe.is_some(), "readinessProbe"),
        (container.startup_probe.is_some(), "startupProbe"),
    ]
    .into_iter()
    .filter(|(set, _)| *set)
    .map(|(_, field)| FieldError::forbidden(format!("{path}.{field}"), detail))
    .collect()
}

fn ports(list: &[ContainerPort], path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut names = BTreeSet::new();
    for (n, port) in list.iter().enumerate() {
        let path = format!("{path}[{n}]");
        if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            errors.extend(invalid_all(&format!("{path}.name"), name, validation::port_name(name)));
            if !names.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
        }
        if port.container_port == 0 {
            errors.push(FieldError::required(format!("{path}.containerPort"), ""));
        } else {
            errors.extend(number(&format!("{path}.containerPort"), port.container_port));
        }
        if let Some(host) = port.host_port.filter(|p| *p != 0) {
            errors.extend(number(&format!("{path}.hostPort"), host));
        }
        errors.extend(one_of(&format!("{path}.protocol"), port.protocol.as_deref(), PROTOCOLS));
    }
    errors
}

fn number(path: &str, port: i32) -> Vec<FieldError> {
    validation::port_number(port).iter().map(|fault| FieldError::invalid(path, port, fault)).collect()
}

fn host_ports(containers: &[Container], path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut taken = BTreeSet::new();
    for (n, container) in containers.iter().enumerate() {
        for (m, port) in container.ports.iter().flatten().enumerate() {
            let Some(host) = port.host_port.filter(|p| *p != 0) else { continue };
            let protocol = port.protocol.as_deref().unwrap_or_default();
            let key = format!("{protocol}/{}/{host}", port.host_ip.as_deref().unwrap_or_default());
            if !taken.insert(key.clone()) {
                errors
                    .push(FieldError::duplicate(format!("{path}.containers[{n}].ports[{m}].hostPort"), key));
            }
        }
    }
    errors
}

/// Faults of environment variables at `path`.
pub(in crate::kinds) fn env_vars(list: &[EnvVar], path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (n, env) in list.iter().enumerate() {
        let path = format!("{path}[{n}]");
        if env.name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else {
            errors.extend(invalid_all(&format!("{path}.name"), &env.name, validation::env_name(&env.name)));
        }
        if let Some(source) = &env.value_from {
            let path = format!("{path}.valueFrom");
            errors.extend(env_source(source, &path));
            if env.value.as_deref().is_some_and(|v| !v.is_empty()) {
                errors.push(FieldError::invalid(path, "", "may not be specified when `value` is not empty"));
            }
        }
    }
    errors
}

fn env_source(source: &EnvVarSource, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut count = 0;
    if let Some(field) = &source.field_ref {
        count += 1;
        let subscripted = |prefix: &str| {
            let rest = field.field_path.strip_prefix(prefix);
            rest.is_some_and(|r| r.starts_with("['") && r.ends_with("']"))
        };
        if field.field_path.is_empty() {
            errors.push(FieldError::required(format!("{path}.fieldRef.fieldPath"), ""));
        } else if !subscripted("metadata.labels") && !subscripted("metadata.annotations") {
            errors.extend(one_of(&format!("{path}.fieldRef.fieldPath"), Some(&field.field_path), ENV_FIELDS));
        }
    }
    if let Some(resource) = &source.resource_field_ref {
        count += 1;
        if resource.resource.is_empty() {
            errors.push(FieldError::required(format!("{path}.resourceFieldRef.resource"), ""));
        }
    }
    let keys = [
        source.config_map_key_ref.as_ref().map(|r| ("configMapKeyRef", &r.name, &r.key)),
        source.secret_key_ref.as_ref().map(|r| ("secretKeyRef", &r.name, &r.key)),
    ];
    for (field, name, key) in keys.into_iter().flatten() {
        count += 1;
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.{field}.name"), ""));
        }
        let path = format!("{path}.{field}.key");
        match key.as_str() {
            "" => errors.push(FieldError::required(path, "")),
            key => errors.extend(invalid_all(&path, key, validation::config_key(key))),
        }
    }
    count += usize::from(source.file_key_ref.is_some());
    match count {
        0 => {
            let detail =
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
            errors.push(FieldError::invalid(path, "", detail));
        }
        1 => {}
        _ => {
            errors.push(FieldError::invalid(path, "", "may not have more than one field specified at a time"))
        }
    }
    errors
}

fn env_from(list: &[EnvFromSource], path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (n, source) in list.iter().enumerate() {
        let path = format!("{path}[{n}]");
        if let Some(prefix) = source.prefix.as_deref().filter(|p| !p.is_empty()) {
            errors.extend(invalid_all(&format!("{path}.prefix"), prefix, validation::env_name(prefix)));
        }
        let named = [
            source.config_map_ref.as_ref().map(|r| ("configMapRef", &r.name)),
            source.secret_ref.as_ref().map(|r| ("secretRef", &r.name)),
        ];
        for (field, _) in named.iter().flatten().filter(|(_, name)| name.is_empty()) {
            errors.push(FieldError::required(format!("{path}.{field}.name"), ""));
        }
        match named.iter().flatten().count() {
            0 => errors.push(FieldError::invalid(
                path,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            )),
            1 => {}
            _ => errors.push(FieldError::invalid(
                path,
                "",
                "may not have more than one field specified at a time",
            )),
        }
    }
    errors
}

fn mounts(list: &[VolumeMount], path: &str, volumes: &BTreeSet<&str>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut places = BTreeSet::new();
    for (n, mount) in list.iter().enumerate() {
        let path = format!("{path}[{n}]");
        if mount.name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
        if !volumes.contains(mount.name.as_str()) {
            errors.push(FieldError::not_found(format!("{path}.name"), &mount.name));
        }
        if mount.mount_path.is_empty() {
            errors.push(FieldError::required(format!("{path}.mountPath"), ""));
        }
        if !places.insert(&mount.mount_path) {
            errors.push(FieldError::invalid(
                format!("{path}.mountPath"),
                &mount.mount_path,
                "must be unique",
            ));
        }
        let sub_path = mount.sub_path.as_deref().filter(|p| !p.is_empty());
        let expression = mount.sub_path_expr.as_deref().filter(|p| !p.is_empty());
        if let Some(value) = sub_path {
            errors.extend(volumes::relative(value, &format!("{path}.subPath")));
        }
        if let Some(value) = expression {
            if sub_path.is_some() {
                let detail = "subPathExpr and subPath are mutually exclusive";
                errors.push(FieldError::invalid(format!("{path}.subPathExpr"), value, detail));
            }
            errors.extend(volumes::relative(value, &format!("{path}.subPathExpr")));
        }
    }
    errors
}

fn probes(container: &Container, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (field, probe, one_success) in [
        ("livenessProbe", &container.liveness_probe, true),
        ("readinessProbe", &container.readiness_probe, false),
        ("startupProbe", &container.startup_probe, true),
    ] {
        let Some(probe) = probe else { continue };
        let path = format!("{path}.{field}");
        errors.extend(self::probe(probe, &path));
        if let Some(threshold) = probe.success_threshold.filter(|t| one_success && *t != 1) {
            errors.push(FieldError::invalid(format!("{path}.successThreshold"), threshold, "must be 1"));
        }
    }
    errors
}

fn probe(probe: &Probe, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (field, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        errors.extend(not_negative(&format!("{path}.{field}"), value));
    }
    if let Some(seconds) = probe.termination_grace_period_seconds.filter(|s| *s <= 0) {
        let path = format!("{path}.terminationGracePeriodSeconds");
        errors.push(FieldError::invalid(path, seconds, "must be greater than 0"));
    }
    let set = [
        ("exec", probe.exec.is_some()),
        ("httpGet", probe.http_get.is_some()),
        ("tcpSocket", probe.tcp_socket.is_some()),
        ("grpc", probe.grpc.is_some()),
    ];
    errors.extend(one_handler(&set, path));
    if probe.exec.as_ref().is_some_and(|e| e.command.as_ref().is_none_or(Vec::is_empty)) {
        errors.push(FieldError::required(format!("{path}.exec.command"), ""));
    }
    if let Some(get) = &probe.http_get {
        errors.extend(http_get(get, &format!("{path}.httpGet")));
    }
    if let Some(tcp) = &probe.tcp_socket {
        errors.extend(port_or_name(&tcp.port, &format!("{path}.tcpSocket.port")));
    }
    if let Some(grpc) = &probe.grpc {
        errors.extend(number(&format!("{path}.grpc.port"), grpc.port));
    }
    errors
}

fn one_handler(handlers: &[(&str, bool)], path: &str) -> Vec<FieldError> {
    let set: Vec<_> = handlers.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect();
    match set.as_slice() {
        [] => vec![FieldError::required(path, "must specify a handler type")],
        [_, extra @ ..] => extra
            .iter()
            .map(|name| {
                FieldError::forbidden(format!("{path}.{name}"), "may not specify more than 1 handler type")
            })
            .collect(),
    }
}

fn http_get(get: &HTTPGetAction, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if get.path.as_deref().unwrap_or_default().is_empty() {
        errors.push(FieldError::required(format!("{path}.path"), ""));
    }
    errors.extend(port_or_name(&get.port, &format!("{path}.port")));
    errors.extend(one_of(&format!("{path}.scheme"), get.scheme.as_deref(), &["HTTP", "HTTPS"]));
    errors
}

/// A port by number, or by the name of a container port.
pub(in crate::kinds) fn port_or_name(port: &IntOrString, path: &str) -> Vec<FieldError> {
    match port {
        IntOrString::Int(port) => number(path, *port),
        IntOrString::String(name) => invalid_all(path, name, validation::port_name(name)),
    }
}

fn lifecycle(hooks: &Lifecycle, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (field, handler) in [("postStart", &hooks.post_start), ("preStop", &hooks.pre_stop)] {
        let Some(handler) = handler else { continue };
        let path = format!("{path}.{field}");
        let set = [
            ("exec", handler.exec.is_some()),
            ("httpGet", handler.http_get.is_some()),
            ("tcpSocket", handler.tcp_socket.is_some()),
            ("sleep", handler.sleep.is_some()),
        ];
        errors.extend(one_handler(&set, &path));
        if let Some(get) = &handler.http_get {
            errors.extend(http_get(get, &format!("{path}.httpGet")));
        }
    }
    errors
}
