//! The roles and bindings every cluster starts with: upstream's names and rights
//! (`plugin/pkg/auth/authorizer/rbac/bootstrappolicy`), as far as the kinds are served, and ours.

use ketch_api::{Status, join, names};
use ketch_store::{Storage, Update};
use serde_json::{Value, json};

use super::Rule;
use crate::{
    auth::{
        AUTHENTICATED_GROUP, UNAUTHENTICATED_GROUP, node,
        objects::{new_uid, set},
    },
    wire::stored,
};

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];

const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const BOOTSTRAP_LABEL: &str = "kubernetes.io/bootstrapping";

/// All of them, without uid and timestamps.
pub fn objects() -> Vec<Value> {
    let mut all = vec![
        role("cluster-admin", &Rule::all()),
        aggregate("admin", "admin", None),
        aggregate("edit", "edit", Some("admin")),
        aggregate("view", "view", Some("edit")),
        part("admin", &admin()),
        part("edit", &edit()),
        part("view", &view()),
        metrics_reader(),
        role("system:discovery", &[Rule::paths(DISCOVERY_PATHS, &["get"])]),
        role("system:public-info-viewer", &[Rule::paths(PUBLIC_PATHS, &["get"])]),
        role("system:basic-user", &basic_user()),
        role("system:service-account-issuer-discovery", &[Rule::paths(ISSUER_PATHS, &["get"])]),
        role("system:node", &node::rules()),
        role("system:ketch-gateway", &gateway()),
        role("system:ketch-join", &[Rule::paths(&[join::JOIN_PATH], &["post"])]),
        role("system:monitoring", &[Rule::paths(MONITORING_PATHS, &["get"])]),
    ];
    all.extend([
        binding("cluster-admin", &[names::ADMIN_GROUP]),
        binding("system:discovery", &[AUTHENTICATED_GROUP]),
        binding("system:public-info-viewer", &[AUTHENTICATED_GROUP, UNAUTHENTICATED_GROUP]),
        binding("system:basic-user", &[AUTHENTICATED_GROUP]),
        binding("system:service-account-issuer-discovery", &[AUTHENTICATED_GROUP]),
        binding("system:ketch-gateway", &[names::GATEWAY_GROUP]),
        binding("system:ketch-join", &[join::JOINERS_GROUP]),
        binding("system:monitoring", &["system:monitoring"]),
    ]);
    all
}

const PUBLIC_PATHS: &[&str] = &["/healthz", "/livez", "/readyz", "/version", "/version/"];
const DISCOVERY_PATHS: &[&str] = &[
    "/",
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    "/healthz",
    "/livez",
    "/openapi",
    "/openapi/*",
    "/readyz",
    "/version",
    "/version/",
];
const ISSUER_PATHS: &[&str] = &["/.well-known/openid-configuration", "/openid/v1/jwks"];
const MONITORING_PATHS: &[&str] =
    &["/healthz", "/healthz/*", "/livez", "/livez/*", "/metrics", "/metrics/*", "/readyz", "/readyz/*"];

fn basic_user() -> Vec<Rule> {
    vec![
        Rule::resources(
            &["authorization.k8s.io"],
            &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
            &["create"],
        ),
        Rule::resources(&["authentication.k8s.io"], &["selfsubjectreviews"], &["create"]),
    ]
}

fn view() -> Vec<Rule> {
    let read = |group: &str, resources: &[&str]| Rule::resources(&[group], resources, READ);
    vec![
        read(
            "",
            &[
                "configmaps",
                "endpoints",
                "events",
                "limitranges",
                "namespaces",
                "namespaces/status",
                "persistentvolumeclaims",
                "persistentvolumeclaims/status",
                "pods",
                "pods/log",
                "pods/status",
                "resourcequotas",
                "resourcequotas/status",
                "serviceaccounts",
                "services",
                "services/status",
            ],
        ),
        read("discovery.k8s.io", &["endpointslices"]),
        read("events.k8s.io", &["events"]),
        read(
            "apps",
            &[
                "controllerrevisions",
                "daemonsets",
                "daemonsets/status",
                "deployments",
                "deployments/scale",
                "deployments/status",
                "replicasets",
                "replicasets/scale",
                "replicasets/status",
                "statefulsets",
                "statefulsets/scale",
                "statefulsets/status",
            ],
        ),
        read("autoscaling", &["horizontalpodautoscalers", "horizontalpodautoscalers/status"]),
        read("batch", &["cronjobs", "cronjobs/status", "jobs", "jobs/status"]),
        read("networking.k8s.io", &["ingresses", "ingresses/status", "networkpolicies"]),
        read("policy", &["poddisruptionbudgets", "poddisruptionbudgets/status"]),
        read(
            "ketch.dev",
            &[
                "functions",
                "functions/scale",
                "functions/status",
                "functionrevisions",
                "functionrevisions/status",
                "images",
            ],
        ),
    ]
}

fn edit() -> Vec<Rule> {
    let write = |group: &str, resources: &[&str]| Rule::resources(&[group], resources, WRITE);
    vec![
        Rule::resources(
            &[""],
            &["pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "secrets", "services/proxy"],
            READ,
        ),
        Rule::resources(&[""], &["serviceaccounts"], &["impersonate"]),
        write("", &["pods", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy"]),
        Rule::resources(&[""], &["pods/eviction", "serviceaccounts/token"], &["create"]),
        write(
            "",
            &[
                "configmaps",
                "events",
                "persistentvolumeclaims",
                "secrets",
                "serviceaccounts",
                "services",
                "services/proxy",
            ],
        ),
        write("events.k8s.io", &["events"]),
        write(
            "apps",
            &[
                "daemonsets",
                "deployments",
                "deployments/rollback",
                "deployments/scale",
                "replicasets",
                "replicasets/scale",
                "statefulsets",
                "statefulsets/scale",
            ],
        ),
        write("autoscaling", &["horizontalpodautoscalers"]),
        write("batch", &["cronjobs", "jobs"]),
        write("networking.k8s.io", &["ingresses", "networkpolicies"]),
        write("policy", &["poddisruptionbudgets"]),
        Rule::resources(&["coordination.k8s.io"], &["leases"], &[READ, WRITE].concat()),
        write("ketch.dev", &["functions", "functions/scale", "images"]),
        Rule::resources(&["ketch.dev"], &["functions/invoke"], &["create"]),
        Rule::resources(&["ketch.dev"], &["functionrevisions"], &["delete", "deletecollection"]),
    ]
}

fn admin() -> Vec<Rule> {
    vec![
        Rule::resources(&["authorization.k8s.io"], &["localsubjectaccessreviews"], &["create"]),
        Rule::resources(&["rbac.authorization.k8s.io"], &["rolebindings", "roles"], &[READ, WRITE].concat()),
    ]
}

/// Everything a route depends on, nothing else.
fn gateway() -> Vec<Rule> {
    vec![
        Rule::resources(&[""], &["namespaces", "nodes", "pods", "services"], READ),
        Rule::resources(&["discovery.k8s.io"], &["endpointslices"], READ),
        Rule::resources(&["networking.k8s.io"], &["ingressclasses", "ingresses", "networkpolicies"], READ),
        Rule::resources(&["networking.k8s.io"], &["ingresses/status"], &["patch", "update"]),
        Rule::resources(&["ketch.dev"], &["functionrevisions", "functions"], READ),
        Rule::resources(&["", "events.k8s.io"], &["events"], &["create", "patch", "update"]),
    ]
}

fn metadata(name: &str, label: Option<&str>) -> Value {
    let mut labels = json!({BOOTSTRAP_LABEL: "rbac-defaults"});
    if let Some(label) = label {
        set(&mut labels, &format!("rbac.authorization.k8s.io/aggregate-to-{label}"), "true");
    }
    json!({"name": name, "labels": labels, "annotations": {AUTO_UPDATE: "true"}})
}

fn cluster_role(name: &str, label: Option<&str>, field: &str, content: Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": metadata(name, label), field: content,
    })
}

fn role(name: &str, rules: &[Rule]) -> Value {
    cluster_role(name, None, "rules", json!(rules))
}

/// A role that is the sum of those labelled `aggregate-to-{from}`, and part of `into`.
fn aggregate(name: &str, from: &str, into: Option<&str>) -> Value {
    let label = format!("rbac.authorization.k8s.io/aggregate-to-{from}");
    let rule = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
    cluster_role(name, into, "aggregationRule", rule)
}

fn part(of: &str, rules: &[Rule]) -> Value {
    cluster_role(&format!("system:aggregate-to-{of}"), Some(of), "rules", json!(rules))
}

/// What metrics-server's manifest gives to whoever may look at all.
fn metrics_reader() -> Value {
    let rules = [Rule::resources(&["metrics.k8s.io"], &["nodes", "pods"], READ)];
    cluster_role("system:aggregated-metrics-reader", Some("view"), "rules", json!(rules))
}

fn binding(role: &str, groups: &[&str]) -> Value {
    let subjects: Vec<Value> = groups
        .iter()
        .map(|group| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}))
        .collect();
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": metadata(role, None),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": subjects,
    })
}

/// Creates what is missing, and adds rules and subjects that are missing where the object's annotation
/// allows it. Nothing is taken away: what an administrator added stays.
pub(crate) async fn ensure(storage: &dyn Storage, now: jiff::Timestamp) -> Result<(), Status> {
    for object in objects() {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let plural = if text("/kind") == "ClusterRole" { "clusterroles" } else { "clusterrolebindings" };
        let key = format!("{}{plural}/{}", super::PREFIX, text("/metadata/name"));
        let mut created = object.clone();
        if let Some(metadata) = created.get_mut("metadata") {
            set(metadata, "uid", new_uid()?);
            set(metadata, "creationTimestamp", now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        }
        let created = stored::encode(&created)?;
        let update = Box::new(move |current: Option<&ketch_store::Versioned>| {
            let Some(current) = current else { return Ok(Update::Put(created.clone())) };
            let known = serde_json::from_slice::<Value>(&current.value).ok();
            let better = known.and_then(|known| completed(known, &object));
            Ok(better.and_then(|object| stored::encode(&object).ok()).map_or(Update::Keep, Update::Put))
        });
        storage.update(&key, update).await.map_err(Status::internal)?;
    }
    Ok(())
}

/// `stored` with what it lacks of `wanted`; `None` when that is nothing.
fn completed(mut stored: Value, wanted: &Value) -> Option<Value> {
    if stored.pointer("/metadata/annotations").and_then(|all| all.get(AUTO_UPDATE)) != Some(&"true".into()) {
        return None;
    }
    let mut changed = false;
    for field in ["rules", "subjects"] {
        let mut items = stored.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
        let missing = wanted.get(field).and_then(Value::as_array).into_iter().flatten();
        let before = items.len();
        items.extend(missing.filter(|item| !items.contains(item)).cloned().collect::<Vec<_>>());
        if items.len() > before {
            set(&mut stored, field, items);
            changed = true;
        }
    }
    changed.then_some(stored)
}
