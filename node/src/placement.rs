//! What a pod's actions share while the pod is set up: its kind, its network namespace, and the manifests that
//! were read to find the kind, so that pulling does not read them again.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use ketch_runtime::{Error, ImageSource, Manifest};
use tokio::sync::OnceCell;

use crate::{images::PolicySource, kind::Kind};

/// A manifest that is read once, whoever asks first.
struct Look {
    /// Whether it was on this machine before.
    present: bool,
    manifest: OnceCell<Manifest>,
}

/// See the module. One per pod and agent: a restarted agent finds it out again.
#[derive(Default)]
pub(crate) struct Placement {
    kind: OnceLock<Kind>,
    namespace: Mutex<Option<PathBuf>>,
    looks: Mutex<HashMap<String, Arc<Look>>>,
}

impl Placement {
    /// The pod's kind, once it is decided.
    pub(crate) fn kind(&self) -> Option<Kind> {
        self.kind.get().copied()
    }

    /// Decides the kind; the first decision stays.
    pub(crate) fn decide(&self, kind: Kind) -> Kind {
        *self.kind.get_or_init(|| kind)
    }

    /// The pod's network namespace, when it has one of its own.
    pub(crate) fn namespace(&self) -> Option<PathBuf> {
        self.namespace.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes the pod's network namespace; the one before.
    pub(crate) fn set_namespace(&self, namespace: Option<PathBuf>) -> Option<PathBuf> {
        std::mem::replace(&mut *self.namespace.lock().unwrap_or_else(PoisonError::into_inner), namespace)
    }

    /// An image's manifest under a container's pull policy, read once for all who ask.
    ///
    /// # Errors
    /// The source's; the next one to ask tries again.
    pub(crate) async fn manifest(&self, source: &PolicySource, image: &str) -> Result<Manifest, Error> {
        let look = self.look(source, image);
        look.manifest.get_or_try_init(|| source.manifest(image)).await.cloned()
    }

    /// Whether no registry is asked for the image's manifest.
    pub(crate) fn is_present(&self, source: &PolicySource, image: &str) -> bool {
        self.look(source, image).present
    }

    /// The next one to ask for a manifest reads it anew.
    pub(crate) fn forget(&self) {
        self.looks().clear();
    }

    fn look(&self, source: &PolicySource, image: &str) -> Arc<Look> {
        let key = format!("{} {image}", source.policy());
        let mut looks = self.looks();
        let look = looks.entry(key).or_insert_with(|| {
            Arc::new(Look { present: source.is_present(image), manifest: OnceCell::new() })
        });
        Arc::clone(look)
    }

    fn looks(&self) -> MutexGuard<'_, HashMap<String, Arc<Look>>> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
