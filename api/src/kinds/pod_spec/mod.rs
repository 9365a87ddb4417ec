//! What every kind with a pod template shares: defaults and rules of `PodSpec`.

mod containers;
mod defaults;
mod resources;
mod volumes;

use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec, Toleration};

pub(super) use self::{
    containers::{env_vars, port_or_name},
    defaults::{pod as default_pod, template as default_template},
    resources::{canonicalize, qos_class, requirements},
};
use crate::{
    meta, selector,
    strategy::FieldError,
    validation::{self, NEGATIVE},
};

/// Faults of the value at one field.
pub(super) fn invalid_all(
    path: &str,
    value: impl serde::Serialize + Copy,
    faults: Vec<String>,
) -> Vec<FieldError> {
    faults.iter().map(|fault| FieldError::invalid(path, value, fault)).collect()
}

/// The value must be one of `supported`; empty counts as missing.
pub(super) fn one_of(path: &str, value: Option<&str>, supported: &[&str]) -> Vec<FieldError> {
    match value.unwrap_or_default() {
        "" => vec![FieldError::required(path, "")],
        value if supported.contains(&value) => Vec::new(),
        value => vec![FieldError::not_supported(path, value, supported)],
    }
}

/// The number, when there is one, must not be negative.
pub(super) fn not_negative(path: &str, value: Option<impl Into<i64>>) -> Vec<FieldError> {
    match value.map(Into::into) {
        Some(value) if value < 0 => vec![FieldError::invalid(path, value, NEGATIVE)],
        _ => Vec::new(),
    }
}

/// Faults of a pod's spec at `path` (`spec` or `spec.template.spec`).
pub(super) fn validate(spec: &PodSpec, path: &str) -> Vec<FieldError> {
    let mut errors =
        volumes::validate(spec.volumes.as_deref().unwrap_or_default(), &format!("{path}.volumes"));
    errors.extend(containers::validate_all(spec, path));
    let restart = spec.restart_policy.as_deref();
    errors.extend(one_of(&format!("{path}.restartPolicy"), restart, &["Always", "OnFailure", "Never"]));
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    errors.extend(one_of(&format!("{path}.dnsPolicy"), spec.dns_policy.as_deref(), &policies));
    if spec.dns_policy.as_deref() == Some("None")
        && spec.dns_config.as_ref().and_then(|c| c.nameservers.as_ref()).is_none_or(Vec::is_empty)
    {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required(format!("{path}.dnsConfig.nameservers"), detail));
    }
    if let Some(labels) = &spec.node_selector {
        errors.extend(meta::labels(labels, &format!("{path}.nodeSelector")));
    }
    errors.extend(names(spec, path));
    errors.extend(times(spec, path));
    errors
        .extend(tolerations(spec.tolerations.as_deref().unwrap_or_default(), &format!("{path}.tolerations")));
    errors.extend(affinity(spec, path));
    errors.extend(spread(spec, path));
    for (n, gate) in spec.readiness_gates.iter().flatten().enumerate() {
        let path = format!("{path}.readinessGates[{n}].conditionType");
        errors.extend(invalid_all(
            &path,
            &gate.condition_type,
            validation::qualified_name(&gate.condition_type),
        ));
    }
    errors
}

/// Faults of a pod template at `path`.
pub(super) fn validate_template(template: &PodTemplateSpec, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(metadata) = &template.metadata {
        if let Some(labels) = &metadata.labels {
            errors.extend(meta::labels(labels, &format!("{path}.metadata.labels")));
        }
        if let Some(annotations) = &metadata.annotations {
            errors.extend(meta::annotations(annotations, &format!("{path}.metadata.annotations")));
        }
    }
    match &template.spec {
        Some(spec) => errors.extend(validate(spec, &format!("{path}.spec"))),
        None => errors.push(FieldError::required(format!("{path}.spec.containers"), "")),
    }
    errors
}

fn names(spec: &PodSpec, path: &str) -> Vec<FieldError> {
    type Check = fn(&str) -> Vec<String>;
    let fields: [(&str, &Option<String>, Check); 6] = [
        ("serviceAccountName", &spec.service_account_name, validation::dns1123_subdomain),
        ("nodeName", &spec.node_name, validation::dns1123_subdomain),
        ("hostname", &spec.hostname, validation::dns1123_label),
        ("subdomain", &spec.subdomain, validation::dns1123_label),
        ("priorityClassName", &spec.priority_class_name, validation::dns1123_subdomain),
        ("runtimeClassName", &spec.runtime_class_name, validation::dns1123_subdomain),
    ];
    let mut errors = Vec::new();
    for (field, value, check) in fields {
        if let Some(value) = value.as_deref().filter(|v| !v.is_empty()) {
            errors.extend(invalid_all(&format!("{path}.{field}"), value, check(value)));
        }
    }
    for (n, alias) in spec.host_aliases.iter().flatten().enumerate() {
        if alias.ip.parse::<std::net::IpAddr>().is_err() {
            let path = format!("{path}.hostAliases[{n}].ip");
            errors.push(FieldError::invalid(
                path,
                &alias.ip,
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ));
        }
    }
    errors
}

fn times(spec: &PodSpec, path: &str) -> Vec<FieldError> {
    let grace = format!("{path}.terminationGracePeriodSeconds");
    let mut errors = not_negative(&grace, spec.termination_grace_period_seconds);
    if let Some(seconds) = spec.active_deadline_seconds
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let detail = validation::out_of_range(1, i64::from(i32::MAX));
        errors.push(FieldError::invalid(format!("{path}.activeDeadlineSeconds"), seconds, &detail));
    }
    errors
}

/// Faults of tolerations.
fn tolerations(list: &[Toleration], path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (n, toleration) in list.iter().enumerate() {
        let path = format!("{path}[{n}]");
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let (key, value) = (text(&toleration.key), text(&toleration.value));
        let (operator, effect) = (text(&toleration.operator), text(&toleration.effect));
        if !key.is_empty() {
            errors.extend(invalid_all(&format!("{path}.key"), &key, validation::qualified_name(&key)));
        }
        if key.is_empty() && operator != "Exists" {
            let detail =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(format!("{path}.operator"), &operator, detail));
        }
        if toleration.toleration_seconds.is_some() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(format!("{path}.effect"), &effect, detail));
        }
        match operator.as_str() {
            "" | "Equal" => errors.extend(invalid_all(
                &format!("{path}.operator"),
                &value,
                validation::label_value(&value),
            )),
            "Exists" if value.is_empty() => {}
            "Exists" => {
                let detail = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(format!("{path}.operator"), toleration, detail));
            }
            other => errors.push(FieldError::not_supported(
                format!("{path}.operator"),
                other,
                &["Equal", "Exists"],
            )),
        }
        if !effect.is_empty() {
            errors.extend(taint_effect(&format!("{path}.effect"), &effect));
        }
    }
    errors
}

/// A taint's effect must be a known one.
pub(super) fn taint_effect(path: &str, effect: &str) -> Vec<FieldError> {
    one_of(path, Some(effect), &["NoSchedule", "PreferNoSchedule", "NoExecute"])
}

fn affinity(spec: &PodSpec, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let Some(affinity) = &spec.affinity else {
        return errors;
    };
    let path = format!("{path}.affinity");
    let required = affinity
        .node_affinity
        .as_ref()
        .and_then(|n| n.required_during_scheduling_ignored_during_execution.as_ref());
    if let Some(required) = required {
        let path = format!("{path}.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution");
        errors.extend(node_selector(required, &path));
    }
    for (kind, terms) in [
        (
            "podAffinity",
            affinity
                .pod_affinity
                .as_ref()
                .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
        ),
        (
            "podAntiAffinity",
            affinity
                .pod_anti_affinity
                .as_ref()
                .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
        ),
    ] {
        for (n, term) in terms.into_iter().flatten().enumerate() {
            let path = format!("{path}.{kind}.requiredDuringSchedulingIgnoredDuringExecution[{n}]");
            if term.topology_key.is_empty() {
                errors.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty"));
            }
            if let Some(Err(fault)) = term.label_selector.as_ref().map(selector::Selector::from_object) {
                errors.push(FieldError::invalid(
                    format!("{path}.labelSelector"),
                    &term.label_selector,
                    &fault.to_string(),
                ));
            }
        }
    }
    errors
}

/// Faults of a selector of nodes.
pub(super) fn node_selector(
    selector: &k8s_openapi::api::core::v1::NodeSelector,
    path: &str,
) -> Vec<FieldError> {
    let path = format!("{path}.nodeSelectorTerms");
    let mut errors = Vec::new();
    if selector.node_selector_terms.is_empty() {
        errors.push(FieldError::required(&path, "must have at least one node selector term"));
    }
    for (n, term) in selector.node_selector_terms.iter().enumerate() {
        for (m, expression) in term.match_expressions.iter().flatten().enumerate() {
            errors.extend(node_expression(expression, &format!("{path}[{n}].matchExpressions[{m}]")));
        }
    }
    errors
}

fn node_expression(
    expression: &k8s_openapi::api::core::v1::NodeSelectorRequirement,
    path: &str,
) -> Vec<FieldError> {
    let count = expression.values.as_ref().map_or(0, Vec::len);
    let values = format!("{path}.values");
    let mut errors = match expression.operator.as_str() {
        "In" | "NotIn" if count == 0 => {
            vec![FieldError::required(values, "must be specified when `operator` is 'In' or 'NotIn'")]
        }
        "Exists" | "DoesNotExist" if count > 0 => {
            vec![FieldError::forbidden(
                values,
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )]
        }
        "Gt" | "Lt" if count != 1 => {
            vec![FieldError::required(
                values,
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            )]
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => Vec::new(),
        other => {
            vec![FieldError::invalid(format!("{path}.operator"), other, "not a valid selector operator")]
        }
    };
    errors.extend(invalid_all(
        &format!("{path}.key"),
        &expression.key,
        validation::qualified_name(&expression.key),
    ));
    errors
}

fn spread(spec: &PodSpec, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (n, constraint) in spec.topology_spread_constraints.iter().flatten().enumerate() {
        let path = format!("{path}.topologySpreadConstraints[{n}]");
        if constraint.max_skew <= 0 {
            errors.push(FieldError::invalid(
                format!("{path}.maxSkew"),
                constraint.max_skew,
                "must be greater than zero",
            ));
        }
        if constraint.topology_key.is_empty() {
            errors.push(FieldError::required(format!("{path}.topologyKey"), "can not be empty"));
        }
        let when = format!("{path}.whenUnsatisfiable");
        errors.extend(one_of(
            &when,
            Some(&constraint.when_unsatisfiable),
            &["DoNotSchedule", "ScheduleAnyway"],
        ));
    }
    errors
}
