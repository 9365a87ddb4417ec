//! Requests and limits.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{PodSpec, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity as Text,
};

use crate::{
    quantity::{self, Quantity},
    strategy::FieldError,
    validation::{self, NEGATIVE},
};

type Resources = BTreeMap<String, Text>;

/// Puts every quantity in its canonical form.
pub(in crate::kinds) fn canonicalize(resources: &mut ResourceRequirements) {
    for list in [&mut resources.limits, &mut resources.requests].into_iter().flatten() {
        list.values_mut().for_each(quantity::canonicalize);
    }
}

/// Faults of a container's resources at `path`.
pub(in crate::kinds) fn requirements(resources: &ResourceRequirements, path: &str) -> Vec<FieldError> {
    let none = Resources::new();
    let limits = resources.limits.as_ref().unwrap_or(&none);
    let requests = resources.requests.as_ref().unwrap_or(&none);
    let mut errors = list(limits, &format!("{path}.limits"));
    errors.extend(list(requests, &format!("{path}.requests")));
    for (name, request) in requests {
        let pair =
            Quantity::try_from(request).ok().zip(limits.get(name).and_then(|l| Quantity::try_from(l).ok()));
        if let Some((request, limit)) = pair
            && request > limit
        {
            let detail = format!("must be less than or equal to {name} limit of {limit}");
            errors.push(FieldError::invalid(format!("{path}.requests"), request.to_string(), &detail));
        }
    }
    errors
}

fn list(resources: &Resources, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (name, text) in resources {
        let path = format!("{path}[{name}]");
        errors.extend(resource_name(name, &path));
        match Quantity::try_from(text) {
            Err(fault) => errors.push(FieldError::invalid(&path, &text.0, &fault.to_string())),
            Ok(q) if q.is_negative() => errors.push(FieldError::invalid(&path, &text.0, NEGATIVE)),
            Ok(q) if name.contains('/') && !q.is_whole() => {
                errors.push(FieldError::invalid(&path, &text.0, "must be an integer"));
            }
            Ok(_) => {}
        }
    }
    errors
}

fn resource_name(name: &str, path: &str) -> Vec<FieldError> {
    let mut errors = super::invalid_all(path, name, validation::qualified_name(name));
    let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if errors.is_empty() && !standard && !name.contains('/') {
        errors.push(FieldError::invalid(path, name, "must be a standard resource type or fully qualified"));
        errors.push(FieldError::invalid(path, name, "must be a standard resource for containers"));
    }
    errors
}

/// `status.qosClass`, by the rules of `pkg/apis/core/v1/helper/qos`.
pub(in crate::kinds) fn qos_class(spec: &PodSpec) -> &'static str {
    let positive = |list: &Option<Resources>, name: &str| {
        let text = list.as_ref().and_then(|l| l.get(name));
        text.and_then(|t| Quantity::try_from(t).ok()).filter(|q| *q > Quantity::ZERO)
    };
    let containers = || spec.init_containers.iter().flatten().chain(&spec.containers);
    let each = |container: &k8s_openapi::api::core::v1::Container| {
        let resources = container.resources.clone().unwrap_or_default();
        ["cpu", "memory"].map(|name| (positive(&resources.requests, name), positive(&resources.limits, name)))
    };
    if containers().flat_map(each).all(|(request, limit)| request.is_none() && limit.is_none()) {
        return "BestEffort";
    }
    let guaranteed = containers()
        .flat_map(each)
        .all(|(request, limit)| limit.is_some() && (request.is_none() || request == limit));
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(resources: serde_json::Value) -> Vec<String> {
        let resources = serde_json::from_value(resources).unwrap();
        requirements(&resources, "r").iter().map(ToString::to_string).collect()
    }

    #[test]
    fn requests_stay_below_limits() {
        assert_eq!(faults(json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "0.1"}})), [""; 0]);
        assert_eq!(
            faults(json!({"requests": {"cpu": "200m"}, "limits": {"cpu": "100m"}})),
            ["r.requests: Invalid value: \"200m\": must be less than or equal to cpu limit of 100m"]
        );
        assert_eq!(
            faults(json!({"limits": {"memory": "64megs"}})),
            ["r.limits[memory]: Invalid value: \"64megs\": unable to parse quantity's suffix"]
        );
        assert_eq!(
            faults(json!({"limits": {"memory": "-1"}})),
            ["r.limits[memory]: Invalid value: \"-1\": must be greater than or equal to 0"]
        );
        assert_eq!(faults(json!({"limits": {"mem": "1"}})).len(), 2);
        assert_eq!(faults(json!({"limits": {"a.b/gpu": "1.5"}})).len(), 1);
    }

    #[test]
    fn qos() {
        let class = |containers: serde_json::Value| {
            qos_class(&serde_json::from_value(json!({ "containers": containers })).unwrap())
        };
        let full =
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}});
        assert_eq!(class(json!([{"name": "a"}])), "BestEffort");
        assert_eq!(class(json!([{"name": "a", "resources": {"requests": {"cpu": "1"}}}])), "Burstable");
        assert_eq!(class(json!([{"name": "a", "resources": full}])), "Guaranteed");
        assert_eq!(class(json!([{"name": "a", "resources": full}, {"name": "b"}])), "Burstable");
    }
}
