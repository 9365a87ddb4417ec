//! `imagePullPolicy`, for every runtime alike: a source that remembers manifests, so that a reference that
//! was resolved before needs no registry.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use ketch_runtime::{Error, ImageSource, Manifest};
use sha2::{Digest, Sha256};

/// How the error of an image begins that may not be pulled: the reason of the container that waits for it.
pub(crate) const NEVER_PULL: &str = "ErrImageNeverPull: ";

/// Remembers, on disk, which manifest each reference had.
#[derive(Clone)]
pub(crate) struct PolicyImages {
    source: Arc<dyn ImageSource>,
    directory: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Always,
    IfNotPresent,
    Never,
}

/// A source that follows one container's pull policy.
pub(crate) struct PolicySource {
    images: PolicyImages,
    policy: Policy,
    /// A reference whose manifest was read already.
    read: Option<(String, Manifest)>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Remembered {
    reference: String,
    digest: String,
    manifest: String,
}

impl PolicyImages {
    /// Over `source`, remembering in `directory`.
    pub(crate) fn new(source: Arc<dyn ImageSource>, directory: PathBuf) -> Self {
        Self { source, directory }
    }

    /// The source for a container with this `imagePullPolicy`.
    pub(crate) fn with_policy(&self, policy: &str) -> PolicySource {
        let policy = match policy {
            "Always" => Policy::Always,
            "Never" => Policy::Never,
            _ => Policy::IfNotPresent,
        };
        PolicySource { images: self.clone(), policy, read: None }
    }

    /// References that were resolved, for the node's status.
    pub(crate) fn known(&self) -> Vec<(String, String)> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let read = |path: PathBuf| serde_json::from_slice::<Remembered>(&std::fs::read(path).ok()?).ok();
        entries.filter_map(|entry| read(entry.path())).map(|one| (one.reference, one.digest)).collect()
    }

    fn file(&self, reference: &str) -> PathBuf {
        let name: String = Sha256::digest(reference).iter().map(|byte| format!("{byte:02x}")).collect();
        self.directory.join(name)
    }

    fn recall(&self, reference: &str) -> Option<Manifest> {
        let remembered: Remembered =
            serde_json::from_slice(&std::fs::read(self.file(reference)).ok()?).ok()?;
        Some(Manifest { digest: remembered.digest, bytes: remembered.manifest.into() })
    }

    fn remember(&self, reference: &str, manifest: &Manifest) -> std::io::Result<()> {
        let remembered = Remembered {
            reference: reference.to_owned(),
            digest: manifest.digest.clone(),
            manifest: String::from_utf8_lossy(&manifest.bytes).into_owned(),
        };
        let file = self.file(reference);
        let temporary = file.with_extension(format!("{:x}.tmp", std::process::id()));
        std::fs::write(&temporary, serde_json::to_vec(&remembered)?)?;
        std::fs::rename(&temporary, &file)
    }
}

impl PolicySource {
    /// The policy's name.
    pub(crate) fn policy(&self) -> String {
        format!("{:?}", self.policy)
    }

    /// The same source, which does not ask for this manifest again.
    pub(crate) fn knowing(self, reference: &str, manifest: Manifest) -> Self {
        Self { read: Some((reference.to_owned(), manifest)), ..self }
    }

    /// Whether no registry will be asked for the reference's manifest.
    pub(crate) fn is_present(&self, reference: &str) -> bool {
        self.policy != Policy::Always && self.images.file(reference).exists()
    }
}

#[async_trait]
impl ImageSource for PolicySource {
    async fn manifest(&self, reference: &str) -> Result<Manifest, Error> {
        if let Some((known, manifest)) = &self.read
            && known == reference
        {
            return Ok(manifest.clone());
        }
        // A digest names the same bytes for ever.
        let fixed = reference.contains("@sha256:");
        if (self.policy != Policy::Always || fixed)
            && let Some(manifest) = self.images.recall(reference)
        {
            return Ok(manifest);
        }
        if self.policy == Policy::Never {
            let text =
                format!("{NEVER_PULL}Container image {reference:?} is not present with pull policy of Never");
            return Err(Error::Pull(text));
        }
        let manifest = self.images.source.manifest(reference).await?;
        if let Err(error) = self.images.remember(reference, &manifest) {
            tracing::debug!(reference, %error, "a manifest could not be remembered");
        }
        Ok(manifest)
    }

    async fn blob(&self, reference: &str, digest: &str, size: u64, path: &Path) -> Result<(), Error> {
        if self.policy == Policy::Never {
            let text = format!(
                "{NEVER_PULL}Container image {reference:?} is not present with pull policy of Never: it lacks {digest}"
            );
            return Err(Error::Pull(text));
        }
        self.images.source.blob(reference, digest, size, path).await
    }

    fn prefers_present(&self) -> bool {
        self.policy != Policy::Always
    }
}
