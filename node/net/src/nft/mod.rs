//! What the kernel does with packets of pods: Services for whatever dials through it, and NetworkPolicies.
//!
//! The design is that of kube-proxy's nftables mode (KEP-3866): one table of our own, maps from addresses
//! and ports to a chain per Service port, a random choice there, a chain per endpoint that rewrites the
//! target. [`rules`] and, for NetworkPolicies, [`mod@judge`] are pure and say what their tables should
//! hold, [`batch`] says which commands make it so,
//! from nothing or from what it held before, and [`apply`] runs `nft` with them, in one transaction.
//!
//! Connections to the node's own addresses, which Wasm pods have too ("AnyIP"), are rewritten on their way
//! in as well as those of programs of the host on their way out.

pub mod apply;
pub mod batch;
pub mod judge;
pub mod model;
pub mod rules;
mod syntax;

#[cfg(test)]
mod tests;

pub use apply::{ApplyError, Nft};
pub use batch::{Commands, change, remove, replace};
pub use judge::judge;
pub use model::Rules;
pub use rules::{Facts, rules};
