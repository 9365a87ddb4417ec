//! What containers are given: environment and objects, there or not yet.

use ketch_api::k8s::api::core::v1::{ConfigMap, Secret};
use serde_json::json;

use super::rig::{Do::*, Pod, with};

pub(super) async fn the_environment_comes_from_everywhere(pod: Pod) {
    let name = pod.name.as_str();
    pod.make::<ConfigMap>(name, json!({"data": {"mode": "fast", "level": "7"}})).await;
    pod.make::<Secret>(name, json!({"stringData": {"token": "hidden"}})).await;
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let resource = |name: &str| json!({"resourceFieldRef": {"resource": name}});
    let env = json!([
        {"name": "PLAIN", "value": "plain-$(FROM_mode)-$$(PLAIN)"},
        {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": name, "key": "level"}}},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": name, "key": "token"}}},
        {"name": "ABSENT", "valueFrom": {"secretKeyRef": {"name": "none", "key": "none", "optional": true}}},
        {"name": "POD", "valueFrom": field("metadata.name")},
        {"name": "LABEL", "valueFrom": field("metadata.labels['app']")},
        {"name": "NODE", "valueFrom": field("spec.nodeName")},
        {"name": "ADDRESS", "valueFrom": field("status.podIP")},
        {"name": "HOST", "valueFrom": field("status.hostIP")},
        {"name": "MEMORY", "valueFrom": resource("limits.memory")},
        {"name": "CPU", "valueFrom": resource("requests.cpu")}]);
    let names =
        ["PLAIN", "KEY", "TOKEN", "ABSENT", "POD", "LABEL", "NODE", "ADDRESS", "HOST", "MEMORY", "CPU"];
    let texts: Vec<String> = names.iter().map(|name| format!("{name} $({name})")).collect();
    let acts: Vec<_> = texts.iter().map(|text| Print(text)).collect();
    let main = with(
        pod.container("main", &acts),
        json!({"env": env, "envFrom": [{"prefix": "FROM_", "configMapRef": {"name": name}}, {"configMapRef": {"name": "none", "optional": true}}],
            "resources": {"limits": {"memory": "64Mi", "cpu": "1500m"}}}),
    );
    pod.create(json!({"containers": [main]})).await;
    pod.becomes(&["phase=Succeeded", "qosClass=Guaranteed"]).await;
    let (address, host) = (pod.fact("podIP"), pod.fact("hostIP"));
    let expected = format!(
        "PLAIN plain-fast-$(PLAIN)\nKEY 7\nTOKEN hidden\nABSENT $(ABSENT)\nPOD {name}\nLABEL {name}\n\
         NODE test-node\nADDRESS {address}\nHOST {host}\nMEMORY 67108864\nCPU 2\n"
    );
    assert_eq!(pod.logs("main", false).await, expected);
}

pub(super) async fn a_missing_object_is_waited_for(pod: Pod) {
    let name = pod.name.as_str();
    let env = json!([{"name": "LATE", "valueFrom": {"configMapKeyRef": {"name": name, "key": "late"}}}]);
    let main = with(pod.container("main", &[Print("$(LATE)")]), json!({"env": env}));
    pod.create(json!({"containers": [main]})).await;
    let missing = format!("main.message=configmap \"{name}\" not found");
    pod.becomes(&[
        "phase=Pending",
        "main=waiting CreateContainerConfigError",
        &missing,
        "main.restartCount=0",
    ])
    .await;
    pod.event(&format!("Warning Failed Error: configmap \"{name}\" not found")).await;
    pod.make::<ConfigMap>(name, json!({"data": {"late": "at last"}})).await;
    pod.becomes(&["phase=Succeeded", "main.restartCount=0"]).await;
    assert_eq!(pod.logs("main", false).await, "at last\n");
}

pub(super) async fn a_missing_volume_is_waited_for(pod: Pod) {
    let name = pod.name.as_str();
    let mount = json!({"volumeMounts": [{"name": "late", "mountPath": "/late"}]});
    pod.create(json!({"volumes": [{"name": "late", "secret": {"secretName": name}}],
        "containers": [with(pod.container("main", &[Cat("/late/file")]), mount)]}))
        .await;
    pod.becomes(&["phase=Pending", "main=waiting ContainerCreating", "PodReadyToStartContainers=False"])
        .await;
    let text = format!("MountVolume.SetUp failed for volume \"late\" : secret \"{name}\" not found");
    pod.event(&format!("Warning FailedMount {text}")).await;
    pod.make::<Secret>(name, json!({"stringData": {"file": "at last"}})).await;
    pod.becomes(&["phase=Succeeded", "PodReadyToStartContainers=False"]).await;
    assert_eq!(pod.logs("main", false).await.trim_end(), "at last");
}
