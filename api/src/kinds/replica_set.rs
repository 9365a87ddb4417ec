//! ReplicaSet.

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use serde_json::Value;

use super::{
    pod_spec::{self, not_negative},
    workload,
};
use crate::strategy::{Column, Context, Descriptor, FieldError, Meta, Scale, Strategy};

pub(super) struct ReplicaSets;

impl Strategy for ReplicaSets {
    type Kind = ReplicaSet;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            short_names: &["rs"],
            categories: &["all"],
            status: true,
            scale: Some(Scale {
                spec: "/spec/replicas",
                status: "/status/replicas",
                selector: "/spec/selector",
            }),
            generation: true,
            ..Descriptor::namespaced("apps", "v1", "ReplicaSet", "replicasets", "replicaset")
        }
    }

    fn default(&self, set: &mut ReplicaSet) {
        let spec = set.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        pod_spec::default_template(spec.template.get_or_insert_default());
    }

    fn prepare_create(&self, _cx: &Context, set: &mut ReplicaSet) {
        set.status = Some(ReplicaSetStatus::default());
    }

    fn validate(&self, set: &ReplicaSet) -> Vec<FieldError> {
        let spec = set.spec.clone().unwrap_or_default();
        let mut errors = not_negative("spec.replicas", spec.replicas);
        errors.extend(not_negative("spec.minReadySeconds", spec.min_ready_seconds));
        let template = spec.template.unwrap_or_default();
        errors.extend(workload::selector_and_template(&spec.selector, &template, "replicaset"));
        errors
    }

    fn validate_update(&self, new: &ReplicaSet, old: &ReplicaSet) -> Vec<FieldError> {
        let selector = |s: &ReplicaSet| s.spec.as_ref().map(|s| s.selector.clone()).unwrap_or_default();
        workload::selector_unchanged(&selector(new), &selector(old))
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            Column::NAME,
            Column::integer("Desired"),
            Column::integer("Current"),
            Column::integer("Ready"),
            Column::AGE,
            Column::wide("Containers"),
            Column::wide("Images"),
            Column::wide("Selector"),
        ];
        COLUMNS
    }

    fn row(&self, set: &ReplicaSet, metadata: &Meta<'_>) -> Vec<Value> {
        let spec = set.spec.clone().unwrap_or_default();
        let status = set.status.clone().unwrap_or_default();
        let mut cells = vec![
            metadata.name.into(),
            spec.replicas.unwrap_or(0).into(),
            status.replicas.into(),
            status.ready_replicas.unwrap_or(0).into(),
            metadata.age().into(),
        ];
        cells.extend(workload::wide_cells(&spec.selector, spec.template.as_ref()));
        cells
    }

    fn fields(&self, set: &ReplicaSet) -> Vec<(&'static str, String)> {
        let replicas = set.status.as_ref().map_or(0, |s| s.replicas);
        vec![("status.replicas", replicas.to_string())]
    }

    fn field_names(&self) -> &'static [&'static str] {
        &["status.replicas"]
    }
}
