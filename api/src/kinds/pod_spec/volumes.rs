//! Volumes of a pod.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{KeyToPath, ProjectedVolumeSource, Volume};

use super::{invalid_all, one_of};
use crate::{
    quantity::Quantity,
    strategy::FieldError,
    validation::{self, NEGATIVE},
};

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const HOST_PATH_TYPES: &[&str] =
    &["BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// Field names of the sources a volume has; exactly one is right.
pub(super) fn sources(volume: &Volume) -> Vec<&'static str> {
    [
        (volume.empty_dir.is_some(), "emptyDir"),
        (volume.host_path.is_some(), "hostPath"),
        (volume.secret.is_some(), "secret"),
        (volume.config_map.is_some(), "configMap"),
        (volume.downward_api.is_some(), "downwardAPI"),
        (volume.projected.is_some(), "projected"),
        (volume.persistent_volume_claim.is_some(), "persistentVolumeClaim"),
        (volume.ephemeral.is_some(), "ephemeral"),
        (volume.csi.is_some(), "csi"),
        (volume.image.is_some(), "image"),
        (volume.nfs.is_some(), "nfs"),
        (volume.iscsi.is_some(), "iscsi"),
        (volume.git_repo.is_some(), "gitRepo"),
        (volume.fc.is_some(), "fc"),
        (volume.rbd.is_some(), "rbd"),
        (volume.cephfs.is_some(), "cephfs"),
        (volume.glusterfs.is_some(), "glusterfs"),
        (volume.cinder.is_some(), "cinder"),
        (volume.flex_volume.is_some(), "flexVolume"),
        (volume.flocker.is_some(), "flocker"),
        (volume.quobyte.is_some(), "quobyte"),
        (volume.storageos.is_some(), "storageos"),
        (volume.scale_io.is_some(), "scaleIO"),
        (volume.portworx_volume.is_some(), "portworxVolume"),
        (volume.vsphere_volume.is_some(), "vsphereVolume"),
        (volume.photon_persistent_disk.is_some(), "photonPersistentDisk"),
        (volume.azure_disk.is_some(), "azureDisk"),
        (volume.azure_file.is_some(), "azureFile"),
        (volume.gce_persistent_disk.is_some(), "gcePersistentDisk"),
        (volume.aws_elastic_block_store.is_some(), "awsElasticBlockStore"),
    ]
    .into_iter()
    .filter_map(|(set, name)| set.then_some(name))
    .collect()
}

/// Faults of a pod's volumes.
pub(super) fn validate(volumes: &[Volume], path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut names = BTreeSet::new();
    for (n, volume) in volumes.iter().enumerate() {
        let path = format!("{path}[{n}]");
        let name = format!("{path}.name");
        if volume.name.is_empty() {
            errors.push(FieldError::required(&name, ""));
        } else {
            errors.extend(invalid_all(&name, &volume.name, validation::dns1123_label(&volume.name)));
        }
        if !names.insert(&volume.name) {
            errors.push(FieldError::duplicate(&name, &volume.name));
        }
        match sources(volume).as_slice() {
            [] => errors.push(FieldError::required(&path, "must specify a volume type")),
            [_] => errors.extend(source(volume, &path)),
            [_, extra @ ..] => errors.extend(extra.iter().map(|name| {
                FieldError::forbidden(format!("{path}.{name}"), "may not specify more than 1 volume type")
            })),
        }
    }
    errors
}

fn source(volume: &Volume, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(limit) = volume.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref()) {
        let path = format!("{path}.emptyDir.sizeLimit");
        match Quantity::try_from(limit) {
            Err(fault) => errors.push(FieldError::invalid(path, &limit.0, &fault.to_string())),
            Ok(q) if q.is_negative() => errors.push(FieldError::invalid(path, &limit.0, NEGATIVE)),
            Ok(_) => {}
        }
    }
    if let Some(host) = &volume.host_path {
        if host.path.is_empty() {
            errors.push(FieldError::required(format!("{path}.hostPath.path"), ""));
        } else if host.path.split('/').any(|s| s == "..") {
            errors.push(FieldError::invalid(
                format!("{path}.hostPath.path"),
                &host.path,
                "must not contain '..'",
            ));
        }
        if let Some(kind) = host.type_.as_deref().filter(|t| !t.is_empty()) {
            errors.extend(one_of(&format!("{path}.hostPath.type"), Some(kind), HOST_PATH_TYPES));
        }
    }
    if let Some(claim) = volume.persistent_volume_claim.as_ref().filter(|c| c.claim_name.is_empty()) {
        errors
            .push(FieldError::required(format!("{path}.persistentVolumeClaim.claimName"), &claim.claim_name));
    }
    errors.extend(files(volume, path));
    errors
}

/// Sources that become files: their names, modes and items.
fn files(volume: &Volume, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(secret) = &volume.secret {
        let path = format!("{path}.secret");
        if secret.secret_name.as_deref().unwrap_or_default().is_empty() {
            errors.push(FieldError::required(format!("{path}.secretName"), ""));
        }
        errors.extend(mode(secret.default_mode, &format!("{path}.defaultMode")));
        errors.extend(items(secret.items.as_deref(), &path));
    }
    if let Some(map) = &volume.config_map {
        let path = format!("{path}.configMap");
        if map.name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
        errors.extend(mode(map.default_mode, &format!("{path}.defaultMode")));
        errors.extend(items(map.items.as_deref(), &path));
    }
    if let Some(downward) = &volume.downward_api {
        let path = format!("{path}.downwardAPI");
        errors.extend(mode(downward.default_mode, &format!("{path}.defaultMode")));
        for (n, file) in downward.items.iter().flatten().enumerate() {
            errors.extend(relative(&file.path, &format!("{path}.items[{n}].path")));
        }
    }
    if let Some(projected) = &volume.projected {
        errors.extend(projections(projected, &format!("{path}.projected")));
    }
    errors
}

fn projections(projected: &ProjectedVolumeSource, path: &str) -> Vec<FieldError> {
    let mut errors = mode(projected.default_mode, &format!("{path}.defaultMode"));
    for (n, source) in projected.sources.iter().flatten().enumerate() {
        let path = format!("{path}.sources[{n}]");
        let count = usize::from(source.secret.is_some())
            + usize::from(source.config_map.is_some())
            + usize::from(source.downward_api.is_some())
            + usize::from(source.service_account_token.is_some())
            + usize::from(source.cluster_trust_bundle.is_some())
            + usize::from(source.pod_certificate.is_some());
        if count > 1 {
            errors.push(FieldError::forbidden(&path, "may not specify more than 1 volume type per source"));
        }
        if let Some(map) = &source.config_map {
            let path = format!("{path}.configMap");
            if map.name.is_empty() {
                errors.push(FieldError::required(format!("{path}.name"), ""));
            }
            errors.extend(items(map.items.as_deref(), &path));
        }
        if let Some(secret) = &source.secret {
            let path = format!("{path}.secret");
            if secret.name.is_empty() {
                errors.push(FieldError::required(format!("{path}.name"), ""));
            }
            errors.extend(items(secret.items.as_deref(), &path));
        }
        if let Some(token) = &source.service_account_token {
            let path = format!("{path}.serviceAccountToken");
            if token.expiration_seconds.is_some_and(|s| s < 600) {
                let detail = "may not specify a duration less than 10 minutes";
                errors.push(FieldError::invalid(
                    format!("{path}.expirationSeconds"),
                    token.expiration_seconds,
                    detail,
                ));
            }
            errors.extend(relative(&token.path, &format!("{path}.path")));
        }
    }
    errors
}

fn mode(mode: Option<i32>, path: &str) -> Vec<FieldError> {
    match mode {
        Some(mode) if !(0..=0o777).contains(&mode) => vec![FieldError::invalid(path, mode, MODE)],
        _ => Vec::new(),
    }
}

fn items(list: Option<&[KeyToPath]>, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (n, item) in list.into_iter().flatten().enumerate() {
        let path = format!("{path}.items[{n}]");
        if item.key.is_empty() {
            errors.push(FieldError::required(format!("{path}.key"), ""));
        }
        errors.extend(relative(&item.path, &format!("{path}.path")));
        errors.extend(mode(item.mode, &format!("{path}.mode")));
    }
    errors
}

/// A path that must stay below where it is mounted.
pub(super) fn relative(value: &str, path: &str) -> Vec<FieldError> {
    if value.is_empty() {
        return vec![FieldError::required(path, "")];
    }
    let mut errors = Vec::new();
    if value.starts_with('/') {
        errors.push(FieldError::invalid(path, value, "must be a relative path"));
    }
    if value.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, value, "must not contain '..'"));
    }
    errors
}
