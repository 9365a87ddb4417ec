//! Volumes and environments.

use ketch_node::RuntimeEntry;
use serde_json::json;

use crate::{
    api::Api,
    runtime::Fake,
    setup::{Setup, is_ready, path, pod, start, start_node},
};

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

/// A node that runs containers too, and its runtime for them.
fn start_both(dir: tempfile::TempDir, wasm: Fake) -> (Setup, Fake) {
    let oci = wasm.containers();
    let setup = start_node(Api::new(), wasm, dir, |options| {
        options
            .runtimes
            .push(RuntimeEntry { handlers: vec!["runc".into()], runtime: std::sync::Arc::new(oci.clone()) });
        options.pod_cidr = "10.42.0.0/24".parse().unwrap();
    });
    (setup, oci)
}

#[tokio::test]
async fn a_container_is_given_files_and_everything_its_spec_says() {
    let (setup, oci) = start_both(tempfile::tempdir().unwrap(), Fake::new());
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("app.toml"), "x = 1").unwrap();
    let spec = json!({
        "securityContext": {"runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["db.example"]}],
        "volumes": [{"name": "file", "hostPath": {"path": host.path().join("app.toml"), "type": "File"}},
            {"name": "dir", "hostPath": {"path": host.path(), "type": "Directory"}},
            {"name": "scratch", "emptyDir": {}}],
        "containers": [{"name": "main", "image": "oci", "tty": true, "stdin": true,
            "terminationMessagePath": "/var/log/end",
            "securityContext": {"runAsGroup": 7, "capabilities": {"drop": ["ALL"]}},
            "resources": {"requests": {"cpu": "250m"}, "limits": {"cpu": "1", "memory": "64Mi"}},
            "volumeMounts": [{"name": "file", "mountPath": "/etc/app.toml", "readOnly": true},
                {"name": "dir", "mountPath": "/host", "mountPropagation": "HostToContainer"},
                {"name": "scratch", "mountPath": "/scratch"}]}]});
    setup.api.put(&path("db"), pod("db", "oci", spec));
    setup.wait("db", "ready", is_ready).await;
    let spec = oci.state.lock().unwrap().specs["uid-db.main.0"].clone();
    assert_eq!((spec.cpu_request, spec.cpu_millis, spec.memory), (Some(250), Some(1000), Some(64 << 20)));
    assert_eq!((spec.security.run_as_user, spec.security.run_as_group), (Some(1000), Some(7)));
    assert!(spec.security.capabilities.is_some() && spec.security.seccomp_profile.is_some());
    assert!(spec.tty && spec.stdin && (3..1000).contains(&spec.oom_score));
    let mount = |target: &str| {
        spec.mounts.iter().find(|one| one.target == target).unwrap_or_else(|| panic!("{target}"))
    };
    assert!(mount("/etc/app.toml").source.is_file() && mount("/etc/app.toml").read_only);
    assert_eq!(mount("/host").propagation, ketch_runtime::Propagation::HostToContainer);
    assert!(std::fs::read_to_string(&mount("/etc/hosts").source).unwrap().contains("192.0.2.9\tdb.example"));
    let mode = |target: &str| {
        std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(&mount(target).source).unwrap().permissions(),
        )
    };
    assert_eq!((mode("/var/log/end") & 0o777, mode("/scratch") & 0o777), (0o666, 0o777));
    std::fs::write(&mount("/var/log/end").source, "bye").unwrap();
    oci.exit("uid-db.main.0", 3);
    let last = "/status/containerStatuses/0/lastState/terminated";
    let seen =
        setup.wait("db", "restarted", |pod| pod.pointer(last).is_some_and(|end| end["exitCode"] == 3)).await;
    let end = seen.pointer(last).unwrap();
    assert_eq!((&end["message"], &end["containerID"]), (&json!("bye"), &json!("oci://native-uid-db.main.0")));
    setup.node.shutdown().await;
}

#[tokio::test]
async fn root_is_refused_where_the_pod_forbids_it() {
    let (setup, _) = start_both(tempfile::tempdir().unwrap(), Fake::new());
    let spec = json!({"securityContext": {"runAsNonRoot": true, "runAsUser": 0}});
    setup.api.put(&path("db"), pod("db", "oci", spec));
    let waiting = "/status/containerStatuses/0/state/waiting";
    let seen = setup.wait("db", "fails", |pod| {
        pod.pointer(waiting).is_some_and(|state| state["reason"] == "CreateContainerConfigError")
    });
    let message = seen.await.pointer(waiting).unwrap()["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("container's runAsUser breaks non-root policy"), "{message}");
    setup.node.shutdown().await;
}

#[tokio::test]
async fn memory_volumes_are_mounted_limited_and_gone_with_the_pod() {
    if !nix::unistd::Uid::effective().is_root() {
        println!("skipped: mounting needs root");
        return;
    }
    let setup = start();
    let spec = json!({
        "securityContext": {"fsGroup": 4242},
        "volumes": [{"name": "cache", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
        "containers": [{"name": "main", "image": "web", "volumeMounts": [{"name": "cache", "mountPath": "/cache"}]}]});
    setup.api.put(&path("web"), pod("web", "web", spec));
    setup.wait("web", "ready", is_ready).await;
    let cache =
        setup.spec("uid-web.main.0").mounts.iter().find(|one| one.target == "/cache").unwrap().source.clone();
    assert_eq!(std::os::unix::fs::MetadataExt::gid(&std::fs::metadata(&cache).unwrap()), 4242);
    assert!(std::fs::write(cache.join("large"), vec![0; 2 << 20]).is_err(), "it is full");
    let is_mounted = |path: &std::path::Path| {
        std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(path.to_str().unwrap())
    };
    assert!(is_mounted(&cache));
    // A crash: the agent goes, and the pod with its object while it is away.
    setup.node.shutdown().await;
    let setup = start_node(Api::new(), Fake::new(), setup.dir, |_| {});
    setup.api.wait("/none", "what the crash left is gone", |_| !cache.exists() && !is_mounted(&cache)).await;
    setup.node.shutdown().await;
}
