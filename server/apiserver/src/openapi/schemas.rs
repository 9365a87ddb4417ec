//! Schemas of the kinds, from their Rust types.

use ketch_api::{Descriptor, function, k8s};
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{rest::sub::review::Review, typegraph::GRAPH};

/// Where references point in an OpenAPI v3 document.
pub(super) const REFERENCE: &str = "#/components/schemas/";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// Schemas by name.
pub(super) type Schemas = Map<String, Value>;

/// Schema of one kind, and how to refer to it.
type Add = fn(&mut SchemaGenerator) -> Value;

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

/// The Rust type of a kind. A kind without a line here is served, but clients that ask for its schema are
/// told that there is none; a test keeps the table complete.
fn type_of(group: &str, kind: &str) -> Option<Add> {
    use k8s::api::{
        apps::v1 as apps, authentication::v1 as authentication, authorization::v1 as authorization,
        autoscaling::v1 as autoscaling, autoscaling::v2 as autoscaling2, batch::v1 as batch,
        coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery, events::v1 as events,
        networking::v1 as networking, node::v1 as node, policy::v1 as policy, rbac::v1 as rbac,
        scheduling::v1 as scheduling, storage::v1 as storage,
    };
    Some(match (group, kind) {
        ("", "Binding") => add::<core::Binding>,
        ("", "ConfigMap") => add::<core::ConfigMap>,
        ("", "Endpoints") => add::<core::Endpoints>,
        ("", "Event") => add::<core::Event>,
        ("", "LimitRange") => add::<core::LimitRange>,
        ("", "Namespace") => add::<core::Namespace>,
        ("", "Node") => add::<core::Node>,
        ("", "PersistentVolume") => add::<core::PersistentVolume>,
        ("", "PersistentVolumeClaim") => add::<core::PersistentVolumeClaim>,
        ("", "Pod") => add::<core::Pod>,
        ("", "PodTemplate") => add::<core::PodTemplate>,
        ("", "ReplicationController") => add::<core::ReplicationController>,
        ("", "ResourceQuota") => add::<core::ResourceQuota>,
        ("", "Secret") => add::<core::Secret>,
        ("", "Service") => add::<core::Service>,
        ("", "ServiceAccount") => add::<core::ServiceAccount>,
        ("apps", "ControllerRevision") => add::<apps::ControllerRevision>,
        ("apps", "DaemonSet") => add::<apps::DaemonSet>,
        ("apps", "Deployment") => add::<apps::Deployment>,
        ("apps", "ReplicaSet") => add::<apps::ReplicaSet>,
        ("apps", "StatefulSet") => add::<apps::StatefulSet>,
        ("authentication.k8s.io", "SelfSubjectReview") => add::<authentication::SelfSubjectReview>,
        ("authentication.k8s.io", "TokenRequest") => add::<authentication::TokenRequest>,
        ("authentication.k8s.io", "TokenReview") => add::<authentication::TokenReview>,
        ("authorization.k8s.io", "LocalSubjectAccessReview") => {
            add::<authorization::LocalSubjectAccessReview>
        }
        ("authorization.k8s.io", "SelfSubjectAccessReview") => add::<authorization::SelfSubjectAccessReview>,
        ("authorization.k8s.io", "SelfSubjectRulesReview") => add::<authorization::SelfSubjectRulesReview>,
        ("authorization.k8s.io", "SubjectAccessReview") => add::<authorization::SubjectAccessReview>,
        ("autoscaling", "HorizontalPodAutoscaler") => add::<autoscaling2::HorizontalPodAutoscaler>,
        ("autoscaling", "Scale") => add::<autoscaling::Scale>,
        ("batch", "CronJob") => add::<batch::CronJob>,
        ("batch", "Job") => add::<batch::Job>,
        ("coordination.k8s.io", "Lease") => add::<coordination::Lease>,
        ("discovery.k8s.io", "EndpointSlice") => add::<discovery::EndpointSlice>,
        ("events.k8s.io", "Event") => add::<events::Event>,
        ("ketch.dev", "Function") => add::<function::Function>,
        ("ketch.dev", "FunctionRevision") => add::<function::FunctionRevision>,
        ("networking.k8s.io", "Ingress") => add::<networking::Ingress>,
        ("networking.k8s.io", "IngressClass") => add::<networking::IngressClass>,
        ("networking.k8s.io", "NetworkPolicy") => add::<networking::NetworkPolicy>,
        ("node.k8s.io", "RuntimeClass") => add::<node::RuntimeClass>,
        ("policy", "Eviction") => add::<policy::Eviction>,
        ("policy", "PodDisruptionBudget") => add::<policy::PodDisruptionBudget>,
        ("rbac.authorization.k8s.io", "ClusterRole") => add::<rbac::ClusterRole>,
        ("rbac.authorization.k8s.io", "ClusterRoleBinding") => add::<rbac::ClusterRoleBinding>,
        ("rbac.authorization.k8s.io", "Role") => add::<rbac::Role>,
        ("rbac.authorization.k8s.io", "RoleBinding") => add::<rbac::RoleBinding>,
        ("scheduling.k8s.io", "PriorityClass") => add::<scheduling::PriorityClass>,
        ("storage.k8s.io", "StorageClass") => add::<storage::StorageClass>,
        _ => return None,
    })
}

/// Collects the schemas of one document.
pub(super) struct Collector {
    generator: SchemaGenerator,
    lists: Schemas,
    kinds: Vec<(String, Value)>,
}

impl Collector {
    pub(super) fn new() -> Self {
        let mut generator = SchemaSettings::openapi3().into_generator();
        add::<k8s::apimachinery::pkg::apis::meta::v1::ListMeta>(&mut generator);
        add::<k8s::apimachinery::pkg::apis::meta::v1::Status>(&mut generator);
        add::<k8s::apimachinery::pkg::apis::meta::v1::DeleteOptions>(&mut generator);
        Self { generator, lists: Schemas::new(), kinds: Vec::new() }
    }

    /// Adds a kind; the name of its schema, or `None` when it has none.
    pub(super) fn kind(&mut self, group: &str, version: &str, kind: &str) -> Option<String> {
        let reference = type_of(group, kind)?(&mut self.generator);
        let name = public_name(reference.get("$ref")?.as_str()?.strip_prefix(REFERENCE)?);
        let gvk = json!({"group": group, "version": version, "kind": kind});
        if !self.kinds.iter().any(|(_, known)| *known == gvk) {
            self.kinds.push((name.clone(), gvk));
        }
        Some(name)
    }

    /// Adds a kind that is stored, and its list; the names of both schemas.
    pub(super) fn stored(&mut self, d: &Descriptor) -> Option<(String, String)> {
        let item = self.kind(d.group, d.version, d.kind)?;
        let list = format!("{item}List");
        let text = |description: &str| json!({"type": "string", "description": description});
        self.lists.insert(
            list.clone(),
            json!({
                "description": format!("{}List is a list of {} objects.", d.kind, d.kind),
                "type": "object",
                "required": ["items"],
                "properties": {
                    "apiVersion": text("Version of the schema, for instance v1."),
                    "kind": text("Kind of the list."),
                    "items": {"description": "The objects.", "type": "array", "items": {"$ref": format!("{REFERENCE}{item}")}},
                    "metadata": {"allOf": [{"$ref": format!("{REFERENCE}{META}ListMeta")}], "description": "Standard list metadata."},
                },
            }),
        );
        let kind = format!("{}List", d.kind);
        self.kinds.push((list.clone(), json!({"group": d.group, "version": d.version, "kind": kind})));
        Some((item, list))
    }

    /// Adds a review; the name of its schema.
    pub(super) fn review(&mut self, review: &Review) -> Option<String> {
        self.kind(review.group, "v1", review.kind)
    }

    /// All schemas with their extensions. `group` and `version` are the document's.
    pub(super) fn finish(mut self, group: &str, version: &str) -> Schemas {
        let mut schemas = Schemas::new();
        for (name, mut schema) in self.generator.take_definitions(true) {
            tidy(&mut schema);
            extend(&name, &mut schema);
            schemas.insert(public_name(&name), schema);
        }
        schemas.append(&mut self.lists);
        schemas.insert(format!("{META}Patch"), json!({"type": "object", "description": "A change of an object, in the form its media type says."}));
        for (name, one_of) in [
            ("util.intstr.IntOrString", json!([{"type": "integer"}, {"type": "string"}])),
            ("api.resource.Quantity", json!([{"type": "string"}, {"type": "number"}])),
        ] {
            if let Some(Value::Object(schema)) = schemas.get_mut(&format!("io.k8s.apimachinery.pkg.{name}")) {
                schema.insert("oneOf".into(), one_of);
            }
        }
        let mut options = self.kinds;
        for kind in ["DeleteOptions", "Status"] {
            options
                .push((format!("{META}{kind}"), json!({"group": group, "version": version, "kind": kind})));
        }
        for (name, gvk) in options {
            let Some(Value::Object(schema)) = schemas.get_mut(&name) else { continue };
            let list = schema.entry("x-kubernetes-group-version-kind").or_insert_with(|| json!([]));
            if let Value::Array(list) = list {
                list.push(gvk);
            }
        }
        schemas
    }
}

/// Upstream's names have their package in front; those of our own types get it here.
fn public_name(name: &str) -> String {
    if name.contains('.') { name.to_owned() } else { format!("dev.ketch.v1.{name}") }
}

/// Patch strategies and merge keys, which clients compute patches with.
fn extend(name: &str, schema: &mut Value) {
    let Some(message) = name.strip_prefix("io.k8s.").and_then(|name| GRAPH.named(name)) else { return };
    let Some(Value::Object(properties)) = schema.get_mut("properties") else { return };
    for (name, property) in properties {
        let (Some(field), Value::Object(property)) = (GRAPH.field(message, name), property) else { continue };
        if let Some(strategy) = field.patch.text() {
            property.insert("x-kubernetes-patch-strategy".into(), strategy.into());
        }
        if let Some(key) = field.patch.merge_key {
            property.insert("x-kubernetes-patch-merge-key".into(), key.into());
        }
    }
}

/// Turns what schemars writes for Rust types into what Kubernetes writes for Go types: a field that may be
/// absent is not one that may be null, and references have full names.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Object(fields) => {
            fields.remove("nullable");
            fields.retain(|name, value| name != "default" || !value.is_null());
            if let Some(Value::Array(options)) = fields.remove("anyOf") {
                let references: Vec<Value> =
                    options.into_iter().filter(|option| option.get("$ref").is_some()).collect();
                fields.insert("allOf".into(), references.into());
            }
            if let Some(Value::String(reference)) = fields.get_mut("$ref")
                && let Some(name) = reference.strip_prefix(REFERENCE)
            {
                *reference = format!("{REFERENCE}{}", public_name(name));
            }
            fields.values_mut().for_each(tidy);
        }
        _ => {}
    }
}
