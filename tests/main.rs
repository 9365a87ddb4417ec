//! All integration tests, one binary: linking once matters on small machines.

#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test fails by panicking and says what it sees"
)]

mod cluster;
mod process;
