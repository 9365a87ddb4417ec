//! OpenAPI documents: what kubectl validates, explains and computes patches with.
//!
//! Version 3 has an index and one document per group and version; version 2 has one for everything. They
//! are made from the registered kinds and their Rust types when first asked for, and kept as bytes.

mod gnostic;
mod operations;
mod schemas;
mod v2;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::OnceLock,
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header, request::Parts};
use ketch_api::{Descriptor, names::KUBERNETES_VERSION};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    paths::PathHandler,
    rest::sub::review::{self, Review},
};
use operations::Paths;
use schemas::{Collector, Schemas};

/// Serves `/openapi/v2` and `/openapi/v3`.
pub struct OpenApi {
    kinds: Vec<Descriptor>,
    documents: OnceLock<Documents>,
    v2: OnceLock<v2::Documents>,
}

/// The documents of version 3.
struct Documents {
    index: Document,
    /// By path below `/openapi/v3/`: `api/v1`, `apis/apps/v1`.
    groups: BTreeMap<String, Document>,
}

/// A document as it is sent.
struct Document {
    body: Bytes,
    hash: String,
}

// === impl OpenApi ===

impl OpenApi {
    /// Documents for these kinds.
    pub fn new(kinds: Vec<Descriptor>) -> Self {
        Self { kinds, documents: OnceLock::new(), v2: OnceLock::new() }
    }

    fn documents(&self) -> &Documents {
        self.documents.get_or_init(|| {
            let groups: BTreeMap<String, Document> = self
                .group_versions()
                .into_iter()
                .map(|(group, version)| {
                    let (paths, schemas) = contents(&self.kinds, group, version);
                    (document_path(group, version), Document::new(&document(paths, schemas)))
                })
                .collect();
            let paths: serde_json::Map<String, Value> = groups
                .iter()
                .map(|(path, document)| {
                    let url = format!("/openapi/v3/{path}?hash={}", document.hash);
                    (path.clone(), json!({"serverRelativeURL": url}))
                })
                .collect();
            Documents { index: Document::new(&json!({"paths": paths})), groups }
        })
    }

    fn group_versions(&self) -> BTreeSet<(&'static str, &'static str)> {
        let stored = self.kinds.iter().map(|kind| (kind.group, kind.version));
        stored.chain(questions().map(|review| (review.group, "v1"))).collect()
    }

    fn v3(&self, parts: &Parts, path: &str) -> Option<Response<Body>> {
        let documents = self.documents();
        if path.is_empty() {
            return documents.index.answer(&parts.headers, None);
        }
        let document = documents.groups.get(path)?;
        let asked =
            parts.uri.query().and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("hash=")));
        if asked.is_some_and(|hash| hash != document.hash) {
            // What the client remembers is outdated.
            let location = format!("/openapi/v3/{path}?hash={}", document.hash);
            return Response::builder()
                .status(StatusCode::MOVED_PERMANENTLY)
                .header(header::LOCATION, location)
                .body(Body::empty())
                .ok();
        }
        document.answer(&parts.headers, asked)
    }

    fn v2(&self, parts: &Parts) -> Option<Response<Body>> {
        let documents = self.v2.get_or_init(|| {
            let mut all = (Paths::new(), Schemas::new());
            for (group, version) in self.group_versions() {
                let (mut paths, schemas) = contents(&self.kinds, group, version);
                all.0.append(&mut paths);
                v2::merge(&mut all.1, schemas);
            }
            v2::Documents::new(all.0, all.1)
        });
        documents.answer(&parts.headers)
    }
}

fn contents(kinds: &[Descriptor], group: &str, version: &str) -> (Paths, Schemas) {
    let (mut collector, mut paths) = (Collector::new(), Paths::new());
    for kind in kinds.iter().filter(|kind| kind.group == group && kind.version == version) {
        operations::stored(kind, &mut collector, &mut paths);
    }
    for review in questions().filter(|review| review.group == group && version == "v1") {
        operations::review(review, &mut collector, &mut paths);
    }
    (paths, collector.finish(group, version))
}

/// Kinds that can only be created.
fn questions() -> impl Iterator<Item = &'static Review> {
    const BINDING: Review = Review { group: "", kind: "Binding", plural: "bindings", namespaced: true };
    std::iter::once(&BINDING).chain(review::ALL)
}

fn document(paths: Paths, schemas: Schemas) -> Value {
    json!({"openapi": "3.0.0", "info": info(), "paths": paths, "components": {"schemas": schemas}})
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": format!("{KUBERNETES_VERSION}+ketch.{}", env!("CARGO_PKG_VERSION"))})
}

fn document_path(group: &str, version: &str) -> String {
    match group {
        "" => format!("api/{version}"),
        group => format!("apis/{group}/{version}"),
    }
}

impl PathHandler for OpenApi {
    fn handle(&self, parts: &Parts) -> Option<Response<Body>> {
        match parts.uri.path().trim_end_matches('/') {
            "/openapi/v2" => self.v2(parts),
            "/openapi/v3" => self.v3(parts, ""),
            path => self.v3(parts, path.strip_prefix("/openapi/v3/")?),
        }
    }

    fn paths(&self) -> Vec<String> {
        vec!["/openapi/v2".to_owned(), "/openapi/v3".to_owned()]
    }
}

impl std::fmt::Debug for OpenApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenApi").field("kinds", &self.kinds.len()).finish_non_exhaustive()
    }
}

// === impl Document ===

impl Document {
    fn new(value: &Value) -> Self {
        Self::of_bytes(value.to_string().into())
    }

    fn of_bytes(body: Bytes) -> Self {
        let hash = Sha256::digest(&body).iter().map(|byte| format!("{byte:02X}")).collect();
        Self { body, hash }
    }

    fn answer(&self, headers: &HeaderMap, hash: Option<&str>) -> Option<Response<Body>> {
        self.answer_as(headers, hash, "application/json")
    }

    /// `hash`: the client named the contents, so what it gets never changes.
    fn answer_as(&self, headers: &HeaderMap, hash: Option<&str>, media_type: &str) -> Option<Response<Body>> {
        let tag = format!("\"{}\"", self.hash);
        let caching =
            if hash.is_some() { "public, immutable, max-age=31536000" } else { "no-cache, private" };
        let response = Response::builder()
            .header(header::ETAG, &tag)
            .header(header::VARY, "Accept")
            .header(header::CACHE_CONTROL, caching);
        let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
        if known.is_some_and(|known| known.split(',').any(|known| known.trim() == tag || known.trim() == "*"))
        {
            return response.status(StatusCode::NOT_MODIFIED).body(Body::empty()).ok();
        }
        response.header(header::CONTENT_TYPE, media_type).body(Body::from(self.body.clone())).ok()
    }
}

#[cfg(test)]
mod tests;
