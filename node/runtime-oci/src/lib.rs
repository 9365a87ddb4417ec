//! OCI containers as containers of pods, through containerd. Alone in talking to it.
//!
//! Two of containerd's interfaces are used. CRI, the stable one, makes sandboxes and containers, tells what
//! runs ([`OciRuntime`]) and lends the streams of a container (`attach`). The native one does what CRI cannot: it
//! takes images from the node's own [`ImageSource`](ketch_runtime::ImageSource) (`image`), runs further programs
//! (`exec`) and sends events (`watcher`).
//!
//! [`connect`] finds a containerd (`existing`) or starts one under the data directory (`managed`). Pods are networked by
//! [`cni`], which is this program under another name. What is known of a pod is kept in labels and annotations
//! of what containerd keeps, so a restart forgets nothing.

pub mod cni;

mod attach;
mod cgroup;
mod client;
mod connect;
mod container;
mod exec;
mod existing;
#[cfg(fuzzing)]
pub mod fuzzing;
mod image;
mod managed;
mod pod;
mod remove;
mod rotation;
mod runtime;
mod security;
mod watcher;

pub use connect::{Choice, Options, Unavailable, connect, probe};
pub use remove::remove;
pub use runtime::OciRuntime;
