//! What a node reads of containerd, containers, registries, tenants' Secrets and its own machine.
#![no_main]

use ketch_net::Listeners;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 6 {
        0 => ketch_runtime_oci::fuzzing::plugin(rest),
        1 => ketch_runtime_oci::fuzzing::image(rest),
        2 => ketch_node::fuzzing::log(rest, u64::from(*kind)),
        3 => ketch_node::fuzzing::registry(rest),
        4 => {
            let mut parts = rest.splitn(3, |byte| *byte == b'\n');
            let mut text = || std::str::from_utf8(parts.next().unwrap_or_default()).unwrap_or_default();
            let (host, repository) = (text(), text());
            ketch_node::fuzzing::keyring(parts.next().unwrap_or_default(), host, repository);
        }
        _ => {
            let Ok(text) = std::str::from_utf8(rest) else { return };
            ketch_node::fuzzing::text(text);
            ketch_runtime_oci::fuzzing::reference(text);
            Listeners::default().add(text);
        }
    }
});
