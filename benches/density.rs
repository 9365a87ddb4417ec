//! A thousand idle Wasm pods, and what each of them costs.

use anyhow::{Context, Result};
use ketch_api::k8s::api::apps::v1::Deployment;
use kube::{Api, api::PostParams};
use serde_json::json;

use crate::{
    Row,
    cluster::{Cluster, guest, until},
};

const PODS: i32 = 1000;

/// Measures memory before and after.
pub(crate) fn run() -> Result<Vec<Row>> {
    let cluster = Cluster::start()?;
    cluster.deploy(&guest("hello"))?;
    let runtime = tokio::runtime::Runtime::new()?;
    let api: Api<Deployment> = Api::namespaced(runtime.block_on(cluster.client())?, "default");
    let before = cluster.process.memory()?;
    let container =
        json!({"name": "c", "image": "ketch.local/default/hello:latest", "ports": [{"containerPort": 8080}]});
    let deployment = json!({"metadata": {"name": "dense"}, "spec": {
        "replicas": PODS, "selector": {"matchLabels": {"app": "dense"}},
        "template": {"metadata": {"labels": {"app": "dense"}}, "spec": {"runtimeClassName": "ketch-wasm", "containers": [container]}}}});
    let start = std::time::Instant::now();
    runtime.block_on(api.create(&PostParams::default(), &serde_json::from_value(deployment)?))?;
    until("a thousand ready pods", || {
        let deployment = runtime.block_on(api.get("dense")).ok()?;
        (deployment.status?.ready_replicas? == PODS).then_some(())
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let after = cluster.process.memory().context("memory")?;
    Ok(vec![
        Row::alone("1,000 Wasm pods, from create to all Ready", format!("{seconds:.1} s")),
        Row::alone(
            "memory per idle Wasm pod, server and node together",
            format!("{:.0} KiB", (after - before) / f64::from(PODS) / 1024.0),
        ),
    ])
}
