//! A node of its own for every test.

use std::sync::Arc;

use ketch_node::{ApiAddress, Node, NodeOptions, RuntimeEntry};
use serde_json::{Value, json};

use crate::{
    api::Api,
    runtime::{Fake, Images},
};

pub struct Setup {
    pub api: Api,
    pub fake: Fake,
    pub node: Node,
    pub images: Images,
    pub dir: tempfile::TempDir,
}

pub fn start_with(api: Api, fake: Fake, dir: tempfile::TempDir) -> Setup {
    start_node(api, fake, dir, |_| {})
}

/// A node whose options are changed before it starts.
pub fn start_node(
    api: Api,
    fake: Fake,
    dir: tempfile::TempDir,
    change: impl FnOnce(&mut NodeOptions),
) -> Setup {
    let images = Images::default();
    let mut options = NodeOptions {
        name: "n1".into(),
        client: api.client(),
        data_dir: dir.path().into(),
        runtimes: vec![RuntimeEntry { handlers: vec!["ketch-wasm".into()], runtime: Arc::new(fake.clone()) }],
        unavailable: Vec::new(),
        dns: None,
        images: Arc::new(images.clone()),
        network: None,
        pod_cidr: "127.42.0.0/16".parse().unwrap(),
        addresses: vec!["192.0.2.1".parse().unwrap()],
        api: ApiAddress { host: "127.43.0.1".into(), port: 443 },
        max_pods: 110,
        labels: Vec::new(),
        annotations: Vec::new(),
    };
    change(&mut options);
    let node = Node::start(options).unwrap();
    Setup { api, fake, node, images, dir }
}

pub fn start() -> Setup {
    start_with(Api::new(), Fake::new(), tempfile::tempdir().unwrap())
}

pub fn path(name: &str) -> String {
    format!("/api/v1/namespaces/default/pods/{name}")
}

/// A bound pod with one container, `spec` merged over it.
pub fn pod(name: &str, image: &str, spec: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "generation": 1},
        "spec": {"nodeName": "n1", "restartPolicy": "Always", "terminationGracePeriodSeconds": 5,
            "containers": [{"name": "main", "image": image, "ports": [{"containerPort": 8080, "name": "http"}]}]},
        "status": {"phase": "Pending", "qosClass": "BestEffort",
            "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
    });
    json_patch::merge(&mut pod["spec"], &spec);
    pod
}

impl Setup {
    pub async fn wait(&self, name: &str, what: &str, test: impl Fn(&Value) -> bool) -> Value {
        self.api.wait(&path(name), what, |pod| pod.is_some_and(&test)).await.unwrap()
    }

    pub fn spec(&self, id: &str) -> ketch_runtime::ContainerSpec {
        self.fake.state.lock().unwrap().specs[id].clone()
    }
}

pub fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready") == "True"
}

pub fn condition(pod: &Value, kind: &str) -> String {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|c| c["type"] == kind);
    found.and_then(|c| c["status"].as_str()).unwrap_or("absent").to_owned()
}
