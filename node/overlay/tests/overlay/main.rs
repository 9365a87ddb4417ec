//! The overlay between real network namespaces. Needs root, `ip`, `nft` and `/dev/net/tun`; without
//! root each test says so and passes.

mod faults;
mod paths;
mod rig;
mod security;
mod traffic;
