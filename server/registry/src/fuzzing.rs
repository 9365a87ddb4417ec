//! Doors to what reads a registry client's words, for the fuzz targets only.

use crate::http::{blobs, uploads};
use crate::manifest::{Content, IMAGE, INDEX};

/// Reads a manifest and everything that is asked of it.
pub fn manifest(bytes: &[u8]) {
    for media_type in [IMAGE, INDEX] {
        if let Ok(content) = Content::parse(media_type, bytes) {
            let _ = (content.needs(), content.subject(), content.wasm_layer());
        }
    }
}

/// Reads the header of a request for a part, and of a chunk.
pub fn ranges(text: &str, size: u64) {
    if let Ok(Some(range)) = blobs::parse_range(text, size) {
        assert!(range.start < range.end && range.end <= size);
    }
    let _ = uploads::start_of(text);
}
