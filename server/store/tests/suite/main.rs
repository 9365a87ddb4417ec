//! The back ends against the suite, and what only the durable one can lose.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "an integration test is test code outside its test functions too"
)]

mod crash;
mod faults;
mod memory;
mod redb;
