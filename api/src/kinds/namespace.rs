//! Namespace.

use k8s_openapi::api::core::v1::{Namespace, NamespaceStatus};
use serde_json::Value;

use crate::strategy::{Column, Context, Descriptor, Meta, Strategy};

/// Carries the namespace's own name, for selectors.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub(super) struct Namespaces;

fn phase(namespace: &Namespace) -> String {
    namespace.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default()
}

fn label(namespace: &mut Namespace) {
    if let Some(name) = namespace.metadata.name.clone().filter(|n| !n.is_empty()) {
        namespace.metadata.labels.get_or_insert_default().insert(NAME_LABEL.into(), name);
    }
}

impl Strategy for Namespaces {
    type Kind = Namespace;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            short_names: &["ns"],
            namespaced: false,
            status: true,
            ..Descriptor::namespaced("", "v1", "Namespace", "namespaces", "namespace")
        }
    }

    fn default(&self, namespace: &mut Namespace) {
        label(namespace);
        namespace.spec.get_or_insert_default();
    }

    fn prepare_create(&self, _cx: &Context, namespace: &mut Namespace) {
        label(namespace);
        namespace.status = Some(NamespaceStatus { phase: Some("Active".into()), ..Default::default() });
        let finalizers = namespace.spec.get_or_insert_default().finalizers.get_or_insert_default();
        if !finalizers.iter().any(|f| f == "kubernetes") {
            finalizers.push("kubernetes".into());
        }
    }

    fn prepare_update(&self, _cx: &Context, new: &mut Namespace, old: &Namespace) {
        // Only the finalize subresource changes them.
        new.spec.clone_from(&old.spec);
        label(new);
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[Column::NAME, Column::text("Status"), Column::AGE];
        COLUMNS
    }

    fn row(&self, namespace: &Namespace, metadata: &Meta<'_>) -> Vec<Value> {
        vec![metadata.name.into(), phase(namespace).into(), metadata.age().into()]
    }

    fn fields(&self, namespace: &Namespace) -> Vec<(&'static str, String)> {
        vec![("status.phase", phase(namespace))]
    }

    fn field_names(&self) -> &'static [&'static str] {
        &["status.phase"]
    }
}
