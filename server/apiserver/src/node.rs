//! The way from the server to a node.

use async_trait::async_trait;
use axum::body::Body;
use http::{Request, Response};
use ketch_api::Status;

/// Sends requests to the nodes' own HTTP interface, through whatever connection there is.
///
/// A node serves `GET /containerLogs/{namespace}/{pod}/{container}`, `GET /stats/summary` and
/// `GET /healthz`.
#[async_trait]
pub trait NodeConnector: Send + Sync {
    /// The node's answer, its body streamed.
    ///
    /// # Errors
    /// 503 when the node has no connection, 502 when it broke.
    async fn request(&self, node: &str, request: Request<Body>) -> Result<Response<Body>, Status>;
}
