//! `/stats/summary`: use of resources by node, pod and container (kubelet's `stats/v1alpha1`).

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Query, State},
};
use jiff::Timestamp;
use ketch_api::k8s::api::core::v1 as core;
use ketch_runtime::ContainerId;
use serde_json::{Value, json};

use crate::{
    context::Context,
    host,
    usage::{Sample, sample},
};

/// Time between the two looks that make a rate.
const WINDOW: Duration = Duration::from_millis(100);

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub(super) struct Parameters {
    /// Only what a collector needs, who makes the rates himself: one look, no file systems.
    only_cpu_and_memory: bool,
}

pub(super) async fn summary(
    State(context): State<Arc<Context>>,
    Query(parameters): Query<Parameters>,
) -> Json<Value> {
    let pods = context.index.pods();
    let mut before = HashMap::new();
    if !parameters.only_cpu_and_memory {
        before = sample(&context, &pods).await.into_iter().map(|one| (one.id, one.usage.cpu)).collect();
        tokio::time::sleep(WINDOW).await;
    }
    let time = Timestamp::now().to_string();
    let mut by_pod: HashMap<usize, Vec<Sample>> = HashMap::new();
    for one in sample(&context, &pods).await {
        by_pod.entry(one.pod).or_default().push(one);
    }
    let facts = host::Facts::read(&context.root, None);
    let described = pods.iter().enumerate().map(|(index, pod)| {
        let own = by_pod.remove(&index).unwrap_or_default();
        describe(pod, &own, &before, &time)
    });
    let described: Vec<Value> = described.collect();
    let mut node = facts.stats(&context.name, &time);
    if let (true, Some(fields)) = (parameters.only_cpu_and_memory, node.as_object_mut()) {
        fields.retain(|name, _| matches!(name.as_str(), "nodeName" | "cpu" | "memory"));
    }
    Json(json!({ "node": node, "pods": described }))
}

/// A pod and its containers. Rates are from what was used `before`.
fn describe(pod: &core::Pod, own: &[Sample], before: &HashMap<ContainerId, Duration>, time: &str) -> Value {
    let rate = |one: &Sample| {
        let spent = one.usage.cpu.saturating_sub(*before.get(&one.id)?);
        u64::try_from(spent.as_nanos() * 1_000 / WINDOW.as_millis()).ok()
    };
    let figures = |rate: Option<u64>, cpu: Duration, memory: u64| {
        let total = u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX);
        let mut used = json!({ "time": time, "usageCoreNanoSeconds": total });
        if let (Some(rate), Some(fields)) = (rate, used.as_object_mut()) {
            fields.insert("usageNanoCores".to_owned(), rate.into());
        }
        (used, json!({ "time": time, "workingSetBytes": memory, "usageBytes": memory, "rssBytes": memory }))
    };
    let containers: Vec<Value> = (own.iter())
        .map(|one| {
            let (cpu, memory) = figures(rate(one), one.usage.cpu, one.usage.memory);
            json!({ "name": one.name, "startTime": started(pod), "cpu": cpu, "memory": memory })
        })
        .collect();
    let rates: Option<u64> = own.iter().map(rate).sum();
    let total = own.iter().map(|one| one.usage.cpu).sum();
    let (cpu, memory) = figures(rates, total, own.iter().map(|one| one.usage.memory).sum());
    let meta = &pod.metadata;
    let reference = json!({ "name": meta.name, "namespace": meta.namespace, "uid": meta.uid });
    json!({ "podRef": reference, "startTime": started(pod), "containers": containers, "cpu": cpu, "memory": memory })
}

fn started(pod: &core::Pod) -> Value {
    let time = pod.status.as_ref().and_then(|status| status.start_time.clone());
    serde_json::to_value(time).unwrap_or_default()
}
