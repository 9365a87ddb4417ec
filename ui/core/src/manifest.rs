//! What Deploy sends: Functions, Pods and patches, from the choices made on the page.

use ketch_api::{
    names::{OUTBOUND_ANNOTATION, REGISTRY_HOST, WASM_RUNTIME_CLASS},
    wasm::World,
};
use serde_json::{Map, Value, json};

/// What a component may reach outside its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Outbound {
    /// Nothing.
    #[default]
    Off,
    /// These `host:port` patterns.
    List(Vec<String>),
    /// Everything but metadata addresses, the node and the control plane.
    All,
}

impl Outbound {
    /// The patterns as the API takes them.
    pub fn patterns(&self) -> Vec<String> {
        match self {
            Outbound::Off => Vec::new(),
            Outbound::List(list) => list.clone(),
            Outbound::All => vec!["*".to_owned()],
        }
    }

    /// From what the API holds.
    pub fn from_patterns(patterns: &[String]) -> Self {
        match patterns {
            [] => Outbound::Off,
            list if list.iter().any(|p| p == "*") => Outbound::All,
            list => Outbound::List(list.to_vec()),
        }
    }
}

/// Splits typed patterns at commas, spaces and lines; a host without a port gets 443. `Err` names the
/// pattern at fault.
pub fn parse_outbound(text: &str) -> Result<Vec<String>, String> {
    let words = text.split([',', ' ', '\n', '\t']).map(str::trim).filter(|w| !w.is_empty());
    words
        .map(|word| {
            let bare = word.split_once("://").map_or(word, |(_, rest)| rest).trim_end_matches('/');
            let (host, port) = match bare.rsplit_once(':') {
                Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port),
                _ => (bare, if word.starts_with("http://") { "80" } else { "443" }),
            };
            let port_ok = port == "*" || port.parse::<u16>().is_ok_and(|p| p > 0);
            let host_ok = !host.is_empty() && !host.contains('/');
            (port_ok && host_ok)
                .then(|| format!("{host}:{port}"))
                .ok_or_else(|| format!("“{word}” is not host:port. Write for instance api.example.com:443."))
        })
        .collect()
}

/// The choices of the Deploy page.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Draft {
    /// Name of the app.
    pub name: String,
    /// Namespace it goes to.
    pub namespace: String,
    /// Image reference.
    pub image: String,
    /// Environment, in order; empty names are left out.
    pub env: Vec<(String, String)>,
    /// Entries of an existing environment that are not plain values (`valueFrom`), kept as they are.
    pub kept_env: Vec<Value>,
    /// Outbound permission.
    pub outbound: Outbound,
    /// Quantity, or empty for the default.
    pub memory: String,
    /// Command-line arguments, for programs that run until they end.
    pub args: Vec<String>,
}

impl Draft {
    fn env(&self) -> Vec<Value> {
        let named = self.env.iter().filter(|(name, _)| !name.is_empty());
        let plain = named.map(|(name, value)| json!({"name": name, "value": value}));
        plain.chain(self.kept_env.iter().cloned()).collect()
    }

    /// The object for a world: a Function when it answers HTTP, else a Pod that runs once.
    pub fn object(&self, world: World) -> Value {
        if world.is_http() { self.function() } else { self.pod() }
    }

    /// As a Function.
    pub fn function(&self) -> Value {
        let mut spec = Map::new();
        spec.insert("image".into(), self.image.clone().into());
        if !self.env().is_empty() {
            spec.insert("env".into(), self.env().into());
        }
        if !self.memory.is_empty() {
            spec.insert("resources".into(), json!({"limits": {"memory": self.memory}}));
        }
        if self.outbound != Outbound::Off {
            spec.insert("permissions".into(), json!({"outbound": self.outbound.patterns()}));
        }
        json!({
            "apiVersion": "ketch.dev/v1",
            "kind": "Function",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": spec,
        })
    }

    /// As a Pod that is not restarted.
    pub fn pod(&self) -> Value {
        let mut container = Map::new();
        container.insert("name".into(), "main".into());
        container.insert("image".into(), self.image.clone().into());
        if !self.args.is_empty() {
            container.insert("args".into(), self.args.clone().into());
        }
        if !self.env().is_empty() {
            container.insert("env".into(), self.env().into());
        }
        if !self.memory.is_empty() {
            container.insert("resources".into(), json!({"limits": {"memory": self.memory}}));
        }
        let mut metadata = json!({"name": self.name, "namespace": self.namespace});
        if self.outbound != Outbound::Off
            && let Some(map) = metadata.as_object_mut()
        {
            let patterns = self.outbound.patterns().join(",");
            map.insert("annotations".into(), json!({OUTBOUND_ANNOTATION: patterns}));
        }
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": {
                "restartPolicy": "Never",
                "runtimeClassName": WASM_RUNTIME_CLASS,
                "containers": [container],
            },
        })
    }

    /// The merge patch that makes an existing Function this draft. A pinned revision is let go, for what
    /// is deployed should answer.
    pub fn patch(&self, existing: &Value) -> Value {
        let mut patch = settings(existing, self.env(), &self.memory, self.outbound.patterns());
        if let Some(spec) = patch.get_mut("spec").and_then(Value::as_object_mut) {
            spec.insert("image".into(), self.image.clone().into());
            spec.insert("traffic".into(), Value::Null);
        }
        patch
    }
}

/// The merge patch that sets a Function's environment, memory limit and outbound permission. What is
/// empty is removed or left out: an empty object in its place would count as a change of the template.
pub fn settings(existing: &Value, env: Vec<Value>, memory: &str, outbound: Vec<String>) -> Value {
    let mut spec = Map::new();
    spec.insert("env".into(), if env.is_empty() { Value::Null } else { env.into() });
    let outbound = if outbound.is_empty() { Value::Null } else { json!({"outbound": outbound}) };
    spec.insert("permissions".into(), outbound);
    let had_limit = existing.pointer("/spec/resources/limits/memory").is_some();
    match memory {
        "" if !had_limit => {}
        "" => drop(spec.insert("resources".into(), json!({"limits": {"memory": null}}))),
        memory => drop(spec.insert("resources".into(), json!({"limits": {"memory": memory}}))),
    }
    json!({ "spec": spec })
}

/// The environment of a Function or container: plain values, and the entries that refer elsewhere.
pub fn split_env(env: &[Value]) -> (Vec<(String, String)>, Vec<Value>) {
    let text = |entry: &Value, key: &str| crate::object::text(entry, key).to_owned();
    let (kept, plain): (Vec<Value>, Vec<Value>) =
        env.iter().cloned().partition(|e| e.get("valueFrom").is_some());
    (plain.iter().map(|e| (text(e, "/name"), text(e, "/value"))).collect(), kept)
}

/// `ketch.local/NAMESPACE/NAME@DIGEST`.
pub fn image(namespace: &str, name: &str, digest: &str) -> String {
    format!("{REGISTRY_HOST}/{namespace}/{name}@{digest}")
}

/// Repository (`NAMESPACE/NAME`) and digest or tag of a reference into the built-in registry.
pub fn parse_image(image: &str) -> Option<(String, String)> {
    let path = image.strip_prefix(REGISTRY_HOST)?.strip_prefix('/')?;
    let (repository, reference) = match path.split_once('@') {
        Some((repository, digest)) => (repository, digest),
        None => path.rsplit_once(':').unwrap_or((path, "latest")),
    };
    (repository.split('/').count() == 2).then(|| (repository.to_owned(), reference.to_owned()))
}

/// The merge patch that sends all traffic to one revision, or to the newest again.
pub fn traffic(revision: Option<&str>) -> Value {
    match revision {
        Some(name) => json!({"spec": {"traffic": [{"revisionName": name, "percent": 100}]}}),
        None => json!({"spec": {"traffic": null}}),
    }
}

/// An object as YAML for reading: without `managedFields`, with identity first.
pub fn to_yaml(object: &Value) -> String {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    let Some(map) = object.as_object() else { return yaml(&object) };
    let first = ["apiVersion", "kind", "metadata", "spec", "data", "status"];
    let rank = |key: &str| first.iter().position(|f| *f == key).unwrap_or(4);
    let mut keys: Vec<&String> = map.keys().collect();
    keys.sort_by_key(|key| rank(key));
    keys.into_iter().filter_map(|key| map.get(key).map(|value| yaml(&json!({ key: value })))).collect()
}

fn yaml(value: &Value) -> String {
    // Long lines stay whole: a folded image reference is hard to read and to copy.
    let mut options = serde_saphyr::SerializerOptions::default();
    options.folded_wrap_chars = 100_000;
    serde_saphyr::to_string_with_options(value, options)
        .unwrap_or_else(|e| format!("# cannot be shown as YAML: {e}\n"))
}

/// The objects of a manifest, YAML (several documents) or JSON; `List` kinds are taken apart.
pub fn parse(text: &str) -> Result<Vec<Value>, String> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|e| format!("The manifest cannot be read: {e}"))?;
    let mut objects = Vec::new();
    for document in documents.into_iter().filter(|d| !d.is_null()) {
        match document.get("items").and_then(Value::as_array) {
            Some(items) if crate::object::text(&document, "/kind").ends_with("List") => {
                objects.extend(items.clone())
            }
            _ => objects.push(document),
        }
    }
    for object in &objects {
        let (kind, name) = (crate::object::text(object, "/kind"), crate::object::name(object));
        if kind.is_empty() || name.is_empty() || crate::object::text(object, "/apiVersion").is_empty() {
            return Err("Each document needs apiVersion, kind and metadata.name.".to_owned());
        }
    }
    if objects.is_empty() { Err("The manifest holds no objects.".to_owned()) } else { Ok(objects) }
}

#[cfg(test)]
mod tests {
    use ketch_api::function::Function;

    use super::*;

    fn draft() -> Draft {
        Draft {
            name: "hello".into(),
            namespace: "default".into(),
            image: image("default", "hello", "sha256:ab"),
            env: vec![("A".into(), "1".into()), (String::new(), "x".into())],
            kept_env: vec![],
            outbound: Outbound::List(vec!["api.example.com:443".into()]),
            memory: "64Mi".into(),
            args: vec![],
        }
    }

    #[test]
    fn the_function_is_one_the_api_reads() {
        let function: Function = serde_json::from_value(draft().object(World::Http)).unwrap();
        assert_eq!(function.spec.image, "ketch.local/default/hello@sha256:ab");
        assert_eq!(function.spec.env.len(), 1, "a variable without a name is left out");
        assert_eq!(function.spec.permissions.unwrap().outbound, ["api.example.com:443"]);
        let bare = Draft { name: "a".into(), image: "i".into(), ..Draft::default() };
        assert_eq!(bare.function()["spec"], json!({"image": "i"}));
    }

    #[test]
    fn a_command_becomes_a_pod() {
        let pod: ketch_api::k8s::api::core::v1::Pod =
            serde_json::from_value(draft().object(World::Command)).unwrap();
        let spec = pod.spec.unwrap();
        assert_eq!(spec.restart_policy.as_deref(), Some("Never"));
        assert_eq!(spec.runtime_class_name.as_deref(), Some("ketch-wasm"));
        assert_eq!(pod.metadata.annotations.unwrap()["ketch.dev/outbound"], "api.example.com:443");
    }

    #[test]
    fn patches_let_go_of_a_pin() {
        let patch = draft().patch(&Value::Null);
        assert!(patch["spec"]["traffic"].is_null() && patch["spec"].get("traffic").is_some());
        assert_eq!(traffic(Some("f-00001"))["spec"]["traffic"][0]["percent"], 100);
        assert!(traffic(None)["spec"]["traffic"].is_null());
    }

    #[test]
    fn an_emptied_setting_is_removed_and_an_absent_one_not_mentioned() {
        let bare = settings(&json!({"spec": {"image": "i"}}), vec![], "", vec![]);
        assert_eq!(bare, json!({"spec": {"env": null, "permissions": null}}));
        let limited = json!({"spec": {"resources": {"limits": {"memory": "64Mi"}}}});
        let patch = settings(&limited, vec![], "", vec!["*".into()]);
        assert!(patch["spec"]["resources"]["limits"]["memory"].is_null());
        assert_eq!(patch["spec"]["permissions"]["outbound"], json!(["*"]));
    }

    #[test]
    fn references_in_the_environment_survive_an_edit() {
        let secret = json!({"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}});
        let (plain, kept) = split_env(&[json!({"name": "A", "value": "1"}), secret.clone()]);
        assert_eq!(plain, [("A".to_owned(), "1".to_owned())]);
        let draft = Draft { env: plain, kept_env: kept, ..draft() };
        assert_eq!(draft.patch(&Value::Null)["spec"]["env"], json!([{"name": "A", "value": "1"}, secret]));
    }

    #[test]
    fn outbound_patterns() {
        assert_eq!(
            parse_outbound("api.example.com, http://a.b/ db:5432\n*.x.org:*").unwrap(),
            ["api.example.com:443", "a.b:80", "db:5432", "*.x.org:*"]
        );
        assert!(parse_outbound("host:99999").unwrap_err().contains("host:99999"));
        assert_eq!(parse_outbound(" ").unwrap(), Vec::<String>::new());
        assert_eq!(Outbound::from_patterns(&["*".into()]), Outbound::All);
        assert_eq!(Outbound::from_patterns(&[]), Outbound::Off);
    }

    #[test]
    fn image_references() {
        let digest = ("default/hello".to_owned(), "sha256:ab".to_owned());
        assert_eq!(parse_image("ketch.local/default/hello@sha256:ab"), Some(digest));
        assert_eq!(parse_image("ketch.local/default/hello:v1").unwrap().1, "v1");
        assert_eq!(parse_image("ketch.local/default/hello").unwrap().1, "latest");
        assert_eq!(parse_image("docker.io/library/nginx"), None);
    }

    #[test]
    fn yaml_round_trips_with_identity_first() {
        let long = image("default", "hello", &format!("sha256:{}", "ab".repeat(32)));
        let mut object = Draft { image: long, ..draft() }.function();
        object["metadata"]["managedFields"] = json!([{"manager": "x"}]);
        object["metadata"]["annotations"] =
            json!({"note": "yes", "version": "1.0", "time": "12:30", "multi": "a\nb: c\n"});
        let text = to_yaml(&object);
        assert!(text.starts_with("apiVersion: ketch.dev/v1\nkind: Function\n"), "{text}");
        assert!(!text.contains("managedFields"));
        assert!(
            text.contains(&format!("image: ketch.local/default/hello@sha256:{}", "ab".repeat(32))),
            "{text}"
        );
        let back = parse(&text).unwrap();
        assert_eq!(back[0]["metadata"]["annotations"], object["metadata"]["annotations"], "{text}");
        assert_eq!(back[0]["spec"], object["spec"]);
    }

    #[test]
    fn manifests_of_several_documents() {
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: b\n";
        assert_eq!(parse(text).unwrap().len(), 2);
        let list = r#"{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"}}]}"#;
        assert_eq!(parse(list).unwrap()[0]["kind"], "Pod");
        assert!(parse("a: [").unwrap_err().starts_with("The manifest cannot be read"));
        assert!(parse("kind: Pod\n").unwrap_err().contains("apiVersion"));
        assert!(parse("# nothing\n").is_err());
    }
}
