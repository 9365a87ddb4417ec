//! `ketch.dev/v1`: Function and FunctionRevision.
//!
//! A Function is what a developer deploys: an image, its permissions and how it is reached. Every change
//! of its template (image, env, resources, permissions, time-out, concurrency, instances) makes a
//! FunctionRevision, which never changes; traffic moves to a revision only when it is ready, so a broken
//! upload never takes the running one's place.
//!
//! Invariant: Function `F` in namespace `N` owns revisions `F-00001`, `F-00002`, …; each revision owns a
//! Deployment of the same name whose pods carry [`crate::names::FUNCTION_LABEL`] and
//! [`crate::names::REVISION_LABEL`].

use std::collections::BTreeMap;

use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{EnvVar, ResourceRequirements},
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta},
};
use serde::{Deserialize, Serialize};

/// A piece of code with a URL.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Function {
    /// Always `ketch.dev/v1`.
    #[serde(default)]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub api_version: ApiVersion,
    /// Always `Function`.
    #[serde(default)]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub kind: FunctionKind,
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: FunctionSpec,
    /// What is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<FunctionStatus>,
}

/// What a Function should be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct FunctionSpec {
    /// Image reference, Wasm or container.
    pub image: String,
    /// Environment of the program.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
    /// Requests and limits, as on a container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// What it may do beyond answering.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<Permissions>,
    /// Seconds a request may take. Default 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i32>,
    /// Requests one pod serves at a time. Default 1000 for Wasm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<i32>,
    /// How Wasm instances are reused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<Instances>,
    /// How many pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
    /// What calls it, beyond its default URL.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub triggers: Vec<Trigger>,
    /// Which revisions answer, in percent. Empty: the newest ready one. A rollback names an older one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<TrafficTarget>,
    /// Revisions kept besides those that get traffic. Default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision_history_limit: Option<i32>,
}

/// The part of a Function that a revision freezes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct FunctionTemplate {
    /// Image reference, Wasm or container.
    pub image: String,
    /// Environment of the program.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
    /// Requests and limits, as on a container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// What it may do beyond answering.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<Permissions>,
    /// Seconds a request may take. Default 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i32>,
    /// Requests one pod serves at a time. Default 1000 for Wasm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<i32>,
    /// How Wasm instances are reused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<Instances>,
}

/// What a program may do beyond answering requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Permissions {
    /// `host:port` patterns it may connect to outside the cluster; `*` is everything but metadata
    /// addresses, the node and the control plane.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outbound: Vec<String>,
}

/// Bounds on the number of pods.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Scaling {
    /// Fewest pods. Default 1; an idle Wasm pod is a file on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<i32>,
    /// Most pods. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<i32>,
    /// Concurrent requests per pod to aim for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<i32>,
    /// Seconds without a request before instances are dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<i32>,
}

/// How instances of a component are reused across requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Instances {
    /// Whether an instance serves more than one request. Default: true for p3, false for p2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reuse: Option<bool>,
    /// Requests after which an instance is replaced. Default 128.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<i32>,
    /// Requests one instance handles at a time (p3). Default 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrent: Option<i32>,
}

/// What calls a Function. Exactly one field is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Trigger {
    /// HTTP requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpTrigger>,
}

/// Which HTTP requests reach a Function.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct HttpTrigger {
    /// Host names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Path prefix. Default `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// A share of the traffic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct TrafficTarget {
    /// FunctionRevision.
    pub revision_name: String,
    /// 0 to 100; the targets of a Function add up to 100.
    pub percent: i32,
}

/// What a Function is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct FunctionStatus {
    /// Generation this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Newest revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest_revision: Option<String>,
    /// Newest revision that was ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_revision: Option<String>,
    /// Which revisions answer now; what the gateway follows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<TrafficTarget>,
    /// `Ready`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// One frozen version of a Function's template.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct FunctionRevision {
    /// Always `ketch.dev/v1`.
    #[serde(default)]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub api_version: ApiVersion,
    /// Always `FunctionRevision`.
    #[serde(default)]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub kind: FunctionRevisionKind,
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Never changes.
    pub spec: FunctionRevisionSpec,
    /// What is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<FunctionRevisionStatus>,
}

/// A frozen template.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct FunctionRevisionSpec {
    /// Name of the Function.
    pub function: String,
    /// 1, 2, 3, …
    pub revision: i64,
    /// The template at that time.
    pub template: FunctionTemplate,
}

/// What a FunctionRevision is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct FunctionRevisionStatus {
    /// Generation this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Desired pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Ready pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// `Ready`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

impl FunctionSpec {
    /// What a revision made now would freeze.
    pub fn template(&self) -> FunctionTemplate {
        FunctionTemplate {
            image: self.image.clone(),
            env: self.env.clone(),
            resources: self.resources.clone(),
            permissions: self.permissions.clone(),
            timeout_seconds: self.timeout_seconds,
            concurrency: self.concurrency,
            instances: self.instances.clone(),
        }
    }
}

/// Labels a revision's pods carry, and its Deployment selects by.
pub fn pod_labels(function: &str, revision: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        (crate::names::FUNCTION_LABEL.to_owned(), function.to_owned()),
        (crate::names::REVISION_LABEL.to_owned(), revision.to_owned()),
    ])
}

/// A string that is always the same: written on the wire, not looked at when read (the server checks
/// `apiVersion` and `kind` against the path before it decodes).
macro_rules! constant {
    ($name:ident, $value:literal) => {
        #[doc = concat!("The string `", $value, "`.")]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name;

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str($value)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer).map(|_| Self)
            }
        }
    };
}

constant!(ApiVersion, "ketch.dev/v1");
constant!(FunctionKind, "Function");
constant!(FunctionRevisionKind, "FunctionRevision");

macro_rules! resource {
    ($kind:ident, $plural:literal) => {
        impl k8s_openapi::Resource for $kind {
            const API_VERSION: &'static str = "ketch.dev/v1";
            const GROUP: &'static str = "ketch.dev";
            const KIND: &'static str = stringify!($kind);
            const VERSION: &'static str = "v1";
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = NamespaceResourceScope;
        }

        impl k8s_openapi::Metadata for $kind {
            type Ty = ObjectMeta;

            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource!(Function, "functions");
resource!(FunctionRevision, "functionrevisions");
