//! Tables of what is done for claims and volumes.

use serde_json::{Value, json};

use ketch_api::{
    k8s::api::{
        core::v1::{PersistentVolume, PersistentVolumeClaim},
        storage::v1::StorageClass,
    },
    volume::DATA_FINALIZER,
};

use super::{
    claim_plan::{self, Place},
    volume_plan,
};

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn claim(more: Value) -> PersistentVolumeClaim {
    let mut claim = json!({"metadata": {"namespace": "shop", "name": "data", "uid": "u1",
        "finalizers": ["kubernetes.io/pvc-protection"]},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "local-path",
            "resources": {"requests": {"storage": "1Gi"}}}, "status": {"phase": "Pending"}});
    merge(&mut claim, more);
    serde_json::from_value(claim).unwrap()
}

fn bound() -> Value {
    json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "spec": {"volumeName": "pv"},
        "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}})
}

fn volume(more: Value) -> PersistentVolume {
    let mut volume = json!({"metadata": {"name": "pv"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "capacity": {"storage": "1Gi"}, "storageClassName": "local-path", "persistentVolumeReclaimPolicy": "Delete",
        "local": {"path": "/x"}}, "status": {"phase": "Available"}});
    merge(&mut volume, more);
    serde_json::from_value(volume).unwrap()
}

fn kept_for(uid: &str) -> Value {
    json!({"spec": {"claimRef": {"namespace": "shop", "name": "data", "uid": uid}}})
}

fn class(more: Value) -> StorageClass {
    let mut class = json!({"metadata": {"name": "local-path"}, "provisioner": "ketch.dev/local-path",
        "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete"});
    merge(&mut class, more);
    serde_json::from_value(class).unwrap()
}

/// The plan, each step in a few words.
fn steps(
    claim: &PersistentVolumeClaim,
    volumes: &[PersistentVolume],
    class: Option<&StorageClass>,
    place: Place<'_>,
    (in_use, waiting): (bool, Option<&str>),
) -> Vec<String> {
    let volumes: Vec<&PersistentVolume> = volumes.iter().collect();
    let observed = claim_plan::Observed { claim, volumes: &volumes, class, in_use, waiting, place };
    let text = |op: claim_plan::Op| match op {
        claim_plan::Op::Tell(note) => format!("{}: {}", note.reason, note.message),
        claim_plan::Op::Provision(volume) => {
            let path = volume.spec.as_ref().and_then(|spec| spec.local.as_ref()).unwrap().path.clone();
            format!("Provision {path} on {}", ketch_api::volume::node_of(&volume).unwrap())
        }
        other => format!("{other:?}"),
    };
    claim_plan::plan(&observed).into_iter().map(text).collect()
}

#[test]
fn a_claim_waits_for_its_pod_and_its_node() {
    let class = class(json!({}));
    let node = Place::Node("n1", "/data/volumes");
    for (place, waiting, expected) in [
        (Place::Open, None, "WaitForFirstConsumer: waiting for first consumer to be created before binding"),
        (Place::Open, Some("web"), "WaitForPodScheduled: waiting for pod web to be scheduled"),
        (node, Some("web"), "Provision /data/volumes/pvc-u1 on n1"),
        (Place::Gone, None, "Unselect"),
        (
            Place::Unfit("n1"),
            None,
            "ProvisioningFailed: failed to provision volume with StorageClass \"local-path\": node n1 has no \
             directory for volumes",
        ),
    ] {
        let got = steps(&claim(json!({})), &[], Some(&class), place, (false, waiting));
        assert_eq!(got, [expected], "{place:?}");
    }
    // A free volume of such a class is the scheduler's to choose; one that is kept for the claim is its own.
    let free = [volume(json!({}))];
    assert_eq!(steps(&claim(json!({})), &free, Some(&class), Place::Open, (false, None)).len(), 1);
    let kept = [volume(kept_for("u1"))];
    assert_eq!(steps(&claim(json!({})), &kept, Some(&class), node, (false, None)), ["Bind(\"pv\")"]);
}

#[test]
fn a_claim_without_waiting_takes_what_fits_or_says_what_is_missing() {
    let immediate = class(json!({"volumeBindingMode": "Immediate"}));
    let foreign = class(json!({"volumeBindingMode": "Immediate", "provisioner": "example.com/disk"}));
    let plain = || claim(json!({"spec": {"storageClassName": ""}}));
    let free = [volume(json!({"spec": {"storageClassName": ""}}))];
    let idle = (false, None);
    assert_eq!(steps(&plain(), &free, None, Place::Open, idle), ["Bind(\"pv\")"]);
    assert_eq!(
        steps(&plain(), &[], None, Place::Open, idle),
        ["FailedBinding: no persistent volumes available for this claim and no storage class is set"]
    );
    assert_eq!(
        steps(&claim(json!({})), &[], None, Place::Open, idle),
        ["ProvisioningFailed: storageclass.storage.k8s.io \"local-path\" not found"]
    );
    let told = steps(&claim(json!({})), &[], Some(&immediate), Place::Open, idle);
    assert!(told[0].contains("needs volumeBindingMode WaitForFirstConsumer"), "{told:?}");
    let told = steps(&claim(json!({})), &[], Some(&foreign), Place::Open, idle);
    assert_eq!(told[0], "Ask(\"example.com/disk\")");
    assert!(told[1].starts_with("ExternalProvisioning: Waiting for a volume"), "{told:?}");
    let shared = claim(json!({"spec": {"accessModes": ["ReadWriteMany"]}}));
    let told = steps(&shared, &[], Some(&class(json!({}))), Place::Node("n", "/d"), idle);
    assert!(told[0].contains("ReadWriteOnce and ReadWriteOncePod only"), "{told:?}");
}

#[test]
fn a_claim_that_names_a_volume_gets_that_or_nothing() {
    let class = class(json!({"allowVolumeExpansion": true}));
    let named = || json!({"spec": {"volumeName": "pv"}});
    let other = json!({"spec": {"claimRef": {"namespace": "shop", "name": "other", "uid": "u2"}}});
    let provisioned =
        json!({"metadata": {"annotations": {"pv.kubernetes.io/provisioned-by": "ketch.dev/local-path"}}});
    let mut own = kept_for("u1");
    merge(&mut own, provisioned);
    let mut large = bound();
    merge(&mut large, json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}));
    for (claim_is, volume_is, expected) in [
        (named(), Some(json!({})), vec!["Bind(\"pv\")"]),
        (
            named(),
            Some(json!({"spec": {"capacity": {"storage": "1Mi"}}})),
            vec!["VolumeMismatch: Cannot bind to requested volume \"pv\": requested PV is too small"],
        ),
        (named(), None, vec![]),
        (named(), Some(kept_for("u1")), vec!["Bind(\"pv\")"]),
        (
            named(),
            Some(other.clone()),
            vec!["FailedBinding: volume \"pv\" already bound to a different claim."],
        ),
        (bound(), Some(kept_for("u1")), vec![]),
        (large, Some(own), vec!["Grow(\"pv\", Quantity { nanos: 2147483648000000000, format: BinarySi })"]),
        (
            bound(),
            None,
            vec!["Lost", "ClaimLost: Bound claim has lost its PersistentVolume. Data on the volume is lost!"],
        ),
        (
            bound(),
            Some(other),
            vec![
                "Lost",
                "ClaimMisbound: Two claims are bound to the same volume, this one is bound incorrectly",
            ],
        ),
    ] {
        let volumes: Vec<PersistentVolume> = volume_is.clone().map(volume).into_iter().collect();
        let got = steps(&claim(claim_is.clone()), &volumes, Some(&class), Place::Open, (false, None));
        assert_eq!(got, expected, "{claim_is} {volume_is:?}");
    }
}

#[test]
fn a_claim_in_use_is_not_let_go() {
    let leaving = claim(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    assert_eq!(steps(&leaving, &[], None, Place::Open, (true, None)), [""; 0]);
    assert_eq!(steps(&leaving, &[], None, Place::Open, (false, Some("web"))), ["Release"]);
}

#[test]
fn a_volume_follows_its_claim() {
    let ours = || {
        json!({"metadata": {"finalizers": ["kubernetes.io/pv-protection", DATA_FINALIZER],
        "annotations": {"pv.kubernetes.io/provisioned-by": "ketch.dev/local-path"}}})
    };
    let with = |parts: &[Value]| {
        let mut whole = json!({});
        parts.iter().for_each(|part| merge(&mut whole, part.clone()));
        volume(whole)
    };
    let phase = |phase: &str| json!({"status": {"phase": phase}});
    let leaving = || json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let retain = || json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}});
    let mine = claim(bound());
    let other = claim(json!({"metadata": {"uid": "u2"}}));
    let both = format!("Release([\"kubernetes.io/pv-protection\", \"{DATA_FINALIZER}\"])");
    for (name, volume, claim, node_exists, expected) in [
        ("new", with(&[phase("Pending")]), None, true, "Phase(\"Available\", \"\")"),
        (
            "reserved by name",
            with(&[json!({"spec": {"claimRef": {"namespace": "shop", "name": "data"}}})]),
            None,
            true,
            "",
        ),
        ("bound", with(&[kept_for("u1"), phase("Pending")]), Some(&mine), true, "Phase(\"Bound\", \"\")"),
        ("settled", with(&[kept_for("u1"), phase("Bound")]), Some(&mine), true, ""),
        (
            "claim deleted",
            with(&[ours(), kept_for("u1"), phase("Bound")]),
            None,
            true,
            "Phase(\"Released\", \"\") Delete",
        ),
        (
            "claim made again",
            with(&[ours(), kept_for("u1"), phase("Bound")]),
            Some(&other),
            true,
            "Phase(\"Released\", \"\") Delete",
        ),
        ("retained", with(&[ours(), retain(), kept_for("u1"), phase("Released")]), None, true, ""),
        (
            "of no provisioner",
            with(&[kept_for("u1"), phase("Bound")]),
            None,
            true,
            "Phase(\"Failed\", \"error getting deleter volume plugin for volume \\\"pv\\\": no volume plugin matched\")",
        ),
        (
            "going",
            with(&[ours(), leaving(), kept_for("u1"), phase("Released")]),
            None,
            true,
            "Release([\"kubernetes.io/pv-protection\"])",
        ),
        (
            "going, node gone",
            with(&[ours(), leaving(), kept_for("u1"), phase("Released")]),
            None,
            false,
            &both,
        ),
        ("going, in use", with(&[ours(), leaving(), kept_for("u1"), phase("Bound")]), Some(&mine), true, ""),
    ] {
        let observed = volume_plan::Observed { volume: &volume, claim, node_exists };
        let got: Vec<String> = volume_plan::plan(&observed).iter().map(|op| format!("{op:?}")).collect();
        assert_eq!(got.join(" "), expected, "{name}");
    }
}
