//! What Ketch's API is made of: kinds, their strategies, selectors, quantities, request paths and
//! [`Status`].
//!
//! Everything here is a synchronous function over values. No IO, no tokio, no clock: the crate builds
//! for `wasm32-unknown-unknown`, so the console validates with the very code the server runs.
//! `k8s-openapi` is named only here; other crates reach it as [`k8s`].

pub use k8s_openapi as k8s;

pub mod function;
pub mod join;
pub mod kinds;
pub mod meta;
pub mod names;
pub mod quantity;
pub mod request;
pub mod selector;
pub mod status;
pub mod strategy;
pub mod validation;
pub mod volume;
pub mod wasm;

pub use status::Status;
pub use strategy::{Descriptor, DynStrategy, FieldError, Strategy, Typed};
