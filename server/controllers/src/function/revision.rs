//! What a revision turns into: names, objects, and what its state is called. Pure.

use std::{collections::BTreeMap, sync::Arc};

use ketch_api::{
    function::{Function, FunctionRevision, FunctionRevisionSpec, FunctionTemplate, pod_labels},
    k8s::{
        api::{
            apps::v1::{Deployment, DeploymentSpec},
            core::v1::{Container, ContainerPort, Pod, PodSpec, PodTemplateSpec},
        },
        apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
    },
    names,
};

use crate::{owner, pod};

/// Requests after which a reused instance is replaced, when the Function does not say.
const DEFAULT_REUSE: i32 = 128;
/// Annotations of a revision's pods that the node reads.
const TIMEOUT: &str = "ketch.dev/timeout-seconds";
const CONCURRENCY: &str = "ketch.dev/concurrency";
const REUSE_REQUESTS: &str = "ketch.dev/reuse-requests";
const REUSE_CONCURRENT: &str = "ketch.dev/reuse-concurrent";

/// The name of revision `number`.
pub(super) fn name(function: &str, number: i64) -> String {
    format!("{function}-{number:05}")
}

/// The number in a revision's name, when `name` is one of this Function's.
pub(super) fn number(function: &str, name: &str) -> Option<i64> {
    name.strip_prefix(function)?.strip_prefix('-')?.parse().ok()
}

/// Freezes the Function's template.
pub(super) fn new(function: &Function, number: i64) -> FunctionRevision {
    let owner_name = owner::name(&function.metadata);
    FunctionRevision {
        metadata: ObjectMeta {
            name: Some(name(owner_name, number)),
            namespace: function.metadata.namespace.clone(),
            labels: Some(BTreeMap::from([(names::FUNCTION_LABEL.to_owned(), owner_name.to_owned())])),
            owner_references: Some(vec![owner::reference(function)]),
            ..ObjectMeta::default()
        },
        spec: FunctionRevisionSpec {
            function: owner_name.to_owned(),
            revision: number,
            template: function.spec.template(),
        },
        ..FunctionRevision::default()
    }
}

/// The Deployment that runs a revision.
pub(super) fn deployment(revision: &FunctionRevision, replicas: i32) -> Deployment {
    let labels = pod_labels(&revision.spec.function, owner::name(&revision.metadata));
    Deployment {
        metadata: ObjectMeta {
            name: revision.metadata.name.clone(),
            namespace: revision.metadata.namespace.clone(),
            labels: Some(labels.clone()),
            owner_references: Some(vec![owner::reference(revision)]),
            ..ObjectMeta::default()
        },
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            // The template never changes, so there is nothing to go back to.
            revision_history_limit: Some(1),
            selector: LabelSelector { match_labels: Some(labels.clone()), ..LabelSelector::default() },
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    annotations: Some(annotations(&revision.spec.template)).filter(|a| !a.is_empty()),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod_spec(&revision.spec.template)),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

fn pod_spec(template: &FunctionTemplate) -> PodSpec {
    PodSpec {
        runtime_class_name: Some(names::WASM_RUNTIME_CLASS.to_owned()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        containers: vec![Container {
            name: "function".to_owned(),
            image: Some(template.image.clone()),
            env: (!template.env.is_empty()).then(|| template.env.clone()),
            resources: template.resources.clone(),
            ports: Some(vec![ContainerPort {
                name: Some("http".to_owned()),
                container_port: i32::from(names::DEFAULT_HTTP_PORT),
                ..ContainerPort::default()
            }]),
            ..Container::default()
        }],
        ..PodSpec::default()
    }
}

fn annotations(template: &FunctionTemplate) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::new();
    let mut put = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            annotations.insert(key.to_owned(), value);
        }
    };
    let outbound = template.permissions.as_ref().map(|permissions| permissions.outbound.join(","));
    put(names::OUTBOUND_ANNOTATION, outbound.filter(|patterns| !patterns.is_empty()));
    put(TIMEOUT, template.timeout_seconds.map(|n| n.to_string()));
    put(CONCURRENCY, template.concurrency.map(|n| n.to_string()));
    if let Some(instances) = &template.instances {
        let requests = match (instances.reuse, instances.requests) {
            (Some(false), _) => Some(1),
            (Some(true), None) => Some(DEFAULT_REUSE),
            (_, requests) => requests,
        };
        put(REUSE_REQUESTS, requests.map(|n| n.to_string()));
        put(REUSE_CONCURRENT, instances.concurrent.map(|n| n.to_string()));
    }
    annotations
}

/// Whether a revision can take requests, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Enough of its pods are available.
    Available,
    /// It is on its way.
    Starting,
    /// Something stands in its way: reason and message.
    Failing(String, String),
}

/// The state of a revision from its Deployment and pods.
pub(super) fn state(deployment: Option<&Deployment>, pods: impl FnOnce() -> Vec<Arc<Pod>>) -> State {
    let Some(deployment) = deployment else { return State::Starting };
    if is_available(deployment) {
        return State::Available;
    }
    let pods = pods();
    let newest_first = pods.iter().filter(|pod| !pod::is_terminating(pod)).rev();
    if let Some((reason, message)) = newest_first.filter_map(|pod| trouble(pod)).next() {
        return State::Failing(reason, message);
    }
    let conditions = deployment.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    let failed = |c: &&ketch_api::k8s::api::apps::v1::DeploymentCondition| {
        (c.type_ == "ReplicaFailure" && c.status == "True")
            || (c.type_ == "Progressing" && c.status == "False")
    };
    match conditions.into_iter().find(failed) {
        Some(failure) => State::Failing(
            failure.reason.clone().unwrap_or_else(|| "Failed".into()),
            failure.message.clone().unwrap_or_default(),
        ),
        None => State::Starting,
    }
}

fn is_available(deployment: &Deployment) -> bool {
    let Some(status) = &deployment.status else { return false };
    let enough = status.conditions.iter().flatten().any(|c| c.type_ == "Available" && c.status == "True");
    enough
        && status.available_replicas.unwrap_or(0) > 0
        && status.observed_generation >= deployment.metadata.generation
}

/// What keeps a pod from becoming ready, in the words of the node or the scheduler.
fn trouble(pod: &Pod) -> Option<(String, String)> {
    let status = pod.status.as_ref()?;
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    for container in containers {
        let Some(waiting) = container.state.as_ref().and_then(|state| state.waiting.as_ref()) else {
            continue;
        };
        let reason = waiting.reason.clone().unwrap_or_default();
        if reason.is_empty() || matches!(reason.as_str(), "ContainerCreating" | "PodInitializing") {
            continue;
        }
        // Of a crash, the last words tell more than how long the next try is away.
        let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        let last = last.and_then(|ended| ended.message.clone()).filter(|text| !text.is_empty());
        let message = [waiting.message.clone(), last].into_iter().flatten().collect::<Vec<_>>().join(": ");
        return Some((reason, message));
    }
    let unscheduled = pod::condition(pod, "PodScheduled").filter(|condition| condition.status == "False")?;
    Some((
        unscheduled.reason.clone().unwrap_or_else(|| "Unschedulable".into()),
        unscheduled.message.clone().unwrap_or_default(),
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn function() -> Function {
        serde_json::from_value(json!({
            "metadata": {"name": "hello", "namespace": "a", "uid": "f"},
            "spec": {"image": "ketch.local/a/hello@sha256:1", "env": [{"name": "K", "value": "V"}],
                "permissions": {"outbound": ["api.example.com:443", "db:5432"]}, "timeoutSeconds": 5,
                "concurrency": 7, "instances": {"reuse": true}}}))
        .unwrap()
    }

    #[test]
    fn names_and_numbers_agree() {
        assert_eq!(name("hello", 7), "hello-00007");
        assert_eq!(number("hello", "hello-00007"), Some(7));
        assert_eq!(number("hello", "hello-world-00001"), None);
        assert_eq!(number("hello", "other-00001"), None);
    }

    #[test]
    fn a_revision_becomes_a_deployment_of_wasm_pods() {
        let mut revision = new(&function(), 1);
        revision.metadata.uid = Some("r".into());
        let deployment = deployment(&revision, 2);
        let owner = &deployment.metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!(
            (owner.api_version.as_str(), owner.kind.as_str(), owner.name.as_str()),
            ("ketch.dev/v1", "FunctionRevision", "hello-00001")
        );
        let spec = deployment.spec.unwrap();
        let meta = spec.template.metadata.unwrap();
        assert_eq!(spec.selector.match_labels, meta.labels);
        assert_eq!(meta.labels.unwrap()["ketch.dev/revision"], "hello-00001");
        let notes = meta.annotations.unwrap();
        assert_eq!(notes["ketch.dev/outbound"], "api.example.com:443,db:5432");
        assert_eq!(
            (notes[TIMEOUT].as_str(), notes[CONCURRENCY].as_str(), notes[REUSE_REQUESTS].as_str()),
            ("5", "7", "128")
        );
        let pod = spec.template.spec.unwrap();
        assert_eq!(pod.runtime_class_name.as_deref(), Some("ketch-wasm"));
        assert_eq!(pod.containers[0].name, "function");
        assert_eq!(pod.containers[0].ports.as_ref().unwrap()[0].container_port, 8080);
        assert_eq!(pod.containers[0].env.as_ref().unwrap()[0].name, "K");
    }

    fn deployment_with(status: serde_json::Value) -> Deployment {
        serde_json::from_value(json!({"metadata": {"generation": 2}, "status": status})).unwrap()
    }

    #[test]
    fn state_names_the_cause_in_the_nodes_words() {
        let starting = deployment_with(json!({"observedGeneration": 2}));
        let pod = |status: serde_json::Value| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "status": status})).unwrap();
            vec![Arc::new(pod)]
        };
        let waiting = |reason: &str, message: &str| {
            json!({"containerStatuses": [{"name": "function", "image": "", "imageID": "", "ready": false, "restartCount": 1,
                "state": {"waiting": {"reason": reason, "message": message}},
                "lastState": {"terminated": {"exitCode": 1, "message": "no such import"}}}]})
        };
        assert_eq!(state(Some(&starting), Vec::new), State::Starting);
        assert_eq!(state(Some(&starting), || pod(waiting("ContainerCreating", ""))), State::Starting);
        assert_eq!(
            state(Some(&starting), || pod(waiting("CrashLoopBackOff", "back-off 10s"))),
            State::Failing("CrashLoopBackOff".into(), "back-off 10s: no such import".into())
        );
        let unscheduled = json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}]});
        assert_eq!(
            state(Some(&starting), || pod(unscheduled)),
            State::Failing("Unschedulable".into(), "0/1 nodes".into())
        );
        let refused = deployment_with(
            json!({"conditions": [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "quota"}]}),
        );
        assert_eq!(state(Some(&refused), Vec::new), State::Failing("FailedCreate".into(), "quota".into()));
        let fine = json!({"observedGeneration": 2, "availableReplicas": 1, "conditions": [{"type": "Available", "status": "True"}]});
        assert_eq!(state(Some(&deployment_with(fine.clone())), || panic!("not needed")), State::Available);
        let mut stale = deployment_with(fine);
        stale.metadata.generation = Some(3);
        assert_eq!(state(Some(&stale), Vec::new), State::Starting);
    }
}
