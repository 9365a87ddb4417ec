//! The ways from the server to its nodes: to one in this process through its router, to others through the
//! connection that they have opened ([`crate::tunnel`]).

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use axum::{Router, body::Body};
use http::{Request, Response};
use ketch_api::Status;
use ketch_apiserver::NodeConnector;
use tower::ServiceExt;

use crate::tunnel::Way;

/// Connected nodes by name.
#[derive(Default)]
pub struct Nodes {
    all: ArcSwap<BTreeMap<String, Connected>>,
}

#[derive(Clone)]
enum Connected {
    Here(Router),
    There(Way),
}

// === impl Nodes ===

impl Nodes {
    /// Makes `router` what answers for node `name`.
    pub fn connect(&self, name: &str, router: Router) {
        self.change(|all| all.insert(name.to_owned(), Connected::Here(router.clone())));
    }

    /// A node has come. An earlier connection of it is closed; a node in this process stays what it is.
    pub(crate) fn arrive(&self, name: &str, way: Way) {
        let before = self.all.load_full();
        match before.get(name) {
            Some(Connected::Here(_)) => return way.replaced(),
            Some(Connected::There(old)) => old.replaced(),
            None => {}
        }
        self.change(|all| all.insert(name.to_owned(), Connected::There(way.clone())));
    }

    /// A connection has ended. A later one of the same node stays.
    pub(crate) fn leave(&self, name: &str, way: &Way) {
        self.change(|all| match all.get(name) {
            Some(Connected::There(known)) if known.is(way) => all.remove(name),
            _ => None,
        });
    }

    /// Their names.
    pub(crate) fn names(&self) -> Vec<String> {
        self.all.load().keys().cloned().collect()
    }

    /// How many there are.
    pub(crate) fn connected(&self) -> usize {
        self.all.load().len()
    }

    fn change(&self, change: impl Fn(&mut BTreeMap<String, Connected>) -> Option<Connected>) {
        self.all.rcu(|all| {
            let mut all = BTreeMap::clone(all);
            change(&mut all);
            Arc::new(all)
        });
    }
}

#[async_trait]
impl NodeConnector for Nodes {
    async fn request(&self, node: &str, request: Request<Body>) -> Result<Response<Body>, Status> {
        let connected = self.all.load().get(node).cloned();
        match connected {
            Some(Connected::Here(router)) => {
                let Ok(response) = router.oneshot(request).await;
                Ok(response)
            }
            Some(Connected::There(way)) => way.request(node, request).await,
            None => Err(Status::unavailable(format!("node \"{node}\" is not connected to this server"))),
        }
    }
}
