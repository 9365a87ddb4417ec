//! The image of the pause program, made here: no registry is needed to start the first pod.

use std::{collections::HashMap, path::Path};

use async_trait::async_trait;
use bytes::Bytes;
use ketch_runtime::{Error, ImageSource, Manifest};
use serde_json::json;

use super::digest;

/// What containerd is told to run in every pod. Changed whenever the program changes.
pub(crate) const REFERENCE: &str = "ketch.local/system/pause:1";
/// See `build.rs`.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));

/// An image source of one image.
pub(crate) struct Source {
    manifest: Manifest,
    blobs: HashMap<String, Bytes>,
}

impl Source {
    /// Packs the program.
    pub(crate) fn new() -> Result<Self, Error> {
        let layer = archive().map_err(|error| Error::Internal(format!("pack the pause program: {error}")))?;
        let architecture = super::Platform::host().architecture().to_owned();
        let config = json!({
            "os": "linux", "architecture": architecture,
            "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(&config), "size": config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": digest(&layer), "size": layer.len()}],
        });
        let bytes = Bytes::from(manifest.to_string());
        let blobs = [layer, config].into_iter().map(|blob| (digest(&blob), Bytes::from(blob))).collect();
        Ok(Self { manifest: Manifest { digest: digest(&bytes), bytes }, blobs })
    }
}

fn archive() -> std::io::Result<Vec<u8>> {
    let mut header = tar::Header::new_ustar();
    header.set_size(PROGRAM.len() as u64);
    header.set_mode(0o755);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, "pause", PROGRAM)?;
    archive.into_inner()
}

#[async_trait]
impl ImageSource for Source {
    async fn manifest(&self, _reference: &str) -> Result<Manifest, Error> {
        Ok(self.manifest.clone())
    }

    async fn blob(&self, _reference: &str, digest: &str, _size: u64, path: &Path) -> Result<(), Error> {
        let blob = self.blobs.get(digest).ok_or_else(|| Error::NotFound(digest.to_owned()))?;
        std::fs::write(path, blob).map_err(|error| Error::Internal(error.to_string()))
    }

    fn prefers_present(&self) -> bool {
        // An older program under the same name is replaced.
        false
    }
}
