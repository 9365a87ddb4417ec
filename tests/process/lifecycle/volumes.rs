//! Volumes: files from objects, shared directories, limits.

use std::os::unix::fs::PermissionsExt;

use ketch_api::k8s::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::rig::{Do::*, Pod, with};

pub(super) async fn objects_become_files(pod: Pod) {
    let name = pod.name.as_str();
    pod.make::<ConfigMap>(name, json!({"data": {"one": "1", "two": "2"}, "binaryData": {"raw": "AP8="}}))
        .await;
    pod.make::<Secret>(name, json!({"stringData": {"token": "hidden"}})).await;
    let volumes = json!([
        {"name": "config", "configMap": {"name": name, "defaultMode": 0o640,
            "items": [{"key": "one", "path": "sub/first"}, {"key": "raw", "path": "raw", "mode": 0o400}]}},
        {"name": "secret", "secret": {"secretName": name, "defaultMode": 0o600}},
        {"name": "none", "configMap": {"name": "none", "optional": true}},
        {"name": "pod", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "memory", "resourceFieldRef": {"containerName": "main", "resource": "limits.memory", "divisor": "1Mi"}}]}},
        {"name": "all", "projected": {"sources": [{"configMap": {"name": name, "items": [{"key": "two", "path": "two"}]}},
            {"secret": {"name": name}}, {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
            {"serviceAccountToken": {"path": "jwt", "expirationSeconds": 600}}]}}]);
    let mounts = json!([
        {"name": "config", "mountPath": "/config"}, {"name": "config", "mountPath": "/part", "subPath": "sub"},
        {"name": "secret", "mountPath": "/secret"}, {"name": "none", "mountPath": "/none"},
        {"name": "pod", "mountPath": "/pod"}, {"name": "all", "mountPath": "/all"}]);
    let files = [
        "/config/sub/first",
        "/part/first",
        "/secret/token",
        "/pod/labels",
        "/pod/memory",
        "/all/two",
        "/all/token",
        "/all/name",
    ];
    let mut acts: Vec<_> = files.iter().flat_map(|file| [Cat(file), Print("")]).collect();
    acts.push(Forever);
    let limits = json!({"volumeMounts": mounts, "resources": {"limits": {"memory": "64Mi"}}});
    let main = with(pod.container("main", &acts), limits);
    let change =
        with(pod.container("change", &[Write("/config/sub/first", "mine")]), json!({"volumeMounts": mounts}));
    pod.create(json!({"volumes": volumes, "containers": [main, change]})).await;
    pod.becomes(&["main=running", "change=terminated Error 1"]).await;
    let expected = format!("1\n1\nhidden\napp=\"{name}\"\n64\n2\nhidden\n{name}\n");
    pod.says("main", &expected).await;
    let volumes = pod.directory().join("volumes");
    let mode = |path: &str| volumes.join(path).metadata().unwrap().permissions().mode() & 0o777;
    let modes = ["config/sub/first", "config/raw", "secret/token", "all/two"].map(mode);
    assert_eq!(modes, [0o640, 0o400, 0o600, 0o644]);
    assert_eq!(std::fs::read(volumes.join("config/raw")).unwrap(), [0, 255]);
    let token = std::fs::read_to_string(volumes.join("all/jwt")).unwrap();
    assert_eq!(token.split('.').count(), 3, "a token of three parts");
}

pub(super) async fn objects_that_change_reach_the_volume(pod: Pod) {
    let name = pod.name.as_str();
    pod.make::<ConfigMap>(name, json!({"data": {"file": "old"}})).await;
    let mount = json!({"volumeMounts": [{"name": "config", "mountPath": "/config"}]});
    let acts = [
        Await("/config/file", "old"),
        Print("old"),
        Await("/config/file", "new"),
        Await("/config/more", "x"),
    ];
    pod.create(json!({"volumes": [{"name": "config", "configMap": {"name": name}}],
        "containers": [with(pod.container("main", &acts), mount)]}))
        .await;
    pod.becomes(&["main=running"]).await;
    pod.says("main", "old").await;
    let change = Patch::Merge(json!({"data": {"file": "new", "more": "x"}}));
    let api: Api<ConfigMap> = Api::default_namespaced(pod.client());
    api.patch(name, &PatchParams::default(), &change).await.unwrap();
    pod.becomes(&["phase=Succeeded", "main.restartCount=0"]).await;
}

pub(super) async fn containers_share_volumes(pod: Pod) {
    let mount =
        |extra| json!({"volumeMounts": [with(json!({"name": "work", "mountPath": "/scratch"}), extra)]});
    let writer =
        pod.container("writer", &[Write("/scratch/file", "shared"), Await("/scratch/sub/back", "seen")]);
    let reader = pod.container("reader", &[Await("/scratch/file", "shared"), Cat("/scratch/file")]);
    let below = pod.container("below", &[Write("/scratch/back", "seen")]);
    let refused = pod.container("refused", &[Write("/scratch/mine", "x")]);
    pod.create(json!({"volumes": [{"name": "work", "emptyDir": {}}], "containers": [
        with(writer, mount(json!({}))), with(reader, mount(json!({"readOnly": true}))),
        with(below, mount(json!({"subPath": "sub"}))), with(refused, mount(json!({"readOnly": true})))]}))
        .await;
    pod.becomes(&[
        "phase=Failed",
        "writer=terminated Completed 0",
        "reader=terminated Completed 0",
        "below=terminated Completed 0",
        "refused=terminated Error 1",
    ])
    .await;
    assert_eq!(pod.logs("reader", false).await.trim_end(), "shared");
}

pub(super) async fn memory_volumes_are_limited(pod: Pod) {
    let volume = json!([{"name": "work", "emptyDir": {"medium": "Memory", "sizeLimit": "2Mi"}}]);
    let mount = json!({"volumeMounts": [{"name": "work", "mountPath": "/scratch"}]});
    let fits = with(pod.container("fits", &[Fill("/scratch/fits", 1)]), mount.clone());
    let large = with(pod.container("large", &[Fill("/scratch/large", 3), Exit(0)]), mount);
    pod.create(json!({"volumes": volume, "initContainers": [fits], "containers": [large]})).await;
    pod.becomes(&["phase=Failed", "fits=terminated Completed 0", "large=terminated Error 1"]).await;
    assert!(pod.logs("large", false).await.contains("/scratch/large"), "it says what it could not write");
}

pub(super) async fn a_volume_over_its_limit_ends_the_pod(pod: Pod) {
    let volume = json!([{"name": "work", "emptyDir": {"sizeLimit": "2Mi"}}]);
    let mount = json!({"volumeMounts": [{"name": "work", "mountPath": "/scratch"}]});
    let main = with(pod.container("main", &[OnTerm(143), Fill("/scratch/large", 4), Forever]), mount);
    pod.create(json!({"restartPolicy": "Always", "volumes": volume, "containers": [main]})).await;
    pod.becomes(&[
        "phase=Failed",
        "reason=Evicted",
        "message~Usage of EmptyDir volume \"work\" exceeds the limit \"2Mi\".",
        "Ready=False PodFailed",
    ])
    .await;
    pod.event("Warning Evicted Usage of EmptyDir volume \"work\" exceeds the limit \"2Mi\".").await;
}

/// What a container writes elsewhere than into volumes: into its own files, which components have none of, and its
/// log.
pub(super) async fn storage_over_the_limit_ends_the_pod(pod: Pod) {
    let limits = |limit: &str| json!({"resources": {"limits": {"ephemeral-storage": limit}}});
    let other = with(pod.container("other", &[OnTerm(143), Forever]), limits("64Mi"));
    let main = with(pod.container("main", &[OnTerm(143), Flood(40_000), Forever]), limits("2Mi"));
    pod.create(json!({"containers": [main, other]})).await;
    let exceeded = "message~Container main exceeded its local ephemeral storage limit \"2Mi\".";
    pod.becomes(&["phase=Failed", "reason=Evicted", exceeded]).await;
    if pod.kind == super::Kind::Container {
        let pod = pod.named("files");
        let main = with(pod.container("main", &[OnTerm(143), Fill("/large", 4), Forever]), limits("2Mi"));
        pod.create(json!({"containers": [main, other]})).await;
        pod.becomes(&["phase=Failed", "reason=Evicted", exceeded]).await;
    }
    let pod = pod.named("volumes");
    let mount = json!({"volumeMounts": [{"name": "work", "mountPath": "/scratch"}],
        "resources": {"limits": {"ephemeral-storage": "2Mi"}}});
    let main = with(pod.container("main", &[OnTerm(143), Fill("/scratch/large", 4), Forever]), mount);
    pod.create(json!({"volumes": [{"name": "work", "emptyDir": {}}], "containers": [main]})).await;
    let total = "message~Pod ephemeral local storage usage exceeds the total limit of containers 2Mi.";
    pod.becomes(&["phase=Failed", "reason=Evicted", total]).await;
}
