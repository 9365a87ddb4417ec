//! What a node may do: its own objects, the pods bound to it, and what these refer to.
//!
//! Upstream's node authorizer (`plugin/pkg/auth/authorizer/node`) with its restriction to what selectors
//! name, and the NodeRestriction admission plugin. A node whose key is stolen must not be worth more than
//! the pods it runs.

mod graph;
mod restriction;

use std::sync::{Arc, PoisonError, RwLock};

use ketch_api::{
    join,
    names::{NODE_USER_PREFIX, NODES_GROUP},
    selector::FieldSelector,
    volume::NODE_FIELD,
};
use ketch_store::{Event, Versioned};

pub use restriction::NodeRestriction;

use super::{Attributes, User, follow::Reflect, rbac::Rule};
use graph::{Graph, Target};

/// Store prefix of what the graph is made from.
pub(crate) const PREFIX: &str = "/core/pods/";
/// Where nodes keep their heartbeats.
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// Which node refers to what, kept up to date from the pods in the store.
#[derive(Debug, Default)]
pub struct Nodes {
    graph: RwLock<Graph>,
}

/// The node's name when `user` is one: by name and by group, as upstream.
pub fn node_name(user: &User) -> Option<&str> {
    if !user.in_group(NODES_GROUP) {
        return None;
    }
    user.name.strip_prefix(NODE_USER_PREFIX)
}

/// What every node may do, whichever it is. Objects that belong to a node are decided by [`Nodes`].
pub fn rules() -> Vec<Rule> {
    const READ: &[&str] = &["get", "list", "watch"];
    vec![
        Rule::resources(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
        Rule::resources(
            &["authorization.k8s.io"],
            &["localsubjectaccessreviews", "subjectaccessreviews"],
            &["create"],
        ),
        Rule::resources(&[""], &["services", "namespaces", "nodes"], READ),
        Rule::resources(&["discovery.k8s.io"], &["endpointslices"], READ),
        Rule::resources(&["node.k8s.io"], &["runtimeclasses"], READ),
        Rule::resources(&["ketch.dev"], &["images"], &["get"]),
        Rule::resources(&[""], &["nodes"], &["create", "update", "patch"]),
        Rule::resources(&[""], &["nodes/status"], &["update", "patch"]),
        Rule::resources(&["", "events.k8s.io"], &["events"], &["create", "update", "patch"]),
        Rule::resources(&[""], &["pods"], &["get", "list", "watch", "create", "delete"]),
        Rule::resources(&[""], &["pods/status"], &["update", "patch"]),
        Rule::resources(&[""], &["pods/eviction"], &["create"]),
        // Which one it may change, and how, is for the admission hook.
        Rule::resources(&[""], &["persistentvolumes"], &["get", "list", "watch", "patch"]),
        Rule::paths(&[join::RENEW_PATH], &["post"]),
        Rule::paths(&[join::CLUSTER_PATH], &["get"]),
    ]
}

impl Nodes {
    /// Whether the node `node` may; `Err` says why not.
    ///
    /// # Errors
    /// The reason, for the refusal's text.
    pub fn authorize(&self, node: &str, a: &Attributes) -> Result<(), String> {
        let related = |target| self.related(node, target);
        let reads = matches!(a.verb.as_str(), "get" | "list" | "watch");
        match (a.group.as_str(), a.resource.as_str(), a.subresource.as_str()) {
            ("", "secrets", "") if reads => related(Target::secret(&a.namespace, &a.name)),
            ("", "configmaps", "") if reads => related(Target::config_map(&a.namespace, &a.name)),
            ("", "persistentvolumeclaims", "") if a.verb == "get" => {
                related(Target::claim(&a.namespace, &a.name))
            }
            ("", "serviceaccounts", "") if a.verb == "get" => {
                related(Target::service_account(&a.namespace, &a.name))
            }
            ("", "serviceaccounts", "token") if a.verb == "create" => {
                related(Target::service_account(&a.namespace, &a.name))
            }
            ("", "secrets" | "configmaps" | "persistentvolumeclaims" | "serviceaccounts", _) => {
                Err("a node can only read objects of these kinds that its pods refer to".to_owned())
            }
            ("coordination.k8s.io", "leases", "") => lease(node, a),
            ("", "persistentvolumes", "") if matches!(a.verb.as_str(), "list" | "watch") => {
                own_volumes(node, a)
            }
            ("", "pods", "") if a.verb == "get" => related(Target::pod(&a.namespace, &a.name)),
            ("", "pods", "") if reads => own_pods(node, a),
            ("", "nodes", _) if !reads && a.name != node && !a.name.is_empty() => {
                Err(format!("node \"{node}\" is not allowed to modify node \"{}\"", a.name))
            }
            _ if rules().iter().any(|rule| rule.allows(a)) => Ok(()),
            _ => Err(String::new()),
        }
    }

    /// Whether a pod on `node` refers to `target`.
    fn related(&self, node: &str, target: Target) -> Result<(), String> {
        let graph = self.graph.read().unwrap_or_else(PoisonError::into_inner);
        if graph.refers(node, &target) {
            return Ok(());
        }
        Err(format!("no relationship found between node '{node}' and this object"))
    }
}

/// Lists and watches of pods must select the node's own.
fn own_pods(node: &str, a: &Attributes) -> Result<(), String> {
    let selector = FieldSelector::parse(&a.field_selector).unwrap_or_default();
    match selector.exact("spec.nodeName") == Some(node) {
        true => Ok(()),
        false => Err("can only list/watch pods with spec.nodeName field selector".to_owned()),
    }
}

/// A node follows the volumes that are on it; of others it can know the name only from a claim of its pods.
fn own_volumes(node: &str, a: &Attributes) -> Result<(), String> {
    let selector = FieldSelector::parse(&a.field_selector).unwrap_or_default();
    match selector.exact(NODE_FIELD) == Some(node) {
        true => Ok(()),
        false => Err(format!("can only list/watch volumes with {NODE_FIELD} field selector")),
    }
}

fn lease(node: &str, a: &Attributes) -> Result<(), String> {
    let verb = matches!(a.verb.as_str(), "get" | "create" | "update" | "patch" | "delete");
    let watches = matches!(a.verb.as_str(), "list" | "watch") && a.name == node;
    if a.namespace != LEASE_NAMESPACE {
        return Err(format!("can only access leases in the \"{LEASE_NAMESPACE}\" system namespace"));
    }
    // The name of a create is in its body: the admission hook looks at it.
    let own = a.name == node || (a.verb == "create" && a.name.is_empty());
    match (verb || watches) && own {
        true => Ok(()),
        false => Err("can only access node lease with the same name as the requesting node".to_owned()),
    }
}

impl Reflect for Nodes {
    fn replace(&self, items: &[Versioned]) {
        let mut graph = self.graph.write().unwrap_or_else(PoisonError::into_inner);
        *graph = Graph::default();
        for item in items {
            graph.set(&item.key, Some(&item.value));
        }
    }

    fn apply(&self, events: &[Arc<Event>]) {
        let mut graph = self.graph.write().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            graph.set(&event.key, event.current.as_ref().map(|current| &current.value[..]));
        }
    }
}
