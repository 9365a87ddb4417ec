//! The Kubernetes API: a registry of resources behind one request pipeline.
//!
//! A request passes: path parsing, authentication, authorisation, limits, the resource's handler
//! (decode, default, admission, strategy, one store transaction), and content negotiation of the answer.
//! Kinds differ only in their [`ketch_api::DynStrategy`]; there is no code per kind here but for the
//! subresources that act (`binding`, `log`, `eviction`, `finalize`).
//!
//! This crate alone uses `ketch-store`. It may not use controllers, the scheduler or the node.

pub mod admission;
pub mod auth;
mod bootstrap;
mod discovery;
#[cfg(fuzzing)]
pub mod fuzzing;
mod health;
pub mod metrics;
pub mod node;
pub mod openapi;
pub mod patch;
pub mod paths;
pub mod pki;
pub mod protobuf;
pub mod registry;
mod respond;
mod rest;
mod route;
pub mod serve;
mod server;
pub mod typegraph;
mod wire;

pub use node::NodeConnector;
pub use server::{ApiServer, Config, Limits};
