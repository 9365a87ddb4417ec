//! One line of discovery per resource and subresource.

use ketch_api::Descriptor;
use serde_json::{Value, json};

use super::{VERBS, storage_version_hash};
use crate::{
    rest::{metrics, sub::review},
    server::ApiServer,
    wire::set,
};

/// A kind by its names.
#[derive(Clone, Copy, Debug)]
struct Gvk {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
}

/// A subresource.
struct Sub {
    name: &'static str,
    kind: Gvk,
    verbs: &'static [&'static str],
}

/// A resource with its subresources.
pub(crate) struct Entry {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    plural: &'static str,
    singular: &'static str,
    kind: &'static str,
    namespaced: bool,
    verbs: &'static [&'static str],
    short_names: &'static [&'static str],
    categories: &'static [&'static str],
    hash: String,
    subs: Vec<Sub>,
}

const CHANGE: &[&str] = &["get", "patch", "update"];
const CREATE: &[&str] = &["create"];
const MEASURED: &[&str] = &["get", "list"];
const CONNECT: &[&str] = &["create", "get"];

/// Everything the server serves, core first.
pub(crate) fn entries(server: &ApiServer) -> Vec<Entry> {
    let mut entries =
        server.registry.iter().map(|resource| stored(server, resource.descriptor())).collect::<Vec<_>>();
    if entries.iter().any(|entry| entry.group.is_empty() && entry.plural == "pods") {
        entries.push(question("", "Binding", "bindings", true));
    }
    if server.reviews.is_some() {
        entries.extend(review::ALL.iter().map(|r| question(r.group, r.kind, r.plural, r.namespaced)));
    }
    if server.metrics.is_some() {
        entries.extend(metrics::ALL.iter().map(|kind| Entry {
            version: metrics::VERSION,
            singular: "",
            verbs: MEASURED,
            ..question(metrics::GROUP, kind.kind, kind.plural, kind.namespaced)
        }));
    }
    entries.sort_by_key(|entry| (entry.group, entry.version, entry.plural));
    entries
}

fn stored(server: &ApiServer, descriptor: &Descriptor) -> Entry {
    Entry {
        group: descriptor.group,
        version: descriptor.version,
        plural: descriptor.plural,
        singular: descriptor.singular,
        kind: descriptor.kind,
        namespaced: descriptor.namespaced,
        verbs: VERBS,
        short_names: descriptor.short_names,
        categories: descriptor.categories,
        hash: storage_version_hash(descriptor),
        subs: subs(server, descriptor),
    }
}

fn question(group: &'static str, kind: &'static str, plural: &'static str, namespaced: bool) -> Entry {
    let singular = plural.strip_suffix('s').unwrap_or(plural);
    Entry {
        group,
        version: "v1",
        plural,
        singular,
        kind,
        namespaced,
        verbs: CREATE,
        short_names: &[],
        categories: &[],
        hash: String::new(),
        subs: Vec::new(),
    }
}

fn subs(server: &ApiServer, descriptor: &Descriptor) -> Vec<Sub> {
    let own = Gvk { group: descriptor.group, version: descriptor.version, kind: descriptor.kind };
    let other = |group, version, kind| Gvk { group, version, kind };
    let sub = |name, kind, verbs| Sub { name, kind, verbs };
    let mut subs = match (descriptor.group, descriptor.kind) {
        ("", "Pod") => vec![
            sub("attach", other("", "v1", "PodAttachOptions"), CONNECT),
            sub("binding", other("", "v1", "Binding"), CREATE),
            sub("eviction", other("policy", "v1", "Eviction"), CREATE),
            sub("exec", other("", "v1", "PodExecOptions"), CONNECT),
            sub("log", own, &["get"]),
            sub("portforward", other("", "v1", "PodPortForwardOptions"), CONNECT),
        ],
        ("", "Namespace") => vec![sub("finalize", own, &["update"])],
        ("", "ServiceAccount") if server.reviews.is_some() => {
            vec![sub("token", other("authentication.k8s.io", "v1", "TokenRequest"), CREATE)]
        }
        _ => Vec::new(),
    };
    if descriptor.scale.is_some() {
        subs.push(sub("scale", other("autoscaling", "v1", "Scale"), CHANGE));
    }
    if descriptor.status {
        subs.push(sub("status", own, CHANGE));
    }
    subs
}

impl Entry {
    /// The resource and its subresources as `APIResource`s.
    pub(crate) fn resources(&self) -> Vec<Value> {
        let mut value = json!({"name": self.plural, "singularName": self.singular, "namespaced": self.namespaced,
            "kind": self.kind, "verbs": self.verbs});
        self.extras(&mut value);
        if !self.hash.is_empty() {
            set(&mut value, "storageVersionHash", self.hash.as_str());
        }
        let subs = self.subs.iter().map(|sub| {
            let mut value = json!({"name": format!("{}/{}", self.plural, sub.name), "singularName": "",
                "namespaced": self.namespaced, "kind": sub.kind.kind, "verbs": sub.verbs});
            if (sub.kind.group, sub.kind.version) != (self.group, self.version) {
                set(&mut value, "group", sub.kind.group);
                set(&mut value, "version", sub.kind.version);
            }
            value
        });
        std::iter::once(value).chain(subs).collect()
    }

    /// The same as one `APIResourceDiscovery`.
    pub(crate) fn aggregated(&self) -> Value {
        let scope = if self.namespaced { "Namespaced" } else { "Cluster" };
        let response = |kind: Gvk| json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
        let own = Gvk { group: self.group, version: self.version, kind: self.kind };
        let mut value = json!({"resource": self.plural, "responseKind": response(own), "scope": scope,
            "singularResource": self.singular, "verbs": self.verbs});
        self.extras(&mut value);
        if !self.subs.is_empty() {
            let subs = self.subs.iter().map(|sub| {
                json!({"subresource": sub.name, "responseKind": response(sub.kind), "verbs": sub.verbs})
            });
            set(&mut value, "subresources", subs.collect::<Vec<_>>());
        }
        value
    }

    fn extras(&self, value: &mut Value) {
        for (key, list) in [("shortNames", self.short_names), ("categories", self.categories)] {
            if !list.is_empty() {
                set(value, key, list.to_vec());
            }
        }
    }
}
