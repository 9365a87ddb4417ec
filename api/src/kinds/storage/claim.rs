//! PersistentVolumeClaim.

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeClaimStatus,
};
use serde_json::Value;

use super::{DEFAULT_MODE, UNSET, VOLUME_MODES, access_modes, amount, class_name, short_modes, storage};
use crate::{
    kinds::pod_spec::one_of,
    quantity::Quantity,
    selector::Selector,
    strategy::{Column, Context, Descriptor, FieldError, Meta, Strategy},
    volume::{claim_phase, class_of},
};

const FROZEN: &str = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";

pub(in crate::kinds) struct Claims;

impl Strategy for Claims {
    type Kind = PersistentVolumeClaim;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            short_names: &["pvc"],
            status: true,
            ..Descriptor::namespaced(
                "",
                "v1",
                "PersistentVolumeClaim",
                "persistentvolumeclaims",
                "persistentvolumeclaim",
            )
        }
    }

    fn default(&self, claim: &mut PersistentVolumeClaim) {
        let spec = claim.spec.get_or_insert_default();
        spec.volume_mode.get_or_insert_with(|| DEFAULT_MODE.to_owned());
        if let Some(resources) = &mut spec.resources {
            super::canonicalize(resources.requests.as_mut());
            super::canonicalize(resources.limits.as_mut());
        }
        claim.status.get_or_insert_default().phase.get_or_insert_with(|| "Pending".to_owned());
    }

    fn prepare_create(&self, _cx: &Context, claim: &mut PersistentVolumeClaim) {
        claim.status =
            Some(PersistentVolumeClaimStatus { phase: Some("Pending".into()), ..Default::default() });
    }

    fn validate(&self, claim: &PersistentVolumeClaim) -> Vec<FieldError> {
        let Some(spec) = &claim.spec else { return vec![FieldError::required("spec", "")] };
        let mut errors = access_modes(spec.access_modes.as_deref(), "at least 1 access mode is required");
        if let Some(Err(fault)) = spec.selector.as_ref().map(Selector::from_object) {
            errors.push(FieldError::invalid("spec.selector", &spec.selector, &fault.to_string()));
        }
        let requests = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        errors.extend(storage(requests, "spec.resources[storage]"));
        errors.extend(class_name(spec.storage_class_name.as_deref()));
        errors.extend(one_of("spec.volumeMode", spec.volume_mode.as_deref(), VOLUME_MODES));
        errors
    }

    fn validate_update(&self, new: &PersistentVolumeClaim, old: &PersistentVolumeClaim) -> Vec<FieldError> {
        let (Some(after), Some(before)) = (&new.spec, &old.spec) else { return Vec::new() };
        let bound = claim_phase(old) == "Bound";
        if masked(after, before, bound) != *before {
            return vec![FieldError::forbidden("spec", FROZEN)];
        }
        let size = |spec: &PersistentVolumeClaimSpec| {
            let text = amount(spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()));
            text.parse::<Quantity>().unwrap_or(Quantity::ZERO)
        };
        if size(after) < size(before) {
            let detail = "field can not be less than status.capacity";
            return vec![FieldError::forbidden("spec.resources.requests.storage", detail)];
        }
        Vec::new()
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            Column::NAME,
            Column::text("Status"),
            Column::text("Volume"),
            Column::text("Capacity"),
            Column::text("Access Modes"),
            Column::text("StorageClass"),
            Column::text("VolumeAttributesClass"),
            Column::AGE,
            Column::wide("VolumeMode"),
        ];
        COLUMNS
    }

    fn row(&self, claim: &PersistentVolumeClaim, metadata: &Meta<'_>) -> Vec<Value> {
        let spec = claim.spec.clone().unwrap_or_default();
        let volume = spec.volume_name.unwrap_or_default();
        let status = claim.status.as_ref().filter(|_| !volume.is_empty());
        let phase = if metadata.deleting { "Terminating" } else { claim_phase(claim) };
        vec![
            metadata.name.into(),
            phase.into(),
            volume.clone().into(),
            amount(status.and_then(|status| status.capacity.as_ref())).into(),
            short_modes(status.and_then(|status| status.access_modes.as_deref())).into(),
            class_of(claim).into(),
            spec.volume_attributes_class_name.unwrap_or_else(|| UNSET.to_owned()).into(),
            metadata.age().into(),
            spec.volume_mode.unwrap_or_else(|| UNSET.to_owned()).into(),
        ]
    }
}

/// `new` with what may change as it was.
fn masked(
    new: &PersistentVolumeClaimSpec,
    old: &PersistentVolumeClaimSpec,
    bound: bool,
) -> PersistentVolumeClaimSpec {
    let mut masked = new.clone();
    let empty = |name: &Option<String>| name.as_deref().unwrap_or_default().is_empty();
    if empty(&old.volume_name) {
        masked.volume_name.clone_from(&old.volume_name);
    }
    // The default class of later days may be filled in.
    if old.storage_class_name.is_none() {
        masked.storage_class_name = None;
    }
    if bound {
        masked.volume_attributes_class_name.clone_from(&old.volume_attributes_class_name);
        let storage = |spec: &PersistentVolumeClaimSpec| {
            spec.resources.as_ref().and_then(|r| r.requests.as_ref()?.get("storage")).cloned()
        };
        if let (Some(requests), Some(before)) =
            (masked.resources.as_mut().and_then(|resources| resources.requests.as_mut()), storage(old))
        {
            requests.insert("storage".to_owned(), before);
        }
    }
    masked
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::tests::{create, decoded, row, update};

    const KIND: &str = "PersistentVolumeClaim";

    fn claim(edit: fn(&mut Value)) -> Value {
        let mut claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}});
        edit(&mut claim);
        claim
    }

    #[test]
    fn rules() {
        type Edit = fn(&mut Value);
        let table: &[(Edit, &str)] = &[
            (
                |c| c["spec"]["accessModes"] = json!([]),
                "spec.accessModes: Required value: at least 1 access mode is required",
            ),
            (
                |c| c["spec"]["accessModes"] = json!(["RWO"]),
                "spec.accessModes: Unsupported value: \"RWO\": supported values: \"ReadOnlyMany\", \
                 \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
            ),
            (
                |c| c["spec"]["accessModes"] = json!(["ReadWriteOncePod", "ReadWriteOnce"]),
                "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
            ),
            (|c| c["spec"]["resources"] = json!({}), "spec.resources[storage]: Required value"),
            (
                |c| c["spec"]["resources"]["requests"]["storage"] = "0".into(),
                "spec.resources[storage]: Invalid value: \"0\": must be greater than zero",
            ),
            (
                |c| c["spec"]["volumeMode"] = "Raw".into(),
                "spec.volumeMode: Unsupported value: \"Raw\": supported values: \"Block\", \"Filesystem\"",
            ),
        ];
        for (edit, want) in table {
            let fault = create(KIND, claim(*edit)).unwrap_err().message;
            assert_eq!(fault, format!("{KIND} \"data\" is invalid: {want}"));
        }
        let created = create(KIND, claim(|c| c["status"] = json!({"phase": "Bound"}))).unwrap();
        assert_eq!(
            (&created["status"]["phase"], &created["spec"]["volumeMode"]),
            (&json!("Pending"), &json!("Filesystem"))
        );
    }

    #[test]
    fn a_bound_claim_only_grows() {
        let bound = claim(|c| {
            c["spec"]["volumeName"] = "pv".into();
            c["status"] = json!({"phase": "Bound"});
        });
        let sized = |size: &str| {
            let mut new = bound.clone();
            new["spec"]["resources"]["requests"]["storage"] = size.into();
            update(KIND, new, &bound).map_err(|status| status.message)
        };
        assert!(sized("2Gi").is_ok());
        assert!(sized("1Mi").unwrap_err().ends_with("field can not be less than status.capacity"));
        let pending = claim(|_| {});
        assert!(update(KIND, claim(|c| c["spec"]["volumeName"] = "pv".into()), &pending).is_ok());
        for edit in [(|c| c["spec"]["accessModes"] = json!(["ReadWriteMany"])) as fn(&mut Value), |c| {
            c["spec"]["resources"]["requests"]["storage"] = "2Gi".into()
        }] {
            assert!(update(KIND, claim(edit), &pending).unwrap_err().message.contains(FROZEN));
        }
        let mut moved = bound.clone();
        moved["spec"]["volumeName"] = "other".into();
        assert!(update(KIND, moved, &bound).is_err());
    }

    #[test]
    fn rows() {
        let pending = decoded(KIND, claim(|c| c["spec"]["storageClassName"] = "local-path".into()));
        assert_eq!(row(KIND, &pending), "data|Pending||||local-path|<unset>|<unknown>|Filesystem");
        let bound = decoded(
            KIND,
            claim(|c| {
                c["spec"]["volumeName"] = "pv".into();
                c["status"] = json!({"phase": "Bound", "capacity": {"storage": "1Gi"},
                    "accessModes": ["ReadWriteMany", "ReadWriteOnce"]});
            }),
        );
        assert_eq!(row(KIND, &bound), "data|Bound|pv|1Gi|RWO,RWX||<unset>|<unknown>|Filesystem");
    }
}
