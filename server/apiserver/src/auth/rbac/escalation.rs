//! Nobody grants what they do not have.

use std::sync::Arc;

use ketch_api::{Status, status::GroupResource};
use serde_json::Value;

use super::{Rbac, RoleRef, Rule, uncovered};
use crate::{
    admission::{Admission, Operation, Request},
    auth::{Attributes, User},
};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Refuses roles with rules, and bindings to roles, beyond the rights of who writes them, unless they may
/// `escalate` or `bind` that role. Upstream does this in the registry (`policybased/storage.go`); as an
/// admission hook it sees the same objects.
pub struct EscalationCheck {
    rbac: Arc<Rbac>,
}

impl EscalationCheck {
    /// A check against the current rules.
    pub fn new(rbac: Arc<Rbac>) -> Self {
        Self { rbac }
    }

    fn may(&self, request: &Request, verb: &str, resource: &str, name: &str) -> bool {
        let attributes = Attributes {
            verb: verb.to_owned(),
            group: GROUP.to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            namespace: request.namespace.clone(),
            name: name.to_owned(),
            is_resource: true,
            ..Attributes::default()
        };
        self.rbac.snapshot().allows(&request.user, &attributes)
    }

    /// What of `wanted` the user does not have where the object is.
    fn check(&self, request: &Request, wanted: &[Rule]) -> Result<(), Status> {
        let snapshot = self.rbac.snapshot();
        let own: Vec<Rule> = snapshot.rules(&request.user, &request.namespace).cloned().collect();
        let missing = uncovered(&own, wanted);
        if missing.is_empty() {
            return Ok(());
        }
        let User { name, groups, .. } = &request.user;
        let list: Vec<String> = missing.iter().map(ToString::to_string).collect();
        Err(self.refuse(
            request,
            format!(
                "user {name:?} (groups={groups:?}) is attempting to grant RBAC permissions not currently held:\n{}",
                list.join("\n")
            ),
        ))
    }

    fn refuse(&self, request: &Request, why: impl std::fmt::Display) -> Status {
        let resource = GroupResource { group: GROUP, resource: request.descriptor.plural };
        Status::forbidden(resource, &request.name, why)
    }

    fn check_role(&self, request: &Request, object: &Value, old: Option<&Value>) -> Result<(), Status> {
        let same = |field: &str| old.is_some_and(|old| old.get(field) == object.get(field));
        if (same("rules") && same("aggregationRule"))
            || self.may(request, "escalate", request.descriptor.plural, &request.name)
        {
            return Ok(());
        }
        let rules: Vec<Rule> = parse(object.get("rules"));
        self.check(request, &rules)?;
        let aggregates = object.get("aggregationRule").is_some_and(|rule| !rule.is_null());
        if aggregates && self.check(request, &Rule::all()).is_err() {
            let why = "must have cluster-admin privileges to use the aggregationRule";
            return Err(self.refuse(request, why));
        }
        Ok(())
    }

    fn check_binding(&self, request: &Request, object: &Value, old: Option<&Value>) -> Result<(), Status> {
        let same = |field: &str| old.is_some_and(|old| old.get(field) == object.get(field));
        let role: RoleRef = object
            .get("roleRef")
            .and_then(|role| serde::Deserialize::deserialize(role).ok())
            .unwrap_or_default();
        let plural = if role.kind == "ClusterRole" { "clusterroles" } else { "roles" };
        if (same("subjects") && same("roleRef")) || self.may(request, "bind", plural, &role.name) {
            return Ok(());
        }
        match self.rbac.snapshot().role(&role, &request.namespace) {
            Some(rules) => self.check(request, &rules),
            // The role could get any rules later.
            None => Err(Status::not_found(GroupResource { group: GROUP, resource: plural }, &role.name)),
        }
    }
}

fn parse<T: Default + for<'a> serde::Deserialize<'a>>(value: Option<&Value>) -> T {
    value.and_then(|value| T::deserialize(value).ok()).unwrap_or_default()
}

#[async_trait::async_trait]
impl Admission for EscalationCheck {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    fn validate(&self, request: &Request, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        let Some(object) = object.filter(|_| writes && request.descriptor.group == GROUP) else {
            return Ok(());
        };
        if request.user.in_group(ketch_api::names::ADMIN_GROUP) {
            return Ok(());
        }
        match request.descriptor.plural {
            "roles" | "clusterroles" => self.check_role(request, object, old),
            "rolebindings" | "clusterrolebindings" => self.check_binding(request, object, old),
            _ => Ok(()),
        }
    }
}
