//! What manifests, indexes and image configurations say, and whether this host can run it. Pure.
//!
//! Format: <https://github.com/opencontainers/image-spec>, and Docker's schema 2, which is the same JSON.

use ketch_api::wasm;
use ketch_runtime::Error;
use serde::Deserialize;

/// Most layers: the overlay file system's own limit is near.
pub(crate) const MAX_LAYERS: usize = 127;
/// Most bytes of a manifest, an index or a configuration.
pub(crate) const MAX_DOCUMENT: usize = 4 << 20;
/// Most compressed bytes of an image.
pub(crate) const MAX_IMAGE: u64 = 64 << 30;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A pointer to a blob.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    pub(crate) platform: Option<Platform>,
}

/// What an image, or one entry of an index, is for.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(crate) struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// A manifest or an index, told apart by what it contains.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Vec<Descriptor>,
}

/// What a document turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// An index; its entry for this host.
    Index(String, Descriptor),
    /// A manifest.
    Image(String, Manifest),
}

/// An image's parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// An image's configuration, as far as it matters before a container is made.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    #[serde(flatten)]
    platform: Platform,
    rootfs: RootFs,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RootFs {
    diff_ids: Vec<String>,
}

impl Platform {
    /// This host's.
    pub(crate) fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// As Go calls it.
    pub(crate) fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Whether this host (`self`) runs what is for `image`.
    fn runs(&self, image: &Self) -> bool {
        let variant = image.variant.as_deref().unwrap_or_default();
        let newer = self.architecture == "amd64" && !matches!(variant, "" | "v1");
        self.os == image.os && self.architecture == image.architecture && !newer
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// Reads a manifest or an index of `reference` for `host`.
///
/// # Errors
/// [`Error::Pull`] when it is none, [`Error::Image`] when it is not for this host or not a container.
pub(crate) fn parse(reference: &str, host: &Platform, bytes: &[u8]) -> Result<Parsed, Error> {
    let broken = |why: &str| Error::Pull(format!("the manifest of {reference} is not valid: {why}"));
    if bytes.len() > MAX_DOCUMENT {
        return Err(broken("it is too large"));
    }
    let document: Document = serde_json::from_slice(bytes).map_err(|error| broken(&error.to_string()))?;
    if let Some(entries) = document.manifests {
        let kind = document.media_type.unwrap_or_else(|| INDEX.to_owned());
        return Ok(Parsed::Index(kind, choose(reference, host, entries)?));
    }
    let config = document.config.ok_or_else(|| broken("it has neither a config nor manifests"))?;
    if is_wasm(&config) || document.layers.iter().any(is_wasm) {
        return Err(Error::Image(format!(
            "{reference} is a WebAssembly artifact: a runtime for containers cannot run it; remove \
             runtimeClassName from the pod, or set it to ketch-wasm"
        )));
    }
    let layers = document.layers;
    if layers.len() > MAX_LAYERS {
        return Err(Error::Image(format!(
            "{reference} has {} layers, more than the {MAX_LAYERS} that can be stacked",
            layers.len()
        )));
    }
    for part in layers.iter().chain([&config]) {
        if !is_digest(&part.digest) {
            return Err(broken(&format!("{:?} is not a sha256 digest", part.digest)));
        }
    }
    if config.size > MAX_DOCUMENT as u64 {
        return Err(broken("its configuration is too large"));
    }
    let total = layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.size));
    if total > MAX_IMAGE {
        return Err(Error::Image(format!(
            "{reference} has {total} bytes, more than the {MAX_IMAGE} allowed"
        )));
    }
    let kind = document.media_type.unwrap_or_else(|| MANIFEST.to_owned());
    Ok(Parsed::Image(kind, Manifest { config, layers }))
}

fn choose(reference: &str, host: &Platform, entries: Vec<Descriptor>) -> Result<Descriptor, Error> {
    let fits = |entry: &&Descriptor| entry.platform.as_ref().is_some_and(|image| host.runs(image));
    if let Some(entry) = entries.iter().find(fits) {
        return match is_digest(&entry.digest) {
            true => Ok(entry.clone()),
            false => Err(Error::Pull(format!("the index of {reference} has an invalid digest"))),
        };
    }
    let offered: Vec<String> = entries
        .iter()
        .filter_map(|entry| entry.platform.as_ref())
        .filter(|platform| platform.os != "unknown")
        .take(16)
        .map(Platform::to_string)
        .collect();
    Err(Error::Image(format!("{reference} is not made for {host}; it offers {}", offered.join(", "))))
}

impl Config {
    /// Reads the configuration of `reference` and checks that it is for `host` and fits `layers`.
    ///
    /// # Errors
    /// As [`parse`].
    pub(crate) fn parse(
        reference: &str,
        host: &Platform,
        bytes: &[u8],
        layers: usize,
    ) -> Result<Self, Error> {
        let config: Self = serde_json::from_slice(bytes).map_err(|error| {
            Error::Pull(format!("the configuration of {reference} is not valid: {error}"))
        })?;
        if !host.runs(&config.platform) {
            return Err(Error::Image(format!(
                "{reference} is made for {}, this node is {host}; build it for {host}",
                config.platform
            )));
        }
        if config.rootfs.diff_ids.len() != layers {
            return Err(Error::Pull(format!(
                "the configuration of {reference} names {} layers, its manifest {layers}",
                config.rootfs.diff_ids.len()
            )));
        }
        Ok(config)
    }

    /// Digests of the unpacked layers.
    pub(crate) fn diff_ids(&self) -> &[String] {
        &self.rootfs.diff_ids
    }
}

fn is_wasm(part: &Descriptor) -> bool {
    let kind = part.media_type.as_str();
    kind == wasm::LAYER_MEDIA_TYPE
        || kind == wasm::CONFIG_MEDIA_TYPE
        || wasm::LEGACY_LAYER_MEDIA_TYPES.contains(&kind)
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Platform {
        Platform { os: "linux".into(), architecture: "amd64".into(), variant: None }
    }

    fn index(platforms: &[(&str, &str, Option<&str>)]) -> Vec<u8> {
        let entries: Vec<_> = platforms
            .iter()
            .enumerate()
            .map(|(i, (os, architecture, variant))| {
                serde_json::json!({"digest": format!("sha256:{i:064}"), "size": 1,
                    "platform": {"os": os, "architecture": architecture, "variant": variant}})
            })
            .collect();
        serde_json::to_vec(&serde_json::json!({ "manifests": entries })).unwrap()
    }

    #[test]
    fn the_entry_for_this_host_is_taken() {
        let bytes = index(&[
            ("unknown", "unknown", None),
            ("linux", "arm64", Some("v8")),
            ("linux", "amd64", Some("v3")),
            ("linux", "amd64", None),
        ]);
        let Ok(Parsed::Index(_, entry)) = parse("a", &host(), &bytes) else { panic!("no entry") };
        assert_eq!(entry.digest, format!("sha256:{:064}", 3));
        let error =
            parse("a:1", &host(), &index(&[("linux", "arm64", Some("v8")), ("windows", "amd64", None)]));
        let text = error.unwrap_err().to_string();
        assert_eq!(text, "a:1 is not made for linux/amd64; it offers linux/arm64/v8, windows/amd64");
    }

    #[test]
    fn what_is_not_a_container_image_is_refused() {
        let layer = |digest: &str, kind: &str| {
            serde_json::json!({"config": {"digest": format!("sha256:{:064}", 0), "size": 2},
                "layers": [{"digest": digest, "size": 1, "mediaType": kind}]})
        };
        let good = format!("sha256:{:064}", 1);
        let read = |value: serde_json::Value| parse("a", &host(), value.to_string().as_bytes());
        assert!(read(layer(&good, "application/vnd.oci.image.layer.v1.tar+gzip")).is_ok());
        assert!(matches!(read(layer(&good, "application/wasm")), Err(Error::Image(_))));
        assert!(matches!(read(layer("sha256:../../x", "t")), Err(Error::Pull(_))));
        assert!(matches!(read(serde_json::json!({})), Err(Error::Pull(_))));
        let many: Vec<_> = (0..200).map(|_| serde_json::json!({"digest": good, "size": 1})).collect();
        let mut value = layer(&good, "t");
        value["layers"] = many.into();
        assert!(matches!(read(value), Err(Error::Image(_))));
        let mut value = layer(&good, "t");
        value["layers"][0]["size"] = u64::MAX.into();
        assert!(matches!(read(value), Err(Error::Image(_))));
    }

    #[test]
    fn a_configuration_must_be_for_this_host_and_fit() {
        let text =
            br#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["sha256:a"]}}"#;
        assert!(Config::parse("a", &host(), text, 1).is_ok());
        assert!(matches!(Config::parse("a", &host(), text, 2), Err(Error::Pull(_))));
        let arm = br#"{"os":"linux","architecture":"arm64"}"#;
        let error = Config::parse("a", &host(), arm, 0).unwrap_err().to_string();
        assert!(error.contains("made for linux/arm64") && error.contains("linux/amd64"), "{error}");
    }
}
