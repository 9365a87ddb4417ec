//! The seam for paths that are no resources and come from elsewhere: OpenAPI documents, OIDC discovery.

use axum::{body::Body, response::Response};
use http::request::Parts;

/// Answers some paths. Called after authorisation, for paths the pipeline does not know itself.
pub trait PathHandler: Send + Sync + 'static {
    /// The answer, or `None` when the path is not this handler's.
    fn handle(&self, parts: &Parts) -> Option<Response<Body>>;

    /// Paths to name in the index at `/`.
    fn paths(&self) -> Vec<String> {
        Vec::new()
    }
}
