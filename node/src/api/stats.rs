//! `/stats/summary`: use of resources by node, pod and container (kubelet's `stats/v1alpha1`).

use std::{sync::Arc, time::Duration};

use axum::{Json, extract::State};
use jiff::Timestamp;
use ketch_api::k8s::api::core::v1 as core;
use ketch_runtime::{ContainerId, Usage};
use serde_json::{Value, json};

use crate::{context::Context, host, machine::container_id};

/// Time between the two looks that make a rate.
const WINDOW: Duration = Duration::from_millis(100);

/// A container's use, twice.
struct Sample {
    pod: usize,
    name: String,
    id: ContainerId,
    usage: Usage,
}

pub(super) async fn summary(State(context): State<Arc<Context>>) -> Json<Value> {
    let pods = context.index.pods();
    let before = sample(&context, &pods).await;
    tokio::time::sleep(WINDOW).await;
    let after = sample(&context, &pods).await;
    let time = Timestamp::now().to_string();
    let facts = host::Facts::read(&context.root);
    let stats = |sample: &Sample| {
        let earlier =
            before.iter().find(|one| one.id == sample.id).map_or(sample.usage.cpu, |one| one.usage.cpu);
        let rate = sample.usage.cpu.saturating_sub(earlier).as_nanos() * 1_000 / WINDOW.as_millis();
        (sample.pod, rate, sample.usage, sample.name.clone())
    };
    let stats: Vec<_> = after.iter().map(stats).collect();
    let nanos = |cpu: Duration| u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX);
    let figures = |rate: u128, cpu: Duration, memory: u64| {
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        (
            json!({ "time": time, "usageNanoCores": rate, "usageCoreNanoSeconds": nanos(cpu) }),
            json!({ "time": time, "workingSetBytes": memory, "usageBytes": memory, "rssBytes": memory }),
        )
    };
    let described = pods.iter().enumerate().map(|(index, pod)| {
        let own: Vec<_> = stats.iter().filter(|(at, ..)| *at == index).collect();
        let containers: Vec<Value> = own.iter().map(|(_, rate, usage, name)| {
            let (cpu, memory) = figures(*rate, usage.cpu, usage.memory);
            json!({ "name": name, "startTime": started(pod), "cpu": cpu, "memory": memory })
        }).collect();
        let total = (own.iter().map(|one| one.1).sum(), own.iter().map(|one| one.2.cpu).sum(), own.iter().map(|one| one.2.memory).sum());
        let (cpu, memory) = figures(total.0, total.1, total.2);
        let meta = &pod.metadata;
        let reference = json!({ "name": meta.name, "namespace": meta.namespace, "uid": meta.uid });
        json!({ "podRef": reference, "startTime": started(pod), "containers": containers, "cpu": cpu, "memory": memory })
    });
    let described: Vec<Value> = described.collect();
    Json(json!({ "node": facts.stats(&context.name, &time), "pods": described }))
}

fn started(pod: &core::Pod) -> Value {
    let time = pod.status.as_ref().and_then(|status| status.start_time.clone());
    serde_json::to_value(time).unwrap_or_default()
}

/// Running containers: pod, name, id.
fn running(context: &Context, pods: &[Arc<core::Pod>]) -> Vec<(usize, String, ContainerId)> {
    let mut found = Vec::new();
    for (index, pod) in pods.iter().enumerate() {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let Some(spec) = &pod.spec else { continue };
        for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
            let attempt = context.index.attempts(uid, &container.name).into_iter().max();
            let id = attempt.map(|attempt| container_id(uid, &container.name, attempt));
            if let Some(id) = id.filter(|id| context.index.runs(id) == Some(true)) {
                found.push((index, container.name.clone(), ContainerId(id)));
            }
        }
    }
    found
}

async fn sample(context: &Context, pods: &[Arc<core::Pod>]) -> Vec<Sample> {
    let mut samples = Vec::new();
    for (pod, name, id) in running(context, pods) {
        for entry in &context.runtimes {
            if let Ok(usage) = entry.runtime.usage(&id).await {
                samples.push(Sample { pod, name: name.clone(), id: id.clone(), usage });
                break;
            }
        }
    }
    samples
}
