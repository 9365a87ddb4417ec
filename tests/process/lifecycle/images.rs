//! Images, runtime classes, logs and input.

use ketch_api::k8s::api::node::v1::RuntimeClass;
use kube::api::{Api, DeleteParams, LogParams, PostParams};
use serde_json::json;

use super::rig::{Do::*, Kind, Pod, with};

pub(super) async fn a_missing_image_backs_off(pod: Pod) {
    let main = with(pod.container("main", &[]), json!({"image": "ketch.local/default/none:latest"}));
    let class = if pod.kind == Kind::Wasm { json!("ketch-wasm") } else { json!(null) };
    pod.create(json!({"runtimeClassName": class, "containers": [main]})).await;
    pod.passes(&["phase=Pending", "main=waiting ErrImagePull", "Ready=False ContainersNotReady"]).await;
    pod.becomes(&[
        "main=waiting ImagePullBackOff",
        "main.message~Back-off pulling image \"ketch.local/default/none:latest\"",
        "main.restartCount=0",
    ])
    .await;
    for event in [
        "Normal Pulling Pulling image \"ketch.local/default/none:latest\"",
        "Warning Failed Failed to pull image \"ketch.local/default/none:latest\"",
        "Warning Failed Error: ErrImagePull",
        "Normal BackOff Back-off pulling image \"ketch.local/default/none:latest\"",
    ] {
        pod.event(event).await;
    }
}

pub(super) async fn images_may_be_required_to_be_there(pod: Pod) {
    let absent = json!({"image": "ketch.local/default/absent:latest", "imagePullPolicy": "Never"});
    let main = with(pod.container("main", &[]), absent);
    let class = if pod.kind == Kind::Wasm { json!("ketch-wasm") } else { json!(null) };
    pod.create(json!({"runtimeClassName": class, "containers": [main]})).await;
    let text =
        "Container image \"ketch.local/default/absent:latest\" is not present with pull policy of Never";
    pod.becomes(&["main=waiting ErrImageNeverPull", &format!("main.message={text}")]).await;
    pod.event(&format!("Warning ErrImageNeverPull {text}")).await;
    pod.event("Warning Failed Error: ErrImageNeverPull").await;
    // One that another pod has brought is there.
    let first = pod.named("first");
    first.run(&[Exit(0)]).await;
    first.becomes(&["phase=Succeeded"]).await;
    let second = pod.named("second");
    let main = with(second.container("main", &[Exit(0)]), json!({"imagePullPolicy": "Never"}));
    second.create(json!({"containers": [main]})).await;
    second.becomes(&["phase=Succeeded"]).await;
}

pub(super) async fn runtime_classes_choose(pod: Pod) {
    let (handler, other) = match pod.kind {
        Kind::Wasm => ("ketch-wasm", "runc"),
        Kind::Container => ("runc", "ketch-wasm"),
    };
    let api: Api<RuntimeClass> = Api::all(pod.client());
    let class = json!({"metadata": {"name": pod.name}, "handler": handler});
    api.create(&PostParams::default(), &serde_json::from_value(class).unwrap()).await.unwrap();
    for (suffix, class) in [("object", pod.name.as_str()), ("handler", handler)] {
        let pod = pod.named(suffix);
        pod.create(json!({"runtimeClassName": class, "containers": [pod.container("main", &[Exit(0)])]}))
            .await;
        pod.becomes(&["phase=Succeeded"]).await;
    }
    let wrong = pod.named("wrong");
    wrong
        .create(json!({"runtimeClassName": other, "containers": [wrong.container("main", &[Exit(0)])]}))
        .await;
    wrong.becomes(&["phase=Pending", "main=waiting ErrImageNotRunnable"]).await;
    let none = pod.named("none");
    none.create(json!({"runtimeClassName": "nowhere", "containers": [none.container("main", &[Exit(0)])]}))
        .await;
    none.becomes(&["phase=Pending"]).await;
    none.event("Warning FailedCreatePodSandBox").await;
    api.delete(&pod.name, &DeleteParams::default()).await.unwrap();
}

pub(super) async fn logs_are_rotated(pod: Pod) {
    pod.run(&[OnTerm(143), Flood(110_000), Print("the end"), Forever]).await;
    pod.becomes(&["main=running"]).await;
    pod.says("main", "the end").await;
    let (directory, begun) = (pod.logs_directory("main"), std::time::Instant::now());
    while !directory.join("0.log.1").exists() {
        let found: Vec<_> =
            std::fs::read_dir(&directory).unwrap().flatten().map(|entry| entry.path()).collect();
        assert!(begun.elapsed() < ketch_tests::PATIENCE / 2, "{found:?}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let params = LogParams { tail_lines: Some(2), ..LogParams::default() };
    let tail = pod.api().logs(&pod.name, &params).await.unwrap();
    assert!(tail.ends_with("ff\nthe end\n"), "{tail}");
}
