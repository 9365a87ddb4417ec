//! Manifests, tags and referrers.

use super::{CONTENT_DIGEST, insert, respond};
use crate::manifest::{Content, INDEX_MEDIA_TYPE, index_of};
use crate::{Digest, Error, Manifest, Reference, Registry, Repository};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
/// Tags in one answer when the client does not say.
const TAGS_PER_PAGE: usize = 1_000;

/// `GET` and `HEAD`.
pub(super) async fn read(
    State(registry): State<Registry>,
    Path((ns, name, reference)): Path<(String, String, String)>,
    method: Method,
) -> Result<Response, Error> {
    let repository = Repository::new(&ns, &name)?;
    let manifest = registry.manifest(&repository, &reference.parse()?).await?;
    let length = manifest.content.len();
    let body = if method == Method::HEAD { Body::empty() } else { Body::from(manifest.content) };
    let mut response = body.into_response();
    let headers = response.headers_mut();
    insert(headers, header::CONTENT_LENGTH, &length);
    insert(headers, header::CONTENT_TYPE, &manifest.media_type);
    insert(headers, header::ETAG, &format!("\"{}\"", manifest.digest));
    insert(headers, CONTENT_DIGEST, &manifest.digest);
    Ok(response)
}

/// `PUT`.
pub(super) async fn write(
    State(registry): State<Registry>,
    Path((ns, name, reference)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let repository = Repository::new(&ns, &name)?;
    let reference: Reference = reference.parse()?;
    let content = collect(body, registry.0.options.max_manifest_bytes).await?;
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type =
        media_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim().to_owned();
    let digest = Digest::of(&content);
    let manifest = Manifest { digest: digest.clone(), media_type, content };
    let subject = registry.put_manifest(&repository, &reference, manifest).await?;
    let location = format!("/v2/{repository}/manifests/{digest}");
    let mut response =
        respond(StatusCode::CREATED, &[(header::LOCATION, &location), (CONTENT_DIGEST, &digest)]);
    if let Some(subject) = subject {
        insert(response.headers_mut(), SUBJECT, &subject);
    }
    Ok(response)
}

async fn collect(body: Body, limit: usize) -> Result<Bytes, Error> {
    match Limited::new(body, limit).collect().await {
        Ok(content) => Ok(content.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Error::TooLarge { what: "manifest", limit: limit as u64 })
        }
        Err(_) => Err(Error::ManifestInvalid { reason: "the connection broke before its end".to_owned() }),
    }
}

/// `DELETE`.
pub(super) async fn delete(
    State(registry): State<Registry>,
    Path((ns, name, reference)): Path<(String, String, String)>,
) -> Result<Response, Error> {
    let repository = Repository::new(&ns, &name)?;
    let reference: Reference = reference.parse()?;
    let _not_collecting = registry.0.collecting.read().await;
    registry.blocking(move |inner| inner.disk.delete_manifest(&repository, &reference)).await?;
    Ok(respond(StatusCode::ACCEPTED, &[]))
}

/// Query of a tag list.
#[derive(Deserialize)]
pub(super) struct TagsQuery {
    n: Option<usize>,
    last: Option<String>,
}

/// `GET` of the tags, a page at a time.
pub(super) async fn tags(
    State(registry): State<Registry>,
    Path((ns, name)): Path<(String, String)>,
    Query(query): Query<TagsQuery>,
) -> Result<Response, Error> {
    let repository = Repository::new(&ns, &name)?;
    let target = repository.clone();
    let mut tags = registry.blocking(move |inner| inner.disk.tags(&target)).await?;
    if let Some(last) = &query.last {
        tags.retain(|tag| tag > last);
    }
    let limit = query.n.unwrap_or(TAGS_PER_PAGE).min(TAGS_PER_PAGE);
    let more = tags.len() > limit;
    tags.truncate(limit);
    let next = tags.last().filter(|_| more).map(|last| {
        let last = utf8_percent_encode(last, NON_ALPHANUMERIC);
        format!("</v2/{repository}/tags/list?n={limit}&last={last}>; rel=\"next\"")
    });
    let mut response =
        Json(serde_json::json!({ "name": repository.to_string(), "tags": tags })).into_response();
    if let Some(next) = next {
        insert(response.headers_mut(), header::LINK, &next);
    }
    Ok(response)
}

/// Query of a referrers list.
#[derive(Deserialize)]
pub(super) struct ReferrersQuery {
    #[serde(rename = "artifactType")]
    artifact_type: Option<String>,
}

/// `GET` of the manifests that are about another one.
pub(super) async fn referrers(
    State(registry): State<Registry>,
    Path((ns, name, digest)): Path<(String, String, String)>,
    Query(query): Query<ReferrersQuery>,
) -> Result<Response, Error> {
    let repository = Repository::new(&ns, &name)?;
    let digest: Digest = digest.parse()?;
    let manifests = registry.blocking(move |inner| inner.disk.all_manifests(&repository)).await?;
    let mut found = Vec::new();
    for manifest in manifests {
        let content = Content::parse(&manifest.media_type, &manifest.content)?;
        if content.subject()?.as_ref() == Some(&digest) {
            found.push(content.describe(&manifest));
        }
    }
    if query.artifact_type.is_some() {
        found.retain(|descriptor| descriptor.artifact_type == query.artifact_type);
    }
    let mut response = Json(index_of(&found)).into_response();
    insert(response.headers_mut(), header::CONTENT_TYPE, &INDEX_MEDIA_TYPE);
    if query.artifact_type.is_some() {
        insert(response.headers_mut(), FILTERS_APPLIED, &"artifactType");
    }
    Ok(response)
}
