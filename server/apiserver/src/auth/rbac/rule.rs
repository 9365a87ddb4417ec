//! One policy rule: what it matches and what it covers. Pure.
//!
//! The semantics are those of `k8s.io/kubernetes/pkg/apis/rbac/v1/evaluation_helpers.go` and
//! `pkg/registry/rbac/validation`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::auth::Attributes;

/// `rbac.authorization.k8s.io/v1` PolicyRule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// `*` is every verb.
    pub verbs: Vec<String>,
    /// `*` is every group, the empty string is core.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// `*`, `pods`, `pods/log`, `*/scale`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Empty: every name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// Exact paths, or prefixes that end with `*`.
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

impl Rule {
    /// A rule about resources.
    pub fn resources(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Self {
        Self {
            verbs: owned(verbs),
            api_groups: owned(groups),
            resources: owned(resources),
            ..Self::default()
        }
    }

    /// A rule about paths.
    pub fn paths(urls: &[&str], verbs: &[&str]) -> Self {
        Self { verbs: owned(verbs), non_resource_urls: owned(urls), ..Self::default() }
    }

    /// Everything.
    pub fn all() -> [Self; 2] {
        [Self::resources(&["*"], &["*"], &["*"]), Self::paths(&["*"], &["*"])]
    }

    /// The same rule for these names only.
    pub fn named(mut self, names: &[&str]) -> Self {
        self.resource_names = owned(names);
        self
    }

    /// Whether the rule allows what is asked for.
    pub fn allows(&self, a: &Attributes) -> bool {
        if !has(&self.verbs, &a.verb) {
            return false;
        }
        if !a.is_resource {
            return self.non_resource_urls.iter().any(|url| url_covers(url, &a.path));
        }
        has(&self.api_groups, &a.group)
            && self.resources.iter().any(|own| resource_matches(own, &a.resource, &a.subresource))
            && (self.resource_names.is_empty() || self.resource_names.contains(&a.name))
    }

    /// Whether everything `other` allows, this rule allows too.
    pub fn covers(&self, other: &Rule) -> bool {
        let names = self.resource_names.is_empty()
            || (!other.resource_names.is_empty()
                && other.resource_names.iter().all(|name| self.resource_names.contains(name)));
        let resource = |wanted: &String| {
            let (resource, subresource) = wanted.split_once('/').unwrap_or((wanted, ""));
            self.resources.iter().any(|own| resource_matches(own, resource, subresource))
        };
        let url = |wanted: &String| self.non_resource_urls.iter().any(|own| url_covers(own, wanted));
        other.verbs.iter().all(|verb| has(&self.verbs, verb))
            && other.api_groups.iter().all(|group| has(&self.api_groups, group))
            && other.resources.iter().all(resource)
            && names
            && other.non_resource_urls.iter().all(url)
    }

    /// The rule as rules with one verb, group, resource, name or path each; at most `limit` of them,
    /// `None` when there are more.
    fn split(&self, limit: usize) -> Option<Vec<Rule>> {
        let names: Vec<Vec<String>> = match self.resource_names.as_slice() {
            [] => vec![Vec::new()],
            names => names.iter().map(|name| vec![name.clone()]).collect(),
        };
        let of_resources =
            [self.api_groups.len(), self.resources.len(), names.len()].iter().product::<usize>();
        let count =
            self.verbs.len().saturating_mul(of_resources.saturating_add(self.non_resource_urls.len()));
        if count > limit {
            return None;
        }
        let mut parts = Vec::with_capacity(count);
        for verb in &self.verbs {
            let verbs = vec![verb.clone()];
            for url in &self.non_resource_urls {
                parts.push(Rule {
                    verbs: verbs.clone(),
                    non_resource_urls: vec![url.clone()],
                    ..Rule::default()
                });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    parts.extend(names.iter().map(|names| Rule {
                        verbs: verbs.clone(),
                        api_groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        resource_names: names.clone(),
                        ..Rule::default()
                    }));
                }
            }
        }
        Some(parts)
    }
}

/// Most single permissions that are compared one by one.
const MAX_PARTS: usize = 20_000;

/// What of `wanted` the rules `own` do not cover.
pub fn uncovered(own: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let mut missing = Vec::new();
    for rule in wanted {
        if own.iter().any(|own| own.covers(rule)) {
            continue;
        }
        match rule.split(MAX_PARTS) {
            Some(parts) => {
                missing.extend(parts.into_iter().filter(|part| !own.iter().any(|own| own.covers(part))));
            }
            None => missing.push(rule.clone()),
        }
    }
    missing
}

fn owned(items: &[&str]) -> Vec<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

fn has(own: &[String], wanted: &str) -> bool {
    own.iter().any(|own| own == "*" || own == wanted)
}

/// `*` is everything, subresources included; `*/scale` is the subresource of every resource.
fn resource_matches(own: &str, resource: &str, subresource: &str) -> bool {
    if own == "*" {
        return true;
    }
    match own.split_once('/') {
        None => subresource.is_empty() && own == resource,
        Some((parent, sub)) => {
            !subresource.is_empty() && sub == subresource && (parent == "*" || parent == resource)
        }
    }
}

fn url_covers(own: &str, wanted: &str) -> bool {
    own == "*" || own == wanted || own.strip_suffix('*').is_some_and(|prefix| wanted.starts_with(prefix))
}

/// As upstream prints a rule in its refusals: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.resource_names),
            ("NonResourceURLs", &self.non_resource_urls),
            ("Verbs", &self.verbs),
        ];
        let parts: Vec<String> = fields
            .into_iter()
            .filter(|(_, values)| !values.is_empty())
            .map(|(name, values)| {
                let values: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
                format!("{name}:[{}]", values.join(", "))
            })
            .collect();
        write!(f, "{{{}}}", parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(verb: &str, group: &str, resource: &str, name: &str) -> Attributes {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            name: name.into(),
            is_resource: true,
            ..Attributes::default()
        }
    }

    #[test]
    fn resource_rules() {
        let pods = Rule::resources(&[""], &["pods"], &["get", "list"]);
        let scale = Rule::resources(&["apps"], &["*/scale"], &["*"]);
        let named = Rule::resources(&[""], &["secrets"], &["get"]).named(&["a", "b"]);
        let [all, _] = Rule::all();
        #[rustfmt::skip]
        let cases = [
            (&pods, "get", "", "pods", "x", true),
            (&pods, "delete", "", "pods", "x", false),
            (&pods, "get", "apps", "pods", "x", false),
            (&pods, "get", "", "pods/log", "x", false),
            (&scale, "update", "apps", "deployments/scale", "x", true),
            (&scale, "update", "apps", "deployments", "x", false),
            (&scale, "update", "apps", "deployments/status", "x", false),
            (&named, "get", "", "secrets", "a", true),
            (&named, "get", "", "secrets", "c", false),
            (&named, "get", "", "secrets", "", false),
            (&all, "impersonate", "x", "y/z", "", true),
        ];
        for (rule, verb, group, name, object, allowed) in cases {
            assert_eq!(
                rule.allows(&resource(verb, group, name, object)),
                allowed,
                "{rule} {verb} {group}/{name} {object}"
            );
        }
    }

    #[test]
    fn path_rules() {
        let rule = Rule::paths(&["/healthz", "/openapi/*"], &["get"]);
        let path = |verb: &str, path: &str| Attributes {
            verb: verb.into(),
            path: path.into(),
            ..Attributes::default()
        };
        for (verb, url, allowed) in [
            ("get", "/healthz", true),
            ("post", "/healthz", false),
            ("get", "/healthz/ping", false),
            ("get", "/openapi/v3", true),
            ("get", "/openapi", false),
        ] {
            assert_eq!(rule.allows(&path(verb, url)), allowed, "{verb} {url}");
        }
    }

    #[test]
    fn what_is_not_covered_is_named_one_by_one() {
        let own = [
            Rule::resources(&[""], &["pods"], &["get"]),
            Rule::resources(&[""], &["pods", "secrets"], &["list"]),
            Rule::resources(&["apps"], &["*/scale"], &["update"]),
            Rule::resources(&[""], &["configmaps"], &["get"]).named(&["a"]),
            Rule::paths(&["/x/*"], &["get"]),
        ];
        #[rustfmt::skip]
        let cases = [
            (Rule::resources(&[""], &["pods"], &["get", "list"]), vec![]),
            (Rule::resources(&[""], &["pods"], &["get"]).named(&["n"]), vec![]),
            (Rule::resources(&[""], &["pods"], &["get", "delete"]), vec![r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete"]}"#]),
            (Rule::resources(&["apps"], &["deployments/scale"], &["update"]), vec![]),
            (Rule::resources(&["apps"], &["deployments"], &["update"]), vec![r#"{APIGroups:["apps"], Resources:["deployments"], Verbs:["update"]}"#]),
            (Rule::resources(&[""], &["configmaps"], &["get"]), vec![r#"{APIGroups:[""], Resources:["configmaps"], Verbs:["get"]}"#]),
            (Rule::resources(&[""], &["configmaps"], &["get"]).named(&["a"]), vec![]),
            (Rule::resources(&["*"], &["pods"], &["get"]), vec![r#"{APIGroups:["*"], Resources:["pods"], Verbs:["get"]}"#]),
            (Rule::paths(&["/x/y", "/z"], &["get"]), vec![r#"{NonResourceURLs:["/z"], Verbs:["get"]}"#]),
        ];
        for (wanted, missing) in cases {
            let got: Vec<String> =
                uncovered(&own, std::slice::from_ref(&wanted)).iter().map(ToString::to_string).collect();
            assert_eq!(got, missing, "{wanted}");
        }
        assert!(uncovered(&Rule::all(), &own).is_empty());
        let many: Vec<String> = (0..200).map(|n| n.to_string()).collect();
        let huge = Rule { verbs: many.clone(), api_groups: many.clone(), resources: many, ..Rule::default() };
        assert_eq!(uncovered(&own, &[huge]).len(), 1);
    }
}
