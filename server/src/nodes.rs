//! The ways from the server to its nodes. A node in this process is its router; others will come through
//! the tunnel that they open.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use axum::{Router, body::Body};
use http::{Request, Response};
use ketch_api::Status;
use ketch_apiserver::NodeConnector;
use tower::ServiceExt;

/// Connected nodes by name.
#[derive(Default)]
pub struct Nodes {
    routers: ArcSwap<BTreeMap<String, Router>>,
}

impl Nodes {
    /// Makes `router` what answers for node `name`.
    pub fn connect(&self, name: &str, router: Router) {
        self.routers.rcu(|all| {
            let mut all = BTreeMap::clone(all);
            all.insert(name.to_owned(), router.clone());
            Arc::new(all)
        });
    }
}

#[async_trait]
impl NodeConnector for Nodes {
    async fn request(&self, node: &str, request: Request<Body>) -> Result<Response<Body>, Status> {
        let router = self.routers.load().get(node).cloned();
        let router = router
            .ok_or_else(|| Status::unavailable(format!("node \"{node}\" is not connected to this server")))?;
        let Ok(response) = router.oneshot(request).await;
        Ok(response)
    }
}
