//! The HTTP side: routes, and what their answers have in common.

pub(crate) mod blobs;
mod manifests;
pub(crate) mod uploads;

use crate::{Error, Reference, Registry, Repository};
use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use std::fmt::Display;

/// Digest of the content a response is about.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// Routes of the whole API.
pub(crate) fn router(registry: Registry) -> axum::Router {
    let upload = patch(uploads::append).put(uploads::finish).get(uploads::status).delete(uploads::cancel);
    axum::Router::new()
        .route("/v2", get(ping))
        .route("/v2/", get(ping))
        .route("/v2/{ns}/{name}/blobs/uploads", axum::routing::post(uploads::begin))
        .route("/v2/{ns}/{name}/blobs/uploads/", axum::routing::post(uploads::begin))
        .route("/v2/{ns}/{name}/blobs/uploads/{id}", upload)
        .route("/v2/{ns}/{name}/blobs/{digest}", get(blobs::read).delete(blobs::delete))
        .route(
            "/v2/{ns}/{name}/manifests/{reference}",
            get(manifests::read).put(manifests::write).delete(manifests::delete),
        )
        .route("/v2/{ns}/{name}/tags/list", get(manifests::tags))
        .route("/v2/{ns}/{name}/referrers/{digest}", get(manifests::referrers))
        .route("/v2/{ns}/{name}/_ketch/inspect/{reference}", get(inspect))
        // Uploads have their own limits, and are never held in memory.
        .layer(axum::extract::DefaultBodyLimit::disable())
        .layer(axum::middleware::map_response(guard))
        .with_state(registry)
}

/// What users push is served under the console's origin: browsers must not take it for a page.
async fn guard(mut response: Response) -> Response {
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

async fn ping() -> Response {
    let version = (API_VERSION, HeaderValue::from_static("registry/2.0"));
    ([version], Json(serde_json::json!({}))).into_response()
}

async fn inspect(
    State(registry): State<Registry>,
    Path((ns, name, reference)): Path<(String, String, String)>,
) -> Result<Response, Error> {
    let repository = Repository::new(&ns, &name)?;
    let reference: Reference = reference.parse()?;
    Ok(Json(&*registry.inspect(&repository, &reference).await?).into_response())
}

/// Sets a header; a value that cannot be one is left out.
pub(crate) fn insert(headers: &mut HeaderMap, name: HeaderName, value: &impl Display) {
    if let Ok(value) = HeaderValue::from_str(&value.to_string()) {
        headers.insert(name, value);
    }
}

/// A response with the given headers and no body.
fn respond(status: http::StatusCode, headers: &[(HeaderName, &dyn Display)]) -> Response {
    let mut response = status.into_response();
    for (name, value) in headers {
        insert(response.headers_mut(), name.clone(), value);
    }
    response
}

/// The bytes an upload has, as a `Range` header says it. Nothing is `0-0` too, by convention.
pub(crate) fn received_range(received: u64) -> String {
    format!("0-{}", received.saturating_sub(1))
}
