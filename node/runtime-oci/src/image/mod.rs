//! Images: from the node's [`ImageSource`] into containerd's stores.
//!
//! containerd pulls nothing itself: registries, credentials, mirrors and pull policies are the node's, and
//! the same for every runtime. What is here turns a reference into content, snapshots and a record that
//! CRI accepts. A pull works in a task of its own: whoever waits for it may go away, and then what it has written
//! is taken back.

mod content;
pub(crate) mod manifest;
pub(crate) mod name;
mod pause;
mod room;
mod unpack;
mod zstd;

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
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    content::{Labels, Lease},
    manifest::{Config, Descriptor, MAX_DOCUMENT, Manifest, Parsed, Platform},
    name::Name,
};
use crate::client::{Client, QUICK, SLOW, or_gone};

pub(crate) use pause::REFERENCE as PAUSE;
pub(crate) use room::Room;

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
    /// Starts the names of its leases.
    owner: String,
    room: Room,
    host: Platform,
    pulls: TaskTracker,
    end: CancellationToken,
}

impl Images {
    /// Over `client`, with `dir` for blobs on their way and containerd's images under `root`.
    pub(crate) fn new(
        client: Client,
        owner: String,
        dir: PathBuf,
        root: Option<PathBuf>,
        snapshotter: String,
    ) -> Self {
        let room = Room::new(root.into_iter().chain([dir.clone()]).collect());
        Self {
            client,
            dir,
            snapshotter,
            owner: format!("ketch-pull-{owner}-"),
            room,
            host: Platform::host(),
            pulls: TaskTracker::new(),
            end: CancellationToken::new(),
        }
    }

    /// Takes back what pulls of an earlier process have left unfinished.
    pub(crate) async fn recover(&self) {
        if let Err(error) = content::end_abandoned(&self.client, &self.owner).await {
            tracing::warn!(%error, "what interrupted pulls have left stays for a day");
        }
    }

    /// Ends pulls that go on, and takes back what they have written; what takes too long is left to
    /// [`Images::recover`].
    pub(crate) async fn shutdown(&self) {
        self.end.cancel();
        self.pulls.close();
        if tokio::time::timeout(QUICK, self.pulls.wait()).await.is_err() {
            tracing::warn!("containerd does not take back what interrupted pulls have written");
        }
    }

    /// A directory on the file system that images are unpacked on.
    pub(crate) fn root(&self) -> Option<PathBuf> {
        self.room.images()
    }

    /// Whether a container's own files are kept apart from its image's.
    pub(crate) fn has_overlays(&self) -> bool {
        self.snapshotter == "overlayfs"
    }

    /// Makes `reference` present. See [`ketch_runtime::Runtime::pull`].
    pub(crate) async fn pull(
        self: &Arc<Self>,
        reference: &str,
        source: Arc<dyn ImageSource>,
    ) -> Result<Image, Error> {
        let name = Name::parse(reference);
        if name.full() == PAUSE {
            // Every pod of the node would have a program of whoever pushed it.
            return Err(Error::Config(format!(
                "{PAUSE} is what Ketch runs in every pod; name the image otherwise"
            )));
        }
        self.make_present(reference, name, source).await
    }

    async fn make_present(
        self: &Arc<Self>,
        reference: &str,
        name: Name,
        source: Arc<dyn ImageSource>,
    ) -> Result<Image, Error> {
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
        let given_up = self.end.child_token();
        let waiting = given_up.clone().drop_guard();
        let (images, reference, place) = (Arc::clone(self), reference.to_owned(), name.clone());
        let fetch =
            async move { images.fetch_leased(&place, &reference, &document, &*source, given_up).await };
        let fetched = self.pulls.spawn(fetch).await;
        waiting.disarm();
        fetched.map_err(|error| Error::Internal(format!("pull an image: {error}")))??;
        self.noticed(&name, &fixed).await
    }

    /// [`Images::fetch`] as long as there is room and somebody waits; of one that does not succeed nothing stays.
    async fn fetch_leased(
        &self,
        name: &Name,
        reference: &str,
        document: &Document,
        source: &dyn ImageSource,
        given_up: CancellationToken,
    ) -> Result<(), Error> {
        let lease = Lease::take(&self.client, format!("{}{}", self.owner, random())).await?;
        let bounded = async {
            match reference {
                // Without it no pod runs; it is small.
                PAUSE => std::future::pending().await,
                _ => self.room.gone(reference).await,
            }
        };
        let fetched = tokio::select! {
            biased;
            () = given_up.cancelled() => Err(Error::Internal(format!("the pull of {reference} was given up"))),
            error = bounded => Err(error),
            fetched = self.fetch(&lease, name, reference, document, source) => fetched,
        };
        lease.end(fetched.is_err()).await;
        fetched.map_err(|error| self.room.explain(reference, error))
    }

    /// Makes the image of the pause program present, also as `alias` when containerd lacks that image.
    pub(crate) async fn pull_pause(self: &Arc<Self>, alias: Option<&str>) -> Result<(), Error> {
        self.make_present(PAUSE, Name::parse(PAUSE), Arc::new(pause::Source::new()?)).await?;
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
                check_window(layer, path.clone()).await?;
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

/// Refuses a layer that takes too much memory to unpack.
async fn check_window(layer: &Descriptor, path: PathBuf) -> Result<(), Error> {
    let read = move || zstd::window(&mut std::io::BufReader::new(std::fs::File::open(path)?));
    let window = tokio::task::spawn_blocking(read).await.map_err(std::io::Error::other).flatten();
    match window.map_err(disk)? {
        window if window > zstd::MAX_WINDOW => Err(Error::Image(format!(
            "layer {} takes {window} bytes of memory to unpack, more than the {} allowed: compress it without --long",
            layer.digest,
            zstd::MAX_WINDOW
        ))),
        _ => Ok(()),
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
