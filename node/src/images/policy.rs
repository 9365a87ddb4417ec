//! `imagePullPolicy`, for every runtime alike: a source that remembers manifests, so that a reference that
//! was resolved before needs no registry.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use ketch_runtime::{Error, ImageSource, Manifest};
use sha2::{Digest, Sha256};

use super::{PodImages, Wanted, collect::Present};

/// How the error of an image begins that may not be pulled: the reason of the container that waits for it.
pub(crate) const NEVER_PULL: &str = "ErrImageNeverPull: ";

/// Remembers, on disk, which manifest each reference had.
#[derive(Clone)]
pub(crate) struct PolicyImages {
    images: Arc<dyn PodImages>,
    directory: PathBuf,
    /// What the directory says, by reference and by what it is wanted for.
    known: Arc<Mutex<BTreeMap<(String, bool), Known>>>,
}

/// What of a manifest is asked for often.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    digest: String,
    size: u64,
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
    source: Arc<dyn ImageSource>,
    /// See [`Wanted::native`].
    native: bool,
    policy: Policy,
    /// A reference whose manifest was read already.
    read: Option<(String, Manifest)>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Remembered {
    reference: String,
    #[serde(default)]
    native: bool,
    digest: String,
    manifest: String,
}

impl PolicyImages {
    /// Over `images`, remembering in `directory`.
    pub(crate) fn new(images: Arc<dyn PodImages>, directory: PathBuf) -> Self {
        let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten();
        let read = |path: PathBuf| serde_json::from_slice::<Remembered>(&std::fs::read(path).ok()?).ok();
        let all = entries.filter_map(|entry| read(entry.path())).map(|one| {
            let size = size(one.manifest.as_bytes());
            ((one.reference, one.native), Known { digest: one.digest, size })
        });
        let known = Arc::new(Mutex::new(all.collect()));
        Self { images, directory, known }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<(String, bool), Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The source for a container with this `imagePullPolicy`. An image that is on the machine is anybody's,
    /// whatever credentials it took, as upstream has it.
    pub(crate) fn source(&self, policy: &str, wanted: &Wanted) -> PolicySource {
        let policy = match policy {
            "Always" => Policy::Always,
            "Never" => Policy::Never,
            _ => Policy::IfNotPresent,
        };
        let source = self.images.with(wanted);
        PolicySource { source, native: wanted.native, images: self.clone(), policy, read: None }
    }

    /// Images that were resolved, the largest first.
    pub(crate) fn present(&self) -> Vec<Present> {
        let mut images: BTreeMap<String, Present> = BTreeMap::new();
        for ((reference, _), Known { digest, size }) in &*self.known() {
            let fresh = || Present { digest: digest.clone(), names: Vec::new(), size: *size };
            let names = &mut images.entry(digest.clone()).or_insert_with(fresh).names;
            if names.last() != Some(reference) {
                names.push(reference.clone());
            }
        }
        let mut images: Vec<Present> = images.into_values().collect();
        images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.names.cmp(&b.names)));
        images
    }

    /// Forgets an image that is gone.
    pub(crate) fn forget(&self, digest: &str) {
        let gone: Vec<(String, bool)> =
            self.known().iter().filter(|(_, one)| one.digest == digest).map(|(key, _)| key.clone()).collect();
        for (reference, native) in gone {
            if let Err(error) = std::fs::remove_file(self.file(&reference, native)) {
                tracing::debug!(reference, %error, "a manifest was not forgotten");
            }
            self.known().remove(&(reference, native));
        }
    }

    fn file(&self, reference: &str, native: bool) -> PathBuf {
        let key = if native { format!("{reference} for containers") } else { reference.to_owned() };
        let name: String = Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
        self.directory.join(name)
    }

    fn recall(&self, reference: &str, native: bool) -> Option<Manifest> {
        let remembered: Remembered =
            serde_json::from_slice(&std::fs::read(self.file(reference, native)).ok()?).ok()?;
        Some(Manifest { digest: remembered.digest, bytes: remembered.manifest.into() })
    }

    fn remember(&self, reference: &str, native: bool, manifest: &Manifest) -> std::io::Result<()> {
        if let Some(before) = self.recall(reference, native)
            && before.digest != manifest.digest
        {
            // The image that the tag has left is still here, and nobody could remove it without a name.
            self.write(&crate::host::with_digest(reference, &before.digest), native, &before)?;
        }
        self.write(reference, native, manifest)
    }

    fn write(&self, reference: &str, native: bool, manifest: &Manifest) -> std::io::Result<()> {
        let remembered = Remembered {
            reference: reference.to_owned(),
            native,
            digest: manifest.digest.clone(),
            manifest: String::from_utf8_lossy(&manifest.bytes).into_owned(),
        };
        let file = self.file(reference, native);
        let temporary = file.with_extension(format!("{:x}.tmp", std::process::id()));
        std::fs::write(&temporary, serde_json::to_vec(&remembered)?)?;
        std::fs::rename(&temporary, &file)?;
        let known = Known { digest: manifest.digest.clone(), size: size(&manifest.bytes) };
        self.known().insert((reference.to_owned(), native), known);
        Ok(())
    }
}

/// Bytes of what a manifest names.
pub(super) fn size(manifest: &[u8]) -> u64 {
    #[derive(Default, serde::Deserialize)]
    struct Part {
        #[serde(default)]
        size: u64,
    }
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Document {
        config: Part,
        layers: Vec<Part>,
    }
    let document: Document = serde_json::from_slice(manifest).unwrap_or_default();
    document.layers.iter().fold(document.config.size, |sum, layer| sum.saturating_add(layer.size))
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
        self.policy != Policy::Always && self.images.file(reference, self.native).exists()
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
            && let Some(manifest) = self.images.recall(reference, self.native)
        {
            return Ok(manifest);
        }
        if self.policy == Policy::Never {
            let text =
                format!("{NEVER_PULL}Container image {reference:?} is not present with pull policy of Never");
            return Err(Error::Pull(text));
        }
        let manifest = self.source.manifest(reference).await?;
        if let Err(error) = self.images.remember(reference, self.native, &manifest) {
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
        self.source.blob(reference, digest, size, path).await
    }

    fn prefers_present(&self) -> bool {
        self.policy != Policy::Always
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every tag leads to the manifest of that moment.
    struct Moving(Mutex<u64>);

    #[async_trait]
    impl ImageSource for Moving {
        async fn manifest(&self, _: &str) -> Result<Manifest, Error> {
            let n = *self.0.lock().unwrap();
            let bytes =
                format!(r#"{{"config":{{"size":{n}}},"layers":[{{"size":10}},{{"size":5}}]}}"#).into();
            Ok(Manifest { digest: format!("sha256:{n}"), bytes })
        }

        async fn blob(&self, _: &str, _: &str, _: u64, _: &Path) -> Result<(), Error> {
            Ok(())
        }
    }

    struct Registry(Arc<Moving>);

    #[async_trait]
    impl ImageSource for Registry {
        async fn manifest(&self, reference: &str) -> Result<Manifest, Error> {
            self.0.manifest(reference).await
        }

        async fn blob(&self, _: &str, _: &str, _: u64, _: &Path) -> Result<(), Error> {
            Ok(())
        }
    }

    impl PodImages for Registry {
        fn with(&self, _: &Wanted) -> Arc<dyn ImageSource> {
            Arc::clone(&self.0) as Arc<dyn ImageSource>
        }
    }

    #[tokio::test]
    async fn a_tag_that_moved_is_followed_where_the_policy_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let moving = Arc::new(Moving(Mutex::new(1)));
        let images = PolicyImages::new(Arc::new(Registry(Arc::clone(&moving))), dir.path().to_owned());
        let read = async |policy: &str| {
            let source = images.source(policy, &Wanted::default());
            source.manifest("web:1").await.map(|manifest| manifest.digest)
        };
        assert!(read("Never").await.unwrap_err().to_string().contains("ErrImageNeverPull"));
        assert_eq!(read("IfNotPresent").await.unwrap(), "sha256:1");
        *moving.0.lock().unwrap() = 2;
        assert_eq!(read("IfNotPresent").await.unwrap(), "sha256:1");
        assert_eq!(read("Never").await.unwrap(), "sha256:1");
        assert_eq!(read("Always").await.unwrap(), "sha256:2");
        assert_eq!(read("IfNotPresent").await.unwrap(), "sha256:2", "the tag means the new one now");
        let present =
            |digest: &str, size| Present { digest: digest.into(), names: vec!["web:1".into()], size };
        let left = Present { names: vec!["web@sha256:1".into()], ..present("sha256:1", 16) };
        assert_eq!(
            images.present(),
            [present("sha256:2", 17), left],
            "the image that the tag left can be removed"
        );
        let again = PolicyImages::new(Arc::new(Registry(moving)), dir.path().to_owned());
        assert_eq!(again.present(), images.present(), "a restart forgets nothing");
        again.forget("sha256:2");
        again.forget("sha256:1");
        assert!(again.present().is_empty() && !again.source("Never", &Wanted::default()).is_present("web:1"));
    }
}
