//! Doors to what reads a peer's and a pod's bytes, for the fuzz targets only.

use bytes::Bytes;

use crate::{frame, packet};

/// Reads a message of a peer as the data path does; what it carries is written and read again.
pub fn message(bytes: &[u8]) {
    let Some(read) = frame::read(Bytes::copy_from_slice(bytes)) else { return };
    let again = match &read {
        frame::Frame::Packet(packet) => {
            let _ = packet::classify(packet);
            packet.clone()
        }
        frame::Frame::Forward(id, packet) => frame::forward(*id, packet),
        frame::Frame::Forwarded(id, packet) => frame::forwarded(*id, packet),
        frame::Frame::Lanes(count) => frame::lanes(*count),
        frame::Frame::Seen(id, address) => frame::seen(*id, *address),
    };
    assert_eq!(frame::read(again), Some(read), "a message means the same when it is passed on");
}

/// Reads a pod's packet that is too big for the way, and makes the answer.
pub fn packet(bytes: &[u8], mtu: usize) {
    let header = packet::classify(bytes);
    let Some(answer) = packet::too_big(bytes, mtu) else { return };
    let (header, back) = (header.map(|one| one.source), packet::classify(&answer).map(|one| one.destination));
    assert_eq!(header, back, "an error goes to who sent the packet");
    // 40: a header of version 6; 8: of ICMP; 128: of the packet.
    assert!(answer.len() <= 40 + 8 + 128);
}
