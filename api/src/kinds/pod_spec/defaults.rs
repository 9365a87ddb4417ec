//! Defaults of pods and pod templates, as `pkg/apis/core/v1/defaults.go` sets them.

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, DownwardAPIVolumeFile, EmptyDirVolumeSource, EnvVar, EphemeralContainer,
    HTTPGetAction, Lifecycle, LifecycleHandler, ObjectFieldSelector, PodSpec, PodTemplateSpec, Probe, Volume,
};

use super::{canonicalize, volumes};

/// `rw-r--r--`.
const FILE_MODE: i32 = 0o644;

/// Sets `field` unless it is set.
fn or<T>(field: &mut Option<T>, value: T) {
    if field.is_none() {
        *field = Some(value);
    }
}

/// Sets a text unless it is set to something.
fn or_text(field: &mut Option<String>, value: &str) {
    if field.as_deref().unwrap_or_default().is_empty() {
        *field = Some(value.to_owned());
    }
}

/// Defaults of a pod template.
pub(in crate::kinds) fn template(template: &mut PodTemplateSpec) {
    or(&mut template.metadata, Default::default());
    spec(template.spec.get_or_insert_default());
}

/// Defaults of a pod itself: those of a template, and what only a pod gets.
pub(in crate::kinds) fn pod(pod: &mut PodSpec) {
    spec(pod);
    or(&mut pod.enable_service_links, true);
    let init = pod.init_containers.iter_mut().flatten();
    for container in init.chain(pod.containers.iter_mut()) {
        let Some(resources) = &mut container.resources else { continue };
        // A limit without a request asks for as much as it may use.
        for (name, limit) in resources.limits.clone().into_iter().flatten() {
            resources.requests.get_or_insert_default().entry(name).or_insert(limit);
        }
    }
}

fn spec(spec: &mut PodSpec) {
    or_text(&mut spec.dns_policy, "ClusterFirst");
    or_text(&mut spec.restart_policy, "Always");
    or(&mut spec.security_context, Default::default());
    or(&mut spec.termination_grace_period_seconds, 30);
    or_text(&mut spec.scheduler_name, "default-scheduler");
    service_account(spec);
    let host_network = spec.host_network == Some(true);
    for container in spec.init_containers.iter_mut().flatten().chain(spec.containers.iter_mut()) {
        self::container(container);
        for port in container.ports.iter_mut().flatten() {
            self::port(port, host_network);
        }
    }
    for container in spec.ephemeral_containers.iter_mut().flatten() {
        ephemeral(container);
    }
    for volume in spec.volumes.iter_mut().flatten() {
        self::volume(volume);
    }
    if let Some(overhead) = &mut spec.overhead {
        overhead.values_mut().for_each(crate::quantity::canonicalize);
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are served.
fn service_account(spec: &mut PodSpec) {
    let set = |name: &Option<String>| name.clone().filter(|n| !n.is_empty());
    let name = set(&spec.service_account_name).or_else(|| set(&spec.service_account));
    spec.service_account_name.clone_from(&name);
    spec.service_account = name;
}

fn container(container: &mut Container) {
    pull_policy(container.image.as_deref(), &mut container.image_pull_policy);
    or_text(&mut container.termination_message_path, "/dev/termination-log");
    or_text(&mut container.termination_message_policy, "File");
    canonicalize(container.resources.get_or_insert_default());
    let probes =
        [&mut container.liveness_probe, &mut container.readiness_probe, &mut container.startup_probe];
    probes.into_iter().flatten().for_each(probe);
    if let Some(hooks) = &mut container.lifecycle {
        lifecycle(hooks);
    }
    container.env.iter_mut().flatten().for_each(env);
}

fn ephemeral(container: &mut EphemeralContainer) {
    pull_policy(container.image.as_deref(), &mut container.image_pull_policy);
    or_text(&mut container.termination_message_path, "/dev/termination-log");
    or_text(&mut container.termination_message_policy, "File");
    canonicalize(container.resources.get_or_insert_default());
    container.env.iter_mut().flatten().for_each(env);
}

fn pull_policy(image: Option<&str>, policy: &mut Option<String>) {
    let latest = container_image_tagged_latest(image.unwrap_or_default());
    or_text(policy, if latest { "Always" } else { "IfNotPresent" });
}

/// Whether a reference follows a moving tag: `latest`, or none and no digest.
fn container_image_tagged_latest(image: &str) -> bool {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    // A colon before the last slash is the registry's port.
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => digest.is_none(),
    }
}

fn port(port: &mut ContainerPort, host_network: bool) {
    or_text(&mut port.protocol, "TCP");
    if host_network && port.host_port.unwrap_or_default() == 0 {
        port.host_port = Some(port.container_port);
    }
}

fn probe(probe: &mut Probe) {
    // Zero counts as unset, as in Go.
    for (field, value) in [
        (&mut probe.timeout_seconds, 1),
        (&mut probe.period_seconds, 10),
        (&mut probe.success_threshold, 1),
        (&mut probe.failure_threshold, 3),
    ] {
        if field.unwrap_or_default() == 0 {
            *field = Some(value);
        }
    }
    if let Some(get) = &mut probe.http_get {
        http_get(get);
    }
    if let Some(grpc) = &mut probe.grpc {
        or(&mut grpc.service, String::new());
    }
}

fn http_get(action: &mut HTTPGetAction) {
    or_text(&mut action.path, "/");
    or_text(&mut action.scheme, "HTTP");
}

fn lifecycle(hooks: &mut Lifecycle) {
    let handlers: [&mut Option<LifecycleHandler>; 2] = [&mut hooks.post_start, &mut hooks.pre_stop];
    handlers.into_iter().flatten().filter_map(|h| h.http_get.as_mut()).for_each(http_get);
}

fn env(env: &mut EnvVar) {
    let Some(source) = &mut env.value_from else { return };
    if let Some(field) = &mut source.field_ref {
        field_ref(field);
    }
    if let Some(divisor) = source.resource_field_ref.as_mut() {
        or(&mut divisor.divisor, k8s_openapi::apimachinery::pkg::api::resource::Quantity("0".into()));
    }
}

fn field_ref(field: &mut ObjectFieldSelector) {
    or_text(&mut field.api_version, "v1");
}

fn downward_file(file: &mut DownwardAPIVolumeFile) {
    if let Some(field) = &mut file.field_ref {
        field_ref(field);
    }
    if let Some(resource) = &mut file.resource_field_ref {
        or(&mut resource.divisor, k8s_openapi::apimachinery::pkg::api::resource::Quantity("0".into()));
    }
}

fn volume(volume: &mut Volume) {
    if volumes::sources(volume).is_empty() {
        volume.empty_dir = Some(EmptyDirVolumeSource::default());
    }
    if let Some(empty) = &mut volume.empty_dir
        && let Some(limit) = &mut empty.size_limit
    {
        crate::quantity::canonicalize(limit);
    }
    if let Some(source) = &mut volume.secret {
        or(&mut source.default_mode, FILE_MODE);
    }
    if let Some(source) = &mut volume.config_map {
        or(&mut source.default_mode, FILE_MODE);
    }
    if let Some(source) = &mut volume.host_path {
        or(&mut source.type_, String::new());
    }
    if let Some(source) = &mut volume.downward_api {
        or(&mut source.default_mode, FILE_MODE);
        source.items.iter_mut().flatten().for_each(downward_file);
    }
    if let Some(source) = &mut volume.image {
        pull_policy(source.reference.as_deref(), &mut source.pull_policy);
    }
    if let Some(source) = &mut volume.projected {
        or(&mut source.default_mode, FILE_MODE);
        for projection in source.sources.iter_mut().flatten() {
            if let Some(token) = &mut projection.service_account_token {
                or(&mut token.expiration_seconds, 3600);
            }
            let files = projection.downward_api.as_mut().and_then(|d| d.items.as_mut());
            files.into_iter().flatten().for_each(downward_file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moving_tags() {
        for (image, want) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("nginx:1.27", false),
            ("host:5000/nginx", true),
            ("host:5000/nginx:1", false),
            ("nginx@sha256:abc", false),
            ("nginx:latest@sha256:abc", true),
            ("ketch.local/default/hello@sha256:abc", false),
        ] {
            assert_eq!(container_image_tagged_latest(image), want, "{image}");
        }
    }
}
