//! One strategy per kind, and the list of all of them.
//!
//! Defaults, rules and columns are upstream's (`pkg/apis/*/v1/defaults.go`, `pkg/apis/*/validation`,
//! `pkg/printers/internalversion`); a file here tells which where it is not obvious.

mod config_map;
mod deployment;
mod endpoints;
mod event;
mod function;
mod ingress;
mod namespace;
mod network_policy;
mod node;
mod pod;
mod pod_spec;
mod rbac;
mod replica_set;
mod service;
mod small;
mod storage;
mod workload;

use crate::strategy::{DynStrategy, Strategy, Typed};

/// Every kind the server serves.
pub fn all() -> Vec<Box<dyn DynStrategy>> {
    vec![
        erased(config_map::ConfigMaps),
        erased(config_map::Secrets),
        erased(endpoints::EndpointsObjects),
        erased(event::CoreEvents),
        erased(namespace::Namespaces),
        erased(node::Nodes),
        erased(storage::Claims),
        erased(storage::Volumes),
        erased(pod::Pods),
        erased(service::Services),
        erased(small::ServiceAccounts),
        erased(deployment::Deployments),
        erased(replica_set::ReplicaSets),
        erased(small::Leases),
        erased(endpoints::EndpointSlices),
        erased(event::Events),
        erased(ingress::Ingresses),
        erased(ingress::IngressClasses),
        erased(network_policy::NetworkPolicies),
        erased(small::RuntimeClasses),
        erased(storage::Classes),
        erased(rbac::ClusterRoleBindings),
        erased(rbac::ClusterRoles),
        erased(rbac::RoleBindings),
        erased(rbac::Roles),
        erased(function::Functions),
        erased(function::FunctionRevisions),
    ]
}

fn erased(strategy: impl Strategy) -> Box<dyn DynStrategy> {
    Box::new(Typed::new(strategy))
}

/// `<none>` for what is missing or empty.
fn or_none(text: Option<&str>) -> String {
    text.filter(|t| !t.is_empty()).unwrap_or("<none>").to_owned()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;
    use crate::{status::Status, strategy::Context};

    /// The strategy of a kind; a kind in two groups is named `group/Kind`.
    pub(super) fn strategy(kind: &str) -> Box<dyn DynStrategy> {
        let matches = |s: &&mut Box<dyn DynStrategy>| {
            let d = s.descriptor();
            d.kind == kind || format!("{}/{}", d.group, d.kind) == kind
        };
        let mut all = all();
        let found = all.iter_mut().find(matches).unwrap_or_else(|| panic!("no kind {kind}"));
        std::mem::replace(found, erased(config_map::ConfigMaps))
    }

    fn cx() -> Context {
        Context { now: now(), user: "tester".into() }
    }

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().unwrap()
    }

    /// The object with its defaults.
    pub(super) fn decoded(kind: &str, mut object: Value) -> Value {
        let strategy = strategy(kind);
        object["apiVersion"] = strategy.descriptor().api_version().into();
        object["kind"] = strategy.descriptor().kind.into();
        let decoded = strategy.decode(object).unwrap();
        assert_eq!(decoded.unknown, [""; 0]);
        decoded.object
    }

    pub(super) fn create(kind: &str, object: Value) -> Result<Value, Status> {
        let object = decoded(kind, object);
        strategy(kind).create(&cx(), object).map(|p| p.object)
    }

    pub(super) fn update(kind: &str, new: Value, old: &Value) -> Result<Value, Status> {
        let (new, old) = (decoded(kind, new), decoded(kind, old.clone()));
        strategy(kind).update(&cx(), new, &old).map(|p| p.object)
    }

    /// The cells, printed at 2026-01-01T01:00:00Z, joined by bars.
    pub(super) fn row(kind: &str, object: &Value) -> String {
        let strategy = strategy(kind);
        let cells = strategy.row(object, now());
        assert_eq!(cells.len(), strategy.columns().len(), "{kind}: one cell per column");
        let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        cells.iter().map(text).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn every_kind_keeps_the_contract() {
        let mut seen = std::collections::BTreeSet::new();
        for strategy in all() {
            let d = strategy.descriptor().clone();
            let kind = format!("{}/{}", d.group, d.kind);
            assert!(seen.insert((d.group, d.plural)), "{kind} is listed twice");
            assert_eq!(d.plural, d.plural.to_ascii_lowercase());
            assert_eq!(d.singular, d.kind.to_ascii_lowercase());
            let minimal = match d.kind {
                "Function" => json!({"metadata": {"name": "a"}, "spec": {"image": "i"}}),
                "FunctionRevision" => {
                    json!({"metadata": {"name": "a"}, "spec": {"function": "f", "revision": 1, "template": {"image": "i"}}})
                }
                _ => json!({"metadata": {"name": "a"}}),
            };
            let once = decoded(&kind, minimal);
            assert_eq!(decoded(&kind, once.clone()), once, "{kind}: defaulting is idempotent");
            row(&kind, &once);
            let fields: Vec<_> = strategy.fields(&once).into_iter().map(|(name, _)| name).collect();
            assert_eq!(fields, strategy.field_names(), "{kind}");
            if let Some(scale) = d.scale {
                assert!(
                    once.pointer(scale.spec).is_some() && once.pointer(scale.selector).is_some(),
                    "{kind}"
                );
            }
        }
    }
}
