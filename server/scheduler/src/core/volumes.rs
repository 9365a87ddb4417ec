//! Claims of a pod: which nodes reach its volumes, and what has to be settled before it is bound.
//!
//! Upstream's VolumeBinding and VolumeRestrictions, with their words.

use std::{borrow::Cow, collections::HashSet, sync::Arc};

use ketch_api::{
    k8s::api::{
        core::v1::{PersistentVolume, PersistentVolumeClaim},
        storage::v1::StorageClass,
    },
    volume::{self, NO_PROVISIONER, SELECTED_NODE},
};

use super::{
    affinity,
    cluster::{Cluster, NodeInfo, PodInfo},
    filter::Reason,
};

const CONFLICT: &str = "node(s) had volume node affinity conflict";
const NO_VOLUME: &str = "node(s) didn't find available persistent volumes to bind";
const LOST: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
const EXCLUSIVE: &str =
    "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
const UNBOUND: &str = "pod has unbound immediate PersistentVolumeClaims";

/// What the scheduler writes so that the claims of a pod get their volumes.
#[derive(Clone, Debug)]
pub enum Settle {
    /// Keep this volume for the claim.
    Reserve(Arc<PersistentVolume>, Arc<PersistentVolumeClaim>),
    /// Have a volume made on this node.
    Select(Arc<PersistentVolumeClaim>, String),
}

/// What the claims of one pod ask of a node.
pub(super) struct Volumes<'a> {
    cluster: &'a Cluster,
    bound: Vec<&'a PersistentVolume>,
    /// Claims whose volume is chosen with the node.
    late: Vec<(&'a Arc<PersistentVolumeClaim>, &'a StorageClass)>,
    lost: bool,
    /// Another pod has a claim that one pod at a time may have.
    taken: bool,
}

/// How a late claim gets its volume on a node.
enum Choice<'a> {
    Volume(&'a Arc<PersistentVolume>),
    Made,
}

// === impl Volumes ===

impl<'a> Volumes<'a> {
    /// Looks up the pod's claims. Costs nothing without any.
    ///
    /// # Errors
    /// Why no node can take the pod now.
    pub(super) fn new(cluster: &'a Cluster, pod: &PodInfo) -> Result<Self, String> {
        let mut volumes = Self { cluster, bound: Vec::new(), late: Vec::new(), lost: false, taken: false };
        for name in &pod.claims {
            let claim = cluster.claim(pod.namespace(), name);
            let claim = claim.ok_or_else(|| format!("persistentvolumeclaim \"{name}\" not found"))?;
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
            }
            if volume::claim_phase(claim) == "Lost" {
                let volume = volume::volume_name(claim);
                return Err(format!(
                    "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
                ));
            }
            let exclusive = volume::has_mode(claim, "ReadWriteOncePod");
            volumes.taken |= exclusive && cluster.uses(pod.namespace(), name, pod.uid());
            volumes.add(claim)?;
        }
        Ok(volumes)
    }

    fn add(&mut self, claim: &'a Arc<PersistentVolumeClaim>) -> Result<(), String> {
        if volume::is_bound(claim) {
            match self.cluster.volumes.get(volume::volume_name(claim)) {
                Some(volume) => self.bound.push(volume),
                None => self.lost = true,
            }
            return Ok(());
        }
        let class = self.cluster.classes.get(volume::class_of(claim));
        match class.filter(|class| volume::waits_for_consumer(class) && volume::volume_name(claim).is_empty())
        {
            Some(class) => self.late.push((claim, class)),
            None => return Err(UNBOUND.to_owned()),
        }
        Ok(())
    }

    /// Whether the node reaches them all.
    pub(super) fn check(&self, node: &NodeInfo) -> Result<(), Reason> {
        let refused = |reason: &'static str| Err(Cow::from(reason));
        if self.taken {
            return refused(EXCLUSIVE);
        }
        if self.lost {
            return refused(LOST);
        }
        if !self.bound.iter().all(|volume| reaches(volume, node)) {
            return refused(CONFLICT);
        }
        self.choose(node).map(drop).map_err(Cow::from)
    }

    /// A volume for each late claim, none twice.
    fn choose(
        &self,
        node: &NodeInfo,
    ) -> Result<Vec<(&'a Arc<PersistentVolumeClaim>, Choice<'a>)>, &'static str> {
        let mut taken: HashSet<&str> = HashSet::new();
        let mut chosen = Vec::new();
        for (claim, class) in &self.late {
            let all = self.cluster.volumes.values().map(AsRef::as_ref);
            let found = volume::best(claim, all, |one| reaches(one, node) && !taken.contains(name(one)));
            let choice = match found.and_then(|found| self.cluster.volumes.get_key_value(name(found))) {
                Some((_, kept)) if !reaches(kept, node) => return Err(CONFLICT),
                Some((key, found)) => {
                    taken.insert(key);
                    Choice::Volume(found)
                }
                None if can_be_made(claim, class, node) => Choice::Made,
                None => return Err(NO_VOLUME),
            };
            chosen.push((*claim, choice));
        }
        Ok(chosen)
    }
}

/// What is to be written before `pod` can be bound to `node`; `None`: nothing, its claims have their volumes. An
/// empty list: it was written, and the volumes are on their way.
pub fn settle(cluster: &Cluster, pod: &PodInfo, node: &str) -> Option<Vec<Settle>> {
    let volumes = Volumes::new(cluster, pod).ok()?;
    if volumes.late.is_empty() {
        return None;
    }
    let chosen = cluster.node(node).and_then(|node| volumes.choose(node).ok()).unwrap_or_default();
    let steps = chosen.into_iter().filter_map(|(claim, choice)| match choice {
        Choice::Volume(found) => {
            volume::claim_ref(found).is_none().then(|| Settle::Reserve(Arc::clone(found), Arc::clone(claim)))
        }
        Choice::Made => selected(claim).is_none().then(|| Settle::Select(Arc::clone(claim), node.to_owned())),
    });
    Some(steps.collect())
}

fn name(volume: &PersistentVolume) -> &str {
    volume.metadata.name.as_deref().unwrap_or_default()
}

fn selected(claim: &PersistentVolumeClaim) -> Option<&str> {
    volume::annotation(claim.metadata.annotations.as_ref(), SELECTED_NODE).filter(|node| !node.is_empty())
}

/// Whether a volume can be used on a node.
fn reaches(volume: &PersistentVolume, node: &NodeInfo) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required.as_ref());
    required
        .is_none_or(|required| required.node_selector_terms.iter().any(|term| affinity::matches(term, node)))
}

/// Whether the class's provisioner can make a volume for a node. One that has been asked for on another node is
/// not asked for here.
fn can_be_made(claim: &PersistentVolumeClaim, class: &StorageClass, node: &NodeInfo) -> bool {
    let terms = class.allowed_topologies.as_deref().unwrap_or_default();
    let allowed = terms.is_empty()
        || terms.iter().any(|term| {
            term.match_label_expressions.iter().flatten().all(|expression| {
                node.labels.get(&expression.key).is_some_and(|value| expression.values.contains(value))
            })
        });
    class.provisioner != NO_PROVISIONER && allowed && selected(claim).is_none_or(|name| name == node.name)
}
