//! PersistentVolume.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeSpec, PersistentVolumeStatus};
use serde_json::{Map, Value};

use super::{DEFAULT_MODE, UNSET, VOLUME_MODES, access_modes, amount, class_name, short_modes, storage};
use crate::{
    kinds::pod_spec::{node_selector, one_of},
    strategy::{Column, Context, Descriptor, FieldError, Meta, Strategy},
    validation::IMMUTABLE,
    volume::{NODE_FIELD, node_of, phase, volume_class},
};

/// What is in a spec besides the source of the volume.
const COMMON: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

pub(in crate::kinds) struct Volumes;

impl Strategy for Volumes {
    type Kind = PersistentVolume;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            short_names: &["pv"],
            namespaced: false,
            status: true,
            ..Descriptor::namespaced("", "v1", "PersistentVolume", "persistentvolumes", "persistentvolume")
        }
    }

    fn default(&self, volume: &mut PersistentVolume) {
        let spec = volume.spec.get_or_insert_default();
        spec.persistent_volume_reclaim_policy.get_or_insert_with(|| "Retain".to_owned());
        spec.volume_mode.get_or_insert_with(|| DEFAULT_MODE.to_owned());
        super::canonicalize(spec.capacity.as_mut());
        if let Some(host) = &mut spec.host_path {
            host.type_.get_or_insert_default();
        }
        volume.status.get_or_insert_default().phase.get_or_insert_with(|| "Pending".to_owned());
    }

    fn prepare_create(&self, _cx: &Context, volume: &mut PersistentVolume) {
        volume.status = Some(PersistentVolumeStatus { phase: Some("Pending".into()), ..Default::default() });
    }

    fn validate(&self, volume: &PersistentVolume) -> Vec<FieldError> {
        let Some(spec) = &volume.spec else { return vec![FieldError::required("spec", "")] };
        let mut errors = access_modes(spec.access_modes.as_deref(), "");
        match spec.capacity.as_ref().is_none_or(std::collections::BTreeMap::is_empty) {
            true => errors.push(FieldError::required("spec.capacity", "")),
            false => errors.extend(storage(spec.capacity.as_ref(), "spec.capacity[storage]")),
        }
        let policy = spec.persistent_volume_reclaim_policy.as_deref();
        let policies = ["Delete", "Recycle", "Retain"];
        errors.extend(one_of("spec.persistentVolumeReclaimPolicy", policy, &policies));
        errors.extend(source(spec));
        errors.extend(class_name(spec.storage_class_name.as_deref()));
        errors.extend(one_of("spec.volumeMode", spec.volume_mode.as_deref(), VOLUME_MODES));
        match spec.node_affinity.as_ref().map(|affinity| &affinity.required) {
            Some(Some(required)) => errors.extend(node_selector(required, "spec.nodeAffinity.required")),
            Some(None) => errors.push(FieldError::required(
                "spec.nodeAffinity.required",
                "must specify required node constraints",
            )),
            None => {}
        }
        errors
    }

    fn validate_update(&self, new: &PersistentVolume, old: &PersistentVolume) -> Vec<FieldError> {
        let (Some(after), Some(before)) = (&new.spec, &old.spec) else { return Vec::new() };
        let mut errors = Vec::new();
        if sources(after) != sources(before) {
            let detail = "spec.persistentvolumesource is immutable after creation";
            errors.push(FieldError::forbidden("spec.persistentvolumesource", detail));
        }
        if after.volume_mode != before.volume_mode {
            errors.push(FieldError::invalid("spec.volumeMode", &after.volume_mode, IMMUTABLE));
        }
        if before.node_affinity.is_some() && after.node_affinity != before.node_affinity {
            let detail = "field is immutable, except for updating from beta label to GA";
            errors.push(FieldError::invalid("spec.nodeAffinity", &after.node_affinity, detail));
        }
        errors
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            Column::NAME,
            Column::text("Capacity"),
            Column::text("Access Modes"),
            Column::text("Reclaim Policy"),
            Column::text("Status"),
            Column::text("Claim"),
            Column::text("StorageClass"),
            Column::text("VolumeAttributesClass"),
            Column::text("Reason"),
            Column::AGE,
            Column::wide("VolumeMode"),
        ];
        COLUMNS
    }

    fn row(&self, volume: &PersistentVolume, metadata: &Meta<'_>) -> Vec<Value> {
        let spec = volume.spec.clone().unwrap_or_default();
        let claim = spec.claim_ref.map(|reference| {
            let part = |text: Option<String>| text.unwrap_or_default();
            format!("{}/{}", part(reference.namespace), part(reference.name))
        });
        let phase = if metadata.deleting { "Terminating" } else { phase(volume) };
        let reason = volume.status.as_ref().and_then(|status| status.reason.clone());
        vec![
            metadata.name.into(),
            amount(spec.capacity.as_ref()).into(),
            short_modes(spec.access_modes.as_deref()).into(),
            spec.persistent_volume_reclaim_policy.unwrap_or_default().into(),
            phase.into(),
            claim.unwrap_or_default().into(),
            volume_class(volume).into(),
            spec.volume_attributes_class_name.unwrap_or_else(|| UNSET.to_owned()).into(),
            reason.unwrap_or_default().into(),
            metadata.age().into(),
            spec.volume_mode.unwrap_or_else(|| UNSET.to_owned()).into(),
        ]
    }

    fn fields(&self, volume: &PersistentVolume) -> Vec<(&'static str, String)> {
        vec![(NODE_FIELD, node_of(volume).unwrap_or_default().to_owned())]
    }

    fn field_names(&self) -> &'static [&'static str] {
        &[NODE_FIELD]
    }
}

/// Where the volume's data is, by the name of the field.
fn sources(spec: &PersistentVolumeSpec) -> Map<String, Value> {
    let Ok(Value::Object(mut fields)) = serde_json::to_value(spec) else { return Map::new() };
    fields.retain(|name, _| !COMMON.contains(&name.as_str()));
    fields
}

fn source(spec: &PersistentVolumeSpec) -> Vec<FieldError> {
    let found = sources(spec);
    if found.is_empty() {
        return vec![FieldError::required("spec", "must specify a volume type")];
    }
    let mut errors: Vec<FieldError> = (found.keys().skip(1))
        .map(|name| FieldError::forbidden(format!("spec.{name}"), "may not specify more than 1 volume type"))
        .collect();
    if let Some(local) = &spec.local {
        errors.extend(path(&local.path, "spec.local.path"));
        if spec.node_affinity.is_none() {
            errors.push(FieldError::required("spec.nodeAffinity", "Local volume requires node affinity"));
        }
    }
    if let Some(host) = &spec.host_path {
        errors.extend(path(&host.path, "spec.hostPath.path"));
        if host.path == "/" && spec.persistent_volume_reclaim_policy.as_deref() == Some("Recycle") {
            let detail = "may not be 'recycle' for a hostPath mount of '/'";
            errors.push(FieldError::forbidden("spec.persistentVolumeReclaimPolicy", detail));
        }
    }
    errors
}

fn path(value: &str, field: &str) -> Vec<FieldError> {
    match value {
        "" => vec![FieldError::required(field, "")],
        value if value.split('/').any(|part| part == "..") => {
            vec![FieldError::invalid(field, value, "must not contain '..'")]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::tests::{create, decoded, row, update};

    const KIND: &str = "PersistentVolume";

    fn volume(edit: fn(&mut Value)) -> Value {
        let mut volume = json!({"metadata": {"name": "disk"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "1024Mi"}, "hostPath": {"path": "/data"}}});
        edit(&mut volume["spec"]);
        volume
    }

    #[test]
    fn rules() {
        type Edit = fn(&mut Value);
        let table: &[(Edit, &str)] = &[
            (|s| s["hostPath"] = Value::Null, "spec: Required value: must specify a volume type"),
            (|s| s["accessModes"] = Value::Null, "spec.accessModes: Required value"),
            (|s| s["capacity"] = Value::Null, "spec.capacity: Required value"),
            (
                |s| s["nfs"] = json!({"server": "s", "path": "/"}),
                "spec.nfs: Forbidden: may not specify more than 1 volume type",
            ),
            (
                |s| s["hostPath"]["path"] = "/data/../etc".into(),
                "spec.hostPath.path: Invalid value: \"/data/../etc\": must not contain '..'",
            ),
            (
                |s| {
                    s["hostPath"] = Value::Null;
                    s["local"] = json!({"path": "/data"});
                },
                "spec.nodeAffinity: Required value: Local volume requires node affinity",
            ),
            (
                |s| s["persistentVolumeReclaimPolicy"] = "Burn".into(),
                "spec.persistentVolumeReclaimPolicy: Unsupported value: \"Burn\": supported values: \"Delete\", \
                 \"Recycle\", \"Retain\"",
            ),
            (
                |s| s["nodeAffinity"] = json!({}),
                "spec.nodeAffinity.required: Required value: must specify required node constraints",
            ),
        ];
        for (edit, want) in table {
            let fault = create(KIND, volume(*edit)).unwrap_err().message;
            assert_eq!(fault, format!("{KIND} \"disk\" is invalid: {want}"));
        }
        let old = volume(|_| {});
        let moved = update(KIND, volume(|s| s["hostPath"]["path"] = "/other".into()), &old).unwrap_err();
        assert!(moved.message.contains("spec.persistentvolumesource is immutable after creation"));
        assert!(update(KIND, volume(|s| s["persistentVolumeReclaimPolicy"] = "Delete".into()), &old).is_ok());
    }

    #[test]
    fn rows() {
        let bound = decoded(KIND, volume(|s| s["claimRef"] = json!({"namespace": "shop", "name": "data"})));
        assert_eq!(row(KIND, &bound), "disk|1Gi|RWO|Retain|Pending|shop/data||<unset>||<unknown>|Filesystem");
    }
}
