//! Pod.

mod columns;
mod update;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::Value;

use super::pod_spec;
use crate::strategy::{Column, Context, Descriptor, FieldError, Meta, Strategy};

pub(super) struct Pods;

impl Strategy for Pods {
    type Kind = Pod;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            short_names: &["po"],
            categories: &["all"],
            status: true,
            generation: true,
            ..Descriptor::namespaced("", "v1", "Pod", "pods", "pod")
        }
    }

    fn default(&self, pod: &mut Pod) {
        pod_spec::default_pod(pod.spec.get_or_insert_default());
    }

    fn prepare_create(&self, _cx: &Context, pod: &mut Pod) {
        let qos = pod.spec.as_ref().map(pod_spec::qos_class);
        pod.status = Some(PodStatus {
            phase: Some("Pending".into()),
            qos_class: qos.map(str::to_owned),
            ..PodStatus::default()
        });
    }

    fn validate(&self, pod: &Pod) -> Vec<FieldError> {
        match &pod.spec {
            Some(spec) => pod_spec::validate(spec, "spec"),
            None => vec![FieldError::required("spec.containers", "")],
        }
    }

    fn validate_update(&self, new: &Pod, old: &Pod) -> Vec<FieldError> {
        match (&new.spec, &old.spec) {
            (Some(new), Some(old)) => update::validate(new, old),
            _ => Vec::new(),
        }
    }

    fn grace_seconds(&self, pod: &Pod) -> Option<i64> {
        let spec = pod.spec.as_ref();
        // A pod that no node runs, or that has ended, has nothing to end gracefully.
        let assigned = spec.and_then(|s| s.node_name.as_deref()).is_some_and(|node| !node.is_empty());
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
        if !assigned || matches!(phase, "Failed" | "Succeeded") {
            return Some(0);
        }
        Some(spec.and_then(|s| s.termination_grace_period_seconds).unwrap_or(30))
    }

    fn columns(&self) -> &'static [Column] {
        columns::COLUMNS
    }

    fn row(&self, pod: &Pod, metadata: &Meta<'_>) -> Vec<Value> {
        columns::row(pod, metadata)
    }

    fn fields(&self, pod: &Pod) -> Vec<(&'static str, String)> {
        let spec = |read: fn(&k8s_openapi::api::core::v1::PodSpec) -> &Option<String>| {
            pod.spec.as_ref().and_then(|s| read(s).clone()).unwrap_or_default()
        };
        let status = |read: fn(&PodStatus) -> &Option<String>| {
            pod.status.as_ref().and_then(|s| read(s).clone()).unwrap_or_default()
        };
        let host_network = pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
        vec![
            ("spec.nodeName", spec(|s| &s.node_name)),
            ("spec.restartPolicy", spec(|s| &s.restart_policy)),
            ("spec.schedulerName", spec(|s| &s.scheduler_name)),
            ("spec.serviceAccountName", spec(|s| &s.service_account_name)),
            ("spec.hostNetwork", host_network.to_string()),
            ("status.phase", status(|s| &s.phase)),
            ("status.podIP", status(|s| &s.pod_ip)),
            ("status.podIPs", status(|s| &s.pod_ip)),
            ("status.nominatedNodeName", status(|s| &s.nominated_node_name)),
        ]
    }

    fn field_names(&self) -> &'static [&'static str] {
        &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::tests::{create, decoded, strategy};

    #[test]
    fn a_new_pod_is_pending() {
        let pod = create(
            "Pod",
            json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "0.5"}}}]},
                   "status": {"phase": "Running", "podIP": "1.2.3.4"}}),
        )
        .unwrap();
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "Burstable"}));
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "500m"}})
        );
        assert_eq!(pod["spec"]["enableServiceLinks"], true);
        assert_eq!(strategy("Pod").grace_seconds(&pod), Some(0), "nothing runs yet");
        let mut bound = pod.clone();
        bound["spec"]["nodeName"] = json!("n");
        assert_eq!(strategy("Pod").grace_seconds(&bound), Some(30));
        bound["status"]["phase"] = json!("Succeeded");
        assert_eq!(strategy("Pod").grace_seconds(&bound), Some(0));
    }

    #[test]
    fn defaults_reach_every_part() {
        let pod = decoded(
            "Pod",
            json!({"metadata": {"name": "a"}, "spec": {
                "serviceAccount": "robot", "hostNetwork": true,
                "containers": [{
                    "name": "c", "image": "i",
                    "ports": [{"containerPort": 80}],
                    "livenessProbe": {"httpGet": {"port": 80}},
                    "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                }],
                "volumes": [{"name": "e"}, {"name": "s", "secret": {"secretName": "x"}}, {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}],
            }}),
        );
        let (spec, container) = (&pod["spec"], &pod["spec"]["containers"][0]);
        assert_eq!(spec["serviceAccountName"], "robot");
        assert_eq!(container["imagePullPolicy"], "Always");
        assert_eq!(container["ports"][0], json!({"containerPort": 80, "hostPort": 80, "protocol": "TCP"}));
        assert_eq!(
            container["livenessProbe"],
            json!({"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3})
        );
        assert_eq!(container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
        assert_eq!(spec["volumes"][0], json!({"name": "e", "emptyDir": {}}));
        assert_eq!(spec["volumes"][1]["secret"]["defaultMode"], 420);
        assert_eq!(
            spec["volumes"][2]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"],
            3600
        );
        assert_eq!(decoded("Pod", pod.clone()), pod, "defaulting twice changes nothing");
    }

    #[test]
    fn rules() {
        let base = || json!({"containers": [{"name": "c", "image": "i"}]});
        let fault = |edit: fn(&mut Value)| {
            let mut spec = base();
            edit(&mut spec);
            let status = create("Pod", json!({"metadata": {"name": "a"}, "spec": spec})).unwrap_err();
            status.message.trim_start_matches("Pod \"a\" is invalid: ").to_owned()
        };
        type Edit = fn(&mut Value);
        let table: &[(Edit, &str)] = &[
            (|s| s["containers"] = json!([]), "spec.containers: Required value"),
            (|s| s["containers"][0]["name"] = "".into(), "spec.containers[0].name: Required value"),
            (|s| s["containers"][0]["image"] = "".into(), "spec.containers[0].image: Required value"),
            (
                |s| s["containers"] = json!([{"name": "c", "image": "i"}, {"name": "c", "image": "j"}]),
                "spec.containers[1].name: Duplicate value: \"c\"",
            ),
            (
                |s| s["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]),
                "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
            ),
            (
                |s| s["containers"][0]["ports"] = json!([{"containerPort": 70000}]),
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                |s| s["restartPolicy"] = "Sometimes".into(),
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            ),
            (
                |s| s["containers"][0]["imagePullPolicy"] = "Maybe".into(),
                "spec.containers[0].imagePullPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
            ),
            (
                |s| s["containers"][0]["readinessProbe"] = json!({"periodSeconds": 1}),
                "spec.containers[0].readinessProbe: Required value: must specify a handler type",
            ),
            (
                |s| {
                    s["containers"][0]["livenessProbe"] =
                        json!({"successThreshold": 2, "tcpSocket": {"port": 1}})
                },
                "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
            ),
            (
                |s| s["volumes"] = json!([{"name": "a", "emptyDir": {}, "configMap": {"name": "x"}}]),
                "spec.volumes[0].configMap: Forbidden: may not specify more than 1 volume type",
            ),
            (
                |s| s["tolerations"] = json!([{"operator": "Equal"}]),
                "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ),
            (
                |s| s["containers"][0]["env"] = json!([{"name": "A=B", "value": "x"}]),
                "spec.containers[0].env[0].name: Invalid value: \"A=B\": a valid environment variable name must consist only of printable ASCII characters other than '=' (regex used for validation is '^[ -<>-~]+$')",
            ),
            (
                |s| s["containers"][0]["env"] = json!([{"name": "A", "valueFrom": {}}]),
                "spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
            ),
        ];
        for (edit, want) in table {
            assert_eq!(fault(*edit), *want);
        }
        assert!(create("Pod", json!({"metadata": {"name": "a"}, "spec": base()})).is_ok());
    }
}
