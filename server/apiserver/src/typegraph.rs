//! The graph of Kubernetes API types: which message has which fields, of which type.
//!
//! One table feeds three readers: the protobuf decoder (tags), strategic merge patch (patch strategies
//! and merge keys) and OpenAPI (the `x-kubernetes-patch-*` extensions). The table is `typegraph.txt`; how
//! it was made is in its header.

use std::{collections::HashMap, sync::LazyLock};

/// Every known type.
pub static GRAPH: LazyLock<TypeGraph> = LazyLock::new(|| TypeGraph::parse(include_str!("typegraph.txt")));

/// Messages, their fields, and the kinds among them.
#[derive(Debug, Default)]
pub struct TypeGraph {
    messages: Vec<Message>,
    by_name: HashMap<String, usize>,
    /// `v1`, `apps/v1` to the package with its kinds.
    packages: HashMap<&'static str, &'static str>,
}

/// A message: a kind or a part of one.
#[derive(Debug)]
pub struct Message {
    /// Package and name, for instance `api.core.v1.Pod`; with `io.k8s.` before it, the OpenAPI name.
    pub name: String,
    /// In the order of the definition.
    pub fields: Vec<Field>,
}

/// A field of a [`Message`].
#[derive(Clone, Debug)]
pub struct Field {
    /// Protobuf tag.
    pub tag: u32,
    /// JSON name; empty when the fields of the message are inlined into the parent object.
    pub json: &'static str,
    /// One, many or a map.
    pub shape: Shape,
    /// Type of the value, of each item, or of each map value.
    pub kind: Kind,
    /// What a zero on the wire means.
    pub presence: Presence,
    /// How a strategic merge patch treats it.
    pub patch: PatchStrategy,
}

/// How often a field occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// At most once.
    One,
    /// A list.
    Repeated,
    /// A map from string.
    Map,
}

/// Type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8 text.
    String,
    /// A truth value.
    Bool,
    /// A signed number of 32 or 64 bits.
    Int,
    /// A floating-point number.
    Double,
    /// Base64 in JSON.
    Bytes,
    /// `resource.Quantity`: a string.
    Quantity,
    /// `intstr.IntOrString`: a number or a string.
    IntOrString,
    /// `metav1.Time`: RFC 3339, whole seconds.
    Time,
    /// `metav1.MicroTime`: RFC 3339, microseconds.
    MicroTime,
    /// `runtime.RawExtension`: any JSON.
    Raw,
    /// `metav1.FieldsV1`: any JSON.
    FieldsV1,
    /// A message that is a list of strings in JSON.
    Strings,
    /// Index for [`TypeGraph::message`].
    Message(usize),
}

/// What the absence or zero of a scalar means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// The JSON leaves zero out.
    OmitZero,
    /// A zero on the wire is a value.
    Pointer,
    /// The JSON has the field even when it is zero.
    Always,
}

/// `patchStrategy` and `patchMergeKey` of a field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    /// Lists are merged item by item.
    pub merge: bool,
    /// The patch takes the place of the value.
    pub replace: bool,
    /// The patch lists the keys to keep.
    pub retain_keys: bool,
    /// Field that identifies an item of a merged list of objects.
    pub merge_key: Option<&'static str>,
}

impl PatchStrategy {
    /// The value of `x-kubernetes-patch-strategy`; `None`: the default, which is not written.
    pub fn text(self) -> Option<String> {
        let words: Vec<&str> =
            [(self.merge, "merge"), (self.replace, "replace"), (self.retain_keys, "retainKeys")]
                .into_iter()
                .filter_map(|(set, word)| set.then_some(word))
                .collect();
        (!words.is_empty()).then(|| words.join(","))
    }
}

// === impl TypeGraph ===

impl TypeGraph {
    /// The message of a kind. `DeleteOptions` and `Status` belong to every group and version.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&Message> {
        if matches!(kind, "DeleteOptions" | "Status") {
            return self.named(&format!("apimachinery.pkg.apis.meta.v1.{kind}"));
        }
        let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        let package = self.packages.get(api_version.as_str())?;
        self.named(&format!("{package}.{kind}"))
    }

    /// The message with this package and name.
    pub fn named(&self, name: &str) -> Option<&Message> {
        self.messages.get(*self.by_name.get(name)?)
    }

    /// The message a [`Kind::Message`] points to.
    pub fn message(&self, index: usize) -> Option<&Message> {
        self.messages.get(index)
    }

    /// Every message.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The field `json` of `message`, looked up through inlined messages as well.
    pub fn field<'g>(&'g self, message: &'g Message, json: &str) -> Option<&'g Field> {
        message.fields.iter().find_map(|field| match (field.json, field.kind) {
            ("", Kind::Message(inlined)) => {
                self.message(inlined).and_then(|inlined| self.field(inlined, json))
            }
            (name, _) => (name == json).then_some(field),
        })
    }

    /// Reads the table. A line that does not follow the format is skipped; a test makes sure there is none.
    fn parse(text: &'static str) -> Self {
        let mut graph = Self::default();
        graph.collect_names(text);
        let (mut package, mut current) = ("", None);
        for line in table_lines(text) {
            let mut words = line.split(' ');
            match (words.next(), words.next()) {
                (Some("package"), Some(name)) => package = name,
                (Some("message"), Some(name)) => {
                    current = graph.by_name.get(&format!("{package}.{name}")).copied()
                }
                _ => {
                    let field = graph.parse_field(package, line);
                    let message = current.and_then(|index| graph.messages.get_mut(index));
                    if let (Some(message), Some(field)) = (message, field) {
                        message.fields.push(field);
                    }
                }
            }
        }
        graph
    }

    /// First pass: fields refer to messages that come later.
    fn collect_names(&mut self, text: &'static str) {
        let mut package = "";
        for line in table_lines(text) {
            let mut words = line.split(' ');
            match (words.next(), words.next(), words.next()) {
                (Some("package"), Some(name), api_version) => {
                    package = name;
                    if let Some(api_version) = api_version {
                        self.packages.insert(api_version, name);
                    }
                }
                (Some("message"), Some(name), _) => {
                    let name = format!("{package}.{name}");
                    self.by_name.insert(name.clone(), self.messages.len());
                    self.messages.push(Message { name, fields: Vec::new() });
                }
                _ => {}
            }
        }
    }

    fn parse_field(&self, package: &str, line: &'static str) -> Option<Field> {
        let mut words = line.split(' ');
        let tag = words.next()?.parse().ok()?;
        let json = words.next()?;
        let typed = words.next()?;
        let (shape, name) = match (typed.strip_prefix('*'), typed.strip_prefix('%')) {
            (Some(item), _) => (Shape::Repeated, item),
            (_, Some(value)) => (Shape::Map, value),
            _ => (Shape::One, typed),
        };
        let kind = scalar(name).or_else(|| self.reference(package, name).map(Kind::Message))?;
        let mut presence = Presence::OmitZero;
        let mut patch = PatchStrategy::default();
        for flag in words {
            match flag.split_once('=').map_or((flag, None), |(flag, key)| (flag, Some(key))) {
                ("pointer", _) => presence = Presence::Pointer,
                ("always", _) => presence = Presence::Always,
                ("merge", key) => (patch.merge, patch.merge_key) = (true, key),
                ("replace", _) => patch.replace = true,
                ("retainKeys", _) => patch.retain_keys = true,
                _ => return None,
            }
        }
        Some(Field { tag, json: if json == "-" { "" } else { json }, shape, kind, presence, patch })
    }

    fn reference(&self, package: &str, name: &str) -> Option<usize> {
        let local = format!("{package}.{name}");
        self.by_name.get(&local).or_else(|| self.by_name.get(name)).copied()
    }
}

fn table_lines(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn scalar(name: &str) -> Option<Kind> {
    Some(match name {
        "string" => Kind::String,
        "bool" => Kind::Bool,
        "int32" | "int64" => Kind::Int,
        "double" => Kind::Double,
        "bytes" => Kind::Bytes,
        "quantity" => Kind::Quantity,
        "intstr" => Kind::IntOrString,
        "time" => Kind::Time,
        "microtime" => Kind::MicroTime,
        "raw" => Kind::Raw,
        "fieldsv1" => Kind::FieldsV1,
        "strings" => Kind::Strings,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_understood() {
        let text = include_str!("typegraph.txt");
        let fields = table_lines(text).filter(|line| line.starts_with(|c: char| c.is_ascii_digit())).count();
        let messages = table_lines(text).filter(|line| line.starts_with("message ")).count();
        assert_eq!(GRAPH.messages.len(), messages);
        assert_eq!(GRAPH.messages.iter().map(|m| m.fields.len()).sum::<usize>(), fields);
        assert!(fields > 1000, "{fields}");
    }

    #[test]
    fn tags_and_names_are_unique_in_a_message() {
        for message in GRAPH.messages() {
            let mut tags: Vec<_> = message.fields.iter().map(|f| f.tag).collect();
            tags.sort_unstable();
            tags.dedup();
            assert_eq!(tags.len(), message.fields.len(), "{}", message.name);
        }
    }

    #[test]
    fn fields_are_found_through_inlined_messages() {
        let volume = GRAPH.named("api.core.v1.Volume").unwrap();
        assert_eq!(GRAPH.field(volume, "configMap").unwrap().tag, 19);
        assert!(GRAPH.field(volume, "volumeSource").is_none());
        let probe = GRAPH.named("api.core.v1.Probe").unwrap();
        assert!(GRAPH.field(probe, "httpGet").is_some());
    }

    #[test]
    fn kinds_are_found_by_group_and_version() {
        for (group, version, kind, name) in [
            ("", "v1", "Pod", "api.core.v1.Pod"),
            ("apps", "v1", "Deployment", "api.apps.v1.Deployment"),
            ("rbac.authorization.k8s.io", "v1", "Role", "api.rbac.v1.Role"),
            ("policy", "v1", "Eviction", "api.policy.v1.Eviction"),
            ("autoscaling", "v1", "Scale", "api.autoscaling.v1.Scale"),
            ("authentication.k8s.io", "v1", "TokenRequest", "api.authentication.v1.TokenRequest"),
            ("apps", "v1", "DeleteOptions", "apimachinery.pkg.apis.meta.v1.DeleteOptions"),
        ] {
            assert_eq!(GRAPH.kind(group, version, kind).unwrap().name, name);
        }
        assert!(GRAPH.kind("ketch.dev", "v1", "Function").is_none());
    }
}
