//! What a request is about: its path, method and query as verb, resource and name.
//!
//! The rules are those of kube-apiserver's `pkg/endpoints/request/requestinfo.go`; authorisation and
//! routing both look only at the result, so they cannot disagree.

use crate::{selector::FieldSelector, status::Status, validation};

/// A request's meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for other paths
    /// the method in lower case.
    pub verb: String,
    /// Whether it is about a resource (`/api/v1/…`, `/apis/GROUP/VERSION/…`).
    pub is_resource: bool,
    /// API group; empty for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural.
    pub resource: String,
    /// First segment after the name.
    pub subresource: String,
    /// Namespace. Also set for a Namespace object itself, as upstream.
    pub namespace: String,
    /// Name. A list or watch has one when its field selector asks for `metadata.name=…`.
    pub name: String,
    /// Decoded path without a trailing slash.
    pub path: String,
    /// What follows the subresource (`/proxy/REST`), as sent, with its leading slash; empty otherwise.
    pub rest: String,
}

impl RequestInfo {
    /// Reads a request. `Err` is a 400: broken escapes, empty or dot segments, NUL.
    pub fn parse(method: &str, path: &str, query: Option<&str>) -> Result<Self, Status> {
        let raw = segments(path)?;
        let parts = raw.iter().map(|s| decode_segment(s)).collect::<Result<Vec<_>, _>>()?;
        let mut info = Self {
            verb: method.to_ascii_lowercase(),
            path: format!("/{}", parts.join("/")),
            ..Self::default()
        };
        let Some(rest) = info.prefix(&parts) else {
            return Ok(info);
        };
        info.is_resource = true;
        info.verb = verb(method).to_owned();
        let mut at = parts.len() - rest.len();
        let mut rest = rest;
        let mut watch_prefix = false;
        if let [first @ ("watch" | "proxy"), tail @ ..] = strs(rest).as_slice() {
            if tail.is_empty() {
                return Err(Status::bad_request(format!(
                    "unable to determine kind and namespace from url: {path}"
                )));
            }
            (*first).clone_into(&mut info.verb);
            watch_prefix = true;
            at += 1;
            rest = rest.get(1..).unwrap_or_default();
        }
        if let [first, namespace, tail @ ..] = strs(rest).as_slice()
            && *first == "namespaces"
        {
            (*namespace).clone_into(&mut info.namespace);
            let own = matches!(tail.first(), None | Some(&("status" | "finalize")));
            if !own {
                at += 2;
                rest = rest.get(2..).unwrap_or_default();
            }
        }
        info.locate(rest, watch_prefix);
        info.rest = tail_of(path, &raw, at + 3);
        info.refine(query.unwrap_or_default());
        Ok(info)
    }

    /// Consumes `api/VERSION` or `apis/GROUP/VERSION`; `None` when the path is about no resource.
    fn prefix<'a>(&mut self, parts: &'a [String]) -> Option<&'a [String]> {
        match strs(parts).as_slice() {
            ["api", version, _, ..] => {
                (*version).clone_into(&mut self.version);
                parts.get(2..)
            }
            ["apis", group, version, _, ..] => {
                (*group).clone_into(&mut self.group);
                (*version).clone_into(&mut self.version);
                parts.get(3..)
            }
            _ => None,
        }
    }

    fn locate(&mut self, parts: &[String], no_subresource: bool) {
        let part = |n: usize| parts.get(n).cloned().unwrap_or_default();
        self.resource = part(0);
        self.name = part(1);
        if !no_subresource {
            self.subresource = part(2);
        }
    }

    /// A nameless get is a list or a watch, a nameless delete is of the collection.
    fn refine(&mut self, query: &str) {
        if !self.name.is_empty() {
            return;
        }
        match self.verb.as_str() {
            "get" => {
                let watching = value_of(query, "watch")
                    .is_some_and(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0"));
                self.verb = if watching { "watch" } else { "list" }.to_owned();
            }
            "delete" => "deletecollection".clone_into(&mut self.verb),
            _ => {}
        }
        if matches!(self.verb.as_str(), "list" | "watch" | "deletecollection") {
            let selector = value_of(query, "fieldSelector").and_then(|text| FieldSelector::parse(&text).ok());
            if let Some(name) = selector.as_ref().and_then(|s| s.exact("metadata.name"))
                && validation::path_segment(name).is_empty()
            {
                name.clone_into(&mut self.name);
            }
        }
    }
}

fn strs(parts: &[String]) -> Vec<&str> {
    parts.iter().map(String::as_str).collect()
}

fn verb(method: &str) -> &'static str {
    match method {
        "POST" => "create",
        "GET" | "HEAD" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
}

/// Segments as sent. Empty ones are refused up to where a proxied path may begin.
fn segments(path: &str) -> Result<Vec<&str>, Status> {
    let trimmed = path.strip_prefix('/').unwrap_or(path);
    let trimmed = trimmed.strip_suffix('/').unwrap_or(trimmed);
    if trimmed.is_empty() {
        return Ok(Vec::new());
    }
    let segments: Vec<_> = trimmed.split('/').collect();
    let free_from = segments.iter().position(|s| *s == "proxy").unwrap_or(segments.len());
    if segments.iter().take(free_from).any(|s| s.is_empty()) {
        return Err(Status::bad_request(format!("the path {path:?} has an empty segment")));
    }
    Ok(segments)
}

fn decode_segment(segment: &str) -> Result<String, Status> {
    let bad = |why: &str| Status::bad_request(format!("the path segment {segment:?} {why}"));
    let decoded = percent_decode(segment, false).ok_or_else(|| bad("is not properly escaped UTF-8"))?;
    match decoded.as_str() {
        "." | ".." => Err(bad("may not be used")),
        text if text.contains(['\0', '/']) => Err(bad("holds a character that is not allowed")),
        _ => Ok(decoded),
    }
}

/// The path from segment `from` on, as sent, with its leading slash; a trailing slash is kept.
fn tail_of(path: &str, raw: &[&str], from: usize) -> String {
    match raw.get(from..) {
        Some(tail @ [_, ..]) => {
            let end = if path.ends_with('/') { "/" } else { "" };
            format!("/{}{end}", tail.join("/"))
        }
        _ => String::new(),
    }
}

/// Reverses percent-encoding; in a query `+` is a space. `None`: a broken escape, or not UTF-8.
pub fn percent_decode(text: &str, query: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                out.push(u8::try_from(high * 16 + low).ok()?);
            }
            b'+' if query => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8(out).ok()
}

/// The pairs of a query string, decoded; pairs with broken escapes are left out.
pub fn query_pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').filter(|pair| !pair.is_empty()).filter_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some((percent_decode(key, true)?, percent_decode(value, true)?))
    })
}

/// The first value of `key` in a query string.
pub fn value_of(query: &str, key: &str) -> Option<String> {
    query_pairs(query).find(|(k, _)| k == key).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `verb group/version resource/subresource namespace name rest`, `-` for what is empty.
    fn line(method: &str, target: &str) -> String {
        let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q)));
        let info = RequestInfo::parse(method, path, query).unwrap();
        if !info.is_resource {
            return format!("{} {}", info.verb, info.path);
        }
        let dash = |s: &str| if s.is_empty() { "-".to_owned() } else { s.to_owned() };
        let resource = format!("{}/{}", info.resource, info.subresource);
        [
            info.verb,
            format!("{}/{}", info.group, info.version),
            resource.trim_end_matches('/').to_owned(),
            info.namespace,
            info.name,
            info.rest,
        ]
        .iter()
        .map(|s| dash(s))
        .collect::<Vec<_>>()
        .join(" ")
    }

    #[test]
    fn reads_requests_as_upstream() {
        for (method, target, want) in [
            ("GET", "/", "get /"),
            ("GET", "/api", "get /api"),
            ("GET", "/api/v1", "get /api/v1"),
            ("GET", "/api/v1/", "get /api/v1"),
            ("GET", "/apis/apps/v1", "get /apis/apps/v1"),
            ("POST", "/healthz/ping", "post /healthz/ping"),
            ("GET", "/api/v1/pods", "list /v1 pods - - -"),
            ("GET", "/api/v1/pods/", "list /v1 pods - - -"),
            ("GET", "/api/v1/pods?watch=1", "watch /v1 pods - - -"),
            ("GET", "/api/v1/pods?watch=true", "watch /v1 pods - - -"),
            ("GET", "/api/v1/pods?watch=0", "list /v1 pods - - -"),
            ("GET", "/api/v1/pods?watch=false", "list /v1 pods - - -"),
            ("GET", "/api/v1/watch/pods", "watch /v1 pods - - -"),
            ("GET", "/api/v1/watch/namespaces/a/pods/b", "watch /v1 pods a b -"),
            ("GET", "/api/v1/namespaces/a/pods", "list /v1 pods a - -"),
            ("GET", "/api/v1/namespaces/a/pods/b", "get /v1 pods a b -"),
            ("HEAD", "/api/v1/namespaces/a/pods/b", "get /v1 pods a b -"),
            ("GET", "/api/v1/namespaces/a/pods/b/log?follow=1", "get /v1 pods/log a b -"),
            ("POST", "/api/v1/namespaces/a/pods", "create /v1 pods a - -"),
            ("PUT", "/api/v1/namespaces/a/pods/b/status", "update /v1 pods/status a b -"),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/b/scale",
                "patch apps/v1 deployments/scale a b -",
            ),
            ("DELETE", "/api/v1/namespaces/a/pods", "deletecollection /v1 pods a - -"),
            ("DELETE", "/api/v1/namespaces/a/pods/b", "delete /v1 pods a b -"),
            ("GET", "/api/v1/namespaces", "list /v1 namespaces - - -"),
            ("GET", "/api/v1/namespaces/a", "get /v1 namespaces a a -"),
            ("PUT", "/api/v1/namespaces/a/finalize", "update /v1 namespaces/finalize a a -"),
            ("PUT", "/api/v1/namespaces/a/status", "update /v1 namespaces/status a a -"),
            ("GET", "/api/v1/namespaces/a/pods/b/proxy/x//y%20z/", "get /v1 pods/proxy a b /x//y%20z/"),
            ("GET", "/api/v1/nodes/n/proxy/stats/summary", "get /v1 nodes/proxy - n /stats/summary"),
            ("GET", "/api/v1/pods?fieldSelector=metadata.name%3Dx", "list /v1 pods - x -"),
            ("GET", "/api/v1/pods?fieldSelector=metadata.name%3D..", "list /v1 pods - - -"),
            (
                "GET",
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                "get rbac.authorization.k8s.io/v1 clusterroles - system:node -",
            ),
            ("OPTIONS", "/api/v1/pods", "- /v1 pods - - -"),
        ] {
            assert_eq!(line(method, target), want, "{method} {target}");
        }
    }

    #[test]
    fn refuses_paths_that_mean_two_things() {
        for path in [
            "//api/v1/pods",
            "/api//v1/pods",
            "/api/v1/namespaces/../pods",
            "/api/v1/namespaces/%2e%2e/pods",
            "/api/v1/namespaces/a%2Fb/pods",
            "/api/v1/pods/a%00b",
            "/api/v1/pods/%zz",
            "/api/v1/pods/%f",
            "/api/v1/pods/%ff",
            "/api/v1/./pods",
            "/api/v1/namespaces/a/pods/b/proxy/../../secrets",
            "/api/v1/watch",
        ] {
            assert!(RequestInfo::parse("GET", path, None).is_err(), "{path}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let pairs: Vec<_> = query_pairs("a=1&b=x%20y+z&&c&%zz=1").collect();
        let want = [("a", "1"), ("b", "x y z"), ("c", "")];
        assert_eq!(pairs, want.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }

    proptest! {
        #[test]
        fn never_panics(path in "(/|%2[eF]|\\PC|api|v1|namespaces|watch|proxy){0,12}", query in "\\PC{0,40}") {
            let _ = RequestInfo::parse("GET", &path, Some(&query));
        }

        #[test]
        fn names_are_single_segments(path in "/api/v1(/[a-z.%0-9]{0,6}){0,6}") {
            if let Ok(info) = RequestInfo::parse("GET", &path, None) {
                prop_assert!(!info.name.contains('/') && info.name != ".." && !info.namespace.contains('/'));
            }
        }
    }
}
