//! Containers as CRI wants them and as it reports them. Pure.

use std::{collections::HashMap, path::Path};

use jiff::Timestamp;
use k8s_cri::v1::{self as cri, ContainerConfig, ImageSpec, LinuxContainerConfig, LinuxContainerResources};
use ketch_runtime::{ContainerSpec, ContainerState, Error, Mount, Propagation};

use crate::{
    pod::{CONTAINER_ID, CONTAINER_NAME, Kept, LOG, labels},
    security,
};

/// Period of CPU limits in microseconds; the kernel's and the kubelet's default.
const PERIOD: i64 = 100_000;

/// What to create for `spec` in `pod`, and the log directory that goes with it.
///
/// # Errors
/// [`Error::Config`] for what cannot be met.
pub(crate) fn config(spec: &ContainerSpec, pod: &Kept, owner: &str) -> Result<ContainerConfig, Error> {
    let log = spec.log.file_name().map(|name| name.to_string_lossy().into_owned());
    let log_path = log.ok_or_else(|| Error::Config("the container has no log".to_owned()))?;
    let own = [(CONTAINER_NAME.to_owned(), spec.name.clone()), (CONTAINER_ID.to_owned(), spec.id.0.clone())];
    Ok(ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: spec.name.clone(), attempt: attempt(&spec.id.0) }),
        image: Some(ImageSpec { image: spec.image.id.clone(), ..ImageSpec::default() }),
        command: spec.command.clone(),
        args: spec.args.clone(),
        working_dir: spec.working_dir.clone().unwrap_or_default(),
        envs: spec.env.iter().cloned().map(|(key, value)| cri::KeyValue { key, value }).collect(),
        mounts: spec.mounts.iter().map(mount).collect(),
        labels: labels(owner, pod).into_iter().chain(own).collect(),
        annotations: HashMap::from([(LOG.to_owned(), spec.log.to_string_lossy().into_owned())]),
        log_path,
        stdin: spec.stdin,
        stdin_once: spec.stdin_once,
        tty: spec.tty,
        linux: Some(LinuxContainerConfig {
            resources: Some(resources(spec)),
            security_context: Some(security::container(&spec.security, pod)?),
        }),
        ..ContainerConfig::default()
    })
}

/// CRI wants name and attempt to be unique in a pod: a number from our id (FNV-1a).
fn attempt(id: &str) -> u32 {
    id.bytes().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Directory of a container's log.
pub(crate) fn log_directory(spec: &ContainerSpec) -> &Path {
    spec.log.parent().unwrap_or(Path::new("/"))
}

fn mount(mount: &Mount) -> cri::Mount {
    let propagation = match mount.propagation {
        Propagation::Private => cri::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => cri::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => cri::MountPropagation::PropagationBidirectional,
    };
    cri::Mount {
        container_path: mount.target.clone(),
        host_path: mount.source.to_string_lossy().into_owned(),
        readonly: mount.read_only,
        propagation: propagation as i32,
        ..cri::Mount::default()
    }
}

fn resources(spec: &ContainerSpec) -> LinuxContainerResources {
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    // The kubelet's conversions: <https://github.com/kubernetes/kubernetes/blob/master/pkg/kubelet/cm/helpers_linux.go>
    let shares = spec
        .cpu_request
        .or(spec.cpu_millis)
        .map(|millis| signed(millis).saturating_mul(1024).saturating_div(1000).clamp(2, 262_144));
    let quota =
        spec.cpu_millis.map(|millis| signed(millis).saturating_mul(PERIOD).saturating_div(1000).max(1000));
    LinuxContainerResources {
        cpu_period: quota.map_or(0, |_| PERIOD),
        cpu_quota: quota.unwrap_or(0),
        cpu_shares: shares.unwrap_or(2),
        memory_limit_in_bytes: spec.memory.map_or(0, signed),
        oom_score_adj: i64::from(spec.oom_score),
        ..LinuxContainerResources::default()
    }
}

/// The state CRI reports.
pub(crate) fn state(status: &cri::ContainerStatus) -> ContainerState {
    let time = |nanos: i64| Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(Timestamp::UNIX_EPOCH);
    let started = if status.started_at > 0 { status.started_at } else { status.created_at };
    match cri::ContainerState::try_from(status.state) {
        Ok(cri::ContainerState::ContainerCreated) => ContainerState::Created,
        Ok(cri::ContainerState::ContainerRunning) => ContainerState::Running { started: time(started) },
        _ => ContainerState::Exited {
            started: time(started),
            finished: time(status.finished_at.max(started)),
            code: status.exit_code,
            reason: reason(status),
            message: status.message.clone(),
        },
    }
}

/// The kubelet's reasons.
fn reason(status: &cri::ContainerStatus) -> String {
    match (status.reason.as_str(), status.exit_code) {
        ("", 0) => "Completed".to_owned(),
        ("", _) => "Error".to_owned(),
        (reason, _) => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use ketch_runtime::{ContainerId, Image};

    use super::*;

    fn spec() -> ContainerSpec {
        let image = Image { digest: "sha256:a".into(), id: "r@sha256:a".into(), size: 1 };
        ContainerSpec::new(ContainerId("c1".into()), "main", image, "/logs/main/0.log".into())
    }

    #[test]
    fn a_spec_becomes_a_container() {
        let spec = ContainerSpec {
            cpu_millis: Some(250),
            cpu_request: Some(100),
            memory: Some(1 << 20),
            oom_score: 900,
            ..spec()
        };
        let made = config(&spec, &Kept::default(), "me").unwrap();
        assert_eq!(made.log_path, "0.log");
        assert_eq!(log_directory(&spec), Path::new("/logs/main"));
        assert_eq!(made.labels[CONTAINER_ID], "c1");
        assert_eq!(made.labels[CONTAINER_NAME], "main");
        let resources = made.linux.unwrap().resources.unwrap();
        assert_eq!((resources.cpu_quota, resources.cpu_period, resources.cpu_shares), (25_000, 100_000, 102));
        assert_eq!((resources.memory_limit_in_bytes, resources.oom_score_adj), (1 << 20, 900));
    }

    #[test]
    fn no_limits_are_no_limits() {
        let resources = resources(&spec());
        assert_eq!((resources.cpu_quota, resources.cpu_shares, resources.memory_limit_in_bytes), (0, 2, 0));
        let huge = ContainerSpec { cpu_millis: Some(u64::MAX), memory: Some(u64::MAX), ..spec() };
        assert_eq!(super::resources(&huge).memory_limit_in_bytes, i64::MAX);
    }

    #[test]
    fn states_have_the_kubelets_reasons() {
        let status = |state: cri::ContainerState, code, reason: &str| cri::ContainerStatus {
            state: state as i32,
            created_at: 1,
            started_at: 2,
            finished_at: 3,
            exit_code: code,
            reason: reason.into(),
            ..cri::ContainerStatus::default()
        };
        for (code, given, wanted) in [(0, "", "Completed"), (3, "", "Error"), (137, "OOMKilled", "OOMKilled")]
        {
            let ContainerState::Exited { code: got, reason, started, finished, .. } =
                state(&status(cri::ContainerState::ContainerExited, code, given))
            else {
                panic!("not over")
            };
            assert_eq!((got, reason.as_str()), (code, wanted));
            assert!(started < finished);
        }
        let running = state(&status(cri::ContainerState::ContainerRunning, 0, ""));
        assert!(matches!(running, ContainerState::Running { .. }));
    }
}
