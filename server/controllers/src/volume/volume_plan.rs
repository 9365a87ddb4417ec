//! What to do for a volume: its phase, and what becomes of it when its claim is gone. Pure.

use ketch_api::{
    k8s::api::core::v1::{PersistentVolume, PersistentVolumeClaim},
    volume::{self, BOUND_BY_CONTROLLER, DATA_FINALIZER, VOLUME_FINALIZER},
};

/// A volume and what it depends on.
pub(super) struct Observed<'a> {
    pub(super) volume: &'a PersistentVolume,
    /// The claim of the name that the volume has in its `claimRef`.
    pub(super) claim: Option<&'a PersistentVolumeClaim>,
    /// Whether the node that has the data exists; true for volumes that are on no single node.
    pub(super) node_exists: bool,
}

/// One thing to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// Write the phase, and why.
    Phase(&'static str, String),
    /// Take these finalizers away.
    Release(Vec<&'static str>),
    /// Delete the object; finalizers keep it until the data is gone.
    Delete,
    /// The claim has taken another volume: this one is free again.
    Unbind,
}

/// The plan for one volume.
pub(super) fn plan(observed: &Observed<'_>) -> Vec<Op> {
    let volume = observed.volume;
    let was = volume::phase(volume);
    let (phase, message) = match standing(observed) {
        Standing::Free => ("Available", String::new()),
        Standing::Bound => ("Bound", String::new()),
        Standing::Undecided => (was, String::new()),
        Standing::Elsewhere => return vec![Op::Unbind],
        Standing::Released => released(volume),
    };
    let mut ops = Vec::new();
    if phase != was {
        ops.push(Op::Phase(canonical(phase), message));
    }
    if volume.metadata.deletion_timestamp.is_some() {
        let release = releasable(observed, phase);
        if !release.is_empty() {
            ops.push(Op::Release(release));
        }
    } else if phase == "Released" && policy(volume) == "Delete" {
        ops.push(Op::Delete);
    }
    ops
}

/// What a volume is to its claim.
enum Standing {
    Free,
    Bound,
    /// It is kept for a claim that has not taken it yet.
    Undecided,
    /// Its claim has another one.
    Elsewhere,
    Released,
}

fn standing(observed: &Observed<'_>) -> Standing {
    let volume = observed.volume;
    let Some(reference) = volume::claim_ref(volume) else { return Standing::Free };
    if reference.uid.as_deref().unwrap_or_default().is_empty() {
        return Standing::Free;
    }
    let Some(claim) = observed.claim.filter(|claim| claim.metadata.uid == reference.uid) else {
        return Standing::Released;
    };
    let own = volume.metadata.name.as_deref() == Some(volume::volume_name(claim));
    let annotations = volume.metadata.annotations.as_ref();
    match volume::volume_name(claim) {
        _ if own => Standing::Bound,
        "" => Standing::Undecided,
        _ if volume::is_local_path(volume) => Standing::Released,
        _ if volume::annotation(annotations, BOUND_BY_CONTROLLER).is_some() => Standing::Elsewhere,
        _ => Standing::Undecided,
    }
}

fn policy(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain")
}

/// Phase of a volume whose claim is gone.
fn released(volume: &PersistentVolume) -> (&'static str, String) {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    match policy(volume) {
        "Delete" if !volume::is_local_path(volume) => (
            "Failed",
            format!("error getting deleter volume plugin for volume \"{name}\": no volume plugin matched"),
        ),
        "Recycle" => {
            ("Failed", "volumes are not recycled: use the reclaim policy Delete or Retain".to_owned())
        }
        _ => ("Released", String::new()),
    }
}

fn canonical(phase: &str) -> &'static str {
    match phase {
        "Available" => "Available",
        "Bound" => "Bound",
        "Released" => "Released",
        "Failed" => "Failed",
        _ => "Pending",
    }
}

/// Finalizers that keep a volume for nothing any more. Its data goes first, which its node does.
fn releasable(observed: &Observed<'_>, phase: &str) -> Vec<&'static str> {
    let held = |name: &str| observed.volume.metadata.finalizers.iter().flatten().any(|one| one == name);
    if phase == "Bound" {
        return Vec::new();
    }
    let lost = !observed.node_exists;
    [(VOLUME_FINALIZER, true), (DATA_FINALIZER, lost)]
        .into_iter()
        .filter(|(name, due)| *due && held(name))
        .map(|(name, _)| name)
        .collect()
}
