//! What to do for a claim: find its volume, have one made, or say what is missing. Pure.
//!
//! Rules and texts are those of upstream's `pkg/controller/volume/persistentvolume` and `pvcprotection`.

use ketch_api::{
    k8s::{
        api::{
            core::v1::{
                LocalVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, ObjectReference,
                PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
            },
            storage::v1::StorageClass,
        },
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
    quantity::Quantity,
    volume::{
        self, BIND_COMPLETED, CLAIM_FINALIZER, DATA_FINALIZER, HOSTNAME_LABEL, NO_PROVISIONER,
        PROVISIONED_BY, PROVISIONER, SELECTED_NODE,
    },
};

/// A claim and what it depends on.
pub(super) struct Observed<'a> {
    pub(super) claim: &'a PersistentVolumeClaim,
    pub(super) volumes: &'a [&'a PersistentVolume],
    /// The claim's class, if it exists.
    pub(super) class: Option<&'a StorageClass>,
    /// Whether a pod that has a node uses the claim.
    pub(super) in_use: bool,
    /// A pod that uses the claim and has no node.
    pub(super) waiting: Option<&'a str>,
    /// What is known of the node that the scheduler chose.
    pub(super) place: Place<'a>,
}

/// Where a volume would be made.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    /// No node is chosen.
    Open,
    /// The chosen node does not exist any more.
    Gone,
    /// The chosen node has no place for volumes.
    Unfit(&'a str),
    /// Host name and directory of the chosen node.
    Node(&'a str, &'a str),
}

/// One thing to do.
#[derive(Debug, PartialEq)]
pub(super) enum Op {
    /// Let a claim go that is to be deleted.
    Release,
    /// Make claim and volume each other's.
    Bind(String),
    /// Create this volume.
    Provision(Box<PersistentVolume>),
    /// Have the scheduler choose again.
    Unselect,
    /// Note who is to make the volume.
    Ask(String),
    /// The volume is gone, or another claim's.
    Lost,
    /// Give the volume as many bytes as are asked for.
    Grow(String, Quantity),
    /// Leave an event.
    Tell(Note),
}

/// An event.
#[derive(Debug, PartialEq)]
pub(super) struct Note {
    pub(super) warning: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

fn normal(reason: &'static str, message: impl Into<String>) -> Vec<Op> {
    vec![Op::Tell(Note { warning: false, reason, message: message.into() })]
}

fn warning(reason: &'static str, message: impl Into<String>) -> Vec<Op> {
    vec![Op::Tell(Note { warning: true, reason, message: message.into() })]
}

/// The plan for one claim.
pub(super) fn plan(observed: &Observed<'_>) -> Vec<Op> {
    let claim = observed.claim;
    if claim.metadata.deletion_timestamp.is_some() {
        let held = claim.metadata.finalizers.iter().flatten().any(|one| one == CLAIM_FINALIZER);
        return if held && !observed.in_use { vec![Op::Release] } else { Vec::new() };
    }
    match volume::volume_name(claim) {
        "" => unbound(observed),
        name => named(observed, name),
    }
}

/// A claim that names its volume.
fn named(observed: &Observed<'_>, name: &str) -> Vec<Op> {
    let claim = observed.claim;
    let was_bound = volume::annotation(claim.metadata.annotations.as_ref(), BIND_COMPLETED).is_some();
    let lost = |reason, message: &str| match (was_bound, volume::claim_phase(claim)) {
        (true, "Lost") | (false, _) => Vec::new(),
        (true, _) => std::iter::once(Op::Lost).chain(warning(reason, message)).collect(),
    };
    let found = observed.volumes.iter().find(|volume| volume.metadata.name.as_deref() == Some(name));
    let Some(found) = found else {
        return lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!");
    };
    match volume::claim_ref(found) {
        None => match volume::check(claim, found) {
            Ok(()) => vec![Op::Bind(name.to_owned())],
            Err(why) => {
                warning("VolumeMismatch", format!("Cannot bind to requested volume \"{name}\": {why}"))
            }
        },
        Some(reference) if volume::is_for(reference, claim) => complete(observed, found),
        Some(_) if was_bound => {
            lost("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
        }
        Some(_) => normal("FailedBinding", format!("volume \"{name}\" already bound to a different claim.")),
    }
}

/// Claim and volume know each other: what is still missing.
fn complete(observed: &Observed<'_>, found: &PersistentVolume) -> Vec<Op> {
    let (claim, name) = (observed.claim, found.metadata.name.clone().unwrap_or_default());
    let wanted = volume::requested(claim);
    let may_grow = observed.class.is_some_and(|class| class.allow_volume_expansion == Some(true));
    if volume::is_bound(claim) && wanted > volume::capacity(found) && volume::is_local_path(found) && may_grow
    {
        return vec![Op::Grow(name, Quantity::from_bytes(wanted))];
    }
    let reserved = volume::claim_ref(found).is_some_and(|reference| reference.uid == claim.metadata.uid);
    let status = claim.status.as_ref();
    let spec = found.spec.as_ref();
    let settled = volume::is_bound(claim)
        && status.and_then(|status| status.capacity.as_ref()) == spec.and_then(|spec| spec.capacity.as_ref())
        && status.and_then(|status| status.access_modes.as_ref())
            == spec.and_then(|spec| spec.access_modes.as_ref());
    if reserved && settled { Vec::new() } else { vec![Op::Bind(name)] }
}

/// A claim that has no volume yet.
fn unbound(observed: &Observed<'_>) -> Vec<Op> {
    let claim = observed.claim;
    let late = observed.class.is_some_and(volume::waits_for_consumer);
    // With the first pod's node in view the scheduler chooses; it leaves its choice on the volume.
    let found = volume::best(claim, observed.volumes.iter().copied(), |_| !late);
    if let Some(found) = found {
        return vec![Op::Bind(found.metadata.name.clone().unwrap_or_default())];
    }
    let name = volume::class_of(claim);
    let Some(class) = observed.class else {
        return match name {
            "" => normal(
                "FailedBinding",
                "no persistent volumes available for this claim and no storage class is set",
            ),
            name => {
                warning("ProvisioningFailed", format!("storageclass.storage.k8s.io \"{name}\" not found"))
            }
        };
    };
    match (late, observed.place, observed.waiting) {
        (true, Place::Open, Some(pod)) => {
            normal("WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled"))
        }
        (true, Place::Open, None) => {
            normal("WaitForFirstConsumer", "waiting for first consumer to be created before binding")
        }
        _ if class.provisioner == PROVISIONER => provision(observed, class),
        _ if class.provisioner == NO_PROVISIONER => {
            normal("FailedBinding", "no persistent volumes available for this claim")
        }
        _ => external(claim, &class.provisioner),
    }
}

/// Somebody else makes the volume.
fn external(claim: &PersistentVolumeClaim, provisioner: &str) -> Vec<Op> {
    let message = format!(
        "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the \
         system administrator. If volume creation is delayed, please verify that the provisioner is running and \
         correctly registered."
    );
    let asked = volume::annotation(claim.metadata.annotations.as_ref(), volume::STORAGE_PROVISIONER);
    let mut ops = normal("ExternalProvisioning", message);
    if asked != Some(provisioner) {
        ops.insert(0, Op::Ask(provisioner.to_owned()));
    }
    ops
}

fn provision(observed: &Observed<'_>, class: &StorageClass) -> Vec<Op> {
    let name = class.metadata.name.as_deref().unwrap_or_default();
    let failed = |why: &str| {
        warning(
            "ProvisioningFailed",
            format!("failed to provision volume with StorageClass \"{name}\": {why}"),
        )
    };
    if let Err(why) = possible(observed.claim) {
        return failed(why);
    }
    match observed.place {
        Place::Open => failed(
            "volumes of ketch.dev/local-path are on the node of their pod: the class needs volumeBindingMode \
             WaitForFirstConsumer",
        ),
        Place::Gone => vec![Op::Unselect],
        Place::Unfit(node) => failed(&format!("node {node} has no directory for volumes")),
        Place::Node(host, directory) => {
            vec![Op::Provision(Box::new(made(observed.claim, class, host, directory)))]
        }
    }
}

/// Whether a directory can be what a claim asks for.
fn possible(claim: &PersistentVolumeClaim) -> Result<(), &'static str> {
    let Some(spec) = &claim.spec else { return Err("the claim has no spec") };
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err("ketch.dev/local-path has no volumes of volumeMode Block");
    }
    if spec.selector.is_some() {
        return Err("claim Selector is not supported");
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return Err("claim DataSource is not supported");
    }
    let modes = ["ReadWriteOnce", "ReadWriteOncePod"];
    match spec.access_modes.iter().flatten().all(|mode| modes.contains(&mode.as_str())) {
        true => Ok(()),
        false => Err("ketch.dev/local-path has the access modes ReadWriteOnce and ReadWriteOncePod only"),
    }
}

/// A volume that is a directory of the node.
fn made(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    host: &str,
    directory: &str,
) -> PersistentVolume {
    let name = format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default());
    let spec = claim.spec.clone().unwrap_or_default();
    let here = NodeSelectorRequirement {
        key: HOSTNAME_LABEL.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![host.to_owned()]),
    };
    let term = NodeSelectorTerm { match_expressions: Some(vec![here]), match_fields: None };
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            annotations: Some([(PROVISIONED_BY.to_owned(), PROVISIONER.to_owned())].into()),
            finalizers: Some(vec![DATA_FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: spec.resources.and_then(|resources| resources.requests),
            claim_ref: Some(reference(claim)),
            local: Some(LocalVolumeSource { path: format!("{directory}/{name}"), fs_type: None }),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector { node_selector_terms: vec![term] }),
            }),
            persistent_volume_reclaim_policy: class.reclaim_policy.clone(),
            storage_class_name: class.metadata.name.clone(),
            volume_mode: spec.volume_mode,
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    }
}

/// How a volume names its claim.
pub(super) fn reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("PersistentVolumeClaim".to_owned()),
        namespace: claim.metadata.namespace.clone(),
        name: claim.metadata.name.clone(),
        uid: claim.metadata.uid.clone(),
        resource_version: claim.metadata.resource_version.clone(),
        field_path: None,
    }
}

/// The node that the scheduler chose for a claim.
pub(super) fn selected_node(claim: &PersistentVolumeClaim) -> Option<&str> {
    volume::annotation(claim.metadata.annotations.as_ref(), SELECTED_NODE).filter(|node| !node.is_empty())
}
