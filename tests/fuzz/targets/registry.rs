//! What a registry client names and uploads: names, manifests, components.
#![no_main]

use ketch_registry::{Digest, Reference, Repository, Tag, fuzzing, inspect::inspect};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = text.parse::<Repository>();
        let _ = text.parse::<Tag>();
        let _ = text.parse::<Digest>();
        let _ = text.parse::<Reference>();
    }
    fuzzing::manifest(bytes);
    let _ = inspect(bytes);
});
