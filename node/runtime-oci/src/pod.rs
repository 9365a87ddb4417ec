//! A pod's sandbox as CRI wants it, and what must be known of it later, kept where it outlives this process:
//! in the sandbox's annotations. Pure.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use k8s_cri::v1::{
    DnsConfig, Int64Value, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
};
use ketch_runtime::{Error, Namespaces, PodSandbox};
use serde::{Deserialize, Serialize};

use crate::security;

/// Label of everything a node made: which node it was. Several may share one containerd.
pub(crate) const OWNER: &str = "ketch.dev/owner";
/// Label with the pod's UID, as every tool for containerd knows it.
pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
/// Label with the container's name.
pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Label with the [`ketch_runtime::ContainerId`].
pub(crate) const CONTAINER_ID: &str = "ketch.dev/container-id";
/// Annotation with the log's path.
pub(crate) const LOG: &str = "ketch.dev/log";
/// Annotation that the CNI plugin reads: the pod's address.
pub(crate) const ADDRESS: &str = "ketch.dev/pod-ip";
/// Annotation with [`Kept`].
const KEPT: &str = "ketch.dev/sandbox";

/// What making a container needs to know of its pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    attempt: u32,
    cgroup: String,
    hostname: String,
    host_network: bool,
    host_pid: bool,
    host_ipc: bool,
    shared_pid: bool,
    pub(crate) groups: Vec<i64>,
}

impl Kept {
    /// Of a new pod. `cgroup` is empty where containerd places its containers itself.
    pub(crate) fn new(pod: &PodSandbox, attempt: u32, cgroup: &str) -> Self {
        let Namespaces { host_network, host_pid, host_ipc, shared_pid } = pod.namespaces;
        Self {
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            uid: pod.id.0.clone(),
            attempt,
            cgroup: cgroup.to_owned(),
            hostname: pod.hostname.clone(),
            host_network,
            host_pid,
            host_ipc,
            shared_pid,
            groups: security::groups(&pod.security),
        }
    }

    /// Of a sandbox that exists.
    pub(crate) fn read(annotations: &HashMap<String, String>) -> Result<Self, Error> {
        let text = annotations.get(KEPT).map(String::as_str).unwrap_or_default();
        serde_json::from_str(text)
            .map_err(|error| Error::Internal(format!("the pod's sandbox is not one of Ketch's: {error}")))
    }

    /// `name_namespace(uid)`, as upstream names a pod in messages.
    pub(crate) fn title(&self) -> String {
        format!("{}_{}({})", self.name, self.namespace, self.uid)
    }

    /// Namespaces of the pod's containers.
    pub(crate) fn namespaces(&self) -> NamespaceOption {
        let mode = |host: bool| if host { NamespaceMode::Node } else { NamespaceMode::Pod } as i32;
        let pid = match (self.host_pid, self.shared_pid) {
            (true, _) => NamespaceMode::Node,
            (false, true) => NamespaceMode::Pod,
            (false, false) => NamespaceMode::Container,
        };
        NamespaceOption {
            network: mode(self.host_network),
            ipc: mode(self.host_ipc),
            pid: pid as i32,
            ..NamespaceOption::default()
        }
    }

    /// The configuration that goes with every container of the pod. `privileged` is whether that one is.
    pub(crate) fn config(&self, logs: &Path, privileged: bool) -> PodSandboxConfig {
        let security = LinuxSandboxSecurityContext {
            namespace_options: Some(self.namespaces()),
            supplemental_groups: self.groups.clone(),
            privileged,
            ..LinuxSandboxSecurityContext::default()
        };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: self.name.clone(),
                uid: self.uid.clone(),
                namespace: self.namespace.clone(),
                attempt: self.attempt,
            }),
            hostname: if self.host_network { String::new() } else { self.hostname.clone() },
            log_directory: logs.to_string_lossy().into_owned(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup.clone(),
                security_context: Some(security),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        }
    }
}

/// The sandbox of `pod`, made by the node `owner`.
pub(crate) fn sandbox(pod: &PodSandbox, owner: &str, kept: &Kept) -> Result<PodSandboxConfig, Error> {
    let mut config = kept.config(&logs(pod), false);
    config.dns_config = pod.dns.clone().map(|dns| DnsConfig {
        servers: dns.servers,
        searches: dns.searches,
        options: dns.options,
    });
    config.labels = pod.labels.clone().into_iter().chain(labels(owner, kept)).collect();
    let text = serde_json::to_string(kept).map_err(|error| Error::Internal(error.to_string()))?;
    config.annotations = HashMap::from([(KEPT.to_owned(), text), (ADDRESS.to_owned(), pod.ip.to_string())]);
    if let Some(linux) = &mut config.linux {
        linux.sysctls = pod.security.sysctls.iter().flatten().cloned().map(|s| (s.name, s.value)).collect();
        if let Some(security) = &mut linux.security_context {
            security.run_as_user = pod.security.run_as_user.map(|value| Int64Value { value });
            security.run_as_group =
                pod.security.run_as_user.and(pod.security.run_as_group).map(|value| Int64Value { value });
            security.seccomp = Some(security::seccomp(pod.security.seccomp_profile.as_ref(), false)?);
        }
    }
    Ok(config)
}

/// Labels of a sandbox and of its containers.
pub(crate) fn labels(owner: &str, kept: &Kept) -> HashMap<String, String> {
    HashMap::from([
        (OWNER.to_owned(), owner.to_owned()),
        (POD_UID.to_owned(), kept.uid.clone()),
        ("io.kubernetes.pod.name".to_owned(), kept.name.clone()),
        ("io.kubernetes.pod.namespace".to_owned(), kept.namespace.clone()),
    ])
}

/// CRI wants a directory even when no log is under it.
fn logs(pod: &PodSandbox) -> PathBuf {
    if pod.logs.as_os_str().is_empty() { PathBuf::from("/") } else { pod.logs.clone() }
}

#[cfg(test)]
mod tests {
    use ketch_runtime::PodId;

    use super::*;

    #[test]
    fn what_is_kept_comes_back() {
        let mut pod = PodSandbox::new(PodId("u".into()), "ns", "web", [10, 0, 0, 9].into());
        pod.namespaces.shared_pid = true;
        pod.security.fs_group = Some(7);
        let kept = Kept::new(&pod, 2, "/ketch/podu");
        let config = sandbox(&pod, "me", &kept).unwrap();
        assert_eq!(Kept::read(&config.annotations).unwrap(), kept);
        assert_eq!(config.annotations[ADDRESS], "10.0.0.9");
        assert_eq!(config.labels[OWNER], "me");
        assert_eq!(kept.groups, [7]);
        assert_eq!(kept.namespaces().pid, NamespaceMode::Pod as i32);
        assert!(Kept::read(&HashMap::new()).is_err());
    }

    #[test]
    fn a_pod_on_the_hosts_network_has_the_hosts_name() {
        let mut pod = PodSandbox::new(PodId("u".into()), "ns", "web", [10, 0, 0, 9].into());
        pod.namespaces.host_network = true;
        let config = sandbox(&pod, "me", &Kept::new(&pod, 0, "")).unwrap();
        assert_eq!(config.hostname, "");
        let options = config.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
        assert_eq!(options.network, NamespaceMode::Node as i32);
        assert_eq!(options.pid, NamespaceMode::Container as i32);
    }
}
