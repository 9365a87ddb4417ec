//! A door to the parser of manifests, for the fuzz targets only.

use crate::manifest::{Content, IMAGE, INDEX};

/// Reads a manifest and everything that is asked of it.
pub fn manifest(bytes: &[u8]) {
    for media_type in [IMAGE, INDEX] {
        if let Ok(content) = Content::parse(media_type, bytes) {
            let _ = (content.needs(), content.subject(), content.wasm_layer());
        }
    }
}
