//! The built-in registry: the OCI distribution API over files, and what can be read off a Wasm binary.
//!
//! Blobs are files named by digest; a repository's manifests, tags and claims on blobs are small files
//! beside them. There is no database: every file is written whole under another name, synced and renamed,
//! so the directory is consistent whenever the power goes.
//!
//! Repositories are `NAMESPACE/NAME`, with the namespaces of the cluster. Who may do what is not decided
//! here: the server puts its authentication and authorisation around [`Registry::router`]. What this crate
//! guarantees for that is that a request touches no repository but the one in its path, save for a blob
//! mount within one namespace.

mod disk;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod garbage;
mod http;
pub mod inspect;
mod manifest;
mod names;
mod registry;
mod upload;

pub use disk::Manifest;
pub use error::Error;
pub use garbage::Collected;
pub use names::{Digest, Reference, Repository, Tag};
pub use registry::{PushHook, PushedManifest, Registry, RegistryOptions};
