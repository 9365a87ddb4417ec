//! Deployment.

use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentSpec, DeploymentStatus, DeploymentStrategy},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::Value;

use super::{
    pod_spec::{self, not_negative, one_of},
    workload,
};
use crate::strategy::{Column, Context, Descriptor, FieldError, Meta, Scale, Strategy};

pub(super) struct Deployments;

impl Strategy for Deployments {
    type Kind = Deployment;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            short_names: &["deploy"],
            categories: &["all"],
            status: true,
            scale: Some(Scale {
                spec: "/spec/replicas",
                status: "/status/replicas",
                selector: "/spec/selector",
            }),
            generation: true,
            ..Descriptor::namespaced("apps", "v1", "Deployment", "deployments", "deployment")
        }
    }

    fn default(&self, deployment: &mut Deployment) {
        let spec = deployment.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        spec.revision_history_limit.get_or_insert(10);
        spec.progress_deadline_seconds.get_or_insert(600);
        strategy(spec.strategy.get_or_insert_default());
        pod_spec::default_template(&mut spec.template);
    }

    fn prepare_create(&self, _cx: &Context, deployment: &mut Deployment) {
        deployment.status = Some(DeploymentStatus::default());
    }

    fn validate(&self, deployment: &Deployment) -> Vec<FieldError> {
        let spec = deployment.spec.clone().unwrap_or_default();
        let mut errors = not_negative("spec.replicas", spec.replicas);
        errors.extend(workload::selector_and_template(&spec.selector, &spec.template, "deployment"));
        if let Some(strategy) = &spec.strategy {
            errors.extend(validate_strategy(strategy));
        }
        errors.extend(not_negative("spec.minReadySeconds", spec.min_ready_seconds));
        errors.extend(not_negative("spec.revisionHistoryLimit", spec.revision_history_limit));
        errors.extend(deadline(&spec));
        errors
    }

    fn validate_update(&self, new: &Deployment, old: &Deployment) -> Vec<FieldError> {
        let selector = |d: &Deployment| d.spec.as_ref().map(|s| s.selector.clone()).unwrap_or_default();
        workload::selector_unchanged(&selector(new), &selector(old))
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            Column::NAME,
            Column::text("Ready"),
            Column::text("Up-to-date"),
            Column::text("Available"),
            Column::AGE,
            Column::wide("Containers"),
            Column::wide("Images"),
            Column::wide("Selector"),
        ];
        COLUMNS
    }

    fn row(&self, deployment: &Deployment, metadata: &Meta<'_>) -> Vec<Value> {
        let spec = deployment.spec.clone().unwrap_or_default();
        let status = deployment.status.clone().unwrap_or_default();
        let ready = format!("{}/{}", status.ready_replicas.unwrap_or(0), spec.replicas.unwrap_or(0));
        let mut cells = vec![
            metadata.name.into(),
            ready.into(),
            status.updated_replicas.unwrap_or(0).into(),
            status.available_replicas.unwrap_or(0).into(),
            metadata.age().into(),
        ];
        cells.extend(workload::wide_cells(&spec.selector, Some(&spec.template)));
        cells
    }
}

fn strategy(strategy: &mut DeploymentStrategy) {
    if strategy.type_.as_deref().unwrap_or_default().is_empty() {
        strategy.type_ = Some("RollingUpdate".into());
    }
    if strategy.type_.as_deref() == Some("RollingUpdate") {
        let rolling = strategy.rolling_update.get_or_insert_default();
        rolling.max_surge.get_or_insert_with(|| IntOrString::String("25%".into()));
        rolling.max_unavailable.get_or_insert_with(|| IntOrString::String("25%".into()));
    }
}

fn validate_strategy(strategy: &DeploymentStrategy) -> Vec<FieldError> {
    let path = "spec.strategy";
    let mut errors =
        one_of(&format!("{path}.type"), strategy.type_.as_deref(), &["Recreate", "RollingUpdate"]);
    let Some(rolling) = &strategy.rolling_update else {
        return errors;
    };
    let path = format!("{path}.rollingUpdate");
    if strategy.type_.as_deref() == Some("Recreate") {
        let detail = "may not be specified when strategy `type` is 'Recreate'";
        errors.push(FieldError::forbidden(path, detail));
        return errors;
    }
    let unavailable = format!("{path}.maxUnavailable");
    if let Some(value) = &rolling.max_unavailable {
        errors.extend(workload::int_or_percent(value, &unavailable, true));
    }
    if let Some(value) = &rolling.max_surge {
        errors.extend(workload::int_or_percent(value, &format!("{path}.maxSurge"), false));
    }
    let zero = |value: &Option<IntOrString>| match value {
        None | Some(IntOrString::Int(0)) => true,
        Some(IntOrString::String(text)) => {
            text.strip_suffix('%').and_then(|p| p.parse::<u32>().ok()) == Some(0)
        }
        Some(IntOrString::Int(_)) => false,
    };
    if zero(&rolling.max_unavailable) && zero(&rolling.max_surge) {
        let detail = "may not be 0 when `maxSurge` is 0";
        errors.push(FieldError::invalid(unavailable, &rolling.max_unavailable, detail));
    }
    errors
}

fn deadline(spec: &DeploymentSpec) -> Vec<FieldError> {
    let path = "spec.progressDeadlineSeconds";
    let mut errors = not_negative(path, spec.progress_deadline_seconds);
    if let Some(deadline) = spec.progress_deadline_seconds
        && deadline <= spec.min_ready_seconds.unwrap_or(0)
    {
        errors.push(FieldError::invalid(path, deadline, "must be greater than minReadySeconds"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::kinds::tests::{create, decoded, row, update};

    fn web() -> Value {
        json!({
            "metadata": {"name": "web"},
            "spec": {
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "nginx:1"}]}},
            },
        })
    }

    #[test]
    fn defaults_are_upstreams() {
        let spec = decoded("Deployment", web())["spec"].clone();
        assert_eq!(
            spec,
            json!({
                "replicas": 1,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {
                        "containers": [{
                            "name": "c", "image": "nginx:1", "resources": {}, "imagePullPolicy": "IfNotPresent",
                            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                        }],
                        "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
                        "securityContext": {}, "schedulerName": "default-scheduler",
                    },
                },
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}},
                "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
            })
        );
    }

    #[test]
    fn rules() {
        let fault = |edit: fn(&mut Value)| {
            let mut object = web();
            edit(&mut object);
            create("Deployment", object).unwrap_err().message
        };
        assert_eq!(
            fault(|o| o["spec"]["template"]["metadata"]["labels"]["app"] = "db".into()),
            "Deployment.apps \"web\" is invalid: spec.template.metadata.labels: Invalid value: {\"app\":\"db\"}: \
             `selector` does not match template `labels`"
        );
        assert_eq!(
            fault(|o| o["spec"]["selector"] = json!({})),
            "Deployment.apps \"web\" is invalid: [spec.selector: Required value, spec.template.metadata.labels: Invalid \
             value: {\"app\":\"web\"}: `selector` does not match template `labels`]"
        );
        assert_eq!(
            fault(|o| o["spec"]["template"]["spec"]["containers"] = json!([])),
            "Deployment.apps \"web\" is invalid: spec.template.spec.containers: Required value"
        );
        assert_eq!(
            fault(|o| o["spec"]["template"]["spec"]["restartPolicy"] = "Never".into()),
            "Deployment.apps \"web\" is invalid: spec.template.spec.restartPolicy: Unsupported value: \"Never\": \
             supported values: \"Always\""
        );
        assert_eq!(
            fault(
                |o| o["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}})
            ),
            "Deployment.apps \"web\" is invalid: spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may \
             not be 0 when `maxSurge` is 0"
        );
        assert_eq!(
            fault(|o| o["spec"]["replicas"] = (-1).into()),
            "Deployment.apps \"web\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"
        );
    }

    #[test]
    fn the_selector_never_changes() {
        let mut new = web();
        new["spec"]["selector"] = json!({"matchLabels": {"a": "b"}});
        new["spec"]["template"]["metadata"]["labels"] = json!({"a": "b"});
        assert_eq!(
            update("Deployment", new, &web()).unwrap_err().message,
            "Deployment.apps \"web\" is invalid: spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\"}}: field is immutable"
        );
        assert!(update("Deployment", web(), &web()).is_ok());
    }

    #[test]
    fn row_reads_as_upstream() {
        let mut object = web();
        object["spec"]["replicas"] = 3.into();
        object["status"] = json!({"readyReplicas": 1, "updatedReplicas": 2, "availableReplicas": 1});
        assert_eq!(row("Deployment", &object), "web|1/3|2|1|<unknown>|c|nginx:1|app=web");
    }
}
