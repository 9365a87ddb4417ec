//! The plan of a registry push: chunks, resuming, and the documents that make bytes an image.
//!
//! The protocol is OCI distribution 1.1: `POST …/blobs/uploads/`, `PATCH` with `Content-Range`,
//! `PUT ?digest=`; a `GET` of the session tells how much arrived.

use ketch_api::wasm::{CONFIG_MEDIA_TYPE, Encoding, Inspection, LAYER_MEDIA_TYPE};
use serde_json::{Value, json};

/// Bytes sent by one request: enough to be quick, few enough to show progress and to lose little.
pub const CHUNK: u64 = 4 * 1024 * 1024;

/// Media type of the manifest.
pub const MANIFEST_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// The next piece to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Chunk {
    /// The piece after `offset` bytes of `total`; `None` when all are sent.
    pub fn next(offset: u64, total: u64) -> Option<Self> {
        (offset < total).then(|| Self { start: offset, end: total.min(offset.saturating_add(CHUNK)) })
    }

    /// Value of `Content-Range`: first and last byte, both included, without a unit.
    pub fn content_range(self) -> String {
        format!("{}-{}", self.start, self.end.saturating_sub(1))
    }
}

/// Bytes the server has, from the `Range` header of a session. `0-0` without any data means none in
/// some registries and one byte in others; sending byte 0 again is right in both when `sent` is 0.
pub fn offset(range: &str, sent: u64) -> u64 {
    let last = range
        .trim_start_matches("bytes=")
        .split_once('-')
        .and_then(|(_, last)| last.trim().parse::<u64>().ok());
    match last {
        None => 0,
        Some(0) if sent == 0 => 0,
        Some(last) => last + 1,
    }
}

/// The path and query of a session's `Location`, wherever the server thinks it is reached.
pub fn location(header: &str) -> String {
    match header.split_once("://") {
        Some((_, rest)) => rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/").to_owned(),
        None => header.to_owned(),
    }
}

/// A session address with the digest that ends it.
pub fn commit(location: &str, digest: &str) -> String {
    let separator = if location.contains('?') { '&' } else { '?' };
    format!("{location}{separator}digest={digest}")
}

/// The image config of the CNCF Wasm layout.
pub fn config(inspection: &Inspection, created: &str) -> Value {
    let os = match inspection.encoding {
        Encoding::Component => "wasip2",
        Encoding::Module => "wasip1",
    };
    let mut config = json!({
        "created": created,
        "architecture": "wasm",
        "os": os,
        "layerDigests": [inspection.digest],
    });
    if inspection.encoding == Encoding::Component
        && let Some(map) = config.as_object_mut()
    {
        let component = json!({"exports": inspection.exports, "imports": inspection.imports});
        map.insert("component".to_owned(), component);
    }
    config
}

/// The image manifest of the CNCF Wasm layout.
pub fn manifest(inspection: &Inspection, config_digest: &str, config_size: usize, file: &str) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_MEDIA_TYPE,
        "config": {"mediaType": CONFIG_MEDIA_TYPE, "digest": config_digest, "size": config_size},
        "layers": [{
            "mediaType": LAYER_MEDIA_TYPE,
            "digest": inspection.digest,
            "size": inspection.size,
            "annotations": {"org.opencontainers.image.title": file},
        }],
    })
}

/// The tag an upload gets: the head of its layer's digest, so that every upload stays reachable and a
/// rollback finds its bytes.
pub fn tag(layer_digest: &str) -> String {
    let hex = layer_digest.rsplit(':').next().unwrap_or(layer_digest);
    hex.get(..16).unwrap_or(hex).to_owned()
}

/// Seconds left at the rate so far; `None` before there is a rate.
pub fn eta(sent: u64, total: u64, elapsed_ms: f64) -> Option<f64> {
    (sent > 0 && elapsed_ms > 0.0).then(|| {
        let rate = sent as f64 / elapsed_ms;
        total.saturating_sub(sent) as f64 / rate / 1000.0
    })
}

/// Lower-case hexadecimal digits with the algorithm's name in front.
pub fn digest(sha256: &[u8]) -> String {
    use std::fmt::Write as _;
    sha256.iter().fold("sha256:".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use ketch_api::wasm::World;

    use super::*;

    #[test]
    fn chunks_cover_every_byte_once() {
        let total = CHUNK * 2 + 17;
        let mut offset = 0;
        let mut ranges = Vec::new();
        while let Some(chunk) = Chunk::next(offset, total) {
            assert_eq!(chunk.start, offset);
            offset = chunk.end;
            ranges.push(chunk.content_range());
        }
        assert_eq!(offset, total);
        assert_eq!(ranges, ["0-4194303", "4194304-8388607", "8388608-8388624"]);
        assert_eq!(Chunk::next(0, 0), None);
    }

    #[test]
    fn resuming_reads_the_range() {
        assert_eq!(offset("0-4194303", CHUNK), CHUNK);
        assert_eq!(offset("bytes=0-9", 20), 10);
        assert_eq!(offset("0-0", 0), 0);
        assert_eq!(offset("0-0", 1), 1);
        assert_eq!(offset("", 5), 0);
    }

    #[test]
    fn locations_stay_on_this_origin() {
        assert_eq!(
            location("https://127.0.0.1:6443/v2/a/b/blobs/uploads/x?s=1"),
            "/v2/a/b/blobs/uploads/x?s=1"
        );
        assert_eq!(location("/v2/a/b/blobs/uploads/x"), "/v2/a/b/blobs/uploads/x");
        assert_eq!(commit("/u?s=1", "sha256:a"), "/u?s=1&digest=sha256:a");
        assert_eq!(commit("/u", "sha256:a"), "/u?digest=sha256:a");
    }

    #[test]
    fn documents_follow_the_layout() {
        let inspection = Inspection {
            encoding: Encoding::Component,
            world: World::Http,
            imports: vec!["wasi:io/streams@0.2.3".into()],
            exports: vec!["wasi:http/incoming-handler@0.2.3".into()],
            size: 10,
            digest: "sha256:0123456789abcdef0123".into(),
            problems: vec![],
        };
        let config = config(&inspection, "2026-01-01T00:00:00Z");
        assert_eq!(config["os"], "wasip2");
        assert_eq!(config["component"]["imports"][0], "wasi:io/streams@0.2.3");
        let manifest = manifest(&inspection, "sha256:c", 99, "hello.wasm");
        assert_eq!(manifest["layers"][0]["digest"], "sha256:0123456789abcdef0123");
        assert_eq!(manifest["layers"][0]["mediaType"], "application/wasm");
        assert_eq!(manifest["config"]["size"], 99);
        assert_eq!(tag(&inspection.digest), "0123456789abcdef");
    }

    #[test]
    fn digests_and_rates() {
        assert_eq!(digest(&[0, 255, 16]), "sha256:00ff10");
        assert_eq!(eta(0, 10, 5.0), None);
        assert_eq!(eta(5, 10, 1000.0), Some(1.0));
    }
}
