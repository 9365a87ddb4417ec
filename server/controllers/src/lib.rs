//! The controllers: each makes one kind's objects come true through the API, and nothing else.
//!
//! A controller is a module with a pure `plan` (what is there and what is wanted, in; what to do, out) and
//! a thin `mod.rs` that observes, asks the plan and applies. What they share: [`runner`] works off a queue
//! of keys, level-triggered; informers (one watch per kind, `ketch-client`) fill the queues; [`owner`] has
//! the rules of adoption. Nothing here may use the store or the API server's insides.

mod balancer;
mod defaults;
mod deployment;
mod endpoints;
mod error;
mod function;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gc;
mod housekeeping;
mod namespace;
mod node;
mod owner;
mod pod;
mod replicaset;
mod resources;
mod runner;
mod start;
mod volume;

pub use error::Error;
pub use start::{Controllers, Options, run_all};
