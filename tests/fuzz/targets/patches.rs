//! Patches of every type on an object of a kind with merge keys.
#![no_main]

use ketch_apiserver::patch::strategic;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|input: (&[u8], &[u8])| {
    let (Ok(object), Ok(patch)) =
        (serde_json::from_slice::<Value>(input.0), serde_json::from_slice::<Value>(input.1))
    else {
        return;
    };
    for (group, kind) in [("", "Pod"), ("apps", "Deployment"), ("", "Service")] {
        let _ = strategic::apply(group, "v1", kind, object.clone(), &patch);
    }
    if let Ok(operations) = serde_json::from_value::<json_patch::Patch>(patch) {
        let mut target = object;
        let _ = json_patch::patch(&mut target, &operations);
    }
});
