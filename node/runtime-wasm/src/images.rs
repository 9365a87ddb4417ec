//! Wasm images on disk: which layer of a manifest is the binary, where it lies, what it can be run as.
//!
//! `<dir>/blobs/<sha256>.wasm` and `<dir>/images/<sha256 of the manifest>.json`. An image is written last,
//! after its binary was compiled and found to be runnable: one that is there can be started.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ketch_api::wasm::{LAYER_MEDIA_TYPE, LEGACY_LAYER_MEDIA_TYPES, World};
use ketch_runtime::{Error, Image};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What is kept of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// SHA-256 of the binary, hexadecimal.
    pub(crate) wasm: String,
    /// Bytes of the binary.
    pub(crate) size: u64,
    /// What it can be run as.
    pub(crate) world: World,
    /// Whether it is a core module.
    pub(crate) module: bool,
}

/// A layer as its manifest describes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Layer {
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    layers: Vec<Layer>,
    #[serde(default)]
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

/// What a manifest leads to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// The binary.
    Binary(Layer),
    /// Another manifest, of an index.
    Manifest(String),
}

/// Finds the Wasm in a manifest or index. Pure.
///
/// # Errors
/// [`Error::Image`] when there is none, or more than one.
pub(crate) fn content(reference: &str, manifest: &[u8]) -> Result<Content, Error> {
    let document: Document = serde_json::from_slice(manifest)
        .map_err(|error| Error::Image(format!("{reference}: the manifest cannot be read: {error}")))?;
    let wasm = |entry: &&Entry| {
        entry
            .platform
            .as_ref()
            .is_some_and(|platform| platform.architecture == "wasm" || platform.os == "wasi")
    };
    if let Some(entry) = document.manifests.iter().find(wasm) {
        return Ok(Content::Manifest(entry.digest.clone()));
    }
    let mut found = document.layers.iter().filter(|layer| is_wasm(&layer.media_type));
    match (found.next(), found.next()) {
        (Some(layer), None) => Ok(Content::Binary(layer.clone())),
        (Some(_), Some(_)) => Err(Error::Image(format!(
            "{reference} has more than one WebAssembly layer: push one component per image"
        ))),
        (None, _) => Err(Error::Image(format!(
            "{reference} is not a WebAssembly image: none of its layers has the media type {LAYER_MEDIA_TYPE}"
        ))),
    }
}

fn is_wasm(media_type: &str) -> bool {
    media_type == LAYER_MEDIA_TYPE || LEGACY_LAYER_MEDIA_TYPES.contains(&media_type)
}

/// `reference` without tag and digest.
pub(crate) fn repository(reference: &str) -> &str {
    let name = reference.split_once('@').map_or(reference, |(name, _)| name);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// The image as the node reports it.
pub(crate) fn image(reference: &str, digest: &str, size: u64) -> Image {
    Image { digest: digest.to_owned(), id: format!("{}@{digest}", repository(reference)), size }
}

/// The directories.
#[derive(Debug)]
pub(crate) struct Images {
    dir: PathBuf,
}

impl Images {
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        for part in ["blobs", "images"] {
            fs::create_dir_all(dir.join(part))?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// Where the binary with a hexadecimal digest lies.
    pub(crate) fn blob(&self, wasm: &str) -> PathBuf {
        self.dir.join("blobs").join(format!("{wasm}.wasm"))
    }

    /// A place for a binary that is on its way; removed unless it is kept.
    pub(crate) fn fresh(&self) -> Result<tempfile::TempPath, Error> {
        tempfile::NamedTempFile::new_in(self.dir.join("blobs"))
            .map(tempfile::NamedTempFile::into_temp_path)
            .map_err(|error| Error::Internal(format!("cannot write in {}: {error}", self.dir.display())))
    }

    /// What is kept of the image with manifest `digest`; `None` when it, or its binary, is not there.
    pub(crate) fn get(&self, digest: &str) -> Option<Stored> {
        let stored: Stored = serde_json::from_slice(&fs::read(self.path(digest)?).ok()?).ok()?;
        self.blob(&stored.wasm).exists().then_some(stored)
    }

    pub(crate) fn put(&self, digest: &str, stored: &Stored) -> Result<(), Error> {
        let path = self.path(digest).ok_or_else(|| Error::Image(format!("{digest:?} is not a digest")))?;
        let text = serde_json::to_vec(stored).map_err(|error| Error::Internal(error.to_string()))?;
        crate::cache::write_private(&path, &text)
            .map_err(|error| Error::Internal(format!("cannot write {}: {error}", path.display())))
    }

    /// Forgets an image; its binary, when no other image has it: the caller removes what was made of that.
    pub(crate) fn remove(&self, digest: &str) -> io::Result<Option<Stored>> {
        let (Some(path), Some(stored)) = (self.path(digest), self.get(digest)) else { return Ok(None) };
        fs::remove_file(path)?;
        let entries = fs::read_dir(self.dir.join("images"))?.flatten();
        let read = |path: PathBuf| serde_json::from_slice::<Stored>(&fs::read(path).ok()?).ok();
        if entries.filter_map(|entry| read(entry.path())).any(|other| other.wasm == stored.wasm) {
            return Ok(None);
        }
        fs::remove_file(self.blob(&stored.wasm))?;
        Ok(Some(stored))
    }

    fn path(&self, digest: &str) -> Option<PathBuf> {
        Some(self.dir.join("images").join(format!("{}.json", sha256_of(digest)?)))
    }
}

/// The hexadecimal part of a `sha256:…` digest, when it is one.
pub(crate) fn sha256_of(digest: &str) -> Option<&str> {
    let hex = digest.strip_prefix("sha256:")?;
    (hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))).then_some(hex)
}

/// Hexadecimal SHA-256 of a file.
pub(crate) fn hash_file(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let mut sha = Sha256::new();
    io::copy(&mut file, &mut sha)?;
    Ok(crate::hex(&sha.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(types: &[&str]) -> Vec<u8> {
        let layers: Vec<_> = types
            .iter()
            .map(|media_type| serde_json::json!({"mediaType": media_type, "digest": "sha256:00", "size": 7}))
            .collect();
        serde_json::to_vec(&serde_json::json!({"schemaVersion": 2, "layers": layers})).unwrap()
    }

    #[test]
    fn the_binary_is_the_one_wasm_layer() {
        for media_type in [LAYER_MEDIA_TYPE, LEGACY_LAYER_MEDIA_TYPES[0]] {
            let Content::Binary(layer) = content("x", &manifest(&[media_type])).unwrap() else { panic!() };
            assert_eq!(layer.size, 7);
        }
        let both = content("x", &manifest(&[LAYER_MEDIA_TYPE, LAYER_MEDIA_TYPE])).unwrap_err();
        assert_eq!(both.to_string(), "x has more than one WebAssembly layer: push one component per image");
        let none = content("x", &manifest(&["application/vnd.oci.image.layer.v1.tar+gzip"])).unwrap_err();
        assert!(none.to_string().starts_with("x is not a WebAssembly image"), "{none}");
        assert!(matches!(content("x", b"junk"), Err(Error::Image(_))));
    }

    #[test]
    fn an_index_leads_to_its_wasm_manifest() {
        let index = serde_json::json!({"manifests": [
            {"digest": "sha256:01", "platform": {"architecture": "amd64", "os": "linux"}},
            {"digest": "sha256:02", "platform": {"architecture": "wasm", "os": "wasip2"}},
        ]});
        let found = content("x", &serde_json::to_vec(&index).unwrap()).unwrap();
        assert_eq!(found, Content::Manifest("sha256:02".into()));
    }

    #[test]
    fn references_lose_tag_and_digest() {
        for (reference, name) in [
            ("ketch.local/default/hello:1", "ketch.local/default/hello"),
            ("localhost:5000/hello", "localhost:5000/hello"),
            ("localhost:5000/hello:1@sha256:00", "localhost:5000/hello"),
            ("hello", "hello"),
        ] {
            assert_eq!(repository(reference), name);
        }
    }

    #[test]
    fn only_digests_are_digests() {
        let hex = "0f".repeat(32);
        assert_eq!(sha256_of(&format!("sha256:{hex}")), Some(hex.as_str()));
        for bad in [hex.clone(), format!("sha256:{}", hex.to_uppercase()), "sha256:../../x".into()] {
            assert_eq!(sha256_of(&bad), None);
        }
    }

    #[test]
    fn an_image_without_its_binary_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(dir.path()).unwrap();
        let digest = format!("sha256:{}", "ab".repeat(32));
        let stored = Stored { wasm: "cd".repeat(32), size: 1, world: World::Http, module: false };
        images.put(&digest, &stored).unwrap();
        assert_eq!(images.get(&digest), None);
        fs::write(images.blob(&stored.wasm), "x").unwrap();
        assert_eq!(images.get(&digest), Some(stored.clone()));

        let twin = format!("sha256:{}", "ef".repeat(32));
        images.put(&twin, &stored).unwrap();
        assert_eq!(images.remove(&digest).unwrap(), None);
        assert_eq!(images.get(&twin), Some(stored.clone()), "it has the same binary");
        assert_eq!(images.remove(&twin).unwrap(), Some(stored.clone()));
        assert!(!images.blob(&stored.wasm).exists() && images.remove(&twin).unwrap().is_none());
    }
}
