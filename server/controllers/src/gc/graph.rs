//! Who owns whom, by uid. Pure; upstream's `garbagecollector/{graph,graph_builder}.go`.

use std::collections::{HashMap, HashSet};

use ketch_api::k8s::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use ketch_client::Key;

/// Held by an owner that goes only after its dependents.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// Held by an owner whose dependents are to be let go.
pub(super) const ORPHAN: &str = "orphan";

/// An object.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Item {
    /// Index of its kind in the collector's list.
    pub(super) kind: usize,
    pub(super) key: Key,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) deleting: bool,
    pub(super) foreground: bool,
    pub(super) orphan: bool,
}

/// All objects of all kinds.
#[derive(Debug, Default)]
pub(super) struct Graph {
    items: HashMap<String, Item>,
    dependents: HashMap<String, HashSet<String>>,
}

/// What a reference's owner is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// It lives.
    Solid,
    /// It does not exist.
    Gone,
    /// It waits for its dependents to go.
    Waiting,
}

/// What to do with an object.
#[derive(Debug, PartialEq)]
pub(super) enum Action {
    Nothing,
    /// Take these owners (uids) off.
    Disown(Vec<String>),
    /// Delete it; its own finalizers decide what becomes of its dependents.
    Delete(Propagation),
    /// Take the finalizer off: nobody blocks it any more.
    Unblock,
    /// Look at these dependents: they hold their owner up.
    Visit(Vec<String>),
    /// Let these dependents go, then take the finalizer off.
    Orphan(Vec<String>),
}

/// What a deletion does to dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Propagation {
    Background,
    Foreground,
    Orphan,
}

// === impl Item ===

impl Item {
    pub(super) fn new(kind: usize, meta: &ObjectMeta) -> Self {
        let has = |wanted: &str| meta.finalizers.iter().flatten().any(|finalizer| finalizer == wanted);
        Self {
            kind,
            key: Key::of(meta),
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            foreground: has(FOREGROUND),
            orphan: has(ORPHAN),
        }
    }

    fn waits_for_dependents(&self) -> bool {
        self.deleting && self.foreground
    }

    fn is_blocking(&self, owner: &str) -> bool {
        self.owners
            .iter()
            .any(|reference| reference.uid == owner && reference.block_owner_deletion == Some(true))
    }
}

// === impl Graph ===

impl Graph {
    pub(super) fn get(&self, uid: &str) -> Option<&Item> {
        self.items.get(uid)
    }

    /// Takes an object in; returns the uids to look at because of it.
    pub(super) fn set(&mut self, uid: &str, item: Item) -> Vec<String> {
        let mut visit = Vec::new();
        let old = self.items.insert(uid.to_owned(), item.clone());
        let old_owners = old.as_ref().map(|old| old.owners.clone()).unwrap_or_default();
        if old_owners != item.owners {
            self.unlink(uid, &old_owners);
            for owner in &item.owners {
                self.dependents.entry(owner.uid.clone()).or_default().insert(uid.to_owned());
            }
            // An owner that waits for us may wait no more.
            visit.extend(self.waiting_owners(&old_owners));
            if !item.owners.is_empty() {
                visit.push(uid.to_owned());
            }
        }
        let began = |flag: fn(&Item) -> bool| flag(&item) && !old.as_ref().is_some_and(flag);
        if began(|item| item.deleting && item.foreground) || began(|item| item.deleting && item.orphan) {
            visit.push(uid.to_owned());
        }
        visit
    }

    /// Takes an object out; returns the uids to look at because of it.
    pub(super) fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(item) = self.items.remove(uid) else { return Vec::new() };
        self.unlink(uid, &item.owners);
        let mut visit: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        visit.extend(self.waiting_owners(&item.owners));
        visit
    }

    fn unlink(&mut self, uid: &str, owners: &[OwnerReference]) {
        for owner in owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }

    fn waiting_owners(&self, owners: &[OwnerReference]) -> Vec<String> {
        let waiting = |uid: &&String| self.items.get(*uid).is_some_and(Item::waits_for_dependents);
        owners.iter().map(|owner| &owner.uid).filter(waiting).cloned().collect()
    }

    fn dependents_of(&self, uid: &str) -> impl Iterator<Item = (&String, &Item)> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| Some((uid, self.items.get(uid)?)))
    }

    /// What is known about the owner a reference of `item` names; `None` when the server has to be asked.
    pub(super) fn owner(&self, item: &Item, reference: &OwnerReference) -> Option<Owner> {
        let owner = self.items.get(&reference.uid)?;
        // A namespaced owner must be in the same namespace, and a reference must call it by its name.
        let reachable = owner.key.namespace.is_empty() || owner.key.namespace == item.key.namespace;
        if !reachable || owner.key.name != reference.name {
            return None;
        }
        Some(if owner.waits_for_dependents() { Owner::Waiting } else { Owner::Solid })
    }

    /// Whether `uid` waits for dependents that, directly or further down, wait for it.
    pub(super) fn is_knotted(&self, uid: &str) -> bool {
        let mut seen = HashSet::new();
        let mut next = vec![uid.to_owned()];
        while let Some(current) = next.pop() {
            for (dependent, item) in self.dependents_of(&current) {
                if !item.waits_for_dependents() || !item.is_blocking(&current) {
                    continue;
                }
                if dependent == uid {
                    return true;
                }
                if seen.insert(dependent.clone()) {
                    next.push(dependent.clone());
                }
            }
        }
        false
    }

    /// What to do with `uid`, whose owners are `owners` (in the order of its references).
    pub(super) fn decide(&self, uid: &str, owners: &[Owner]) -> Action {
        let Some(item) = self.items.get(uid) else { return Action::Nothing };
        if item.deleting && item.orphan {
            return Action::Orphan(self.dependents_of(uid).map(|(uid, _)| uid.clone()).collect());
        }
        if item.waits_for_dependents() {
            let blocking: Vec<_> =
                self.dependents_of(uid).filter(|(_, dependent)| dependent.is_blocking(uid)).collect();
            return match blocking.is_empty() || self.is_knotted(uid) {
                true => Action::Unblock,
                false => Action::Visit(
                    blocking.into_iter().filter(|(_, d)| !d.deleting).map(|(uid, _)| uid.clone()).collect(),
                ),
            };
        }
        if item.deleting || item.owners.is_empty() || owners.len() != item.owners.len() {
            return Action::Nothing;
        }
        self.judge(uid, item, owners)
    }

    fn judge(&self, uid: &str, item: &Item, owners: &[Owner]) -> Action {
        if owners.contains(&Owner::Solid) {
            let lost = item.owners.iter().zip(owners).filter(|(_, owner)| **owner != Owner::Solid);
            let lost: Vec<String> = lost.map(|(reference, _)| reference.uid.clone()).collect();
            return if lost.is_empty() { Action::Nothing } else { Action::Disown(lost) };
        }
        let has_dependents = self.dependents_of(uid).next().is_some();
        Action::Delete(match () {
            // The owner is gone only when all below it are.
            () if owners.contains(&Owner::Waiting) && has_dependents => Propagation::Foreground,
            () if item.orphan => Propagation::Orphan,
            () if item.foreground => Propagation::Foreground,
            () => Propagation::Background,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(uid: &str, blocking: bool) -> OwnerReference {
        OwnerReference {
            uid: uid.into(),
            name: uid.into(),
            block_owner_deletion: Some(blocking),
            ..OwnerReference::default()
        }
    }

    fn item(name: &str, owners: &[(&str, bool)]) -> Item {
        Item {
            kind: 0,
            key: Key::new("a", name),
            owners: owners.iter().map(|(uid, blocking)| reference(uid, *blocking)).collect(),
            deleting: false,
            foreground: false,
            orphan: false,
        }
    }

    fn graph(items: Vec<Item>) -> Graph {
        let mut graph = Graph::default();
        for item in items {
            graph.set(&item.key.name.clone(), item);
        }
        graph
    }

    fn foreground(item: Item) -> Item {
        Item { deleting: true, foreground: true, ..item }
    }

    #[test]
    fn dependents_of_a_removed_owner_are_looked_at_and_deleted() {
        let mut graph = graph(vec![item("owner", &[]), item("child", &[("owner", true)])]);
        let child = graph.get("child").unwrap().clone();
        assert_eq!(graph.owner(&child, &child.owners[0]), Some(Owner::Solid));
        assert_eq!(graph.decide("child", &[Owner::Solid]), Action::Nothing);
        assert_eq!(graph.remove("owner"), ["child"]);
        assert_eq!(graph.owner(&child, &child.owners[0]), None, "the server is asked");
        assert_eq!(graph.decide("child", &[Owner::Gone]), Action::Delete(Propagation::Background));
        assert!(graph.remove("child").is_empty() && graph.dependents.is_empty());
    }

    #[test]
    fn one_living_owner_is_enough() {
        let graph = graph(vec![item("a", &[]), item("child", &[("a", false), ("b", false)])]);
        assert_eq!(graph.decide("child", &[Owner::Solid, Owner::Gone]), Action::Disown(vec!["b".into()]));
        assert_eq!(graph.decide("child", &[Owner::Solid, Owner::Waiting]), Action::Disown(vec!["b".into()]));
        assert_eq!(
            graph.decide("child", &[Owner::Gone, Owner::Gone]),
            Action::Delete(Propagation::Background)
        );
    }

    #[test]
    fn foreground_deletion_goes_bottom_up() {
        let mut graph =
            graph(vec![item("top", &[]), item("mid", &[("top", true)]), item("leaf", &[("mid", true)])]);
        assert_eq!(graph.set("top", foreground(item("top", &[]))), ["top"]);
        assert_eq!(graph.decide("top", &[]), Action::Visit(vec!["mid".into()]));
        let mid = graph.get("mid").unwrap().clone();
        assert_eq!(graph.owner(&mid, &mid.owners[0]), Some(Owner::Waiting));
        assert_eq!(graph.decide("mid", &[Owner::Waiting]), Action::Delete(Propagation::Foreground));
        assert_eq!(graph.set("mid", foreground(mid)), ["mid"]);
        assert_eq!(graph.decide("leaf", &[Owner::Waiting]), Action::Delete(Propagation::Background));
        assert_eq!(graph.remove("leaf"), ["mid"], "its waiting owner is looked at");
        assert_eq!(graph.decide("mid", &[]), Action::Unblock);
        assert_eq!(graph.remove("mid"), ["top"]);
        assert_eq!(graph.decide("top", &[]), Action::Unblock);
    }

    #[test]
    fn a_dependent_that_does_not_block_is_not_waited_for() {
        let graph = graph(vec![foreground(item("top", &[])), item("child", &[("top", false)])]);
        assert_eq!(graph.decide("top", &[]), Action::Unblock);
    }

    #[test]
    fn orphaning_lets_dependents_go() {
        let mut graph = graph(vec![item("top", &[]), item("child", &[("top", true)])]);
        let top = Item { deleting: true, orphan: true, ..item("top", &[]) };
        assert_eq!(graph.set("top", top), ["top"]);
        assert_eq!(graph.decide("top", &[]), Action::Orphan(vec!["child".into()]));
        assert!(graph.set("child", item("child", &[])).is_empty(), "nobody waits: the owner orphans");
        assert_eq!(graph.decide("top", &[]), Action::Orphan(Vec::new()));
    }

    #[test]
    fn cycles_are_deleted() {
        let mut graph = graph(vec![item("a", &[("b", true)]), item("b", &[("a", true)])]);
        graph.set("a", foreground(item("a", &[("b", true)])));
        assert_eq!(graph.decide("a", &[]), Action::Visit(vec!["b".into()]));
        assert_eq!(graph.decide("b", &[Owner::Waiting]), Action::Delete(Propagation::Foreground));
        graph.set("b", foreground(item("b", &[("a", true)])));
        assert!(graph.is_knotted("a") && graph.is_knotted("b"));
        assert_eq!(graph.decide("a", &[]), Action::Unblock, "somebody has to go first");
    }

    #[test]
    fn owners_in_another_namespace_do_not_count() {
        let mut foreign = item("owner", &[]);
        foreign.key.namespace = "b".into();
        let graph = graph(vec![foreign, item("child", &[("owner", true)])]);
        let child = graph.get("child").unwrap();
        assert_eq!(graph.owner(child, &child.owners[0]), None);
    }
}
