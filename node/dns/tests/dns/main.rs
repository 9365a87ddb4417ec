//! The server over real sockets: the specification name by name, forwarding, limits.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "tests fail by panicking; helpers of tests are not marked as such"
)]

mod cluster;
mod forwarding;
mod specification;
mod wire;
