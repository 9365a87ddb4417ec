//! Volumes and environments.

use serde_json::json;

use crate::setup::{is_ready, path, pod, start};

#[tokio::test]
async fn a_pod_waits_for_its_config_map_and_sees_its_files() {
    let setup = start();
    let spec = json!({
        "volumes": [
            {"name": "cfg", "configMap": {"name": "cfg"}},
            {"name": "scratch", "emptyDir": {}},
            {"name": "api", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}}],
        "containers": [{"name": "main", "image": "web", "args": ["--mode=$(MODE)"],
            "env": [{"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "mode"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "volumeMounts": [{"name": "cfg", "mountPath": "/etc/cfg"}, {"name": "scratch", "mountPath": "/scratch"},
                {"name": "api", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]}]});
    setup.api.put(&path("web"), pod("web", "web", spec));
    let message = setup.api.wait_event("web", "FailedMount").await;
    assert_eq!(message, "MountVolume.SetUp failed for volume \"cfg\" : configmap \"cfg\" not found");
    setup.api.put("/api/v1/namespaces/default/configmaps/cfg", json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cfg", "namespace": "default"}, "data": {"mode": "fast"}}));
    setup.wait("web", "ready", is_ready).await;
    let spec = setup.spec("uid-web.main.0");
    assert_eq!(spec.args, ["--mode=fast"]);
    let env = |name: &str| spec.env.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    assert_eq!(env("IP").as_deref(), Some("127.42.0.2"));
    assert_eq!(env("KUBERNETES_SERVICE_HOST").as_deref(), Some("127.43.0.1"));
    let mount = |target: &str| spec.mounts.iter().find(|mount| mount.target == target).unwrap();
    assert_eq!(std::fs::read_to_string(mount("/etc/cfg").source.join("mode")).unwrap(), "fast");
    assert!(mount("/etc/cfg").read_only && !mount("/scratch").read_only);
    let token =
        std::fs::read_to_string(mount("/var/run/secrets/kubernetes.io/serviceaccount").source.join("token"));
    assert!(token.unwrap().starts_with("token-"));

    let directory = mount("/scratch").source.clone();
    assert!(directory.is_dir());
    setup.api.delete(&path("web"), 5);
    setup.api.wait(&path("web"), "deleted", |pod| pod.is_none()).await;
    assert!(!directory.exists());
    setup.node.shutdown().await;
}

#[tokio::test]
async fn a_missing_secret_in_the_environment_is_a_configuration_error() {
    let setup = start();
    let spec = json!({"containers": [{"name": "main", "image": "web",
        "env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}}]}]});
    setup.api.put(&path("web"), pod("web", "web", spec));
    let waiting = "/status/containerStatuses/0/state/waiting";
    let seen = setup.wait("web", "fails", |pod| {
        pod.pointer(waiting).is_some_and(|state| state["reason"] == "CreateContainerConfigError")
    });
    assert_eq!(seen.await.pointer(waiting).unwrap()["message"], "secret \"key\" not found");
    setup.api.put("/api/v1/namespaces/default/secrets/key", json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key", "namespace": "default"}, "data": {"k": "czNjcmV0"}}));
    setup.wait("web", "ready", is_ready).await;
    let env = setup.spec("uid-web.main.0").env;
    assert!(env.contains(&("KEY".to_owned(), "s3cret".to_owned())));
    setup.node.shutdown().await;
}

#[tokio::test]
async fn a_termination_message_reaches_the_status() {
    let setup = start();
    setup.api.put(&path("web"), pod("web", "web", json!({"restartPolicy": "Never"})));
    setup.wait("web", "ready", is_ready).await;
    let spec = setup.spec("uid-web.main.0");
    let dev = spec.mounts.iter().find(|mount| mount.target == "/dev").unwrap();
    std::fs::write(dev.source.join("termination-log"), "out of cheese").unwrap();
    setup.fake.exit("uid-web.main.0", 3);
    let seen = setup.wait("web", "failed", |pod| pod["status"]["phase"] == "Failed").await;
    let terminated = &seen["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&terminated["message"], &terminated["exitCode"]), (&json!("out of cheese"), &json!(3)));
    setup.node.shutdown().await;
}
