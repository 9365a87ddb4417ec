//! Rules in a real kernel: a node, pods and a client as network namespaces.
//!
//! Needs root, `nft`, `ip` and `socat`; without root there is nothing to test here.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests fail by panicking; helpers of tests are not marked as such"
)]

mod lab;
mod policies;
mod services;
