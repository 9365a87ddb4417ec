//! The node agent against a small API in memory and a fake runtime.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod api;
mod kinds;
mod lifecycle;
mod network;
mod router;
mod runtime;
mod setup;
mod streams;
mod volumes;
