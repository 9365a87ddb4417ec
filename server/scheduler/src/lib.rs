//! The scheduler: gives each pod the node it runs on.
//!
//! [`core`] decides: a picture of the cluster that is kept up to date change by change, rules that refuse
//! nodes, rules that prefer some. [`Scheduler`] feeds it from informers and binds. Nothing here may use
//! the store or the API server's insides.

pub mod core;
mod driver;
mod pending;

pub use driver::Scheduler;
