//! Security contexts as CRI wants them. Pure.

use k8s_cri::v1::{
    Capability, Int64Value, LinuxContainerSecurityContext, SecurityProfile, security_profile::ProfileType,
};
use ketch_api::k8s::api::core::v1::{AppArmorProfile, PodSecurityContext, SeccompProfile, SecurityContext};
use ketch_runtime::{ContainerSpec, Error};

use crate::pod::Kept;

/// Where seccomp profiles of `type: Localhost` are, as the kubelet has them.
const PROFILES: &str = "/var/lib/kubelet/seccomp";

/// Groups every process of a pod is in.
pub(crate) fn groups(pod: &PodSecurityContext) -> Vec<i64> {
    let mut groups: Vec<i64> = pod.supplemental_groups.clone().unwrap_or_default();
    groups.extend(pod.fs_group);
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// A container's security context.
///
/// # Errors
/// [`Error::Config`] for what cannot be met.
pub(crate) fn container(
    security: &SecurityContext,
    pod: &Kept,
) -> Result<LinuxContainerSecurityContext, Error> {
    let privileged = security.privileged.unwrap_or(false);
    let capabilities = security.capabilities.clone().unwrap_or_default();
    if security.run_as_group.is_some() && security.run_as_user.is_none() {
        return Err(Error::Config("runAsGroup needs runAsUser".to_owned()));
    }
    Ok(LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: capabilities.add.unwrap_or_default(),
            drop_capabilities: capabilities.drop.unwrap_or_default(),
            ..Capability::default()
        }),
        privileged,
        namespace_options: Some(pod.namespaces()),
        run_as_user: security.run_as_user.map(|value| Int64Value { value }),
        run_as_group: security.run_as_group.map(|value| Int64Value { value }),
        readonly_rootfs: security.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: pod.groups.clone(),
        no_new_privs: security.allow_privilege_escalation == Some(false),
        seccomp: Some(seccomp(security.seccomp_profile.as_ref(), privileged)?),
        apparmor: security.app_armor_profile.as_ref().map(apparmor).transpose()?,
        ..LinuxContainerSecurityContext::default()
    })
}

/// A seccomp profile. Unless a pod says otherwise it has the runtime's own, as with the kubelet's
/// `seccompDefault`.
pub(crate) fn seccomp(profile: Option<&SeccompProfile>, privileged: bool) -> Result<SecurityProfile, Error> {
    let simple = |kind: ProfileType| SecurityProfile { profile_type: kind as i32, ..Default::default() };
    match profile.map(|profile| profile.type_.as_str()) {
        _ if privileged => Ok(simple(ProfileType::Unconfined)),
        None | Some("RuntimeDefault") => Ok(simple(ProfileType::RuntimeDefault)),
        Some("Unconfined") => Ok(simple(ProfileType::Unconfined)),
        Some("Localhost") => {
            let name = profile.and_then(|profile| profile.localhost_profile.as_deref()).unwrap_or_default();
            if name.is_empty() || name.starts_with('/') || name.split('/').any(|part| part == "..") {
                return Err(Error::Config(format!(
                    "seccomp profile {name:?} is not a path below {PROFILES}"
                )));
            }
            let localhost_ref = format!("{PROFILES}/{name}");
            Ok(SecurityProfile { profile_type: ProfileType::Localhost as i32, localhost_ref })
        }
        Some(other) => Err(Error::Config(format!("seccomp profile type {other:?} is not known"))),
    }
}

fn apparmor(profile: &AppArmorProfile) -> Result<SecurityProfile, Error> {
    let kind = match profile.type_.as_str() {
        "RuntimeDefault" => ProfileType::RuntimeDefault,
        "Unconfined" => ProfileType::Unconfined,
        "Localhost" => ProfileType::Localhost,
        other => return Err(Error::Config(format!("AppArmor profile type {other:?} is not known"))),
    };
    let localhost_ref = profile.localhost_profile.clone().unwrap_or_default();
    Ok(SecurityProfile { profile_type: kind as i32, localhost_ref })
}

/// Whether a container that must not run as root would: `uid` and `name` are the image's user.
///
/// # Errors
/// [`Error::Config`] with the kubelet's words.
pub(crate) fn check_non_root(
    pod: &Kept,
    spec: &ContainerSpec,
    uid: Option<i64>,
    name: &str,
) -> Result<(), Error> {
    let security = &spec.security;
    if security.run_as_non_root != Some(true) {
        return Ok(());
    }
    let why = match security.run_as_user {
        Some(0) => "container's runAsUser breaks non-root policy".to_owned(),
        Some(_) => return Ok(()),
        None if uid.is_some_and(|uid| uid != 0) => return Ok(()),
        None if uid.is_none() && !name.is_empty() => format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
        ),
        None => "container has runAsNonRoot and image will run as root".to_owned(),
    };
    Err(Error::Config(format!("{why} (pod: \"{}\", container: {})", pod.title(), spec.name)))
}

#[cfg(test)]
mod tests {
    use ketch_runtime::{ContainerId, Image, PodId, PodSandbox};

    use super::*;

    #[test]
    fn groups_are_those_of_the_pod_once() {
        let pod = PodSecurityContext {
            supplemental_groups: Some(vec![5, 3]),
            fs_group: Some(5),
            ..PodSecurityContext::default()
        };
        assert_eq!(groups(&pod), [3, 5]);
    }

    #[test]
    fn the_default_is_confined() {
        let made = container(&SecurityContext::default(), &Kept::default()).unwrap();
        assert_eq!(made.seccomp.unwrap().profile_type, ProfileType::RuntimeDefault as i32);
        assert!(!made.privileged && !made.no_new_privs);
        let privileged = SecurityContext { privileged: Some(true), ..SecurityContext::default() };
        let made = container(&privileged, &Kept::default()).unwrap();
        assert_eq!(made.seccomp.unwrap().profile_type, ProfileType::Unconfined as i32);
    }

    #[test]
    fn profiles_stay_below_their_directory() {
        for (name, good) in [("a/b.json", true), ("../x", false), ("/etc/x", false), ("", false)] {
            let profile = SeccompProfile { type_: "Localhost".into(), localhost_profile: Some(name.into()) };
            assert_eq!(seccomp(Some(&profile), false).is_ok(), good, "{name}");
        }
    }

    #[test]
    fn non_root_is_checked_against_the_image() {
        let pod = PodSandbox::new(PodId("u".into()), "shop", "web", [10, 0, 0, 9].into());
        let pod = Kept::new(&pod, 0, "");
        let image = Image { digest: "sha256:a".into(), id: "r@sha256:a".into(), size: 1 };
        let spec = ContainerSpec::new(ContainerId("c1".into()), "main", image, "/logs/main/0.log".into());
        let check = |must: bool, user: Option<i64>, uid: Option<i64>, name: &str| {
            let security = SecurityContext {
                run_as_non_root: must.then_some(true),
                run_as_user: user,
                ..SecurityContext::default()
            };
            let spec = ContainerSpec { security, ..spec.clone() };
            check_non_root(&pod, &spec, uid, name).map_err(|error| error.to_string())
        };
        let refused = |text: &str| Err(format!("{text} (pod: \"web_shop(u)\", container: main)"));
        let root = refused("container has runAsNonRoot and image will run as root");
        let unknown = refused(
            "container has runAsNonRoot and image has non-numeric user (www), cannot verify user is non-root",
        );
        let own = refused("container's runAsUser breaks non-root policy");
        for (must, user, uid, name, expected) in [
            (true, None, None, "", root.clone()),
            (true, None, Some(0), "", root),
            (true, None, None, "www", unknown),
            (true, Some(0), Some(7), "", own),
            (true, None, Some(7), "", Ok(())),
            (true, Some(7), None, "", Ok(())),
            (false, None, None, "", Ok(())),
        ] {
            assert_eq!(check(must, user, uid, name), expected);
        }
    }
}
