//! Which node has a pod that refers to what. Pure.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

/// Something a pod can refer to, or the pod itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Target {
    kind: Kind,
    namespace: String,
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Pod,
    Secret,
    ConfigMap,
    Claim,
    ServiceAccount,
}

/// Pods by store key, and from targets to nodes.
#[derive(Debug, Default)]
pub(super) struct Graph {
    pods: HashMap<String, Entry>,
    /// How many pods of each node refer to the target.
    nodes: HashMap<Target, HashMap<String, usize>>,
}

#[derive(Debug)]
struct Entry {
    node: String,
    targets: HashSet<Target>,
}

// === impl Target ===

impl Target {
    fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub(super) fn pod(namespace: &str, name: &str) -> Self {
        Self::new(Kind::Pod, namespace, name)
    }

    pub(super) fn secret(namespace: &str, name: &str) -> Self {
        Self::new(Kind::Secret, namespace, name)
    }

    pub(super) fn config_map(namespace: &str, name: &str) -> Self {
        Self::new(Kind::ConfigMap, namespace, name)
    }

    pub(super) fn claim(namespace: &str, name: &str) -> Self {
        Self::new(Kind::Claim, namespace, name)
    }

    pub(super) fn service_account(namespace: &str, name: &str) -> Self {
        Self::new(Kind::ServiceAccount, namespace, name)
    }
}

// === impl Graph ===

impl Graph {
    /// Takes in the pod at `key`; `None`: it is gone.
    pub(super) fn set(&mut self, key: &str, value: Option<&[u8]>) {
        self.forget(key);
        let Some(pod) = value.and_then(|value| serde_json::from_slice::<Value>(value).ok()) else { return };
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (node, namespace) = (text("/spec/nodeName"), text("/metadata/namespace"));
        if node.is_empty() {
            return;
        }
        let mut targets = references(&pod, namespace);
        targets.insert(Target::pod(namespace, text("/metadata/name")));
        for target in &targets {
            *self.nodes.entry(target.clone()).or_default().entry(node.to_owned()).or_default() += 1;
        }
        self.pods.insert(key.to_owned(), Entry { node: node.to_owned(), targets });
    }

    fn forget(&mut self, key: &str) {
        let Some(entry) = self.pods.remove(key) else { return };
        for target in entry.targets {
            let Some(nodes) = self.nodes.get_mut(&target) else { continue };
            if let Some(count) = nodes.get_mut(&entry.node) {
                *count -= 1;
                if *count == 0 {
                    nodes.remove(&entry.node);
                }
            }
            if nodes.is_empty() {
                self.nodes.remove(&target);
            }
        }
    }

    /// Whether a pod on `node` refers to `target`.
    pub(super) fn refers(&self, node: &str, target: &Target) -> bool {
        self.nodes.get(target).is_some_and(|nodes| nodes.contains_key(node))
    }
}

/// Everything a pod's spec refers to. A reference is recognised by the name of its field, wherever it
/// is: volume sources and environment variables alike, in every sort of container.
pub(super) fn references(pod: &Value, namespace: &str) -> HashSet<Target> {
    let mut targets = HashSet::new();
    let Some(spec) = pod.get("spec") else { return targets };
    if let Some(name) = spec.get("serviceAccountName").and_then(Value::as_str).filter(|name| !name.is_empty())
    {
        targets.insert(Target::service_account(namespace, name));
    }
    for secret in spec.get("imagePullSecrets").and_then(Value::as_array).into_iter().flatten() {
        if let Some(name) = secret.get("name").and_then(Value::as_str) {
            targets.insert(Target::secret(namespace, name));
        }
    }
    let mut open = vec![spec];
    while let Some(value) = open.pop() {
        match value {
            Value::Array(items) => open.extend(items),
            Value::Object(fields) => {
                for (field, value) in fields {
                    targets.extend(
                        reference(field, value).map(|(kind, name)| Target::new(kind, namespace, name)),
                    );
                    open.push(value);
                }
            }
            _ => {}
        }
    }
    targets
}

fn reference<'v>(field: &str, value: &'v Value) -> Option<(Kind, &'v str)> {
    let (kind, names): (_, &[&str]) = match field {
        "secretRef" | "secretKeyRef" | "nodePublishSecretRef" => (Kind::Secret, &["name"]),
        // A volume's is `secretName`, a projected source's is `name`.
        "secret" | "azureFile" => (Kind::Secret, &["secretName", "name"]),
        "configMap" | "configMapRef" | "configMapKeyRef" => (Kind::ConfigMap, &["name"]),
        "persistentVolumeClaim" => (Kind::Claim, &["claimName"]),
        _ => return None,
    };
    let name = names.iter().find_map(|name| value.get(name).and_then(Value::as_str))?;
    (!name.is_empty()).then_some((kind, name))
}
