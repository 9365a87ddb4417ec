//! How every part of Ketch talks to the API: a [`kube::Client`] over the network or over the server's
//! own router, and what long-lived clients need around it.
//!
//! - [`in_process`] and [`from_kubeconfig`] make clients; [`kubeconfig`] writes the files they come from.
//! - [`secure`] is TLS with a certificate that is renewed while it is in use.
//! - [`Informers`] watch a kind once for all who look at it; [`Queue`] hands their changes to workers.
//! - [`Tasks`] owns whatever runs in the background; [`Recorder`] writes events about what happened.
//! - [`status_text`] turns a failure into the sentence a user reads.
//!
//! Nothing here knows the server: it must build and run where only the network is available.

mod connect;
mod error;
mod events;
mod informer;
pub mod kubeconfig;
mod queue;
pub mod secure;
mod sync;
mod tasks;

pub use connect::{config_of, from_kubeconfig, in_process};
pub use error::{is_already_exists, is_conflict, is_forbidden_by_termination, is_not_found, status_text};
pub use events::{Recorder, Subject};
pub use informer::{Change, Informer, Informers, Key};
pub use kube;
pub use queue::Queue;
pub use tasks::{Report, State, TaskError, Tasks};
