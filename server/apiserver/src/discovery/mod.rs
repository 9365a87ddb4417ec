//! What the server serves, for clients to find out: `/api`, `/apis`, their groups and versions, `/version`
//! and the index of paths. Built from the registry; the aggregated form by content negotiation.

use axum::response::Response;
use http::{HeaderValue, header, request::Parts};
use ketch_api::{Descriptor, Status, names::KUBERNETES_VERSION};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    respond,
    server::ApiServer,
    wire::{negotiate, set, yaml},
};

mod resources;

pub(crate) use resources::Entry;
use resources::entries;

/// Answers a discovery path; `None` for other paths.
pub(crate) fn handle(server: &ApiServer, parts: &Parts, path: &str) -> Option<Response> {
    let segments = path.split('/').filter(|segment| !segment.is_empty()).collect::<Vec<_>>();
    let value = match segments.as_slice() {
        [] => index(server),
        ["version"] => version(),
        ["api" | "apis"] => {
            let core = segments == ["api"];
            if let Some(form) = aggregated_form(parts) {
                return Some(aggregated(server, parts, core, form));
            }
            if core { core_versions() } else { group_list(server) }
        }
        ["api", version] => resource_list(server, "", version)?,
        ["apis", group] => group_entry(server, group, true)?,
        ["apis", group, version] => resource_list(server, group, version)?,
        _ => return None,
    };
    Some(encoded(parts, &value).unwrap_or_else(|status| respond::failure(&status)))
}

fn encoded(parts: &Parts, value: &Value) -> Result<Response, Status> {
    let accepted = negotiate::negotiate(&parts.headers, false)?;
    let mut response = match accepted.encoding {
        negotiate::Encoding::Json => respond::json(200, value),
        negotiate::Encoding::Yaml => respond::bytes(200, "application/yaml", yaml::render(value)?),
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

/// `/version`; clients parse `major` and `minor` as integers.
fn version() -> Value {
    let bare = KUBERNETES_VERSION.trim_start_matches('v');
    let mut numbers = bare.split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "major": major, "minor": minor,
        "emulationMajor": major, "emulationMinor": minor,
        "minCompatibilityMajor": major, "minCompatibilityMinor": minor,
        "gitVersion": format!("{KUBERNETES_VERSION}+ketch.{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none", "compiler": "rustc",
        "platform": format!("{}/{arch}", std::env::consts::OS),
    })
}

/// The paths at `/`.
fn index(server: &ApiServer) -> Value {
    let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
    for (group, versions) in groups(server) {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
    }
    paths.extend(["/healthz", "/livez", "/readyz", "/version"].map(str::to_owned));
    paths.extend(server.paths.iter().flat_map(|handler| handler.paths()));
    paths.sort();
    paths.dedup();
    json!({"paths": paths})
}

fn core_versions() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}]})
}

/// Every group but core with its versions, the preferred one first.
fn groups(server: &ApiServer) -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
    for entry in entries(server).iter().filter(|entry| !entry.group.is_empty()) {
        match groups.iter_mut().find(|(group, _)| *group == entry.group) {
            Some((_, versions)) if versions.contains(&entry.version) => {}
            Some((_, versions)) => versions.push(entry.version),
            None => groups.push((entry.group, vec![entry.version])),
        }
    }
    groups
}

fn group_list(server: &ApiServer) -> Value {
    let groups = groups(server);
    let groups = groups.iter().filter_map(|(group, _)| group_entry(server, group, false)).collect::<Vec<_>>();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn group_entry(server: &ApiServer, group: &str, typed: bool) -> Option<Value> {
    let groups = groups(server);
    let (_, versions) = groups.iter().find(|(own, _)| *own == group)?;
    let versions = versions
        .iter()
        .map(|version| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
        .collect::<Vec<_>>();
    let mut entry = json!({"name": group, "versions": versions, "preferredVersion": versions.first()});
    if typed {
        set(&mut entry, "kind", "APIGroup");
        set(&mut entry, "apiVersion", "v1");
    }
    Some(entry)
}

fn resource_list(server: &ApiServer, group: &str, version: &str) -> Option<Value> {
    let entries = entries(server);
    let own = entries.iter().filter(|entry| entry.group == group && entry.version == version);
    let resources = own.flat_map(Entry::resources).collect::<Vec<_>>();
    if resources.is_empty() {
        return None;
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version,
        "resources": resources}))
}

/// The version of the aggregated form the client would take, if it would rather have that.
fn aggregated_form(parts: &Parts) -> Option<&'static str> {
    let clauses = negotiate::clauses(&parts.headers);
    for clause in clauses.iter().filter(|clause| matches!(clause.media, "application/json" | "*/*")) {
        match (clause.parameter("as"), clause.parameter("g"), clause.parameter("v")) {
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => return Some("v2"),
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2beta1") => return Some("v2beta1"),
            ("", ..) => return None,
            _ => {}
        }
    }
    None
}

fn aggregated(server: &ApiServer, parts: &Parts, core: bool, form: &'static str) -> Response {
    let entries = entries(server);
    let listed: Vec<(&str, Vec<&str>)> = if core { vec![("", vec!["v1"])] } else { groups(server) };
    let items = listed.iter().map(|(group, versions)| {
        let versions = versions.iter().map(|version| {
            let own = entries.iter().filter(|entry| entry.group == *group && entry.version == *version);
            let resources = own.map(Entry::aggregated).collect::<Vec<_>>();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        });
        let metadata = if group.is_empty() {
            json!({"creationTimestamp": null})
        } else {
            json!({"name": group, "creationTimestamp": null})
        };
        json!({"metadata": metadata, "versions": versions.collect::<Vec<_>>()})
    });
    let items = items.collect::<Vec<_>>();
    let body = json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{form}"),
        "metadata": {}, "items": items});
    let content_type = match form {
        "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
    };
    cacheable(parts, content_type, body.to_string())
}

/// An answer with an ETag; 304 when the client has it already.
fn cacheable(parts: &Parts, content_type: &'static str, body: String) -> Response {
    let digest = Sha256::digest(body.as_bytes());
    let etag = format!("\"{}\"", digest.iter().map(|byte| format!("{byte:02X}")).collect::<String>());
    let sent =
        parts.headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let known = sent.split(',').any(|one| one.trim() == etag);
    let mut response = match known {
        true => respond::bytes(304, content_type, String::new()),
        false => respond::bytes(200, content_type, body),
    };
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&etag) {
        headers.insert(header::ETAG, value);
    }
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    response
}

/// Verbs of a stored kind, sorted.
pub(crate) const VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// Hash kubectl shows for a stored version: upstream hashes group, version and kind, too.
pub(crate) fn storage_version_hash(descriptor: &Descriptor) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let text = format!("{}/{}/{}", descriptor.group, descriptor.version, descriptor.kind);
    let digest = Sha256::digest(text.as_bytes());
    STANDARD.encode(digest.get(..8).unwrap_or_default())
}
