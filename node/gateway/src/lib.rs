//! The front door: HTTP requests from outside to Functions, and through Ingresses to Services.
//!
//! [`routes::build`] is pure: a [`Snapshot`] of the cluster's objects in, a [`RouteTable`] out. The
//! watches in [`watch`] keep the snapshot, [`Routes`] holds the table that is in force, the proxy serves
//! requests by it. A Wasm function on this node is called in process through [`LocalServices`]; anything
//! else over TCP.
//!
//! Invariant: no route is served before the first complete list of every kind, and a table replaces
//! another as a whole, so a request never sees half a change.
//!
//! This crate may not import the server, the node agent or a runtime.

#[cfg(fuzzing)]
pub mod fuzzing;
mod gateway;
mod proxy;
pub mod routes;
mod server;
mod tls;
mod watch;

pub use gateway::{Bind, Error, Gateway, GatewayOptions};
pub use routes::{RouteTable, Routes, Snapshot};
pub use tls::self_signed;

/// HTTP services of this node's containers by the address they would listen on. The node implements it.
pub trait LocalServices: Send + Sync + 'static {
    /// The service at `address`; `None`: not on this node, or no in-process service.
    fn by_address(
        &self,
        address: std::net::SocketAddr,
    ) -> Option<std::sync::Arc<dyn ketch_runtime::HttpService>>;
}

/// No local services: everything goes over TCP.
impl LocalServices for () {
    fn by_address(&self, _: std::net::SocketAddr) -> Option<std::sync::Arc<dyn ketch_runtime::HttpService>> {
        None
    }
}
