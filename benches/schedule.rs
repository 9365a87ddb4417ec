//! The scheduler's decisions: 10,000 pods onto 1,000 nodes, without the requests that follow from them.
//!
//! The figure for a peer is the kube-scheduler's published range (scheduler_perf, `SchedulingBasic`, about
//! 300 to 900 pods/s with its API server); it is not run here.

use std::{sync::Arc, time::Instant};

use anyhow::{Context, Result};
use ketch_api::k8s::api::core::v1::{Node, Pod};
use ketch_scheduler::core::{Cluster, PodInfo, schedule};
use serde_json::json;

use crate::{ROUNDS, Row, statistics};

const NODES: usize = 1_000;
const PODS: usize = 10_000;

/// Decides on copies of one workload, and on pods that each have their own.
pub(crate) fn run() -> Result<Vec<Row>> {
    [("copies of one workload", true), ("unrelated pods", false)]
        .into_iter()
        .map(|(what, copies)| {
            let mut rates = (0..ROUNDS).map(|_| rate(copies)).collect::<Result<Vec<f64>>>()?;
            let ours = format!("{:.0}/s", statistics::median(&mut rates));
            Ok(Row::alone(format!("scheduling decisions, {PODS} pods, {NODES} nodes, {what}"), ours))
        })
        .collect()
}

/// Pods per second.
fn rate(copies: bool) -> Result<f64> {
    let mut cluster = Cluster::new();
    for i in 0..NODES {
        cluster.set_node(&node(i)?);
    }
    let pods = (0..PODS).map(|i| pod(i, copies)).collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    for pod in pods {
        let info = Arc::new(PodInfo::new(Arc::new(pod)));
        let node = schedule(&cluster, &info).map_err(|refused| anyhow::anyhow!("{refused}"))?;
        cluster.place(info, &node);
    }
    #[allow(clippy::cast_precision_loss, reason = "a small count")]
    Ok(PODS as f64 / start.elapsed().as_secs_f64())
}

fn node(i: usize) -> Result<Node> {
    serde_json::from_value(json!({
        "metadata": {"name": format!("node-{i:04}"), "labels": {"kubernetes.io/hostname": format!("node-{i:04}")}},
        "status": {"allocatable": {"cpu": "4", "memory": "32Gi", "pods": "110"}},
    }))
    .context("a node")
}

fn pod(i: usize, copies: bool) -> Result<Pod> {
    let owner = if copies { "set".to_owned() } else { format!("set-{i}") };
    serde_json::from_value(json!({
        "metadata": {"name": format!("pod-{i}"), "namespace": "default", "uid": format!("7d1e2a54-9c1b-4f0e-8a33-{i:012}"),
            "labels": {"app": "web"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": true}]},
        "spec": {"containers": [{"name": "c", "image": "pause", "resources": {"requests": {"cpu": "100m", "memory": "500Mi"}}}]},
    }))
    .context("a pod")
}
