//! Which nodes a pod can run on: one function per rule, each with upstream's words for its refusal.

use std::borrow::Cow;

use ketch_api::k8s::api::core::v1::{Taint, Toleration};

use super::{
    affinity,
    cluster::{NodeInfo, PodInfo},
    topology::Topology,
    volumes::Volumes,
};

/// Why a node was refused; equal texts are counted together.
pub(super) type Reason = Cow<'static, str>;

const NAME: &str = "node(s) didn't match the requested node name";
const UNSCHEDULABLE: &str = "node(s) were unschedulable";
const AFFINITY: &str = "node(s) didn't match Pod's node affinity/selector";
const PORTS: &str = "node(s) didn't have free ports for the requested pod ports";
/// The taint that tolerates `spec.unschedulable`.
const CORDON_TAINT: &str = "node.kubernetes.io/unschedulable";

/// Runs the rules in upstream's order; the first that refuses has the word.
pub(super) fn check(
    pod: &PodInfo,
    node: &NodeInfo,
    volumes: &Volumes<'_>,
    topology: &Topology<'_>,
) -> Result<(), Vec<Reason>> {
    let one = |result: Result<(), Reason>| result.map_err(|reason| vec![reason]);
    one(schedulable(pod, node))?;
    one(named(pod, node))?;
    one(tainted(pod, node))?;
    one(selected(pod, node))?;
    one(ports(pod, node))?;
    resources(pod, node)?;
    one(volumes.check(node))?;
    one(topology.spread(node))?;
    one(topology.affinity(node))
}

fn tolerations(pod: &PodInfo) -> &[Toleration] {
    pod.spec().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default()
}

fn schedulable(pod: &PodInfo, node: &NodeInfo) -> Result<(), Reason> {
    if !node.unschedulable {
        return Ok(());
    }
    let cordon = Taint { key: CORDON_TAINT.into(), effect: "NoSchedule".into(), ..Taint::default() };
    match tolerates(tolerations(pod), &cordon) {
        true => Ok(()),
        false => Err(UNSCHEDULABLE.into()),
    }
}

fn named(pod: &PodInfo, node: &NodeInfo) -> Result<(), Reason> {
    match pod.spec().and_then(|spec| spec.node_name.as_deref()) {
        Some(name) if !name.is_empty() && name != node.name => Err(NAME.into()),
        _ => Ok(()),
    }
}

fn tainted(pod: &PodInfo, node: &NodeInfo) -> Result<(), Reason> {
    let hard = node.taints.iter().filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"));
    for taint in hard {
        if !tolerates(tolerations(pod), taint) {
            let value = taint.value.as_deref().unwrap_or_default();
            return Err(format!("node(s) had untolerated taint {{{}: {value}}}", taint.key).into());
        }
    }
    Ok(())
}

/// Whether any of `tolerations` tolerates `taint`.
pub(super) fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let (effect, key) = (text(&toleration.effect), text(&toleration.key));
        if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
            return false;
        }
        match toleration.operator.as_deref() {
            Some("Exists") => true,
            _ => !key.is_empty() && text(&toleration.value) == text(&taint.value),
        }
    })
}

fn selected(pod: &PodInfo, node: &NodeInfo) -> Result<(), Reason> {
    match affinity::selects(pod, node) {
        true => Ok(()),
        false => Err(AFFINITY.into()),
    }
}

fn ports(pod: &PodInfo, node: &NodeInfo) -> Result<(), Reason> {
    match pod.ports.iter().any(|wanted| node.ports.iter().any(|taken| wanted.conflicts_with(taken))) {
        true => Err(PORTS.into()),
        false => Ok(()),
    }
}

/// Names everything that is missing, not only the first.
fn resources(pod: &PodInfo, node: &NodeInfo) -> Result<(), Vec<Reason>> {
    let (asked, used, has) = (&pod.request, &node.requested, &node.allocatable);
    let full = i64::try_from(node.pods.len()).unwrap_or(i64::MAX) >= node.max_pods;
    let short = |asked: i64, used: i64, has: i64| asked > 0 && asked > has.saturating_sub(used);
    let cpu = short(asked.cpu, used.cpu, has.cpu);
    let memory = short(asked.memory, used.memory, has.memory);
    let storage = short(asked.storage, used.storage, has.storage);
    let other = |name: &str, amount: i64| {
        let get = |map: &std::collections::BTreeMap<String, i64>| map.get(name).copied().unwrap_or(0);
        short(amount, get(&used.extended), get(&has.extended))
    };
    let others: Vec<&String> =
        asked.extended.iter().filter(|(name, amount)| other(name, **amount)).map(|(name, _)| name).collect();
    if !(full || cpu || memory || storage) && others.is_empty() {
        return Ok(());
    }
    let fixed = [
        (full, "Too many pods"),
        (cpu, "Insufficient cpu"),
        (memory, "Insufficient memory"),
        (storage, "Insufficient ephemeral-storage"),
    ];
    let fixed = fixed.into_iter().filter(|(missing, _)| *missing).map(|(_, reason)| Reason::from(reason));
    Err(fixed.chain(others.into_iter().map(|name| format!("Insufficient {name}").into())).collect())
}
