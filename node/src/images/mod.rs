//! Images: registries as an [`ImageSource`](ketch_runtime::ImageSource), and pull policies over one.

mod auth;
mod collect;
mod collector;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod hosts;
mod keyring;
mod policy;
mod reference;
mod registry;
mod transport;

use std::sync::Arc;

use ketch_runtime::ImageSource;

pub(crate) use collector::run as collect_garbage;
pub use hosts::{RegistryHost, RegistryHosts, check as check_registries};
pub use keyring::Keyring;
pub(crate) use policy::{NEVER_PULL, PolicyImages, PolicySource};
pub use registry::{Identity, LocalRegistry, Registries};

/// Who asks for an image, and which variant of it.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Credentials of the pod.
    pub keyring: Arc<Keyring>,
    /// Whether an image that comes as WebAssembly and for containers is wanted for containers: the pod's runtime
    /// class says so.
    pub native: bool,
}

/// Images for pods, which may have credentials of their own.
pub trait PodImages: ImageSource {
    /// The same images, asked for so.
    fn with(&self, wanted: &Wanted) -> Arc<dyn ImageSource>;
}
