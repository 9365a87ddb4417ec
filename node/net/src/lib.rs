//! Pod addresses, Services in process, names, and what a pod may reach.
//!
//! Everything but [`anyip`] and the reflectors behind [`services`] is pure. The node agent composes these
//! into the network that its runtimes dial through.

pub mod cidr;
pub mod ipam;

pub use cidr::Cidr;
pub use ipam::Allocator;
