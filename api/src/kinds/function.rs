//! Function and FunctionRevision.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::core::v1::{EnvVar, ResourceRequirements},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use serde_json::Value;

use super::{
    or_none,
    pod_spec::{self, invalid_all, not_negative},
};
use crate::{
    function::{
        Function, FunctionRevision, FunctionSpec, FunctionTemplate, Instances, Permissions, Scaling, Trigger,
    },
    strategy::{Column, Context, Descriptor, FieldError, Meta, Strategy},
    validation::{self, IMMUTABLE},
};

/// Longest a request may take, in seconds.
const TIMEOUT_MAX: i32 = 3600;

pub(super) struct Functions;

impl Strategy for Functions {
    type Kind = Function;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            short_names: &["fn"],
            categories: &["all"],
            status: true,
            generation: true,
            ..Descriptor::namespaced("ketch.dev", "v1", "Function", "functions", "function")
        }
    }

    fn default(&self, function: &mut Function) {
        if let Some(resources) = &mut function.spec.resources {
            pod_spec::canonicalize(resources);
        }
    }

    fn prepare_create(&self, _cx: &Context, function: &mut Function) {
        function.status = None;
    }

    fn validate(&self, function: &Function) -> Vec<FieldError> {
        let spec = &function.spec;
        let mut errors = template(&spec.template(), "spec");
        errors.extend(scaling(spec));
        for (n, trigger) in spec.triggers.iter().enumerate() {
            errors.extend(self::trigger(trigger, &format!("spec.triggers[{n}]")));
        }
        errors.extend(traffic(spec));
        errors.extend(not_negative("spec.revisionHistoryLimit", spec.revision_history_limit));
        errors
    }

    fn warnings(&self, function: &Function) -> Vec<String> {
        function.spec.scaling.iter().flat_map(without_effect).collect()
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            Column::NAME,
            Column::text("URL"),
            Column::text("Ready"),
            Column::text("Latest"),
            Column::AGE,
            Column::wide("Image"),
        ];
        COLUMNS
    }

    fn row(&self, function: &Function, metadata: &Meta<'_>) -> Vec<Value> {
        let status = function.status.clone().unwrap_or_default();
        vec![
            metadata.name.into(),
            or_none(status.url.as_deref()).into(),
            ready(&status.conditions).into(),
            or_none(status.latest_revision.as_deref()).into(),
            metadata.age().into(),
            function.spec.image.clone().into(),
        ]
    }
}

pub(super) struct FunctionRevisions;

impl Strategy for FunctionRevisions {
    type Kind = FunctionRevision;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            short_names: &["fnrev"],
            status: true,
            generation: true,
            ..Descriptor::namespaced(
                "ketch.dev",
                "v1",
                "FunctionRevision",
                "functionrevisions",
                "functionrevision",
            )
        }
    }

    fn default(&self, revision: &mut FunctionRevision) {
        if let Some(resources) = &mut revision.spec.template.resources {
            pod_spec::canonicalize(resources);
        }
    }

    fn prepare_create(&self, _cx: &Context, revision: &mut FunctionRevision) {
        revision.status = None;
    }

    fn validate(&self, revision: &FunctionRevision) -> Vec<FieldError> {
        let spec = &revision.spec;
        let mut errors = match spec.function.as_str() {
            "" => vec![FieldError::required("spec.function", "")],
            name => invalid_all("spec.function", name, validation::dns1123_label(name)),
        };
        if spec.revision < 1 {
            errors.push(FieldError::invalid("spec.revision", spec.revision, "must be greater than 0"));
        }
        errors.extend(template(&spec.template, "spec.template"));
        errors
    }

    fn validate_update(&self, new: &FunctionRevision, old: &FunctionRevision) -> Vec<FieldError> {
        if new.spec == old.spec {
            return Vec::new();
        }
        vec![FieldError::invalid("spec", &new.spec, IMMUTABLE)]
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            Column::NAME,
            Column::text("Function"),
            Column::text("Ready"),
            Column::AGE,
            Column::wide("Image"),
        ];
        COLUMNS
    }

    fn row(&self, revision: &FunctionRevision, metadata: &Meta<'_>) -> Vec<Value> {
        let conditions = revision.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
        vec![
            metadata.name.into(),
            revision.spec.function.clone().into(),
            ready(conditions).into(),
            metadata.age().into(),
            revision.spec.template.image.clone().into(),
        ]
    }
}

/// `True`, or why not.
fn ready(conditions: &[Condition]) -> String {
    match conditions.iter().find(|c| c.type_ == "Ready") {
        Some(c) if c.status == "True" || c.reason.is_empty() => c.status.clone(),
        Some(c) => c.reason.clone(),
        None => "Unknown".to_owned(),
    }
}

fn template(template: &FunctionTemplate, path: &str) -> Vec<FieldError> {
    let mut errors = image(&template.image, &format!("{path}.image"));
    errors.extend(env(&template.env, &format!("{path}.env")));
    if let Some(resources) = &template.resources {
        errors.extend(self::resources(resources, &format!("{path}.resources")));
    }
    if let Some(permissions) = &template.permissions {
        errors.extend(outbound(permissions, &format!("{path}.permissions.outbound")));
    }
    errors.extend(between(&format!("{path}.timeoutSeconds"), template.timeout_seconds, 1, TIMEOUT_MAX));
    errors.extend(between(&format!("{path}.concurrency"), template.concurrency, 1, 1_000_000));
    if let Some(instances) = &template.instances {
        errors.extend(self::instances(instances, &format!("{path}.instances")));
    }
    errors
}

fn image(image: &str, path: &str) -> Vec<FieldError> {
    if image.is_empty() {
        return vec![FieldError::required(
            path,
            "name an image, for instance ketch.local/NAMESPACE/NAME:TAG",
        )];
    }
    if image.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return vec![FieldError::invalid(path, image, "must not contain whitespace")];
    }
    Vec::new()
}

fn env(env: &[EnvVar], path: &str) -> Vec<FieldError> {
    pod_spec::env_vars(env, path)
}

fn resources(resources: &ResourceRequirements, path: &str) -> Vec<FieldError> {
    pod_spec::requirements(resources, path)
}

fn between(path: &str, value: Option<i32>, low: i32, high: i32) -> Vec<FieldError> {
    match value {
        Some(value) if !(low..=high).contains(&value) => {
            vec![FieldError::invalid(path, value, &validation::out_of_range(low.into(), high.into()))]
        }
        _ => Vec::new(),
    }
}

fn instances(instances: &Instances, path: &str) -> Vec<FieldError> {
    let mut errors = between(&format!("{path}.requests"), instances.requests, 1, 1_000_000);
    errors.extend(between(&format!("{path}.concurrent"), instances.concurrent, 1, 10_000));
    errors
}

/// What is asked for and not done yet.
fn without_effect(scaling: &Scaling) -> Vec<String> {
    let given = [
        ("max", scaling.max.is_some()),
        ("target", scaling.target.is_some()),
        ("idleSeconds", scaling.idle_seconds.is_some()),
    ];
    let fields = given.into_iter().filter(|(_, given)| *given);
    let without = |(field, _)| {
        format!("spec.scaling.{field}: functions are not scaled by their load yet; spec.scaling.min pods run")
    };
    let mut warnings: Vec<String> = fields.map(without).collect();
    if scaling.min == Some(0) {
        warnings.push("spec.scaling.min: functions are not scaled to zero yet; one pod runs".to_owned());
    }
    warnings
}

fn scaling(spec: &FunctionSpec) -> Vec<FieldError> {
    let Some(scaling) = &spec.scaling else { return Vec::new() };
    let mut errors = between("spec.scaling.min", scaling.min, 0, 1000);
    errors.extend(between("spec.scaling.max", scaling.max, 1, 1000));
    errors.extend(between("spec.scaling.target", scaling.target, 1, 1_000_000));
    errors.extend(between("spec.scaling.idleSeconds", scaling.idle_seconds, 0, 86_400));
    if let (Some(min), Some(max)) = (scaling.min, scaling.max)
        && min > max
    {
        errors.push(FieldError::invalid("spec.scaling.min", min, "must be less than or equal to max"));
    }
    errors
}

fn outbound(permissions: &Permissions, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (n, pattern) in permissions.outbound.iter().enumerate() {
        if let Some(fault) = outbound_fault(pattern) {
            errors.push(FieldError::invalid(format!("{path}[{n}]"), pattern, fault));
        }
    }
    errors
}

/// Why a text is no outbound pattern: `*`, or `HOST:PORT` with a name, an address, `[v6]`, `*.name` or `*`
/// as host and a number or `*` as port.
fn outbound_fault(pattern: &str) -> Option<&'static str> {
    const FORM: &str =
        "must be * or HOST:PORT, for instance api.example.com:443, *.example.com:* or 10.0.0.7:5432";
    if pattern == "*" {
        return None;
    }
    let Some((host, port)) = pattern.rsplit_once(':') else { return Some(FORM) };
    if port != "*" && !port.parse::<u16>().is_ok_and(|p| p > 0) {
        return Some("the port must be a number between 1 and 65535, or *");
    }
    let address = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let known = match address {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None if host == "*" => true,
        None if host.starts_with("*.") => {
            validation::wildcard_subdomain(&host.to_ascii_lowercase()).is_empty()
        }
        None => validation::dns1123_subdomain(&host.to_ascii_lowercase()).is_empty(),
    };
    (!known).then_some(FORM)
}

fn trigger(trigger: &Trigger, path: &str) -> Vec<FieldError> {
    let Some(http) = &trigger.http else {
        return vec![FieldError::required(path, "must specify exactly one trigger type: http")];
    };
    let mut errors = Vec::new();
    for (n, host) in http.hosts.iter().enumerate() {
        let path = format!("{path}.http.hosts[{n}]");
        if host.parse::<std::net::IpAddr>().is_ok() {
            errors.push(FieldError::invalid(path, host, "must be a DNS name, not an IP address"));
        } else if host.starts_with("*.") {
            errors.extend(invalid_all(&path, host, validation::wildcard_subdomain(host)));
        } else {
            errors.extend(invalid_all(&path, host, validation::dns1123_subdomain(host)));
        }
    }
    if let Some(value) = http.path.as_deref().filter(|p| !p.starts_with('/')) {
        errors.push(FieldError::invalid(format!("{path}.http.path"), value, "must be an absolute path"));
    }
    errors
}

fn traffic(spec: &FunctionSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    let mut total: i64 = 0;
    for (n, target) in spec.traffic.iter().enumerate() {
        let path = format!("spec.traffic[{n}]");
        let (revision, percent) = (&target.revision_name, i64::from(target.percent));
        errors.extend(invalid_all(
            &format!("{path}.revisionName"),
            revision,
            validation::dns1123_label(revision),
        ));
        if !seen.insert(revision) {
            errors.push(FieldError::duplicate(format!("{path}.revisionName"), revision));
        }
        if !(0..=100).contains(&percent) {
            let detail = validation::out_of_range(0, 100);
            errors.push(FieldError::invalid(format!("{path}.percent"), percent, &detail));
        }
        total += percent;
    }
    if !spec.traffic.is_empty() && total != 100 {
        errors.push(FieldError::invalid("spec.traffic", total, "the percentages must add up to 100"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::tests::{create, row, update};

    #[test]
    fn what_is_not_done_yet_is_warned_about() {
        let warnings = |scaling: Value| {
            let spec = json!({"image": "i", "scaling": scaling});
            let function: Function = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
            let said = Functions.warnings(&function);
            said.iter().map(|text| text.split_once(':').unwrap().0.to_owned()).collect::<Vec<_>>()
        };
        assert!(warnings(json!({"min": 3})).is_empty());
        assert_eq!(warnings(json!({"min": 0, "max": 9})), ["spec.scaling.max", "spec.scaling.min"]);
        assert_eq!(
            warnings(json!({"target": 5, "idleSeconds": 60})),
            ["spec.scaling.target", "spec.scaling.idleSeconds"]
        );
    }

    fn faults(spec: Value) -> Vec<String> {
        match create("Function", json!({"metadata": {"name": "f"}, "spec": spec})) {
            Ok(_) => Vec::new(),
            Err(status) => {
                status.details.unwrap().causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
            }
        }
    }

    #[test]
    fn rules() {
        assert_eq!(faults(json!({"image": "ketch.local/default/f:1", "timeoutSeconds": 3600})), [""; 0]);
        for (spec, want) in [
            (
                json!({"image": ""}),
                "spec.image: Required value: name an image, for instance ketch.local/NAMESPACE/NAME:TAG",
            ),
            (
                json!({"image": "i", "timeoutSeconds": 0}),
                "spec.timeoutSeconds: Invalid value: 0: must be between 1 and 3600, inclusive",
            ),
            (
                json!({"image": "i", "timeoutSeconds": 3601}),
                "spec.timeoutSeconds: Invalid value: 3601: must be between 1 and 3600, inclusive",
            ),
            (
                json!({"image": "i", "traffic": [{"revisionName": "f-00001", "percent": 90}]}),
                "spec.traffic: Invalid value: 90: the percentages must add up to 100",
            ),
            (
                json!({"image": "i", "traffic": [{"revisionName": "f-00001", "percent": 50}, {"revisionName": "f-00001", "percent": 50}]}),
                "spec.traffic[1].revisionName: Duplicate value: \"f-00001\"",
            ),
            (
                json!({"image": "i", "triggers": [{}]}),
                "spec.triggers[0]: Required value: must specify exactly one trigger type: http",
            ),
            (
                json!({"image": "i", "triggers": [{"http": {"hosts": ["1.2.3.4"]}}]}),
                "spec.triggers[0].http.hosts[0]: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address",
            ),
            (
                json!({"image": "i", "triggers": [{"http": {"path": "x"}}]}),
                "spec.triggers[0].http.path: Invalid value: \"x\": must be an absolute path",
            ),
            (
                json!({"image": "i", "scaling": {"min": 3, "max": 2}}),
                "spec.scaling.min: Invalid value: 3: must be less than or equal to max",
            ),
        ] {
            assert_eq!(faults(spec), [want]);
        }
    }

    #[test]
    fn outbound_patterns() {
        for pattern in [
            "*",
            "*:443",
            "a.example.com:443",
            "*.example.com:*",
            "10.0.0.7:5432",
            "[::1]:80",
            "API.example.com:1",
        ] {
            assert_eq!(outbound_fault(pattern), None, "{pattern}");
        }
        for pattern in [
            "",
            "a",
            ":80",
            "a:",
            "a:0",
            "a:70000",
            "a:b",
            "http://a:80",
            "*a:80",
            "::1:80",
            "[1.2.3.4]:80",
            "a/b:80",
        ] {
            assert!(outbound_fault(pattern).is_some(), "{pattern}");
        }
    }

    #[test]
    fn rows() {
        let function = json!({"metadata": {"name": "f"}, "spec": {"image": "i"}, "status": {
            "url": "http://f.default.localhost:8080", "latestRevision": "f-00002",
            "conditions": [{"type": "Ready", "status": "False", "reason": "ImagePullBackOff", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        assert_eq!(
            row("Function", &function),
            "f|http://f.default.localhost:8080|ImagePullBackOff|f-00002|<unknown>|i"
        );
        assert_eq!(
            row("Function", &json!({"metadata": {"name": "f"}, "spec": {"image": "i"}})),
            "f|<none>|Unknown|<none>|<unknown>|i"
        );
        let revision = json!({"metadata": {"name": "f-00001"}, "spec": {"function": "f", "revision": 1, "template": {"image": "i"}}});
        assert_eq!(row("FunctionRevision", &revision), "f-00001|f|Unknown|<unknown>|i");
        let mut other = revision.clone();
        other["spec"]["template"]["image"] = "j".into();
        assert!(
            update("FunctionRevision", other, &revision).unwrap_err().message.contains("field is immutable")
        );
    }
}
