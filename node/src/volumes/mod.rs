//! A pod's volumes: directories under `pods/<uid>/volumes/<name>`, and how containers mount them.

mod project;
mod subpath;
mod write;

use std::{net::IpAddr, path::PathBuf};

use ketch_api::k8s::api::core::v1 as core;
use ketch_runtime::Mount;

use crate::{context::Context, env, machine::Failure};
use project::{Given, Projection, Source, files, projection};

fn uid(pod: &core::Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn volumes(pod: &core::Pod) -> &[core::Volume] {
    pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default()
}

/// Makes the pod's volumes. Idempotent: what containers wrote stays.
pub(crate) async fn prepare(context: &Context, pod: &core::Pod, ip: IpAddr) -> Result<(), Failure> {
    for volume in volumes(pod) {
        let made = match projection(volume) {
            Some(projection) => project(context, pod, volume, &projection, Some(ip), false).await,
            None => make(context, pod, volume),
        };
        made.map_err(|message| failed(&volume.name, &message))?;
    }
    Ok(())
}

/// Brings files that come from API objects up to date.
pub(crate) async fn refresh(context: &Context, pod: &core::Pod) -> Result<(), Failure> {
    let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()?.parse().ok());
    for volume in volumes(pod) {
        if let Some(projection) = projection(volume) {
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
                let token = context.sources.token(pod, audience.as_deref(), *seconds).await?;
                given.tokens.insert(path.clone(), token);
            }
            Source::Fields(_) => {}
        }
    }
    let files = files(projection, pod, &context.place(ip), &given)?;
    let directory = directory(context, pod, &volume.name);
    write::write(&directory, &files).map(|_| ()).map_err(|error| format!("{}: {error}", directory.display()))
}

fn directory(context: &Context, pod: &core::Pod, volume: &str) -> PathBuf {
    context.pod_dir(uid(pod)).join("volumes").join(volume)
}

/// Makes a volume that does not come from API objects.
fn make(context: &Context, pod: &core::Pod, volume: &core::Volume) -> Result<(), String> {
    if volume.empty_dir.is_some() {
        let directory = directory(context, pod, &volume.name);
        return std::fs::create_dir_all(&directory)
            .map_err(|error| format!("{}: {error}", directory.display()));
    }
    let Some(host) = &volume.host_path else {
        return Err(
            "volumes of this kind are not supported on this node; it offers emptyDir, configMap, secret, \
                    projected, downwardAPI and hostPath"
                .to_owned(),
        );
    };
    let path = std::path::Path::new(&host.path);
    match host.type_.as_deref() {
        Some("DirectoryOrCreate") => {
            std::fs::create_dir_all(path).map_err(|error| format!("{}: {error}", host.path))
        }
        Some("Directory") | Some("") | None if path.is_dir() => Ok(()),
        Some("Directory") => Err(format!("hostPath type check failed: {} is not a directory", host.path)),
        Some("") | None => Err(format!("hostPath {} is not a directory on this node", host.path)),
        Some(other) => {
            Err(format!("hostPath type {other} cannot be shown to a Wasm container; use Directory"))
        }
    }
}

/// The container's mounts.
///
/// # Errors
/// When a mount names a volume there is not, or a path that leads out of it.
pub(crate) fn mounts(
    context: &Context,
    pod: &core::Pod,
    container: &core::Container,
    env: &[(String, String)],
) -> Result<Vec<Mount>, Failure> {
    let config = |message: String| Failure { reason: "CreateContainerConfigError", message };
    let mut mounts: Vec<Mount> = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let Some(volume) = volumes(pod).iter().find(|volume| volume.name == mount.name) else {
            return Err(config(format!(
                "volume \"{}\" of container {} not found",
                mount.name, container.name
            )));
        };
        let root = match &volume.host_path {
            Some(host) => PathBuf::from(&host.path),
            None => directory(context, pod, &volume.name),
        };
        let sub = match (&mount.sub_path, &mount.sub_path_expr) {
            (Some(path), _) if !path.is_empty() => Some(path.clone()),
            (_, Some(text)) if !text.is_empty() => Some(env::expand(text, env)),
            _ => None,
        };
        let read_only = mount.read_only.unwrap_or(false) || projection(volume).is_some();
        let staged = context.pod_dir(uid(pod)).join("files").join(&container.name);
        let shown = subpath::show(&root, sub.as_deref(), &mount.mount_path, &staged).map_err(|error| {
            config(format!("failed to prepare subPath for volumeMount \"{}\": {error}", mount.name))
        })?;
        if !mounts.iter().any(|one| one.target == shown.target) {
            mounts.push(Mount {
                source: shown.source,
                target: shown.target,
                read_only: read_only || shown.is_file,
                ..Mount::default()
            });
        }
    }
    Ok(mounts)
}

/// Removes the pod's directory.
pub(crate) async fn remove(context: &Context, uid: &str) {
    context.sources.forget(uid);
    if uid.is_empty() {
        return;
    }
    if let Err(error) = tokio::fs::remove_dir_all(context.pod_dir(uid)).await
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(uid, %error, "a pod's directory could not be removed");
    }
}
