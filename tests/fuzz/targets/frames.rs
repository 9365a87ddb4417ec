//! Bytes of peers and of the kernel: overlay messages, pods' packets, netlink, channels over WebSockets, answers
//! of health services, headers on their way through the gateway.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 5 {
        0 => ketch_overlay::fuzzing::message(rest),
        1 => ketch_overlay::fuzzing::packet(rest, usize::from(*kind) * 8),
        2 => ketch_net::fuzzing::netlink(rest),
        3 => ketch_node::fuzzing::message(rest),
        _ => ketch_gateway::fuzzing::headers(rest),
    }
});
