//! Kinds with little to say: ServiceAccount, Lease, RuntimeClass.

use k8s_openapi::api::{coordination::v1::Lease, core::v1::ServiceAccount, node::v1::RuntimeClass};
use serde_json::Value;

use super::pod_spec::{invalid_all, not_negative};
use crate::{
    strategy::{Column, Descriptor, FieldError, Meta, Strategy},
    validation::{self, IMMUTABLE},
};

pub(super) struct ServiceAccounts;

impl Strategy for ServiceAccounts {
    type Kind = ServiceAccount;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            short_names: &["sa"],
            ..Descriptor::namespaced("", "v1", "ServiceAccount", "serviceaccounts", "serviceaccount")
        }
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[Column::NAME, Column::integer("Secrets"), Column::AGE];
        COLUMNS
    }

    fn row(&self, account: &ServiceAccount, metadata: &Meta<'_>) -> Vec<Value> {
        let count = account.secrets.as_ref().map_or(0, Vec::len);
        vec![metadata.name.into(), count.into(), metadata.age().into()]
    }
}

pub(super) struct Leases;

impl Strategy for Leases {
    type Kind = Lease;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            create_on_update: true,
            ..Descriptor::namespaced("coordination.k8s.io", "v1", "Lease", "leases", "lease")
        }
    }

    fn validate(&self, lease: &Lease) -> Vec<FieldError> {
        let spec = lease.spec.clone().unwrap_or_default();
        let mut errors = not_negative("spec.leaseTransitions", spec.lease_transitions);
        if let Some(seconds) = spec.lease_duration_seconds.filter(|s| *s <= 0) {
            errors.push(FieldError::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
        }
        errors
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[Column::NAME, Column::text("Holder"), Column::AGE];
        COLUMNS
    }

    fn row(&self, lease: &Lease, metadata: &Meta<'_>) -> Vec<Value> {
        let holder = lease.spec.as_ref().and_then(|s| s.holder_identity.clone()).unwrap_or_default();
        vec![metadata.name.into(), holder.into(), metadata.age().into()]
    }
}

pub(super) struct RuntimeClasses;

impl Strategy for RuntimeClasses {
    type Kind = RuntimeClass;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            namespaced: false,
            ..Descriptor::namespaced("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", "runtimeclass")
        }
    }

    fn validate(&self, class: &RuntimeClass) -> Vec<FieldError> {
        invalid_all("handler", &class.handler, validation::dns1123_label(&class.handler))
    }

    fn validate_update(&self, new: &RuntimeClass, old: &RuntimeClass) -> Vec<FieldError> {
        if new.handler == old.handler {
            return Vec::new();
        }
        vec![FieldError::invalid("handler", &new.handler, IMMUTABLE)]
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[Column::NAME, Column::text("Handler"), Column::AGE];
        COLUMNS
    }

    fn row(&self, class: &RuntimeClass, metadata: &Meta<'_>) -> Vec<Value> {
        vec![metadata.name.into(), class.handler.clone().into(), metadata.age().into()]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::kinds::tests::{create, row, update};

    #[test]
    fn rules_and_rows() {
        let lease = |seconds: i32| json!({"metadata": {"name": "n1"}, "spec": {"holderIdentity": "n1", "leaseDurationSeconds": seconds}});
        assert!(create("Lease", lease(40)).is_ok());
        assert!(create("Lease", lease(0)).unwrap_err().message.contains("must be greater than 0"));
        assert_eq!(row("Lease", &lease(40)), "n1|n1|<unknown>");
        let class = |handler: &str| json!({"metadata": {"name": "wasm"}, "handler": handler});
        assert!(create("RuntimeClass", class("ketch-wasm")).is_ok());
        assert!(create("RuntimeClass", class("")).is_err());
        assert!(update("RuntimeClass", class("a"), &class("b")).is_err());
        assert_eq!(row("RuntimeClass", &class("a")), "wasm|a|<unknown>");
        assert_eq!(row("ServiceAccount", &json!({"metadata": {"name": "default"}})), "default|0|<unknown>");
    }
}
