//! The node agent: runs the pods that are bound to this node and tells the API how they are.
//!
//! [`machine`] decides, synchronously; a worker per pod acts. Everything is level-triggered: what a
//! restarted agent needs to know is in pod statuses and in its runtimes.

mod actions;
mod addresses;
mod agent;
mod api;
mod context;
mod env;
mod events;
mod fields;
mod host;
mod images;
mod index;
mod logs;
pub mod machine;
mod network;
mod options;
mod pods;
mod register;
mod services;
mod sources;
mod streaming;
mod volumes;
mod worker;
mod writer;

pub use agent::Node;
pub use images::{Identity, LocalRegistry, Registries};
pub use ketch_gateway as gateway;
pub use ketch_net::{
    Cidr,
    anyip::{AnyIpError, ensure as make_local},
};
pub use network::{ClusterNetwork, NetworkConfig};
pub use options::{ApiAddress, NodeOptions, RuntimeEntry, StartError};
pub use services::LocalServices;
