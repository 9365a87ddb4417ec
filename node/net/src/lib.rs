//! Pod addresses, Services in process, names, and what a pod may reach.
//!
//! Everything but [`anyip`], [`netns`], [`nft::apply`] and a part of [`conntrack`] is pure. The node agent composes these into the network
//! that its runtimes dial through.

pub mod anyip;
pub mod cidr;
pub mod conntrack;
pub mod forward;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod ipam;
pub mod isolation;
pub mod listeners;
pub mod names;
pub mod netns;
pub mod nft;
pub mod policy;
pub mod services;

pub use cidr::Cidr;
pub use ipam::{Allocator, PodRanges};
pub use listeners::Listeners;
pub use policy::{Pattern, Policy};
pub use services::{Table, Transport};
