//! Images: registries as an [`ImageSource`](ketch_runtime::ImageSource), and pull policies over one.

mod auth;
mod policy;
mod reference;
mod registry;
mod transport;

pub(crate) use policy::{NEVER_PULL, PolicyImages, PolicySource};
pub use registry::{Identity, LocalRegistry, Registries};
