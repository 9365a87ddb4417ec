//! The overlay between real network namespaces. Needs root, `ip`, `nft` and `/dev/net/tun`; without
//! root each test says so and passes.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests fail by panicking and say why they are skipped"
)]

mod faults;
mod lanes;
mod paths;
mod renewal;
mod rig;
mod security;
mod traffic;
