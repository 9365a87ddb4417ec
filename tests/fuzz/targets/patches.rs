//! Patches of every type on objects of kinds with and without merge keys.
#![no_main]

use std::sync::LazyLock;

use ketch_api::{Descriptor, kinds};
use ketch_apiserver::fuzzing;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

static KINDS: LazyLock<Vec<Descriptor>> = LazyLock::new(|| {
    let wanted = |one: &Descriptor| ["Pod", "Deployment", "Service", "Function"].contains(&one.kind);
    kinds::all().iter().map(|strategy| strategy.descriptor().clone()).filter(wanted).collect()
});

fuzz_target!(|bytes: &[u8]| {
    // The object's line, then the patch.
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
    let (object, patch) = bytes.split_at(end);
    let Ok(object) = serde_json::from_slice::<Value>(object) else { return };
    for kind in KINDS.iter() {
        fuzzing::patch(kind, &object, patch);
    }
});
