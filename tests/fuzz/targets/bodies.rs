//! Request bodies in every encoding.
#![no_main]

use ketch_apiserver::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = ketch_apiserver::protobuf::decode(bytes);
    let _ = fuzzing::yaml(bytes);
    // Our parser takes what serde_json takes, and reads the same.
    let ours = fuzzing::json(bytes);
    match serde_json::from_slice::<serde_json::Value>(bytes) {
        Ok(value) => assert_eq!(ours.ok(), Some(value)),
        Err(_) => assert!(ours.is_err()),
    }
});
