//! The Wasm runtime with real guests: those of `workloads/`, built when a test first needs one.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests"
)]

mod commands;
mod compiler;
mod conformance;
mod density;
mod images;
mod namespaces;
mod network;
mod rig;
mod services;
mod trust;
