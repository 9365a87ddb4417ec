//! What claims, volumes and classes are to each other. Pure; the scheduler, the controllers and the nodes decide
//! by the same rules.
//!
//! Upstream has them in `component-helpers/storage/volume`.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};

use crate::{quantity::Quantity, selector::Selector};

/// Provisioner of directories on the pod's node.
pub const PROVISIONER: &str = "ketch.dev/local-path";
/// Name of the class that every cluster begins with.
pub const DEFAULT_CLASS: &str = "local-path";
/// Annotation of the class that claims without one get.
pub const IS_DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
/// Its older name.
pub const IS_DEFAULT_BETA: &str = "storageclass.beta.kubernetes.io/is-default-class";
/// Provisioner of classes whose volumes an administrator makes.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// Annotation of a claim: the node its first pod was placed on.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Annotation of a claim: who is asked to make its volume.
pub const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// Annotation of a claim: it has been bound once.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Annotation of a claim or a volume: the binding was not the user's.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Annotation of a volume: who made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Keeps a claim that pods use.
pub const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
/// Keeps a volume that a claim has.
pub const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";
/// Keeps a volume of [`PROVISIONER`] until its node has removed the data.
pub const DATA_FINALIZER: &str = "ketch.dev/volume-data";
/// Annotation of a Node: directory in which it keeps the volumes of [`PROVISIONER`], each under its name.
pub const DIRECTORY_ANNOTATION: &str = "ketch.dev/volumes";
/// Selectable field of volumes: see [`node_of`]. Not upstream's; nodes follow their own volumes with it.
pub const NODE_FIELD: &str = "ketch.dev/node";
/// Label of nodes that volumes are tied to a node by.
pub const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";

const CLASS_BETA: &str = "volume.beta.kubernetes.io/storage-class";

/// The claim's class; empty: it wants a volume without one. A claim that names none at all counts as that.
pub fn class_of(claim: &PersistentVolumeClaim) -> &str {
    let old = annotation(claim.metadata.annotations.as_ref(), CLASS_BETA);
    let spec = || claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    old.or_else(spec).unwrap_or_default()
}

/// The volume's class; empty: none.
pub fn volume_class(volume: &PersistentVolume) -> &str {
    let old = annotation(volume.metadata.annotations.as_ref(), CLASS_BETA);
    let spec = || volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    old.or_else(spec).unwrap_or_default()
}

/// The value of an annotation.
pub fn annotation<'a>(all: Option<&'a BTreeMap<String, String>>, key: &str) -> Option<&'a str> {
    all?.get(key).map(String::as_str)
}

/// Whether claims without a class get this one.
pub fn is_default(class: &StorageClass) -> bool {
    let all = class.metadata.annotations.as_ref();
    [IS_DEFAULT, IS_DEFAULT_BETA].iter().any(|key| annotation(all, key) == Some("true"))
}

/// Whether volumes of the class are chosen with the node of the first pod.
pub fn waits_for_consumer(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

/// Bytes a claim asks for.
pub fn requested(claim: &PersistentVolumeClaim) -> i64 {
    let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    bytes(requests)
}

/// Bytes a volume has.
pub fn capacity(volume: &PersistentVolume) -> i64 {
    bytes(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()))
}

fn bytes(list: Option<&BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>) -> i64 {
    let quantity = list.and_then(|list| Quantity::try_from(list.get("storage")?).ok());
    quantity.map_or(0, |quantity| quantity.value())
}

/// The node a volume is on, by the one host name that its affinity asks for.
pub fn node_of(volume: &PersistentVolume) -> Option<&str> {
    let required = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    let [term] = required.node_selector_terms.as_slice() else { return None };
    let host =
        term.match_expressions.iter().flatten().find(|e| e.key == HOSTNAME_LABEL && e.operator == "In")?;
    match host.values.as_deref() {
        Some([one]) => Some(one),
        _ => None,
    }
}

/// Whether this volume was made by [`PROVISIONER`].
pub fn is_local_path(volume: &PersistentVolume) -> bool {
    annotation(volume.metadata.annotations.as_ref(), PROVISIONED_BY) == Some(PROVISIONER)
}

/// `status.phase` of a volume.
pub fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// `status.phase` of a claim.
pub fn claim_phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// The volume a claim names; empty: none yet.
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default()
}

/// Whether claim and volume have found each other, for the scheduler and for nodes.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    !volume_name(claim).is_empty()
        && annotation(claim.metadata.annotations.as_ref(), BIND_COMPLETED).is_some()
        && claim_phase(claim) == "Bound"
}

/// Whether a volume is meant for this very claim; one that is reserved by name only is for any of that name.
pub fn is_for(reference: &ObjectReference, claim: &PersistentVolumeClaim) -> bool {
    let uid = reference.uid.as_deref().filter(|uid| !uid.is_empty());
    reference.namespace == claim.metadata.namespace
        && reference.name == claim.metadata.name
        && uid.is_none_or(|uid| claim.metadata.uid.as_deref() == Some(uid))
}

/// The claim a volume belongs to or is kept for.
pub fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

/// Whether a claim asks for a mode of access.
pub fn has_mode(claim: &PersistentVolumeClaim, mode: &str) -> bool {
    claim.spec.iter().flat_map(|spec| spec.access_modes.iter().flatten()).any(|one| one == mode)
}

/// What keeps a volume that a claim names from being bound to it, in upstream's words.
///
/// # Errors
/// The first thing that does not fit.
pub fn check(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<(), &'static str> {
    let (Some(wanted), Some(has)) = (&claim.spec, &volume.spec) else { return Err("it has no spec") };
    if capacity(volume) < requested(claim) {
        return Err("requested PV is too small");
    }
    if volume_class(volume) != class_of(claim) {
        return Err("storageClassName does not match");
    }
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".to_owned());
    if mode(&wanted.volume_mode) != mode(&has.volume_mode) {
        return Err("incompatible volumeMode");
    }
    let offered = has.access_modes.as_deref().unwrap_or_default();
    match wanted.access_modes.iter().flatten().all(|mode| offered.contains(mode)) {
        true => Ok(()),
        false => Err("incompatible accessMode"),
    }
}

/// Of `volumes`, the one for a claim that names none: one that is kept for it, else the smallest that is free and
/// fits. `allowed` says of free ones whether they are where they are needed.
pub fn best<'a>(
    claim: &PersistentVolumeClaim,
    volumes: impl Iterator<Item = &'a PersistentVolume>,
    allowed: impl Fn(&PersistentVolume) -> bool,
) -> Option<&'a PersistentVolume> {
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let selector = selector.map_or(Ok(Selector::everything()), Selector::from_object).ok()?;
    let name = |volume: &PersistentVolume| volume.metadata.name.clone();
    let mut found: Option<&PersistentVolume> = None;
    for volume in volumes {
        match claim_ref(volume) {
            Some(reference) if is_for(reference, claim) => {
                if volume.metadata.deletion_timestamp.is_none() && check(claim, volume).is_ok() {
                    return Some(volume);
                }
                continue;
            }
            Some(_) => continue,
            None => {}
        }
        let free = volume.metadata.deletion_timestamp.is_none() && phase(volume) == "Available";
        let fits = free
            && check(claim, volume).is_ok()
            && selector.matches_optional(volume.metadata.labels.as_ref())
            && allowed(volume);
        let order = |volume: &PersistentVolume| (capacity(volume), name(volume));
        if fits && found.is_none_or(|other| order(volume) < order(other)) {
            found = Some(volume);
        }
    }
    found
}

/// Names of the claims a pod uses, with the names of their volumes in the pod.
pub fn claims_of(pod: &Pod) -> impl Iterator<Item = (&str, &str)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| {
        let claim = volume.persistent_volume_claim.as_ref()?;
        Some((volume.name.as_str(), claim.claim_name.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn claim(spec: Value) -> PersistentVolumeClaim {
        let mut whole = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "c",
            "resources": {"requests": {"storage": "2Gi"}}});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(
            json!({"metadata": {"namespace": "shop", "name": "data", "uid": "u1"}, "spec": whole}),
        )
        .unwrap()
    }

    fn volume(name: &str, size: &str, spec: Value) -> PersistentVolume {
        let mut whole = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "c",
            "capacity": {"storage": size}, "local": {"path": "/x"}});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({"metadata": {"name": name, "labels": {"disk": name}}, "spec": whole,
            "status": {"phase": "Available"}}))
        .unwrap()
    }

    fn chosen(claim: &PersistentVolumeClaim, volumes: &[PersistentVolume]) -> Option<String> {
        best(claim, volumes.iter(), |_| true)?.metadata.name.clone()
    }

    #[test]
    fn the_smallest_that_fits_is_chosen() {
        let all = [
            volume("small", "1Gi", json!({})),
            volume("large", "9Gi", json!({})),
            volume("right", "2Gi", json!({})),
            volume("other-class", "2Gi", json!({"storageClassName": "d"})),
            volume("block", "2Gi", json!({"volumeMode": "Block"})),
            volume("read-only", "2Gi", json!({"accessModes": ["ReadOnlyMany"]})),
            volume("taken", "2Gi", json!({"claimRef": {"namespace": "shop", "name": "else", "uid": "u2"}})),
        ];
        for (spec, expected) in [
            (json!({}), Some("right")),
            (json!({"resources": {"requests": {"storage": "3Gi"}}}), Some("large")),
            (json!({"resources": {"requests": {"storage": "10Gi"}}}), None),
            (json!({"selector": {"matchLabels": {"disk": "large"}}}), Some("large")),
            (json!({"storageClassName": "d"}), Some("other-class")),
            (json!({"volumeMode": "Block"}), Some("block")),
            (json!({"accessModes": ["ReadOnlyMany"]}), Some("read-only")),
            (json!({"accessModes": ["ReadWriteMany"]}), None),
            (json!({"storageClassName": ""}), None),
        ] {
            assert_eq!(chosen(&claim(spec.clone()), &all).as_deref(), expected, "{spec}");
        }
        assert_eq!(
            best(&claim(json!({})), all.iter(), |v| v.metadata.name.as_deref() == Some("large"))
                .and_then(|v| v.metadata.name.as_deref()),
            Some("large")
        );
    }

    #[test]
    fn a_volume_kept_for_the_claim_goes_first() {
        let kept = |uid: &str| {
            volume("kept", "9Gi", json!({"claimRef": {"namespace": "shop", "name": "data", "uid": uid}}))
        };
        let free = || volume("free", "2Gi", json!({}));
        assert_eq!(chosen(&claim(json!({})), &[free(), kept("")]).as_deref(), Some("kept"));
        assert_eq!(chosen(&claim(json!({})), &[free(), kept("u1")]).as_deref(), Some("kept"));
        assert_eq!(chosen(&claim(json!({})), &[free(), kept("earlier")]).as_deref(), Some("free"));
    }

    #[test]
    fn a_volume_is_on_the_node_its_affinity_names() {
        let on = |terms: Value| {
            let spec = json!({"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}});
            node_of(&volume("v", "1Gi", spec)).map(str::to_owned)
        };
        let host = |values: Value| json!({"matchExpressions": [{"key": HOSTNAME_LABEL, "operator": "In", "values": values}]});
        assert_eq!(on(json!([host(json!(["n1"]))])).as_deref(), Some("n1"));
        assert_eq!(on(json!([host(json!(["n1", "n2"]))])), None);
        assert_eq!(on(json!([host(json!(["n1"])), host(json!(["n2"]))])), None);
        assert_eq!(node_of(&volume("v", "1Gi", json!({}))), None);
    }
}
