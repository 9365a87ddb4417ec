//! Filter, then score.

use std::{collections::BTreeMap, fmt};

use super::{
    cluster::{Cluster, PodInfo},
    filter::{self, Reason},
    score,
    topology::Topology,
    volumes::Volumes,
};

/// Why no node can take a pod: how many refused for each reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unschedulable {
    nodes: usize,
    reasons: BTreeMap<Reason, usize>,
    /// Why none was even looked at.
    blocked: Option<String>,
}

/// The name of the node `pod` should be bound to.
///
/// # Errors
/// No node can take it.
pub fn schedule(cluster: &Cluster, pod: &PodInfo) -> Result<String, Unschedulable> {
    let mut refused = Unschedulable { nodes: 0, reasons: BTreeMap::new(), blocked: None };
    let volumes = match Volumes::new(cluster, pod) {
        Ok(volumes) => volumes,
        Err(why) => {
            return Err(Unschedulable { nodes: cluster.node_count(), blocked: Some(why), ..refused });
        }
    };
    let topology = Topology::new(cluster, pod);
    let mut candidates = Vec::new();
    for node in cluster.nodes() {
        refused.nodes += 1;
        match filter::check(pod, node, &volumes, &topology) {
            Ok(()) => candidates.push(node),
            Err(reasons) => {
                for reason in reasons {
                    *refused.reasons.entry(reason).or_default() += 1;
                }
            }
        }
    }
    score::best(cluster, pod, &candidates).map(|node| node.name.clone()).ok_or(refused)
}

// === impl Unschedulable ===

impl fmt::Display for Unschedulable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        if let Some(why) = &self.blocked {
            return write!(f, "0/{} nodes are available: {why}.", self.nodes);
        }
        // Sorted as text, counts first, as upstream prints it.
        let mut reasons: Vec<String> =
            self.reasons.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
        reasons.sort();
        write!(f, "0/{} nodes are available: {}.", self.nodes, reasons.join(", "))
    }
}
