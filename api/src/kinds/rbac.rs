//! Roles and bindings.

use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
};
use serde_json::Value;

use super::pod_spec::invalid_all;
use crate::{
    strategy::{Column, Descriptor, FieldError, Meta, Strategy},
    validation,
};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Kinds without columns of their own show this one, as upstream's default table.
const ROLE_COLUMNS: &[Column] = &[Column::NAME, Column { r#type: "date", ..Column::text("Created At") }];
const BINDING_COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text("Role"),
    Column::AGE,
    Column::wide("Users"),
    Column::wide("Groups"),
    Column::wide("ServiceAccounts"),
];

fn role_row(metadata: &Meta<'_>) -> Vec<Value> {
    vec![metadata.name.into(), metadata.created.map_or(Value::Null, |at| at.to_string().into())]
}

pub(super) struct Roles;

impl Strategy for Roles {
    type Kind = Role;

    fn descriptor(&self) -> Descriptor {
        Descriptor::namespaced(GROUP, "v1", "Role", "roles", "role")
    }

    fn validate(&self, role: &Role) -> Vec<FieldError> {
        rules(role.rules.as_deref(), true)
    }

    fn columns(&self) -> &'static [Column] {
        ROLE_COLUMNS
    }

    fn row(&self, _: &Role, metadata: &Meta<'_>) -> Vec<Value> {
        role_row(metadata)
    }
}

pub(super) struct ClusterRoles;

impl Strategy for ClusterRoles {
    type Kind = ClusterRole;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            namespaced: false,
            ..Descriptor::namespaced(GROUP, "v1", "ClusterRole", "clusterroles", "clusterrole")
        }
    }

    fn validate(&self, role: &ClusterRole) -> Vec<FieldError> {
        let mut errors = rules(role.rules.as_deref(), false);
        let aggregation = role.aggregation_rule.as_ref();
        if aggregation.is_some_and(|a| a.cluster_role_selectors.as_ref().is_none_or(Vec::is_empty)) {
            let path = "aggregationRule.clusterRoleSelectors";
            errors.push(FieldError::required(
                path,
                "at least one clusterRoleSelector required if aggregationRule is non-nil",
            ));
        }
        errors
    }

    fn columns(&self) -> &'static [Column] {
        ROLE_COLUMNS
    }

    fn row(&self, _: &ClusterRole, metadata: &Meta<'_>) -> Vec<Value> {
        role_row(metadata)
    }
}

fn rules(rules: Option<&[PolicyRule]>, namespaced: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (n, rule) in rules.into_iter().flatten().enumerate() {
        let path = format!("rules[{n}]");
        let empty = |list: &Option<Vec<String>>| list.as_ref().is_none_or(Vec::is_empty);
        if rule.verbs.is_empty() {
            errors
                .push(FieldError::required(format!("{path}.verbs"), "verbs must contain at least one value"));
        }
        if !empty(&rule.non_resource_urls) {
            let path = format!("{path}.nonResourceURLs");
            if namespaced {
                let detail = "namespaced rules cannot apply to non-resource URLs";
                errors.push(FieldError::invalid(&path, &rule.non_resource_urls, detail));
            }
            if !empty(&rule.api_groups) || !empty(&rule.resources) || !empty(&rule.resource_names) {
                let detail = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(FieldError::invalid(&path, &rule.non_resource_urls, detail));
            }
            continue;
        }
        if empty(&rule.api_groups) {
            let detail = "resource rules must supply at least one api group";
            errors.push(FieldError::required(format!("{path}.apiGroups"), detail));
        }
        if empty(&rule.resources) {
            let detail = "resource rules must supply at least one resource";
            errors.push(FieldError::required(format!("{path}.resources"), detail));
        }
    }
    errors
}

pub(super) struct RoleBindings;

impl Strategy for RoleBindings {
    type Kind = RoleBinding;

    fn descriptor(&self) -> Descriptor {
        Descriptor::namespaced(GROUP, "v1", "RoleBinding", "rolebindings", "rolebinding")
    }

    fn default(&self, binding: &mut RoleBinding) {
        defaults(&mut binding.role_ref, binding.subjects.as_deref_mut());
    }

    fn validate(&self, binding: &RoleBinding) -> Vec<FieldError> {
        validate(&binding.role_ref, binding.subjects.as_deref(), &["ClusterRole", "Role"])
    }

    fn validate_update(&self, new: &RoleBinding, old: &RoleBinding) -> Vec<FieldError> {
        role_unchanged(&new.role_ref, &old.role_ref)
    }

    fn columns(&self) -> &'static [Column] {
        BINDING_COLUMNS
    }

    fn row(&self, binding: &RoleBinding, metadata: &Meta<'_>) -> Vec<Value> {
        binding_row(&binding.role_ref, binding.subjects.as_deref(), metadata)
    }
}

pub(super) struct ClusterRoleBindings;

impl Strategy for ClusterRoleBindings {
    type Kind = ClusterRoleBinding;

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            namespaced: false,
            ..Descriptor::namespaced(
                GROUP,
                "v1",
                "ClusterRoleBinding",
                "clusterrolebindings",
                "clusterrolebinding",
            )
        }
    }

    fn default(&self, binding: &mut ClusterRoleBinding) {
        defaults(&mut binding.role_ref, binding.subjects.as_deref_mut());
    }

    fn validate(&self, binding: &ClusterRoleBinding) -> Vec<FieldError> {
        validate(&binding.role_ref, binding.subjects.as_deref(), &["ClusterRole"])
    }

    fn validate_update(&self, new: &ClusterRoleBinding, old: &ClusterRoleBinding) -> Vec<FieldError> {
        role_unchanged(&new.role_ref, &old.role_ref)
    }

    fn columns(&self) -> &'static [Column] {
        BINDING_COLUMNS
    }

    fn row(&self, binding: &ClusterRoleBinding, metadata: &Meta<'_>) -> Vec<Value> {
        binding_row(&binding.role_ref, binding.subjects.as_deref(), metadata)
    }
}

fn defaults(role: &mut RoleRef, subjects: Option<&mut [Subject]>) {
    if role.api_group.is_empty() {
        GROUP.clone_into(&mut role.api_group);
    }
    for subject in subjects.into_iter().flatten() {
        let unset = subject.api_group.as_deref().unwrap_or_default().is_empty();
        if unset && matches!(subject.kind.as_str(), "User" | "Group") {
            subject.api_group = Some(GROUP.to_owned());
        }
    }
}

fn validate(role: &RoleRef, subjects: Option<&[Subject]>, kinds: &[&str]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if role.api_group != GROUP {
        errors.push(FieldError::not_supported("roleRef.apiGroup", &role.api_group, &[GROUP]));
    }
    if !kinds.contains(&role.kind.as_str()) {
        errors.push(FieldError::not_supported("roleRef.kind", &role.kind, kinds));
    }
    match role.name.as_str() {
        "" => errors.push(FieldError::required("roleRef.name", "")),
        name => errors.extend(invalid_all("roleRef.name", name, validation::path_segment(name))),
    }
    for (n, subject) in subjects.into_iter().flatten().enumerate() {
        errors.extend(self::subject(subject, &format!("subjects[{n}]")));
    }
    errors
}

fn subject(subject: &Subject, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if subject.name.is_empty() {
        errors.push(FieldError::required(format!("{path}.name"), ""));
    }
    let group = subject.api_group.as_deref().unwrap_or_default();
    match subject.kind.as_str() {
        "ServiceAccount" => {
            if !subject.name.is_empty() {
                let faults = validation::dns1123_subdomain(&subject.name);
                errors.extend(invalid_all(&format!("{path}.name"), &subject.name, faults));
            }
            if !group.is_empty() {
                errors.push(FieldError::not_supported(format!("{path}.apiGroup"), group, &[""]));
            }
            if subject.namespace.as_deref().unwrap_or_default().is_empty() {
                errors.push(FieldError::required(format!("{path}.namespace"), ""));
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                errors.push(FieldError::not_supported(format!("{path}.apiGroup"), group, &[GROUP]));
            }
        }
        other => {
            let kinds = ["ServiceAccount", "User", "Group"];
            errors.push(FieldError::not_supported(format!("{path}.kind"), other, &kinds));
        }
    }
    errors
}

fn role_unchanged(new: &RoleRef, old: &RoleRef) -> Vec<FieldError> {
    if new == old { Vec::new() } else { vec![FieldError::invalid("roleRef", new, "cannot change roleRef")] }
}

fn binding_row(role: &RoleRef, subjects: Option<&[Subject]>, metadata: &Meta<'_>) -> Vec<Value> {
    let names = |kind: &str| {
        let of_kind = subjects.into_iter().flatten().filter(|s| s.kind == kind);
        let name = |s: &Subject| match s.namespace.as_deref() {
            Some(namespace) if kind == "ServiceAccount" => format!("{namespace}/{}", s.name),
            _ => s.name.clone(),
        };
        of_kind.map(name).collect::<Vec<_>>().join(", ")
    };
    vec![
        metadata.name.into(),
        format!("{}/{}", role.kind, role.name).into(),
        metadata.age().into(),
        names("User").into(),
        names("Group").into(),
        names("ServiceAccount").into(),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::tests::{create, decoded, row, update};

    #[test]
    fn rules_of_roles() {
        let fault = |kind: &str, rule: Value| {
            create(kind, json!({"metadata": {"name": "r"}, "rules": [rule]})).map_err(|s| s.message)
        };
        assert!(fault("Role", json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]})).is_ok());
        assert!(fault("ClusterRole", json!({"nonResourceURLs": ["/metrics"], "verbs": ["get"]})).is_ok());
        assert_eq!(
            fault("Role", json!({"nonResourceURLs": ["/metrics"], "verbs": ["get"]})).unwrap_err(),
            "Role.rbac.authorization.k8s.io \"r\" is invalid: rules[0].nonResourceURLs: Invalid value: [\"/metrics\"]: \
             namespaced rules cannot apply to non-resource URLs"
        );
        assert_eq!(
            fault("Role", json!({"verbs": []})).unwrap_err(),
            "Role.rbac.authorization.k8s.io \"r\" is invalid: [rules[0].verbs: Required value: verbs must contain at \
             least one value, rules[0].apiGroups: Required value: resource rules must supply at least one api group, \
             rules[0].resources: Required value: resource rules must supply at least one resource]"
        );
    }

    #[test]
    fn bindings() {
        let binding = |role: &str| {
            json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "name": "ann"}, {"kind": "ServiceAccount", "name": "robot", "namespace": "ci"}]})
        };
        let object = decoded("RoleBinding", binding("view"));
        assert_eq!(object["roleRef"]["apiGroup"], GROUP);
        assert_eq!(object["subjects"][0]["apiGroup"], GROUP);
        assert_eq!(row("RoleBinding", &object), "b|ClusterRole/view|<unknown>|ann||ci/robot");
        assert!(create("RoleBinding", binding("view")).is_ok());
        assert!(
            update("RoleBinding", binding("edit"), &binding("view"))
                .unwrap_err()
                .message
                .ends_with("cannot change roleRef")
        );
        let bad = json!({"metadata": {"name": "b"}, "roleRef": {"kind": "Role", "name": "x"}, "subjects": [{"kind": "Robot", "name": "a"}]});
        assert_eq!(create("ClusterRoleBinding", bad).unwrap_err().details.unwrap().causes.len(), 2);
    }
}
