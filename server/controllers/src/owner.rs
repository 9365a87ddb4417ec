//! Which objects belong to a controller: pure rules, shared by all of them.

use std::{collections::BTreeMap, sync::Arc};

use ketch_api::k8s::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::{
    Resource,
    core::{Selector, SelectorExt},
};
use serde_json::{Value, json};

/// A controller reference to `owner`.
pub(crate) fn reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    let meta = owner.meta();
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The reference to the object's controller.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// The uid, empty when missing.
pub(crate) fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

/// The name, empty when missing.
pub(crate) fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

/// A selector that can be matched; `None` when it selects nothing (empty, as workloads may not select
/// everything) or is malformed.
pub(crate) fn selector(selector: &LabelSelector) -> Option<Selector> {
    let selector = Selector::try_from(selector.clone()).ok()?;
    (!selector.selects_all()).then_some(selector)
}

pub(crate) fn matches(selector: &Selector, meta: &ObjectMeta) -> bool {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    selector.matches(meta.labels.as_ref().unwrap_or(&NONE))
}

/// What a controller does about who owns what.
#[derive(Debug)]
pub(crate) struct Claim<K> {
    /// Its objects, adopted ones not yet among them.
    pub(crate) owned: Vec<Arc<K>>,
    /// Matching objects without a controller, to be adopted.
    pub(crate) adopt: Vec<Arc<K>>,
    /// Its objects that no longer match, to be let go.
    pub(crate) release: Vec<Arc<K>>,
}

/// Sorts what an owner has (`owned`) and could have (`free`: without a controller, same namespace).
///
/// An owner that is being deleted takes and gives nothing. The rules of upstream's
/// `PodControllerRefManager`.
pub(crate) fn claim<K: Resource>(
    deleting: bool,
    selector: Option<&Selector>,
    owned: Vec<Arc<K>>,
    free: Vec<Arc<K>>,
) -> Claim<K> {
    let is_match = |object: &Arc<K>| selector.is_some_and(|selector| matches(selector, object.meta()));
    let (mine, lost): (Vec<_>, Vec<_>) = owned.into_iter().partition(is_match);
    if deleting {
        return Claim { owned: mine, adopt: Vec::new(), release: Vec::new() };
    }
    let alive = |object: &Arc<K>| object.meta().deletion_timestamp.is_none();
    let adopt = free.into_iter().filter(|object| alive(object) && is_match(object)).collect();
    Claim { owned: mine, adopt, release: lost.into_iter().filter(alive).collect() }
}

/// A merge patch that makes `owner` the controller of `object`, if it has not changed meanwhile.
pub(crate) fn adoption(object: &ObjectMeta, owner: OwnerReference) -> Value {
    let mut owners = object.owner_references.clone().unwrap_or_default();
    owners.push(owner);
    owners_patch(object, &owners)
}

/// A merge patch that takes the owners with these uids off `object`, if it has not changed meanwhile.
pub(crate) fn disowning(object: &ObjectMeta, uids: &[&str]) -> Value {
    let mut owners = object.owner_references.clone().unwrap_or_default();
    owners.retain(|owner| !uids.contains(&owner.uid.as_str()));
    owners_patch(object, &owners)
}

fn owners_patch(object: &ObjectMeta, owners: &[OwnerReference]) -> Value {
    let owners = if owners.is_empty() { Value::Null } else { json!(owners) };
    json!({"metadata": {
        "uid": object.uid,
        "resourceVersion": object.resource_version,
        "ownerReferences": owners,
    }})
}

#[cfg(test)]
mod tests {
    use ketch_api::k8s::api::core::v1::Pod;

    use super::*;

    fn pod(name: &str, labels: &[(&str, &str)]) -> Arc<Pod> {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Arc::new(Pod {
            metadata: ObjectMeta { name: Some(name.into()), labels: Some(labels), ..ObjectMeta::default() },
            ..Pod::default()
        })
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|pod| name(&pod.metadata)).collect()
    }

    #[test]
    fn labels_decide_what_is_taken_and_let_go() {
        let app = selector(&LabelSelector {
            match_labels: Some(BTreeMap::from([("app".into(), "web".into())])),
            ..LabelSelector::default()
        });
        let owned = vec![pod("mine", &[("app", "web")]), pod("relabelled", &[("app", "db")])];
        let free = vec![pod("stray", &[("app", "web")]), pod("other", &[])];
        let claimed = claim(false, app.as_ref(), owned.clone(), free.clone());
        assert_eq!(names(&claimed.owned), ["mine"]);
        assert_eq!(names(&claimed.adopt), ["stray"]);
        assert_eq!(names(&claimed.release), ["relabelled"]);
        let dying = claim(true, app.as_ref(), owned, free);
        assert!(dying.adopt.is_empty() && dying.release.is_empty());
    }

    #[test]
    fn an_empty_selector_selects_nothing() {
        assert!(selector(&LabelSelector::default()).is_none());
    }
}
