//! The Python client from PyPI, and kube-rs: list, watch and patch.

use std::process::Command;

use futures::TryStreamExt;
use ketch_tests::{Ketch, root, succeeded};
use kube::runtime::{WatchStreamExt, watcher};

const SCRIPT: &str = r#"
from kubernetes import client, config, watch
config.load_kube_config()
core, apps = client.CoreV1Api(), client.AppsV1Api()
start = core.list_namespaced_config_map("default")
core.create_namespaced_config_map("default", client.V1ConfigMap(metadata=client.V1ObjectMeta(name="py"), data={"a": "1"}))
core.patch_namespaced_config_map("py", "default", {"data": {"b": "2"}})
seen = []
for event in watch.Watch().stream(core.list_namespaced_config_map, "default", resource_version=start.metadata.resource_version, timeout_seconds=20):
    if event["object"].metadata.name == "py":
        seen.append(event["type"])
        if len(seen) == 2:
            break
print(seen, core.read_namespaced_config_map("py", "default").data)
"#;

/// Makes the client present in the virtual environment at `python`.
pub(super) fn install(python: &std::path::Path) {
    if !python.join("kubernetes-installed").is_file() {
        succeeded(
            "pip",
            Command::new(python.join("pip")).args(["install", "--quiet", "kubernetes"]).output().unwrap(),
        );
        std::fs::write(python.join("kubernetes-installed"), "").unwrap();
    }
}

#[test]
fn the_python_client_lists_watches_and_patches() {
    let python = root().join("target/tools/python/bin");
    install(&python);
    let ketch = Ketch::start();
    let output = Command::new(python.join("python"))
        .args(["-c", SCRIPT])
        .env("KUBECONFIG", ketch.kubeconfig())
        .output();
    let text = succeeded("python", output.unwrap());
    assert_eq!(text.trim(), "['ADDED', 'MODIFIED'] {'a': '1', 'b': '2'}");
}

#[test]
fn kube_rs_watches_and_patches() {
    ketch_tests::install_crypto();
    let ketch = Ketch::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = ketch.client().await;
        let api: kube::Api<ketch_api::k8s::api::core::v1::ConfigMap> =
            kube::Api::namespaced(client, "default");
        let object = serde_json::json!({"metadata": {"name": "rs"}, "data": {"a": "1"}});
        api.create(&Default::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
        let mut events = std::pin::pin!(watcher(api.clone(), watcher::Config::default()).applied_objects());
        let patch = kube::api::Patch::Merge(serde_json::json!({"data": {"b": "2"}}));
        api.patch("rs", &Default::default(), &patch).await.unwrap();
        while let Some(object) = events.try_next().await.unwrap() {
            let data = object.data.unwrap_or_default();
            if object.metadata.name.as_deref() == Some("rs") && data.contains_key("b") {
                return;
            }
        }
        panic!("the watch ended");
    });
}
