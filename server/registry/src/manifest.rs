//! Manifests as values: what they name, and whether they may be stored. Pure.

use crate::{Digest, Error, Manifest};
use ketch_api::wasm;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub(crate) const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_IMAGE: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What is pushed as a manifest: images and indexes alike, reduced to what a registry looks at.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Content {
    schema_version: u32,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    annotations: Option<BTreeMap<String, String>>,
}

/// A reference to content.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    /// Where else the content is, for layers that a registry need not have.
    #[serde(default, skip_serializing)]
    urls: Vec<String>,
}

/// Content a manifest cannot do without.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// A blob of that size.
    Blob(Digest, u64),
    /// Another manifest.
    Manifest(Digest),
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::ManifestInvalid { reason: reason.into() }
}

impl Content {
    /// Reads a manifest that comes with `media_type`. The type decides what browsers and clients make of
    /// the bytes later, so only the known ones are taken.
    pub(crate) fn parse(media_type: &str, bytes: &[u8]) -> Result<Self, Error> {
        if ![IMAGE, INDEX, DOCKER_IMAGE, DOCKER_LIST].contains(&media_type) {
            return Err(invalid(format!(
                "its media type is `{media_type}`, supported are {IMAGE} and {INDEX}"
            )));
        }
        let content: Content = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
        if content.schema_version != 2 {
            return Err(invalid(format!("schemaVersion is {}, it must be 2", content.schema_version)));
        }
        if let Some(own) = content.media_type.as_deref().filter(|own| *own != media_type) {
            return Err(invalid(format!("mediaType is `{own}`, but it was sent as `{media_type}`")));
        }
        let is_index = matches!(media_type, INDEX | DOCKER_LIST);
        if is_index && content.manifests.is_none() {
            return Err(invalid("an index needs `manifests`"));
        }
        if !is_index && (content.config.is_none() || content.layers.is_none()) {
            return Err(invalid("an image needs `config` and `layers`"));
        }
        Ok(content)
    }

    /// Everything that must be in the repository before this.
    pub(crate) fn needs(&self) -> Result<Vec<Need>, Error> {
        let blobs = self.config.iter().chain(self.layers.iter().flatten());
        let blobs = blobs
            .filter(|descriptor| descriptor.urls.is_empty())
            .map(|descriptor| Ok(Need::Blob(descriptor.digest()?, descriptor.size)));
        let manifests =
            self.manifests.iter().flatten().map(|descriptor| Ok(Need::Manifest(descriptor.digest()?)));
        blobs.chain(manifests).collect()
    }

    /// The manifest this one is about: a signature, an SBOM. It need not exist.
    pub(crate) fn subject(&self) -> Result<Option<Digest>, Error> {
        self.subject.as_ref().map(Descriptor::digest).transpose()
    }

    /// The layer that is a Wasm binary.
    pub(crate) fn wasm_layer(&self) -> Option<Digest> {
        let is_wasm = |media_type: &str| {
            media_type == wasm::LAYER_MEDIA_TYPE || wasm::LEGACY_LAYER_MEDIA_TYPES.contains(&media_type)
        };
        let mut layers = self.layers.iter().flatten();
        layers.find(|layer| is_wasm(&layer.media_type)).and_then(|layer| layer.digest().ok())
    }

    /// As an entry of a referrers list.
    pub(crate) fn describe(&self, manifest: &Manifest) -> Descriptor {
        let by_config = || self.config.as_ref().map(|config| config.media_type.clone());
        Descriptor {
            media_type: manifest.media_type.clone(),
            digest: manifest.digest.to_string(),
            size: manifest.content.len() as u64,
            artifact_type: self.artifact_type.clone().filter(|text| !text.is_empty()).or_else(by_config),
            annotations: self.annotations.clone(),
            urls: Vec::new(),
        }
    }
}

impl Descriptor {
    fn digest(&self) -> Result<Digest, Error> {
        self.digest.parse().map_err(|error: Error| invalid(error.to_string()))
    }
}

/// Content type of an index, for lists made here.
pub(crate) fn index_of(manifests: &[Descriptor]) -> serde_json::Value {
    serde_json::json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests })
}

/// Media type of an index.
pub(crate) const INDEX_MEDIA_TYPE: &str = INDEX;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(media_type: &str, content: &serde_json::Value) -> Result<Content, Error> {
        Content::parse(media_type, content.to_string().as_bytes())
    }

    fn descriptor(media_type: &str, content: &[u8]) -> serde_json::Value {
        json!({ "mediaType": media_type, "digest": Digest::of(content).to_string(), "size": content.len() })
    }

    #[test]
    fn an_image_needs_its_config_and_layers() {
        let image = json!({
            "schemaVersion": 2,
            "mediaType": IMAGE,
            "config": descriptor(wasm::CONFIG_MEDIA_TYPE, b"{}"),
            "layers": [descriptor("text/plain", b"note"), descriptor(wasm::LAYER_MEDIA_TYPE, b"code")],
        });
        let image = parse(IMAGE, &image).unwrap();
        let expected = [b"{}".as_slice(), b"note", b"code"];
        let expected: Vec<_> =
            expected.iter().map(|blob| Need::Blob(Digest::of(blob), blob.len() as u64)).collect();
        assert_eq!(image.needs().unwrap(), expected);
        assert_eq!(image.wasm_layer(), Some(Digest::of(b"code")));
    }

    #[test]
    fn what_is_not_a_manifest_is_refused() {
        let image = |key: &str, value: serde_json::Value| {
            let mut image = json!({
                "schemaVersion": 2, "config": descriptor("c", b"{}"), "layers": [],
            });
            image[key] = value;
            image
        };
        assert!(parse(IMAGE, &image("x", json!(1))).is_ok());
        assert!(parse("text/html", &image("x", json!(1))).is_err());
        assert!(parse(IMAGE, &image("schemaVersion", json!(1))).is_err());
        assert!(parse(IMAGE, &image("mediaType", json!(INDEX))).is_err());
        assert!(parse(IMAGE, &image("layers", json!(null))).is_err());
        assert!(parse(INDEX, &image("x", json!(1))).is_err());
        assert!(Content::parse(IMAGE, b"{").is_err());
        let escaping = json!([{ "mediaType": "l", "digest": "sha256:../../x", "size": 1 }]);
        assert!(parse(IMAGE, &image("layers", escaping)).unwrap().needs().is_err());
    }
}
