//! The registry as a value: open it, route to it, ask it.

use crate::disk::Disk;
use crate::garbage::{self, Collected};
use crate::inspect::{InspectError, inspect};
use crate::manifest::{Content, Need};
use crate::upload::{Session, Sessions, Upload};
use crate::{Digest, Error, Manifest, Reference, Repository};
use ketch_api::wasm::Inspection;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{RwLock, Semaphore};

/// Inspections kept in memory.
const CACHED_INSPECTIONS: usize = 256;

/// Called after a manifest with a Wasm layer is stored. It runs on the request's task: hand the work on,
/// do not do it.
pub type PushHook = Arc<dyn Fn(PushedManifest) + Send + Sync>;

/// A stored manifest that has a Wasm layer.
#[derive(Clone, Debug)]
pub struct PushedManifest {
    /// Where it was pushed.
    pub repository: Repository,
    /// What it was pushed as.
    pub reference: Reference,
    /// Of the manifest.
    pub manifest: Digest,
    /// Of the Wasm layer.
    pub layer: Digest,
    /// The Wasm binary; never changes, but can be collected once nothing names it.
    pub path: PathBuf,
}

/// Settings.
#[derive(Clone)]
pub struct RegistryOptions {
    /// Largest blob accepted, in bytes.
    pub max_blob_bytes: u64,
    /// Largest manifest accepted, in bytes.
    pub max_manifest_bytes: usize,
    /// Largest Wasm binary inspected, in bytes: inspection holds it in memory.
    pub max_inspect_bytes: u64,
    /// Uploads that may be under way at once.
    pub max_uploads: usize,
    /// How long an upload may rest before it is forgotten.
    pub upload_ttl: Duration,
    /// Called after a Wasm image is pushed.
    pub on_push: Option<PushHook>,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        RegistryOptions {
            max_blob_bytes: 512 << 20,
            max_manifest_bytes: 4 << 20,
            max_inspect_bytes: 128 << 20,
            max_uploads: 64,
            upload_ttl: Duration::from_secs(3_600),
            on_push: None,
        }
    }
}

impl fmt::Debug for RegistryOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryOptions")
            .field("max_blob_bytes", &self.max_blob_bytes)
            .field("max_manifest_bytes", &self.max_manifest_bytes)
            .field("max_inspect_bytes", &self.max_inspect_bytes)
            .field("max_uploads", &self.max_uploads)
            .field("upload_ttl", &self.upload_ttl)
            .field("on_push", &self.on_push.is_some())
            .finish()
    }
}

/// The registry. Clones are handles on the same one.
#[derive(Clone)]
pub struct Registry(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) disk: Disk,
    pub(crate) options: RegistryOptions,
    pub(crate) sessions: Sessions,
    /// Read by whoever adds claims or manifests, written by garbage collection: nothing is collected
    /// between the check that it is there and the manifest that names it.
    pub(crate) collecting: RwLock<()>,
    /// One at a time, because each holds a whole binary in memory.
    inspecting: Semaphore,
    inspections: Mutex<HashMap<Digest, Arc<Inspection>>>,
}

impl Registry {
    /// Opens the registry in `dir`, which is made if it is missing. Unfinished uploads of an earlier process
    /// are removed, so the directory must have one owner.
    pub fn open(dir: impl AsRef<Path>, options: RegistryOptions) -> Result<Registry, Error> {
        Ok(Registry(Arc::new(Inner {
            disk: Disk::open(dir.as_ref())?,
            options,
            sessions: Sessions::default(),
            collecting: RwLock::new(()),
            inspecting: Semaphore::new(1),
            inspections: Mutex::new(HashMap::new()),
        })))
    }

    /// Everything under `/v2`, without authentication.
    pub fn router(&self) -> axum::Router {
        crate::http::router(self.clone())
    }

    /// All repositories, sorted.
    pub async fn repositories(&self) -> Result<Vec<Repository>, Error> {
        self.blocking(|inner| inner.disk.all_repositories()).await
    }

    /// The manifest a reference leads to.
    pub async fn manifest(&self, repository: &Repository, reference: &Reference) -> Result<Manifest, Error> {
        let (repository, reference) = (repository.clone(), reference.clone());
        self.blocking(move |inner| inner.disk.manifest(&repository, &reference)).await
    }

    /// The Wasm layer of the manifest a reference leads to, and the file it is in. `None`: it has none.
    pub async fn wasm_layer(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Option<(Digest, PathBuf)>, Error> {
        let manifest = self.manifest(repository, reference).await?;
        let content = Content::parse(&manifest.media_type, &manifest.content)?;
        Ok(content.wasm_layer().map(|layer| (layer.clone(), self.0.disk.blob_path(&layer))))
    }

    /// Inspects a Wasm blob, or the Wasm layer of a manifest.
    pub async fn inspect(
        &self,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Arc<Inspection>, Error> {
        let digest = self.wasm_blob(repository, reference).await?;
        if let Some(known) = self.inspections().get(&digest) {
            return Ok(known.clone());
        }
        let _turn = self.0.inspecting.acquire().await;
        let blob = digest.clone();
        let repository = repository.clone();
        let inspection = self
            .blocking(move |inner| {
                let limit = inner.options.max_inspect_bytes;
                let size = inner.disk.blob_size(&repository, &blob)?;
                if size > limit {
                    return Err(InspectError::TooLarge { size, limit }.into());
                }
                let path = inner.disk.blob_path(&blob);
                let bytes = std::fs::read(&path).map_err(Error::on("reading", &path))?;
                Ok(Arc::new(inspect(&bytes)?))
            })
            .await?;
        let mut inspections = self.inspections();
        if inspections.len() >= CACHED_INSPECTIONS {
            inspections.clear();
        }
        inspections.insert(digest, inspection.clone());
        Ok(inspection)
    }

    fn inspections(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Arc<Inspection>>> {
        self.0.inspections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wasm_blob(&self, repository: &Repository, reference: &Reference) -> Result<Digest, Error> {
        if let Reference::Digest(digest) = reference {
            let (repository, blob) = (repository.clone(), digest.clone());
            let size = self.blocking(move |inner| inner.disk.blob_size(&repository, &blob)).await;
            match size {
                Ok(_) => return Ok(digest.clone()),
                Err(Error::BlobUnknown { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let layer = self.wasm_layer(repository, reference).await?;
        layer.map(|(digest, _)| digest).ok_or(Error::Inspect(InspectError::NoWasmLayer))
    }

    /// Removes blobs that no manifest names, and claims on them, once they are older than `grace`; and
    /// uploads that have expired. Pushes wait meanwhile.
    pub async fn collect_garbage(&self, grace: Duration) -> Result<Collected, Error> {
        self.0.sessions.expire(Instant::now(), self.0.options.upload_ttl);
        let _alone = self.0.collecting.write().await;
        self.blocking(move |inner| garbage::collect(&inner.disk, SystemTime::now(), grace)).await
    }

    /// Begins an upload.
    pub(crate) async fn begin_upload(&self, repository: &Repository) -> Result<Session, Error> {
        self.0.sessions.expire(Instant::now(), self.0.options.upload_ttl);
        let (id, path, file) = self.blocking(|inner| inner.disk.new_upload()).await?;
        let upload = Upload::new(path, file, self.0.options.max_blob_bytes);
        let session = Session {
            id,
            repository: repository.clone(),
            turn: Arc::default(),
            upload: Arc::new(Mutex::new(upload)),
        };
        self.0.sessions.add(session.clone(), self.0.options.max_uploads)?;
        Ok(session)
    }

    /// Stores a manifest after checking that everything it names is there. Returns its subject.
    pub(crate) async fn put_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        manifest: Manifest,
    ) -> Result<Option<Digest>, Error> {
        if let Reference::Digest(expected) = reference
            && *expected != manifest.digest
        {
            let reason = format!("the manifest is {}, not {expected}", manifest.digest);
            return Err(Error::DigestInvalid { reason });
        }
        let content = Content::parse(&manifest.media_type, &manifest.content)?;
        let (needs, subject, layer) = (content.needs()?, content.subject()?, content.wasm_layer());
        let digest = manifest.digest.clone();
        let _not_collecting = self.0.collecting.read().await;
        let (target, pushed_as) = (repository.clone(), reference.clone());
        self.blocking(move |inner| {
            check_needs(&inner.disk, &target, &needs)?;
            let tag = match &pushed_as {
                Reference::Tag(tag) => Some(tag),
                Reference::Digest(_) => None,
            };
            inner.disk.put_manifest(&target, &manifest, tag)
        })
        .await?;
        if let (Some(hook), Some(layer)) = (&self.0.options.on_push, layer) {
            hook(PushedManifest {
                repository: repository.clone(),
                reference: reference.clone(),
                manifest: digest,
                path: self.0.disk.blob_path(&layer),
                layer,
            });
        }
        Ok(subject)
    }

    /// Runs `work` where it may block. It is not cancelled by dropping the future.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = self.0.clone();
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(result) => result,
            Err(error) => Err(Error::io("running a registry task", std::io::Error::other(error))),
        }
    }
}

fn check_needs(disk: &Disk, repository: &Repository, needs: &[Need]) -> Result<(), Error> {
    for need in needs {
        let missing = |digest: &Digest| Error::ManifestBlobUnknown {
            repository: repository.clone(),
            digest: digest.clone(),
        };
        match need {
            Need::Manifest(digest) if !disk.has_manifest(repository, digest)? => return Err(missing(digest)),
            Need::Manifest(_) => {}
            Need::Blob(digest, size) => match disk.blob_size(repository, digest) {
                Ok(actual) if actual == *size => {}
                Ok(actual) => {
                    let reason = format!("{digest} is {actual} bytes, the manifest says {size}");
                    return Err(Error::ManifestInvalid { reason });
                }
                Err(Error::BlobUnknown { .. }) => return Err(missing(digest)),
                Err(error) => return Err(error),
            },
        }
    }
    Ok(())
}
