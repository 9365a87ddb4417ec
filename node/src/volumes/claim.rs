//! Volumes that pods have by a claim. A link in the pod's directory leads to the data, which is no part of it: it
//! outlives the pod.

use std::{
    io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use ketch_api::{
    k8s::api::core::v1 as core,
    volume::{self, claims_of},
};
use kube::api::Api;

use super::{group, host, owner};
use crate::context::Context;

/// Where the node keeps the volumes that are made for claims: each a directory, by the name of the volume.
pub(crate) fn directory(root: &Path) -> PathBuf {
    std::path::absolute(root).unwrap_or_else(|_| root.to_owned()).join("volumes")
}

/// The directory of one volume. `None`: the name is not one.
pub(super) fn path(root: &Path, name: &str) -> Option<PathBuf> {
    let mut parts = Path::new(name).components();
    let plain = matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(_)), None));
    plain.then(|| directory(root).join(name))
}

/// Makes `link` lead to the data of the claim's volume.
///
/// # Errors
/// With upstream's words when the claim has no volume, or not one that can be used here by this pod.
pub(super) async fn prepare(
    context: &Context,
    pod: &core::Pod,
    source: &core::PersistentVolumeClaimVolumeSource,
    link: &Path,
) -> Result<(), String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let found = volume_of(context, namespace, &source.claim_name).await;
    let (claim, found) =
        found.map_err(|why| format!("error processing PVC {namespace}/{}: {why}", source.claim_name))?;
    if volume::has_mode(&claim, "ReadWriteOncePod") && is_shared(context, pod, &source.claim_name) {
        return Err(
            "volume uses the ReadWriteOncePod access mode and is already in use by another pod".into()
        );
    }
    let target = locate(context, &found)?;
    let give = group(pod).filter(|_| source.read_only != Some(true));
    let made =
        give.map_or(Ok(()), |group| owner::give(&target, group, false)).and_then(|()| lead(link, &target));
    made.map_err(|error| format!("{}: {error}", target.display()))
}

async fn volume_of(
    context: &Context,
    namespace: &str,
    name: &str,
) -> Result<(core::PersistentVolumeClaim, core::PersistentVolume), String> {
    let claims = Api::<core::PersistentVolumeClaim>::namespaced(context.client.clone(), namespace);
    let claim = claims.get_opt(name).await.map_err(|error| unread("PVC", &error))?;
    let claim = claim.ok_or_else(|| {
        format!("failed to fetch PVC from API server: persistentvolumeclaims \"{name}\" not found")
    })?;
    if claim.metadata.deletion_timestamp.is_some() {
        return Err("PVC is being deleted".to_owned());
    }
    if !volume::is_bound(&claim) {
        return Err("PVC is not bound".to_owned());
    }
    let name = volume::volume_name(&claim);
    let volumes = Api::<core::PersistentVolume>::all(context.client.clone());
    let found = volumes.get_opt(name).await.map_err(|error| unread("PV", &error))?;
    let found = found.ok_or_else(|| format!("failed to find PV {name} in API server"))?;
    match volume::claim_ref(&found) {
        Some(reference) if reference.uid == claim.metadata.uid => Ok((claim, found)),
        _ => Err(format!("PV {name} is bound to another claim")),
    }
}

fn unread(what: &str, error: &kube::Error) -> String {
    format!("failed to fetch {what} from API server: {}", ketch_client::status_text(error))
}

/// Whether another pod here has the claim. Elsewhere the scheduler sees to it.
fn is_shared(context: &Context, pod: &core::Pod, claim: &str) -> bool {
    context.index.pods().iter().any(|other| {
        let phase = other.status.as_ref().and_then(|status| status.phase.as_deref());
        other.metadata.uid != pod.metadata.uid
            && other.metadata.namespace == pod.metadata.namespace
            && !matches!(phase, Some("Succeeded" | "Failed"))
            && claims_of(other).any(|(_, name)| name == claim)
    })
}

/// Where a volume's data is. What [`volume::PROVISIONER`] promises is made here, with room for any user.
fn locate(context: &Context, found: &core::PersistentVolume) -> Result<PathBuf, String> {
    let name = found.metadata.name.as_deref().unwrap_or_default();
    let spec = found.spec.clone().unwrap_or_default();
    if volume::node_of(found).is_some_and(|node| node != &*context.name) {
        return Err(format!(
            "storage node affinity check failed for volume \"{name}\" : no matching NodeSelectorTerms"
        ));
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(format!("volume \"{name}\": volumeMode Block is not supported on this node"));
    }
    if volume::is_local_path(found) {
        let target = path(&context.root, name).ok_or_else(|| format!("{name:?} is no name of a volume"))?;
        make(&target).map_err(|error| format!("{}: {error}", target.display()))?;
        return Ok(target);
    }
    match (spec.local, spec.host_path) {
        (Some(local), _) if Path::new(&local.path).exists() => Ok(local.path.into()),
        (Some(local), _) => Err(format!("path \"{}\" does not exist", local.path)),
        (_, Some(path)) => host::prepare(&path).map(|()| path.path.into()),
        _ => Err(format!(
            "volume \"{name}\" is of a kind that this node does not offer; it has local and hostPath"
        )),
    }
}

fn make(target: &Path) -> io::Result<()> {
    if target.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(target)?;
    std::fs::set_permissions(target, std::fs::Permissions::from_mode(0o777))
}

/// Makes `link` a link to `target`, whatever it was.
fn lead(link: &Path, target: &Path) -> io::Result<()> {
    if std::fs::read_link(link).is_ok_and(|old| old == target) {
        return Ok(());
    }
    if let Some(parent) = link.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(target, link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_directory() {
        let root = Path::new("/data/node");
        assert_eq!(path(root, "pvc-1").unwrap(), Path::new("/data/node/volumes/pvc-1"));
        for bad in ["", ".", "..", "a/b", "/etc"] {
            assert_eq!(path(root, bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_link_is_made_and_corrected() {
        let dir = tempfile::tempdir().unwrap();
        let (link, target) = (dir.path().join("pods/u/volumes/data"), dir.path().join("volumes/pv"));
        make(&target).unwrap();
        lead(&link, Path::new("/elsewhere")).unwrap();
        lead(&link, &target).unwrap();
        lead(&link, &target).unwrap();
        std::fs::write(link.join("file"), "x").unwrap();
        std::fs::remove_dir_all(dir.path().join("pods")).unwrap();
        assert!(target.join("file").exists(), "the data is no part of the pod");
    }
}
