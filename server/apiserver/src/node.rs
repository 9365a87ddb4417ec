//! The way from the server to a node.

use async_trait::async_trait;
use axum::body::Body;
use http::{Request, Response};
use ketch_api::Status;

/// Sends requests to the nodes' own HTTP interface, through whatever connection there is.
///
/// A node serves `GET /containerLogs/{namespace}/{pod}/{container}`, `GET /stats/summary`, `GET /healthz`,
/// and upgrades `/exec/{namespace}/{pod}/{container}`, `/attach/{namespace}/{pod}/{container}` and
/// `/portForward/{namespace}/{pod}`.
///
/// A request to upgrade carries the client's `hyper::upgrade::OnUpgrade` in its extensions, and a node in
/// this process that answers 101 takes the connection by it. The answer of a node elsewhere carries an
/// `OnUpgrade` of its own, as hyper's client leaves it there, and the server copies bytes between the two.
#[async_trait]
pub trait NodeConnector: Send + Sync {
    /// The node's answer, its body streamed.
    ///
    /// # Errors
    /// 503 when the node has no connection, 502 when it broke.
    async fn request(&self, node: &str, request: Request<Body>) -> Result<Response<Body>, Status>;
}
