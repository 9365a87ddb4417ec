//! The runtime against a real containerd and runc, managed by it in a temporary directory.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    missing_docs
)]

mod conformance;
mod containers;
mod existing;
mod images;
mod network;
mod recovery;
mod rig;
mod sessions;
