//! Roles and bindings of one moment, arranged for questions. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use ketch_api::{
    k8s::apimachinery::pkg::apis::meta::v1::LabelSelector, names::SERVICE_ACCOUNT_USER_PREFIX,
    selector::Selector,
};
use serde::Deserialize;

use super::rule::Rule;
use crate::auth::{Attributes, User};

/// Store prefix of the four kinds.
pub(crate) const PREFIX: &str = "/rbac.authorization.k8s.io/";

/// A Role or ClusterRole, as far as it matters here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Role {
    metadata: Metadata,
    rules: Option<Vec<Rule>>,
    aggregation_rule: Option<Aggregation>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Aggregation {
    cluster_role_selectors: Vec<LabelSelector>,
}

/// A RoleBinding or ClusterRoleBinding.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Binding {
    subjects: Option<Vec<Subject>>,
    pub(crate) role_ref: RoleRef,
}

/// Which role a binding grants.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RoleRef {
    pub(crate) kind: String,
    pub(crate) name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

/// The objects by store key.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    cluster_roles: HashMap<String, Role>,
    /// By namespace and name.
    roles: HashMap<(String, String), Role>,
    cluster_bindings: HashMap<String, Binding>,
    bindings: HashMap<(String, String), Binding>,
}

/// Who a binding is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Whom {
    User(String),
    Group(String),
}

/// Rules that hold in a namespace, or everywhere.
#[derive(Clone, Debug)]
struct Grant {
    /// `None`: everywhere, paths included.
    namespace: Option<Arc<str>>,
    rules: Arc<[Rule]>,
}

/// What is granted to whom.
#[derive(Debug, Default)]
pub struct Snapshot {
    grants: HashMap<Whom, Vec<Grant>>,
    cluster_roles: HashMap<String, Arc<[Rule]>>,
    roles: HashMap<(String, String), Arc<[Rule]>>,
}

// === impl Objects ===

impl Objects {
    /// Takes in the object at `key`; `None`: it is gone. Objects of other kinds are none of its business.
    pub(crate) fn set(&mut self, key: &str, value: Option<&[u8]>) {
        let mut parts = key.strip_prefix(PREFIX).unwrap_or_default().split('/').map(str::to_owned);
        let (Some(plural), Some(first), second) = (parts.next(), parts.next(), parts.next()) else { return };
        match (plural.as_str(), second) {
            ("clusterroles", None) => put(&mut self.cluster_roles, first, key, value),
            ("clusterrolebindings", None) => put(&mut self.cluster_bindings, first, key, value),
            ("roles", Some(name)) => put(&mut self.roles, (first, name), key, value),
            ("rolebindings", Some(name)) => put(&mut self.bindings, (first, name), key, value),
            _ => {}
        }
    }

    /// Resolves aggregations and references.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let cluster_roles: HashMap<String, Arc<[Rule]>> =
            self.cluster_roles.keys().map(|name| (name.clone(), self.rules_of(name).into())).collect();
        let roles: HashMap<(String, String), Arc<[Rule]>> = self
            .roles
            .iter()
            .map(|(key, role)| (key.clone(), role.rules.clone().unwrap_or_default().into()))
            .collect();
        let mut snapshot = Snapshot { grants: HashMap::new(), cluster_roles, roles };
        for binding in self.cluster_bindings.values() {
            snapshot.bind(binding, None);
        }
        for ((namespace, _), binding) in &self.bindings {
            snapshot.bind(binding, Some(namespace.as_str().into()));
        }
        snapshot
    }

    /// Rules of a ClusterRole. Those of an aggregating role are the union of what it selects; selected
    /// roles may aggregate in turn, in circles too.
    fn rules_of(&self, name: &str) -> Vec<Rule> {
        let mut rules = Vec::new();
        let mut seen = HashSet::from([name.to_owned()]);
        let mut open = vec![name.to_owned()];
        while let Some(role) = open.pop().and_then(|name| self.cluster_roles.get(&name)) {
            let Some(aggregation) = &role.aggregation_rule else {
                rules.extend(role.rules.iter().flatten().cloned());
                continue;
            };
            let selectors: Vec<Selector> = aggregation
                .cluster_role_selectors
                .iter()
                .filter_map(|selector| Selector::from_object(selector).ok())
                .collect();
            for (name, candidate) in &self.cluster_roles {
                let labels = candidate.metadata.labels.as_ref();
                if selectors.iter().any(|selector| selector.matches_optional(labels))
                    && seen.insert(name.clone())
                {
                    open.push(name.clone());
                }
            }
        }
        rules
    }
}

fn put<K: std::hash::Hash + Eq, V: for<'a> Deserialize<'a>>(
    map: &mut HashMap<K, V>,
    name: K,
    key: &str,
    value: Option<&[u8]>,
) {
    let parsed = value.and_then(|value| match serde_json::from_slice(value) {
        Ok(object) => Some(object),
        Err(error) => {
            // Granting nothing is the safe reading of an object that cannot be read.
            tracing::error!(key, %error, "ignoring a stored role or binding that cannot be read");
            None
        }
    });
    match parsed {
        Some(object) => map.insert(name, object),
        None => map.remove(&name),
    };
}

// === impl Snapshot ===

impl Snapshot {
    fn bind(&mut self, binding: &Binding, namespace: Option<Arc<str>>) {
        let role = RoleRef { kind: binding.role_ref.kind.clone(), name: binding.role_ref.name.clone() };
        let Some(rules) = self.role(&role, namespace.as_deref().unwrap_or_default()) else { return };
        for subject in binding.subjects.iter().flatten() {
            let whom = match subject.kind.as_str() {
                "User" => Whom::User(subject.name.clone()),
                "Group" => Whom::Group(subject.name.clone()),
                "ServiceAccount" => {
                    let own = namespace.as_deref().unwrap_or_default();
                    let of = if subject.namespace.is_empty() { own } else { &subject.namespace };
                    if of.is_empty() {
                        continue;
                    }
                    Whom::User(format!("{SERVICE_ACCOUNT_USER_PREFIX}{of}:{}", subject.name))
                }
                _ => continue,
            };
            let grant = Grant { namespace: namespace.clone(), rules: Arc::clone(&rules) };
            self.grants.entry(whom).or_default().push(grant);
        }
    }

    /// Rules of the role a binding in `namespace` (empty: a ClusterRoleBinding) refers to.
    pub(crate) fn role(&self, role: &RoleRef, namespace: &str) -> Option<Arc<[Rule]>> {
        match role.kind.as_str() {
            "ClusterRole" => self.cluster_roles.get(&role.name).cloned(),
            "Role" => self.roles.get(&(namespace.to_owned(), role.name.clone())).cloned(),
            _ => None,
        }
    }

    /// Whether a rule allows it.
    pub fn allows(&self, user: &User, attributes: &Attributes) -> bool {
        self.rules(user, &attributes.namespace).any(|rule| rule.allows(attributes))
    }

    /// The rules that hold for `user` in `namespace`; for an empty one those that hold everywhere.
    pub fn rules<'s>(&'s self, user: &'s User, namespace: &'s str) -> impl Iterator<Item = &'s Rule> {
        let groups = user.groups.iter().map(|group| Whom::Group(group.clone()));
        std::iter::once(Whom::User(user.name.clone()))
            .chain(groups)
            .filter_map(|whom| self.grants.get(&whom))
            .flatten()
            .filter(move |grant| {
                grant.namespace.as_deref().is_none_or(|own| !namespace.is_empty() && own == namespace)
            })
            .flat_map(|grant| grant.rules.iter())
    }
}
