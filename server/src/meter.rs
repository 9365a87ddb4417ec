//! What nodes and pods use: asks every connected node now and then, and makes rates of what two answers in a
//! row say. As metrics-server: one answer of each node is kept, nothing is stored, and a node that does not
//! answer is left out until it does.

use std::{collections::HashMap, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use axum::body::Body;
use futures::future::join_all;
use http::Request;
use jiff::Timestamp;
use ketch_apiserver::{
    NodeConnector,
    metrics::{Measured, Metrics, Usage},
};
use serde::Deserialize;

use crate::nodes::Nodes;

/// Time between two questions; metrics-server's resolution.
pub(crate) const INTERVAL: Duration = Duration::from_secs(15);
/// For a node's answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest answer, in bytes: some tens of thousands of containers.
const LARGEST: usize = 64 << 20;
/// Answers closer to each other than this give no rate.
const SHORTEST: Duration = Duration::from_secs(1);
const PATH: &str = "/stats/summary?only_cpu_and_memory=true";

/// The latest answers and what they say.
#[derive(Default)]
pub(crate) struct Meter {
    state: ArcSwap<State>,
}

#[derive(Default)]
struct State {
    answers: HashMap<String, Arc<Summary>>,
    nodes: HashMap<String, Measured<Usage>>,
    /// By UID.
    pods: HashMap<String, Measured<Vec<(String, Usage)>>>,
}

/// A node's answer, as far as it matters (kubelet's `stats/v1alpha1`).
#[derive(Debug, Deserialize)]
struct Summary {
    node: NodeStats,
    #[serde(default)]
    pods: Vec<PodStats>,
}

#[derive(Debug, Deserialize)]
struct NodeStats {
    cpu: Cpu,
    #[serde(default)]
    memory: Memory,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStats {
    pod_ref: Reference,
    #[serde(default)]
    containers: Vec<ContainerStats>,
}

#[derive(Debug, Deserialize)]
struct Reference {
    uid: String,
}

#[derive(Debug, Deserialize)]
struct ContainerStats {
    name: String,
    cpu: Cpu,
    #[serde(default)]
    memory: Memory,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cpu {
    time: Timestamp,
    #[serde(default)]
    usage_core_nano_seconds: u64,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Memory {
    working_set_bytes: u64,
}

// === impl Meter ===

impl Meter {
    /// Asks every connected node once.
    pub(crate) async fn look(&self, nodes: &Nodes) {
        let measure = async |name: String| {
            let answer = tokio::time::timeout(PATIENCE, ask(nodes, &name)).await;
            match answer.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs()))) {
                Ok(summary) => Some((name, Arc::new(summary))),
                Err(error) => {
                    tracing::debug!(node = name, error, "a node was not measured");
                    None
                }
            }
        };
        let answers = join_all(nodes.names().into_iter().map(measure)).await.into_iter().flatten().collect();
        self.state.store(Arc::new(State::after(&self.state.load(), answers)));
    }
}

impl State {
    /// What is known with these answers, when `before` was known.
    fn after(before: &Self, answers: HashMap<String, Arc<Summary>>) -> Self {
        let mut next = Self::default();
        for (name, now) in &answers {
            let Some(then) = before.answers.get(name) else { continue };
            let Some(window) = window(then.node.cpu.time, now.node.cpu.time) else { continue };
            let measured = |cpu: Cpu, earlier: Cpu, memory: Memory| {
                let spent = cpu.usage_core_nano_seconds.checked_sub(earlier.usage_core_nano_seconds)?;
                let nanocores = u128::from(spent) * 1_000_000_000 / window.as_nanos();
                let nanocores = u64::try_from(nanocores).unwrap_or(u64::MAX);
                Some(Usage { nanocores, memory: memory.working_set_bytes })
            };
            let at = now.node.cpu.time;
            if let Some(usage) = measured(now.node.cpu, then.node.cpu, now.node.memory) {
                next.nodes.insert(name.clone(), Measured { at, window, usage });
            }
            let earlier: HashMap<(&str, &str), Cpu> =
                containers(then).map(|(key, one)| (key, one.cpu)).collect();
            for ((uid, container), one) in containers(now) {
                let earlier = earlier.get(&(uid, container));
                // A container that has started again counts from zero; its next rate is right.
                let usage = earlier.and_then(|earlier| measured(one.cpu, *earlier, one.memory));
                let Some(usage) = usage else { continue };
                let pod = next.pods.entry(uid.to_owned());
                let pod = pod.or_insert_with(|| Measured { at, window, usage: Vec::new() });
                pod.usage.push((container.to_owned(), usage));
            }
        }
        next.answers = answers;
        next
    }
}

fn window(then: Timestamp, now: Timestamp) -> Option<Duration> {
    Duration::try_from(now.duration_since(then)).ok().filter(|window| *window >= SHORTEST)
}

/// Containers by UID of their pod and name.
fn containers(summary: &Summary) -> impl Iterator<Item = ((&str, &str), &ContainerStats)> {
    summary
        .pods
        .iter()
        .flat_map(|pod| pod.containers.iter().map(|one| ((pod.pod_ref.uid.as_str(), one.name.as_str()), one)))
}

async fn ask(nodes: &Nodes, name: &str) -> Result<Summary, String> {
    let request = Request::get(PATH).body(Body::empty()).map_err(|error| error.to_string())?;
    let answer = nodes.request(name, request).await.map_err(|status| status.message)?;
    if !answer.status().is_success() {
        return Err(format!("the node answered {}", answer.status()));
    }
    let body = axum::body::to_bytes(answer.into_body(), LARGEST).await.map_err(|error| error.to_string())?;
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}

impl Metrics for Meter {
    fn node(&self, name: &str) -> Option<Measured<Usage>> {
        self.state.load().nodes.get(name).cloned()
    }

    fn pod(&self, uid: &str) -> Option<Measured<Vec<(String, Usage)>>> {
        self.state.load().pods.get(uid).cloned()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn cpu(second: i64, milliseconds: u64) -> Value {
        json!({"time": Timestamp::from_second(1_800_000_000 + second).unwrap().to_string(),
            "usageCoreNanoSeconds": milliseconds * 1_000_000})
    }

    /// A node that has used `node` milliseconds of processor, with one pod of these containers.
    fn answers(second: i64, node: u64, containers: &[(&str, u64)]) -> HashMap<String, Arc<Summary>> {
        let containers: Vec<Value> = containers
            .iter()
            .map(|(name, used)| json!({"name": name, "cpu": cpu(second, *used), "memory": {"workingSetBytes": 4096}}))
            .collect();
        let summary = json!({"node": {"nodeName": "n1", "cpu": cpu(second, node), "memory": {"workingSetBytes": 1 << 20}},
            "pods": [{"podRef": {"name": "web", "namespace": "dev", "uid": "u"}, "containers": containers}]});
        HashMap::from([("n1".to_owned(), Arc::new(serde_json::from_value(summary).unwrap()))])
    }

    #[test]
    fn two_answers_make_rates() {
        let meter = Meter::default();
        let look = |answers| {
            let next = State::after(&meter.state.load(), answers);
            meter.state.store(Arc::new(next));
        };
        look(answers(0, 1_000, &[("a", 100), ("b", 900)]));
        assert!(meter.node("n1").is_none() && meter.pod("u").is_none(), "one is not enough");
        // b has started again, c is new.
        look(answers(15, 16_000, &[("a", 1_600), ("b", 10), ("c", 5)]));
        let node = meter.node("n1").unwrap();
        assert_eq!(
            (node.usage.nanocores, node.usage.memory, node.window.as_secs()),
            (1_000_000_000, 1 << 20, 15)
        );
        let pod = meter.pod("u").unwrap();
        assert_eq!(pod.usage, [("a".to_owned(), Usage { nanocores: 100_000_000, memory: 4096 })]);
        assert!(meter.pod("v").is_none());
        look(HashMap::new());
        assert!(meter.node("n1").is_none(), "a node that does not answer is left out");
        look(answers(45, 17_000, &[]));
        assert!(meter.node("n1").is_none());
        look(answers(45, 17_000, &[]));
        assert!(meter.node("n1").is_none(), "no time has passed");
    }
}
