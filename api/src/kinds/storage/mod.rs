//! PersistentVolumeClaim, PersistentVolume and StorageClass.

mod claim;
mod class;
mod volume;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

pub(super) use self::{claim::Claims, class::Classes, volume::Volumes};
use super::pod_spec::{invalid_all, one_of};
use crate::{quantity::Quantity, strategy::FieldError, validation};

const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
const DEFAULT_MODE: &str = "Filesystem";
const UNSET: &str = "<unset>";

/// As columns show them, in upstream's order.
fn short_modes(modes: Option<&[String]>) -> String {
    let all = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let has = |mode: &str| modes.unwrap_or_default().iter().any(|one| one == mode);
    all.into_iter().filter(|(long, _)| has(long)).map(|(_, short)| short).collect::<Vec<_>>().join(",")
}

fn access_modes(modes: Option<&[String]>, missing: &str) -> Vec<FieldError> {
    let (path, modes) = ("spec.accessModes", modes.unwrap_or_default());
    if modes.is_empty() {
        return vec![FieldError::required(path, missing)];
    }
    let mut errors: Vec<FieldError> =
        modes.iter().flat_map(|mode| one_of(path, Some(mode), ACCESS_MODES)).collect();
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        errors.push(FieldError::forbidden(path, "may not use ReadWriteOncePod with other access modes"));
    }
    errors
}

/// Faults of the one amount that a list has to have.
fn storage(list: Option<&BTreeMap<String, Text>>, path: &str) -> Vec<FieldError> {
    let Some(text) = list.and_then(|list| list.get("storage")) else {
        return vec![FieldError::required(path, "")];
    };
    match Quantity::try_from(text) {
        Err(fault) => vec![FieldError::invalid(path, &text.0, &fault.to_string())],
        Ok(size) if size.is_negative() || size.is_zero() => {
            vec![FieldError::invalid(path, &text.0, "must be greater than zero")]
        }
        Ok(_) => Vec::new(),
    }
}

/// Empty is a class, too: that of volumes without one.
fn class_name(name: Option<&str>) -> Vec<FieldError> {
    let name = name.unwrap_or_default();
    match name {
        "" => Vec::new(),
        name => invalid_all("spec.storageClassName", name, validation::dns1123_subdomain(name)),
    }
}

fn amount(list: Option<&BTreeMap<String, Text>>) -> String {
    list.and_then(|list| list.get("storage")).map(|text| text.0.clone()).unwrap_or_default()
}

fn canonicalize(list: Option<&mut BTreeMap<String, Text>>) {
    list.into_iter().flat_map(BTreeMap::values_mut).for_each(crate::quantity::canonicalize);
}
