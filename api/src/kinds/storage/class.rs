//! StorageClass.

use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::Value;

use crate::{
    kinds::pod_spec::{invalid_all, one_of},
    strategy::{Column, Descriptor, FieldError, Meta, Strategy},
    validation::{self, IMMUTABLE},
    volume::is_default,
};

pub(in crate::kinds) struct Classes;

impl Strategy for Classes {
    type Kind = StorageClass;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            short_names: &["sc"],
            namespaced: false,
            ..Descriptor::namespaced("storage.k8s.io", "v1", "StorageClass", "storageclasses", "storageclass")
        }
    }

    fn default(&self, class: &mut StorageClass) {
        class.reclaim_policy.get_or_insert_with(|| "Delete".to_owned());
        class.volume_binding_mode.get_or_insert_with(|| "Immediate".to_owned());
    }

    fn validate(&self, class: &StorageClass) -> Vec<FieldError> {
        let name = &class.provisioner;
        let mut errors = match name.as_str() {
            "" => vec![FieldError::required("provisioner", "")],
            _ => invalid_all("provisioner", name, validation::qualified_name(&name.to_lowercase())),
        };
        errors.extend(one_of("reclaimPolicy", class.reclaim_policy.as_deref(), &["Delete", "Retain"]));
        let modes = ["Immediate", "WaitForFirstConsumer"];
        errors.extend(one_of("volumeBindingMode", class.volume_binding_mode.as_deref(), &modes));
        errors
    }

    fn validate_update(&self, new: &StorageClass, old: &StorageClass) -> Vec<FieldError> {
        let changed = [
            (
                "parameters",
                new.parameters.clone().unwrap_or_default() != old.parameters.clone().unwrap_or_default(),
            ),
            ("provisioner", new.provisioner != old.provisioner),
            ("reclaimPolicy", new.reclaim_policy != old.reclaim_policy),
        ];
        let mut errors: Vec<FieldError> = (changed.into_iter().filter(|(_, changed)| *changed))
            .map(|(name, _)| FieldError::forbidden(name, &format!("updates to {name} are forbidden.")))
            .collect();
        if new.volume_binding_mode != old.volume_binding_mode {
            errors.push(FieldError::invalid("volumeBindingMode", &new.volume_binding_mode, IMMUTABLE));
        }
        errors
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            Column::NAME,
            Column::text("Provisioner"),
            Column::text("ReclaimPolicy"),
            Column::text("VolumeBindingMode"),
            Column::text("AllowVolumeExpansion"),
            Column::AGE,
        ];
        COLUMNS
    }

    fn row(&self, class: &StorageClass, metadata: &Meta<'_>) -> Vec<Value> {
        let name = metadata.name.to_owned() + if is_default(class) { " (default)" } else { "" };
        vec![
            name.into(),
            class.provisioner.clone().into(),
            class.reclaim_policy.clone().unwrap_or_default().into(),
            class.volume_binding_mode.clone().unwrap_or_default().into(),
            class.allow_volume_expansion.unwrap_or_default().into(),
            metadata.age().into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::tests::{create, decoded, row, update};

    #[test]
    fn rules_and_rows() {
        let class = |provisioner: &str| json!({"metadata": {"name": "fast"}, "provisioner": provisioner});
        let fault = |object: Value| create("StorageClass", object).unwrap_err().message;
        assert!(fault(class("")).ends_with("provisioner: Required value"));
        let mut wrong = class("a.b/c");
        wrong["reclaimPolicy"] = "Recycle".into();
        assert!(fault(wrong).ends_with("supported values: \"Delete\", \"Retain\""));
        let changed = update("StorageClass", class("a.b/d"), &class("a.b/c")).unwrap_err().message;
        assert!(changed.ends_with("provisioner: Forbidden: updates to provisioner are forbidden."));
        let mut named = class("a.b/c");
        named["metadata"]["annotations"] = json!({"storageclass.kubernetes.io/is-default-class": "true"});
        assert_eq!(
            row("StorageClass", &decoded("StorageClass", named)),
            "fast (default)|a.b/c|Delete|Immediate|false|<unknown>"
        );
    }
}
