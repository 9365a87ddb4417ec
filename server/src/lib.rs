//! The control plane: options, assembly of its parts, the console's endpoints, shutdown.
//!
//! Alone in seeing the API server, the store, the registry, the scheduler and the controllers together.
//! Nothing here knows how a pod is run: nodes are clients, whichever process they are in.

mod console;
mod data_dir;
mod front;
mod images;
mod join;
mod listeners;
mod meter;
mod nodes;
mod options;
mod own_service;
mod server;
mod tunnel;

pub use data_dir::{DataDir, DataDirError};
pub use ketch_apiserver::auth::User;
pub use ketch_registry::{PushHook, PushedManifest};
pub use listeners::{BindError, bind};
pub use nodes::Nodes;
pub use options::Options;
pub use server::{Server, StartError};
