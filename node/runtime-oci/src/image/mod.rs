//! Images: from the node's [`ImageSource`] into containerd's stores.
//!
//! containerd pulls nothing itself: registries, credentials, mirrors and pull policies are the node's, and
//! the same for every runtime. What is here turns a reference into content, snapshots and a record that
//! CRI accepts.

mod content;
pub(crate) mod manifest;
pub(crate) mod name;
mod pause;
mod unpack;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use containerd_client::types;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_cri::v1::{self as cri, ImageSpec, ImageStatusRequest, RemoveImageRequest};
use ketch_runtime::{Error, Image, ImageSource, Manifest as Document};
use sha2::{Digest, Sha256};

use self::{
    content::{Labels, Lease},
    manifest::{Config, Descriptor, MAX_DOCUMENT, Manifest, Parsed, Platform},
    name::Name,
};
use crate::client::{Client, QUICK, SLOW, or_gone};

pub(crate) use pause::REFERENCE as PAUSE;

/// Blobs fetched at a time.
const PARALLEL: usize = 3;
/// How long CRI may take to notice an image.
const NOTICE: Duration = Duration::from_secs(20);
/// What CRI calls its own images.
const MANAGED: (&str, &str) = ("io.cri-containerd.image", "managed");

/// The images of one containerd.
#[derive(Debug)]
pub(crate) struct Images {
    client: Client,
    /// Where blobs are put on their way.
    dir: PathBuf,
    snapshotter: String,
    host: Platform,
}

impl Images {
    /// Over `client`, with `dir` for blobs on their way.
    pub(crate) fn new(client: Client, dir: PathBuf, snapshotter: String) -> Self {
        Self { client, dir, snapshotter, host: Platform::host() }
    }

    /// Whether a container's own files are kept apart from its image's.
    pub(crate) fn has_overlays(&self) -> bool {
        self.snapshotter == "overlayfs"
    }

    /// Makes `reference` present. See [`ketch_runtime::Runtime::pull`].
    pub(crate) async fn pull(&self, reference: &str, source: Arc<dyn ImageSource>) -> Result<Image, Error> {
        let name = Name::parse(reference);
        if source.prefers_present()
            && let Some((image, _)) = self.present(&name, &name.full()).await?
        {
            return Ok(image);
        }
        let document = checked(reference, source.manifest(reference).await?)?;
        let fixed = name.at(&document.digest);
        if let Some((image, target)) = self.present(&name, &fixed).await? {
            content::point(&self.client, &name.full(), &target, managed()).await?;
            return Ok(image);
        }
        let id = format!("ketch-pull-{}-{}", std::process::id(), random());
        let lease = Lease::take(&self.client, id).await?;
        let fetched = self.fetch(&lease, &name, reference, &document, &*source).await;
        lease.end().await;
        fetched?;
        self.noticed(&name, &fixed).await
    }

    /// Makes the image of the pause program present, also as `alias` when containerd lacks that image.
    pub(crate) async fn pull_pause(&self, alias: Option<&str>) -> Result<(), Error> {
        self.pull(PAUSE, Arc::new(pause::Source::new()?)).await?;
        let Some(alias) = alias.filter(|alias| !alias.is_empty()) else { return Ok(()) };
        let name = Name::parse(alias);
        if self.present(&name, &name.full()).await?.is_none()
            && let Some(target) = content::record(&self.client, PAUSE).await?
        {
            content::point(&self.client, &name.full(), &target, managed()).await?;
            self.noticed(&name, &name.full()).await?;
        }
        Ok(())
    }

    /// Removes the image with manifest `digest`, under all its names. See [`ketch_runtime::Runtime::remove_image`].
    pub(crate) async fn remove(&self, reference: &str, digest: &str) -> Result<(), Error> {
        let spec = ImageSpec { image: Name::parse(reference).at(digest), ..ImageSpec::default() };
        let request = RemoveImageRequest { image: Some(spec) };
        let mut images = self.client.cri_images();
        or_gone(self.client.call("remove an image", SLOW, images.remove_image(request)).await.map(drop))
    }

    /// What CRI knows of `image`, a reference or an id.
    pub(crate) async fn status(&self, image: &str) -> Result<Option<cri::Image>, Error> {
        let spec = ImageSpec { image: image.to_owned(), ..ImageSpec::default() };
        let request = ImageStatusRequest { image: Some(spec), verbose: false };
        let mut images = self.client.cri_images();
        Ok(self.client.call("look for an image", QUICK, images.image_status(request)).await?.image)
    }

    /// The image recorded as `full`, when CRI can use it; recorded under its digest too then.
    async fn present(&self, name: &Name, full: &str) -> Result<Option<(Image, types::Descriptor)>, Error> {
        let Some(target) = content::record(&self.client, full).await? else { return Ok(None) };
        let Some(status) = self.status(full).await? else { return Ok(None) };
        let id = name.at(&target.digest);
        if id != full && content::record(&self.client, &id).await?.is_none() {
            content::point(&self.client, &id, &target, managed()).await?;
            self.noticed(name, &id).await?;
        }
        Ok(Some((Image { digest: target.digest.clone(), id, size: status.size }, target)))
    }

    /// Waits until CRI knows the image recorded as `full`: it learns of it from an event.
    async fn noticed(&self, name: &Name, full: &str) -> Result<Image, Error> {
        let wait = async {
            loop {
                if let Some(target) = content::record(&self.client, full).await?
                    && let Some(status) = self.status(full).await?
                {
                    let id = name.at(&target.digest);
                    return Ok(Image { digest: target.digest, id, size: status.size });
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let late = |_| Error::Internal(format!("containerd has {full} but its CRI plugin does not take it"));
        tokio::time::timeout(NOTICE, wait).await.map_err(late)?
    }

    async fn fetch(
        &self,
        lease: &Lease<'_>,
        name: &Name,
        reference: &str,
        document: &Document,
        source: &dyn ImageSource,
    ) -> Result<(), Error> {
        let named = |error: Error| match error {
            Error::Pull(text) if !text.contains(reference) => Error::Pull(format!("{reference}: {text}")),
            other => other,
        };
        let dir = self.directory()?;
        let target = match manifest::parse(reference, &self.host, &document.bytes)? {
            Parsed::Image(kind, image) => {
                let own = self.image(lease, reference, &image, source, dir.path()).await.map_err(named)?;
                self.document(lease, document, kind, own, dir.path()).await?
            }
            Parsed::Index(kind, entry) => {
                let child = name.at(&entry.digest);
                let inner = checked(&child, source.manifest(&child).await?)?;
                let Parsed::Image(own, image) = manifest::parse(reference, &self.host, &inner.bytes)? else {
                    return Err(Error::Pull(format!("the index of {reference} leads to another index")));
                };
                let labels = self.image(lease, reference, &image, source, dir.path()).await.map_err(named)?;
                self.document(lease, &inner, own, labels, dir.path()).await?;
                let labels = Labels::from([(gc("m.0"), inner.digest.clone())]);
                self.document(lease, document, kind, labels, dir.path()).await?
            }
        };
        let mut labels = managed();
        if reference == PAUSE {
            labels.insert("io.cri-containerd.pinned".to_owned(), "pinned".to_owned());
        }
        for full in [name.full(), name.at(&document.digest)] {
            content::point(&self.client, &full, &target, labels.clone()).await?;
        }
        Ok(())
    }

    /// Fetches config and layers and unpacks them; returns the labels that tie the manifest to them.
    async fn image(
        &self,
        lease: &Lease<'_>,
        reference: &str,
        image: &Manifest,
        source: &dyn ImageSource,
        dir: &Path,
    ) -> Result<Labels, Error> {
        let path = dir.join("config");
        source.blob(reference, &image.config.digest, image.config.size, &path).await?;
        let bytes = tokio::fs::read(&path).await.map_err(disk)?;
        let config = Config::parse(reference, &self.host, &bytes, image.layers.len())?;
        lease.write(&image.config, &path).await?;
        stream::iter(image.layers.iter().enumerate())
            .map(Ok)
            .try_for_each_concurrent(PARALLEL, |(index, layer)| async move {
                if lease.has(&layer.digest).await? {
                    return Ok(());
                }
                let path = dir.join(format!("layer-{index}"));
                source.blob(reference, &layer.digest, layer.size, &path).await?;
                lease.write(layer, &path).await?;
                tokio::fs::remove_file(&path).await.map_err(disk)
            })
            .await?;
        let last = unpack::unpack(lease, &self.snapshotter, &image.layers, config.diff_ids()).await?;
        let key = format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter);
        lease.label(&image.config.digest, Labels::from([(key, last)])).await?;
        let layers = image.layers.iter().enumerate();
        let labels = layers.map(|(index, layer)| (gc(&format!("l.{index}")), layer.digest.clone()));
        Ok(labels.chain([(gc("config"), image.config.digest.clone())]).collect())
    }

    /// Writes a manifest or an index.
    async fn document(
        &self,
        lease: &Lease<'_>,
        document: &Document,
        media_type: String,
        labels: Labels,
        dir: &Path,
    ) -> Result<types::Descriptor, Error> {
        let path = dir.join("document");
        tokio::fs::write(&path, &document.bytes).await.map_err(disk)?;
        let size = document.bytes.len() as u64;
        let blob = Descriptor { digest: document.digest.clone(), size, ..Descriptor::default() };
        lease.write(&blob, &path).await?;
        lease.label(&document.digest, labels).await?;
        Ok(types::Descriptor {
            media_type,
            digest: document.digest.clone(),
            size: i64::try_from(size).unwrap_or_default(),
            ..types::Descriptor::default()
        })
    }

    fn directory(&self) -> Result<tempfile::TempDir, Error> {
        std::fs::create_dir_all(&self.dir).and_then(|()| tempfile::tempdir_in(&self.dir)).map_err(disk)
    }
}

fn gc(what: &str) -> String {
    format!("containerd.io/gc.ref.content.{what}")
}

fn managed() -> Labels {
    Labels::from([(MANAGED.0.to_owned(), MANAGED.1.to_owned())])
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn disk(error: std::io::Error) -> Error {
    Error::Internal(format!("keep a blob on its way: {error}"))
}

/// A document whose digest is right.
fn checked(reference: &str, document: Document) -> Result<Document, Error> {
    if document.bytes.len() > MAX_DOCUMENT {
        return Err(Error::Pull(format!("the manifest of {reference} is too large")));
    }
    match digest(&document.bytes) == document.digest {
        true => Ok(document),
        false => Err(Error::Pull(format!("the manifest of {reference} is not {}", document.digest))),
    }
}

/// `sha256:…` of bytes.
fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// Tells leases apart, also those of a process that had the same id.
fn random() -> String {
    let mut bytes = [0; 8];
    // Without randomness the name is taken and the pull says so.
    _ = getrandom::fill(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
