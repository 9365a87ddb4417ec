//! What kinds that make pods from a template share.

use k8s_openapi::{api::core::v1::PodTemplateSpec, apimachinery::pkg::apis::meta::v1::LabelSelector};
use serde_json::Value;

use super::{
    or_none,
    pod_spec::{self, invalid_all},
};
use crate::{
    selector::{self, Selector},
    strategy::FieldError,
};

/// Faults of a selector and the template it must select. `kind` is lower case.
pub(super) fn selector_and_template(
    selector: &LabelSelector,
    template: &PodTemplateSpec,
    kind: &str,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let labels = template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
    // k8s-openapi does not tell a missing selector from an empty one; either selects too much.
    let missing = selector.match_labels.is_none() && selector.match_expressions.is_none();
    let mismatch = match Selector::from_object(selector) {
        _ if missing => {
            errors.push(FieldError::required("spec.selector", ""));
            true
        }
        Ok(parsed) if parsed.is_everything() => {
            let detail = format!("empty selector is invalid for {kind}");
            errors.push(FieldError::invalid("spec.selector", selector, &detail));
            false
        }
        Ok(parsed) => !parsed.matches(&labels),
        Err(fault) => {
            errors.push(FieldError::invalid("spec.selector", selector, &fault.to_string()));
            false
        }
    };
    if mismatch {
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid("spec.template.metadata.labels", &labels, detail));
    }
    errors.extend(pod_spec::validate_template(template, "spec.template"));
    let spec = template.spec.as_ref();
    if let Some(policy) = spec.and_then(|s| s.restart_policy.as_deref()).filter(|p| *p != "Always") {
        errors.push(FieldError::not_supported("spec.template.spec.restartPolicy", policy, &["Always"]));
    }
    if spec.is_some_and(|s| s.active_deadline_seconds.is_some()) {
        let path = "spec.template.spec.activeDeadlineSeconds";
        errors
            .push(FieldError::forbidden(path, &format!("activeDeadlineSeconds in {kind} is not Supported")));
    }
    errors
}

/// A name that must be a valid label value too: it is put on pods or in their names.
pub(super) fn selector_unchanged(new: &LabelSelector, old: &LabelSelector) -> Vec<FieldError> {
    if new == old {
        return Vec::new();
    }
    vec![FieldError::invalid("spec.selector", new, crate::validation::IMMUTABLE)]
}

/// The wide cells: container names, images, selector.
pub(super) fn wide_cells(selector: &LabelSelector, template: Option<&PodTemplateSpec>) -> [Value; 3] {
    let containers =
        template.and_then(|t| t.spec.as_ref()).map(|s| s.containers.as_slice()).unwrap_or_default();
    let names: Vec<_> = containers.iter().map(|c| c.name.as_str()).collect();
    let images: Vec<_> = containers.iter().map(|c| c.image.as_deref().unwrap_or_default()).collect();
    [
        or_none(Some(&names.join(","))).into(),
        or_none(Some(&images.join(","))).into(),
        selector::display(selector).into(),
    ]
}

/// Faults of a whole number or percentage at `path`.
pub(super) fn int_or_percent(
    value: &k8s_openapi::apimachinery::pkg::util::intstr::IntOrString,
    path: &str,
    capped: bool,
) -> Vec<FieldError> {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    match value {
        IntOrString::Int(number) => pod_spec::not_negative(path, Some(*number)),
        IntOrString::String(text) => {
            let mut errors = invalid_all(path, text, crate::validation::percent(text));
            let percent = text.strip_suffix('%').and_then(|p| p.parse::<u32>().ok());
            if capped && errors.is_empty() && percent.is_none_or(|p| p > 100) {
                errors.push(FieldError::invalid(path, text, "must not be greater than 100%"));
            }
            errors
        }
    }
}
