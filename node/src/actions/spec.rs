//! From a container as its pod has it to the container as a runtime is told.

use std::{os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use ketch_api::{
    k8s::api::core::v1::{self as core, PodSecurityContext, SecurityContext},
    names,
    quantity::Quantity,
};
use ketch_runtime::{ContainerSpec, Mount, Port, Protocol, Reuse};

use super::{Start, hosts, instance, uid};
use crate::{
    context::{Context, WASM},
    env::Variables,
    machine::{Failure, Unit, qos_class},
    volumes::View,
};

/// Time an HTTP request may take when the pod does not say.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// `oom_score_adj` by quality of service (upstream's).
const GUARANTEED_OOM: i64 = -997;
const BEST_EFFORT_OOM: i64 = 1000;

pub(super) async fn container_spec(
    context: &Context,
    pod: &core::Pod,
    start: &Start,
) -> Result<ContainerSpec, Failure> {
    let container = &start.unit.container;
    let env = crate::env::resolve(context, pod, container, start.ip).await?;
    let variables = Variables::new(&env);
    let expand = |texts: &Option<Vec<String>>| {
        variables.expand_all(texts.as_deref().unwrap_or_default()).map_err(config)
    };
    let (command, args) = (expand(&container.command)?, expand(&container.args)?);
    let mounts = mounts(context, pod, start, &variables)?;
    let security = security(pod, container.security_context.as_ref());
    if start.runtime != WASM {
        check_user(pod, &container.name, &security)?;
    }
    let log = crate::logs::file(&context.root, pod, &start.unit.name, start.attempt);
    if let Some(parent) = log.parent() {
        tokio::fs::create_dir_all(parent).await.map_err(|error| {
            config(format!("cannot make the log directory {}: {error}", parent.display()))
        })?;
    }
    let id = instance(pod, &start.unit.name, start.attempt);
    Ok(ContainerSpec {
        command,
        args,
        working_dir: container.working_dir.clone(),
        mounts,
        ports: ports(container),
        memory: limit(container, "memory").and_then(|quantity| u64::try_from(quantity.value()).ok()),
        cpu_millis: limit(container, "cpu").and_then(|quantity| u64::try_from(quantity.millis()).ok()),
        cpu_request: request(container, "cpu").and_then(|quantity| u64::try_from(quantity.millis()).ok()),
        oom_score: oom_score(pod, container, context.capacity.1),
        security,
        tty: container.tty.unwrap_or(false),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        request_timeout: number(pod, "timeout-seconds").map_or(REQUEST_TIMEOUT, Duration::from_secs),
        concurrency: number(pod, "concurrency").and_then(|n| u32::try_from(n).ok()),
        reuse: Reuse {
            requests: number(pod, "reuse-requests").and_then(|n| u32::try_from(n).ok()),
            concurrent: number(pod, "reuse-concurrent").and_then(|n| u32::try_from(n).ok()),
            idle: number(pod, "idle-seconds").map(Duration::from_secs),
        },
        env,
        ..ContainerSpec::new(id, start.unit.name.as_str(), start.image.clone(), log)
    })
}

pub(super) fn annotation<'a>(pod: &'a core::Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// A number in one of our annotations; one that is none counts as absent.
fn number(pod: &core::Pod, name: &str) -> Option<u64> {
    annotation(pod, &format!("{}/{name}", names::DOMAIN))?.trim().parse().ok()
}

fn limit(container: &core::Container, name: &str) -> Option<Quantity> {
    container.resources.as_ref()?.limits.as_ref()?.get(name)?.0.parse().ok()
}

/// What the container asks for; its limit, when it only has that.
fn request(container: &core::Container, name: &str) -> Option<Quantity> {
    let requests = container.resources.as_ref()?.requests.as_ref();
    let own = requests.and_then(|requests| requests.get(name)?.0.parse().ok());
    own.or_else(|| limit(container, name))
}

fn ports(container: &core::Container) -> Vec<Port> {
    let one = |port: &core::ContainerPort| {
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some(_) => return None,
        };
        Some(Port { number: u16::try_from(port.container_port).ok()?, protocol })
    };
    container.ports.iter().flatten().filter_map(one).collect()
}

pub(super) fn http_port(spec: &ContainerSpec) -> u16 {
    let tcp = spec.ports.iter().find(|port| port.protocol == Protocol::Tcp);
    tcp.map_or(names::DEFAULT_HTTP_PORT, |port| port.number)
}

/// Where a container's termination message arrives on the host; `None` when it has no place of its own.
pub(super) fn message_file(context: &Context, uid: &str, unit: &Unit) -> Option<PathBuf> {
    let (_, name) = message_path(unit).rsplit_once('/')?;
    let plain = !name.is_empty() && name != "." && name != "..";
    plain.then(|| context.pod_dir(uid).join("messages").join(&unit.name).join(name))
}

/// The container's volumes and the files that the node gives it.
fn mounts(
    context: &Context,
    pod: &core::Pod,
    start: &Start,
    variables: &Variables<'_>,
) -> Result<Vec<Mount>, Failure> {
    let view = match start.runtime {
        WASM => View::Wasm,
        _ => View::Native,
    };
    let container = &start.unit.container;
    let mut mounts =
        crate::volumes::mounts(context, pod, container, variables, view, start.placement.kind())?;
    let own = match view {
        View::Wasm => vec![message_directory(context, pod, start, &mounts)],
        View::Native => {
            vec![message_mount(context, pod, start)?, hosts::mount(context, pod, start.ip).map_err(config)?]
        }
    };
    for mount in own.into_iter().flatten() {
        if !mounts.iter().any(|one| one.target.trim_end_matches('/') == mount.target) {
            mounts.push(mount);
        }
    }
    Ok(mounts)
}

/// A directory for the termination message, unless a volume is in its place: guests see directories only.
fn message_directory(context: &Context, pod: &core::Pod, start: &Start, mounts: &[Mount]) -> Option<Mount> {
    let path = message_path(&start.unit);
    let (target, _) = path.rsplit_once('/')?;
    if target.is_empty() || mounts.iter().any(|mount| mount.target.trim_end_matches('/') == target) {
        return None;
    }
    let file = message_file(context, uid(pod), &start.unit)?;
    let source = file.parent()?.to_owned();
    // The instance before may have left one.
    let _ = std::fs::remove_file(&file);
    std::fs::create_dir_all(&source).ok()?;
    Some(Mount { source, target: target.to_owned(), ..Mount::default() })
}

/// A file for the termination message, which any user may write.
fn message_mount(context: &Context, pod: &core::Pod, start: &Start) -> Result<Option<Mount>, Failure> {
    let target = message_path(&start.unit);
    let Some(source) = message_file(context, uid(pod), &start.unit).filter(|_| target.starts_with('/'))
    else {
        return Ok(None);
    };
    let made = || -> std::io::Result<()> {
        if let Some(parent) = source.parent() {
            std::fs::create_dir_all(parent)?;
        }
        // A new file: the instance before may still be ending.
        let _ = std::fs::remove_file(&source);
        std::fs::write(&source, "")?;
        std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o666))
    };
    made().map_err(|error| config(format!("cannot make {}: {error}", source.display())))?;
    Ok(Some(Mount { target: target.to_owned(), source, ..Mount::default() }))
}

fn message_path(unit: &Unit) -> &str {
    unit.container.termination_message_path.as_deref().unwrap_or("/dev/termination-log")
}

/// The container's security context, filled up from its pod's.
fn security(pod: &core::Pod, own: Option<&SecurityContext>) -> SecurityContext {
    let own = own.cloned().unwrap_or_default();
    let pod = pod.spec.as_ref().and_then(|spec| spec.security_context.clone());
    let PodSecurityContext {
        run_as_user,
        run_as_group,
        run_as_non_root,
        se_linux_options,
        seccomp_profile,
        app_armor_profile,
        ..
    } = pod.unwrap_or_default();
    SecurityContext {
        run_as_user: own.run_as_user.or(run_as_user),
        run_as_group: own.run_as_group.or(run_as_group),
        run_as_non_root: own.run_as_non_root.or(run_as_non_root),
        se_linux_options: own.se_linux_options.clone().or(se_linux_options),
        seccomp_profile: own.seccomp_profile.clone().or(seccomp_profile),
        app_armor_profile: own.app_armor_profile.clone().or(app_armor_profile),
        ..own
    }
}

/// Refuses root where the pod forbids it. The user of an image is the runtime's to check: it has the image.
fn check_user(pod: &core::Pod, container: &str, security: &SecurityContext) -> Result<(), Failure> {
    if security.run_as_non_root == Some(true) && security.run_as_user == Some(0) {
        return Err(config(format!(
            "container's runAsUser breaks non-root policy (pod: \"{}\", container: {container}): runAsNonRoot is set \
             and runAsUser is 0",
            super::title(pod)
        )));
    }
    Ok(())
}

/// Which processes the kernel ends first when memory is short (upstream's formula): those that asked for little
/// of the node's memory.
fn oom_score(pod: &core::Pod, container: &core::Container, capacity: i64) -> i32 {
    let asked = request(container, "memory").map_or(0, |quantity| quantity.value());
    let score = match qos_class(pod) {
        "Guaranteed" => GUARANTEED_OOM,
        "BestEffort" => BEST_EFFORT_OOM,
        _ => {
            let share = i128::from(asked) * 1000 / i128::from(capacity.max(1));
            let score = BEST_EFFORT_OOM - i64::try_from(share).unwrap_or(BEST_EFFORT_OOM);
            score.clamp(BEST_EFFORT_OOM + GUARANTEED_OOM, BEST_EFFORT_OOM - 1)
        }
    };
    i32::try_from(score).unwrap_or(0)
}

fn config(message: String) -> Failure {
    Failure { reason: "CreateContainerConfigError", message }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(security: serde_json::Value, containers: serde_json::Value) -> core::Pod {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop"},
            "spec": {"securityContext": security, "containers": containers}}))
        .unwrap()
    }

    #[test]
    fn the_containers_security_context_goes_before_the_pods() {
        let pod = pod(
            json!({"runAsUser": 1, "runAsGroup": 2, "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}}),
            json!([]),
        );
        let own: SecurityContext = serde_json::from_value(
            json!({"runAsUser": 0, "privileged": true, "readOnlyRootFilesystem": true}),
        )
        .unwrap();
        let merged = security(&pod, Some(&own));
        assert_eq!(
            (merged.run_as_user, merged.run_as_group, merged.privileged),
            (Some(0), Some(2), Some(true))
        );
        assert_eq!(merged.seccomp_profile.as_ref().unwrap().type_, "RuntimeDefault");
        let error = check_user(&pod, "main", &merged).unwrap_err();
        assert_eq!(error.reason, "CreateContainerConfigError");
        assert!(
            error.message.starts_with("container's runAsUser breaks non-root policy"),
            "{}",
            error.message
        );
        check_user(&pod, "main", &security(&pod, None)).unwrap();
    }

    #[test]
    fn the_oom_score_is_upstreams() {
        let gib = 1_i64 << 30;
        for (resources, expected) in [
            (json!({}), 1000),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), -997),
            (json!({"requests": {"memory": "1Gi"}}), 750),
            (json!({"requests": {"cpu": "1"}}), 999),
            (json!({"requests": {"memory": "1Ki"}}), 999),
            (json!({"requests": {"memory": "4Gi"}}), 3),
            (json!({"requests": {"memory": "400Gi"}}), 3),
        ] {
            let pod = pod(json!({}), json!([{"name": "main", "resources": resources}]));
            let container = pod.spec.as_ref().unwrap().containers[0].clone();
            assert_eq!(oom_score(&pod, &container, 4 * gib), expected, "{resources}");
        }
    }

    #[test]
    fn a_limit_stands_for_a_request_that_is_missing() {
        let container: core::Container = serde_json::from_value(
            json!({"name": "main", "resources": {"limits": {"cpu": "2"}, "requests": {"memory": "1"}}}),
        )
        .unwrap();
        assert_eq!(request(&container, "cpu").unwrap().millis(), 2000);
        assert_eq!(request(&container, "memory").unwrap().value(), 1);
    }
}
