//! Cluster DNS: names of Services and pods, everything else from the host's own resolvers.
//!
//! [`zone::answer`] says what the cluster's names stand for (Kubernetes DNS specification 1.1.0), purely,
//! from the same `Table` that routes connections; `message` turns packets into questions and answers into
//! packets, `upstream` asks outside, `search` spares clients their search path, and `server` moves bytes,
//! with a limit on everything that a client can make it hold.
//!
//! Messages are hickory's. Its server is not used: it takes any number of connections and starts a task per
//! packet, where cluster names are answered here without leaving the socket's own task.

mod handler;
mod message;
mod search;
mod server;
mod tcp;
#[doc(hidden)]
pub mod testing;
mod udp;
mod upstream;
pub mod zone;

pub use server::{Dns, DnsOptions, Namespaces, Source, StartError};
pub use upstream::system_upstreams;
