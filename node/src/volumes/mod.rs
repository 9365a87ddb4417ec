//! A pod's volumes: directories under `pods/<uid>/volumes/<name>`, and how containers mount them.

mod claim;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod host;
mod mounts;
mod owner;
mod project;
mod reclaim;
mod subpath;
mod usage;
mod write;

use std::{net::IpAddr, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use jiff::Timestamp;
use ketch_api::k8s::api::core::v1 as core;
use ketch_api::quantity::Quantity;
use ketch_runtime::{Mount, Propagation};

use crate::{context::Context, env::Variables, kind::Kind, machine::Failure};
pub(crate) use claim::directory as claimed;
pub(crate) use mounts::discard;
pub use mounts::discard_inside;
use project::{Given, Projection, Source, files, projection};
pub(crate) use reclaim::run as reclaim;
pub(crate) use usage::{share, used};

/// How a container sees volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// As directories only.
    Wasm,
    /// As anything a file system has.
    Native,
}

fn uid(pod: &core::Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn volumes(pod: &core::Pod) -> &[core::Volume] {
    pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default()
}

/// Makes the pod's volumes. Idempotent: what containers wrote stays.
pub(crate) async fn prepare(context: &Context, pod: &core::Pod, ip: IpAddr) -> Result<(), Failure> {
    for volume in volumes(pod) {
        let made = match (projection(volume), &volume.persistent_volume_claim) {
            (Some(projection), _) => project(context, pod, volume, &projection, Some(ip), false).await,
            (_, Some(source)) => {
                claim::prepare(context, pod, source, &directory(context, pod, &volume.name)).await
            }
            _ => make(context, pod, volume),
        };
        made.map_err(|message| failed(&volume.name, &message))?;
    }
    Ok(())
}

/// How often the pod's volumes need a [`refresh`]; `None`: never.
pub(crate) fn refresh_interval(pod: &core::Pod) -> Option<Duration> {
    volumes(pod).iter().filter_map(|volume| projection(volume)?.interval()).min()
}

/// Brings files that come from API objects up to date.
pub(crate) async fn refresh(context: &Context, pod: &core::Pod) -> Result<(), Failure> {
    let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()?.parse().ok());
    let due = context.sources.is_due(uid(pod), Timestamp::now());
    for volume in volumes(pod) {
        if let Some(projection) = projection(volume).filter(|projection| due || projection.is_live()) {
            let made = project(context, pod, volume, &projection, ip, true).await;
            made.map_err(|message| failed(&volume.name, &message))?;
        }
    }
    Ok(())
}

fn failed(volume: &str, message: &str) -> Failure {
    Failure {
        reason: "FailedMount",
        message: format!("MountVolume.SetUp failed for volume \"{volume}\" : {message}"),
    }
}

async fn project(
    context: &Context,
    pod: &core::Pod,
    volume: &core::Volume,
    projection: &Projection,
    ip: Option<IpAddr>,
    cached: bool,
) -> Result<(), String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let mut given = Given::default();
    for source in &projection.sources {
        match source {
            Source::Object { kind, name, .. } => {
                let data = context.sources.read(*kind, namespace, name, cached).await?;
                given.objects.insert((*kind, name.clone()), data);
            }
            Source::Token { audience, seconds, path } => {
                let token =
                    context.sources.token(pod, audience.as_deref(), *seconds, Timestamp::now()).await?;
                given.tokens.insert(path.clone(), token);
            }
            Source::Fields(_) => {}
        }
    }
    let files = files(projection, pod, &context.place(ip), &given)?;
    let directory = directory(context, pod, &volume.name);
    let written = write::write(&directory, &files, group(pod));
    written.map(|_| ()).map_err(|error| format!("{}: {error}", directory.display()))
}

/// The group that owns the pod's volumes. Only root can give files away; without root there are only guests of
/// this process, which have no groups.
fn group(pod: &core::Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok().filter(|_| nix::unistd::Uid::effective().is_root())
}

fn directory(context: &Context, pod: &core::Pod, volume: &str) -> PathBuf {
    context.pod_dir(uid(pod)).join("volumes").join(volume)
}

/// Makes a volume that does not come from API objects.
fn make(context: &Context, pod: &core::Pod, volume: &core::Volume) -> Result<(), String> {
    match (&volume.empty_dir, &volume.host_path) {
        (Some(empty), _) => {
            let directory = directory(context, pod, &volume.name);
            let named = |error: std::io::Error| format!("{}: {error}", directory.display());
            std::fs::create_dir_all(&directory).map_err(named)?;
            match empty.medium.as_deref() {
                None | Some("") => {}
                Some("Memory") => {
                    // An ordinary user cannot mount: the volume works, on disk.
                    mounts::memory(&directory, size(empty)).map_err(named)?;
                }
                Some(other) => return Err(format!("emptyDir: medium {other} is not supported; use Memory")),
            }
            // Any user of any image may write.
            let mode = directory.metadata().map_err(named)?.permissions().mode();
            if mode & 0o777 != 0o777 {
                let open = std::fs::Permissions::from_mode(0o777);
                std::fs::set_permissions(&directory, open).map_err(named)?;
            }
            group(pod).map_or(Ok(()), |group| owner::give(&directory, group, false)).map_err(named)
        }
        (_, Some(path)) => host::prepare(path),
        _ => Err(
            "volumes of this kind are not supported on this node; it offers emptyDir, configMap, secret, \
                  projected, downwardAPI, hostPath and persistentVolumeClaim"
                .to_owned(),
        ),
    }
}

/// `sizeLimit` in bytes; zero is none.
fn size(empty: &core::EmptyDirVolumeSource) -> Option<u64> {
    let quantity: Quantity = empty.size_limit.as_ref()?.0.parse().ok()?;
    u64::try_from(quantity.value()).ok().filter(|size| *size > 0)
}

/// A volume that containers fill, on disk: those in memory have their limit from the kernel.
pub(crate) struct Scratch {
    /// Name in the pod.
    pub(crate) name: String,
    /// `sizeLimit`, as bytes and as written.
    pub(crate) limit: Option<(u64, String)>,
    /// Where it is.
    pub(crate) directory: PathBuf,
}

/// The pod's scratch volumes.
pub(crate) fn scratch(context: &Context, pod: &core::Pod) -> Vec<Scratch> {
    let one = |volume: &core::Volume| {
        let empty = volume.empty_dir.as_ref().filter(|empty| empty.medium.as_deref() != Some("Memory"))?;
        let limit = size(empty).zip(empty.size_limit.as_ref().map(|text| text.0.clone()));
        let directory = directory(context, pod, &volume.name);
        Some(Scratch { name: volume.name.clone(), limit, directory })
    };
    volumes(pod).iter().filter_map(one).collect()
}

/// The container's mounts. In a pod with containers a `subPath` is pinned first: another container may change
/// the volume meanwhile.
///
/// # Errors
/// When a mount names a volume there is not, or a path that leads out of it.
pub(crate) fn mounts(
    context: &Context,
    pod: &core::Pod,
    container: &core::Container,
    variables: &Variables<'_>,
    view: View,
    kind: Option<Kind>,
) -> Result<Vec<Mount>, Failure> {
    let config = |message: String| Failure { reason: "CreateContainerConfigError", message };
    let mut mounts: Vec<Mount> = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let Some(volume) = volumes(pod).iter().find(|volume| volume.name == mount.name) else {
            return Err(config(format!(
                "volume \"{}\" of container {} not found",
                mount.name, container.name
            )));
        };
        let (root, sub) = (root(context, pod, volume), sub_path(mount, variables).map_err(config)?);
        if sub.is_none() && view == View::Wasm && (volume.host_path.is_some() || is_claim(volume)) {
            host::check_guest(&root).map_err(config)?;
        }
        let files = context.pod_dir(uid(pod)).join("files").join(&container.name);
        let places = subpath::Places {
            staged: &files,
            pinned: (kind == Some(Kind::Sandboxed)).then(|| files.join(format!("sub-{index}"))),
        };
        let shown =
            subpath::show(&root, sub.as_deref(), &mount.mount_path, &places, view).map_err(|error| {
                config(format!("failed to prepare subPath for volumeMount \"{}\": {error}", mount.name))
            })?;
        if !mounts.iter().any(|one| one.target == shown.target) {
            let read_only = mount.read_only.unwrap_or(false) || is_read_only(volume);
            mounts.push(Mount {
                source: shown.source,
                target: shown.target,
                read_only: read_only || shown.is_copy,
                propagation: propagation(mount),
            });
        }
    }
    Ok(mounts)
}

fn root(context: &Context, pod: &core::Pod, volume: &core::Volume) -> PathBuf {
    let own = directory(context, pod, &volume.name);
    match &volume.host_path {
        Some(host) => PathBuf::from(&host.path),
        // A link to the data.
        None if is_claim(volume) => std::fs::read_link(&own).unwrap_or(own),
        None => own,
    }
}

fn is_claim(volume: &core::Volume) -> bool {
    volume.persistent_volume_claim.is_some()
}

fn is_read_only(volume: &core::Volume) -> bool {
    let claim = volume.persistent_volume_claim.as_ref();
    projection(volume).is_some() || claim.is_some_and(|claim| claim.read_only == Some(true))
}

fn sub_path(mount: &core::VolumeMount, variables: &Variables<'_>) -> Result<Option<String>, String> {
    match (&mount.sub_path, &mount.sub_path_expr) {
        (Some(path), _) if !path.is_empty() => Ok(Some(path.clone())),
        (_, Some(text)) if !text.is_empty() => {
            let path = variables.expand(text).map(Some);
            path.map_err(|why| format!("subPathExpr of {}: {why}", mount.mount_path))
        }
        _ => Ok(None),
    }
}

fn propagation(mount: &core::VolumeMount) -> Propagation {
    match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => Propagation::HostToContainer,
        Some("Bidirectional") => Propagation::Bidirectional,
        _ => Propagation::Private,
    }
}

/// Removes the pod's directory.
pub(crate) async fn remove(context: &Context, uid: &str) {
    context.sources.forget(uid);
    if uid.is_empty() {
        return;
    }
    let directory = context.pod_dir(uid);
    let removed = tokio::task::spawn_blocking(move || discard(&directory)).await;
    if let Err(error) = removed.map_err(std::io::Error::other).flatten() {
        tracing::warn!(uid, %error, "a pod's directory could not be removed");
    }
}
