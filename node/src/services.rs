//! HTTP services of this node's containers by address, for callers in the same process.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};

use ketch_runtime::{ContainerId, HttpService};

/// A service and the container it belongs to.
type Registered = (ContainerId, Arc<dyn HttpService>);

/// HTTP services of this node's running containers. Reads take an uncontended lock and clone an [`Arc`].
#[derive(Default)]
pub struct LocalServices {
    by_address: RwLock<HashMap<SocketAddr, Registered>>,
}

impl ketch_gateway::LocalServices for LocalServices {
    fn by_address(&self, address: SocketAddr) -> Option<Arc<dyn HttpService>> {
        LocalServices::by_address(self, address)
    }
}

impl LocalServices {
    /// The service at a pod's address and port; `None` when there is none on this node.
    pub fn by_address(&self, address: SocketAddr) -> Option<Arc<dyn HttpService>> {
        let map = self.by_address.read().unwrap_or_else(PoisonError::into_inner);
        map.get(&address).map(|(_, service)| Arc::clone(service))
    }

    /// Registers a running container's service.
    pub(crate) fn insert(&self, address: SocketAddr, id: ContainerId, service: Arc<dyn HttpService>) {
        let mut map = self.by_address.write().unwrap_or_else(PoisonError::into_inner);
        map.insert(address, (id, service));
    }

    /// Forgets a container's service; another container's at the same address stays.
    pub(crate) fn remove(&self, id: &ContainerId) {
        let mut map = self.by_address.write().unwrap_or_else(PoisonError::into_inner);
        map.retain(|_, (owner, _)| owner != id);
    }

    /// Forgets the services of a pod.
    pub(crate) fn remove_pod(&self, uid: &str) {
        let prefix = format!("{uid}.");
        let mut map = self.by_address.write().unwrap_or_else(PoisonError::into_inner);
        map.retain(|_, (owner, _)| !owner.0.starts_with(&prefix));
    }
}
