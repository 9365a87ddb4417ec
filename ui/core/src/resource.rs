//! The resources the console knows, and their API and page addresses.

/// A kind's names in the API and in the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource {
    /// API group; empty for core.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Plural, as in paths.
    pub plural: &'static str,
    /// CamelCase kind.
    pub kind: &'static str,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Page of the list.
    pub page: &'static str,
    /// Heading of the list.
    pub title: &'static str,
    /// What it is for, shown when there is none.
    pub purpose: &'static str,
}

macro_rules! resources {
    ($($name:ident = $group:literal $version:literal $plural:literal $kind:literal $namespaced:literal $page:literal $title:literal $purpose:literal;)*) => {
        $(#[doc = concat!("`", $plural, "`")]
        pub const $name: Resource = Resource {
            group: $group, version: $version, plural: $plural, kind: $kind, namespaced: $namespaced,
            page: $page, title: $title, purpose: $purpose,
        };)*
        /// All of them.
        pub const ALL: &[Resource] = &[$($name),*];
    };
}

resources! {
    FUNCTIONS = "ketch.dev" "v1" "functions" "Function" true "/apps" "Apps" "An app is a program with a URL.";
    REVISIONS = "ketch.dev" "v1" "functionrevisions" "FunctionRevision" true "/workloads/revisions" "Revisions" "Every change of an app makes a revision.";
    DEPLOYMENTS = "apps" "v1" "deployments" "Deployment" true "/workloads/deployments" "Deployments" "A Deployment keeps a number of equal pods running.";
    REPLICASETS = "apps" "v1" "replicasets" "ReplicaSet" true "/workloads/replicasets" "ReplicaSets" "A ReplicaSet is one version of a Deployment.";
    PODS = "" "v1" "pods" "Pod" true "/workloads/pods" "Pods" "A pod is what runs on a node: WebAssembly, containers, or both.";
    SERVICES = "" "v1" "services" "Service" true "/network/services" "Services" "A Service gives a set of pods one name and address.";
    CONFIGMAPS = "" "v1" "configmaps" "ConfigMap" true "/config/configmaps" "ConfigMaps" "A ConfigMap holds settings that pods read.";
    EVENTS = "" "v1" "events" "Event" true "/events" "Events" "Events tell what happened to objects; they are kept for an hour.";
    NODES = "" "v1" "nodes" "Node" false "/nodes" "Nodes" "A node is a machine that runs pods.";
    NAMESPACES = "" "v1" "namespaces" "Namespace" false "/namespaces" "Namespaces" "A namespace keeps names and permissions of teams apart.";
}

impl Resource {
    /// `/api/v1` or `/apis/GROUP/VERSION`.
    pub fn root(&self) -> String {
        match self.group {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        }
    }

    /// API path of the collection; all namespaces when `namespace` is `None`.
    pub fn collection(&self, namespace: Option<&str>) -> String {
        match namespace.filter(|n| self.namespaced && !n.is_empty()) {
            Some(namespace) => format!("{}/namespaces/{namespace}/{}", self.root(), self.plural),
            None => format!("{}/{}", self.root(), self.plural),
        }
    }

    /// API path of one object.
    pub fn object(&self, namespace: &str, name: &str) -> String {
        format!("{}/{name}", self.collection(Some(namespace)))
    }

    /// `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Console address of one object's page.
    pub fn href(&self, namespace: &str, name: &str) -> String {
        if self.namespaced {
            format!("{}/{namespace}/{name}", self.page)
        } else {
            format!("{}/{name}", self.page)
        }
    }

    /// The resource of an object, by its apiVersion and kind.
    pub fn of(api_version: &str, kind: &str) -> Option<Resource> {
        ALL.iter().find(|r| r.kind == kind && r.api_version() == api_version).copied()
    }

    /// The resource of a kind, whatever its group.
    pub fn of_kind(kind: &str) -> Option<Resource> {
        ALL.iter().find(|r| r.kind == kind).copied()
    }
}

/// API path of the collection a manifest of any kind is created in. The plural is guessed as English
/// does, which holds for every built-in kind; `None` when the manifest lacks apiVersion, kind or name.
pub fn create_path(manifest: &serde_json::Value, default_namespace: &str) -> Option<String> {
    let api_version = manifest.get("apiVersion")?.as_str()?;
    let kind = manifest.get("kind")?.as_str()?;
    let root = if api_version.contains('/') {
        format!("/apis/{api_version}")
    } else {
        format!("/api/{api_version}")
    };
    let plural = plural(kind);
    if CLUSTER_SCOPED.contains(&kind) {
        return Some(format!("{root}/{plural}"));
    }
    let namespace = match crate::object::namespace(manifest) {
        "" => default_namespace,
        namespace => namespace,
    };
    Some(format!("{root}/namespaces/{namespace}/{plural}"))
}

const CLUSTER_SCOPED: [&str; 12] = [
    "Namespace",
    "Node",
    "PersistentVolume",
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "StorageClass",
    "PriorityClass",
    "IngressClass",
    "RuntimeClass",
    "ValidatingWebhookConfiguration",
    "MutatingWebhookConfiguration",
];

fn plural(kind: &str) -> String {
    let lower = kind.to_ascii_lowercase();
    match lower.as_str() {
        "endpoints" => lower,
        s if s.ends_with("ss") || s.ends_with('x') || s.ends_with("ch") => format!("{s}es"),
        s if s.ends_with('y') && !s.ends_with("ay") && !s.ends_with("ey") => {
            format!("{}ies", s.trim_end_matches('y'))
        }
        s => format!("{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths() {
        assert_eq!(PODS.collection(None), "/api/v1/pods");
        assert_eq!(PODS.object("default", "a"), "/api/v1/namespaces/default/pods/a");
        assert_eq!(NODES.object("", "n1"), "/api/v1/nodes/n1");
        assert_eq!(FUNCTIONS.collection(Some("x")), "/apis/ketch.dev/v1/namespaces/x/functions");
        assert_eq!(NODES.href("", "n1"), "/nodes/n1");
        assert_eq!(Resource::of("apps/v1", "Deployment"), Some(DEPLOYMENTS));
        assert_eq!(Resource::of("v1", "Deployment"), None);
    }

    #[test]
    fn manifests_find_their_collection() {
        let manifest =
            |api: &str, kind: &str| json!({"apiVersion": api, "kind": kind, "metadata": {"name": "x"}});
        for (api, kind, path) in [
            ("v1", "Pod", "/api/v1/namespaces/dev/pods"),
            ("networking.k8s.io/v1", "Ingress", "/apis/networking.k8s.io/v1/namespaces/dev/ingresses"),
            (
                "networking.k8s.io/v1",
                "NetworkPolicy",
                "/apis/networking.k8s.io/v1/namespaces/dev/networkpolicies",
            ),
            ("v1", "Endpoints", "/api/v1/namespaces/dev/endpoints"),
            ("v1", "Namespace", "/api/v1/namespaces"),
            ("ketch.dev/v1", "Function", "/apis/ketch.dev/v1/namespaces/dev/functions"),
        ] {
            assert_eq!(create_path(&manifest(api, kind), "dev").as_deref(), Some(path));
        }
        assert_eq!(create_path(&json!({"kind": "Pod"}), "dev"), None);
        let own = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "own"}});
        assert_eq!(create_path(&own, "dev").as_deref(), Some("/api/v1/namespaces/own/pods"));
    }
}
