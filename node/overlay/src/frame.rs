//! What a datagram (or a stream) between two nodes holds: an inner IP packet as it is, a QUIC packet on its way
//! through a relay, a relay's word on where it sees a node, or how many lanes a node has. IP packets begin with 4 or 6 in the upper half of
//! the first byte, so they need no header. Pure; the bytes are a peer's.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::ranges::Id;

/// To the relay: forward to the node of this id.
const FORWARD: u8 = 1;
/// From the relay: comes from the node of this id.
const FORWARDED: u8 = 2;
/// From the relay: it sees the node of this id at this address.
const SEEN: u8 = 3;
/// The sender has so many lanes; who says nothing has one.
const LANES: u8 = 4;

/// Bytes before a relayed packet.
pub(crate) const HEADER: usize = 9;

/// What came from a peer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// An inner packet, not looked at yet.
    Packet(Bytes),
    /// A packet for another node.
    Forward(Id, Bytes),
    /// A packet of another node.
    Forwarded(Id, Bytes),
    /// Where the relay sees another node.
    Seen(Id, SocketAddr),
    /// How many lanes the peer has.
    Lanes(u64),
}

/// Reads a message; `None` when it is none of these.
pub(crate) fn read(mut message: Bytes) -> Option<Frame> {
    let first = *message.first()?;
    if matches!(first >> 4, 4 | 6) {
        return Some(Frame::Packet(message));
    }
    let id: [u8; 8] = message.get(1..HEADER)?.try_into().ok()?;
    let id = u64::from_be_bytes(id);
    let mut packet = message.split_off(HEADER);
    match first {
        FORWARD => Some(Frame::Forward(id, packet)),
        FORWARDED => Some(Frame::Forwarded(id, packet)),
        SEEN => {
            let ip = Ipv6Addr::from_bits(packet.try_get_u128().ok()?);
            let port = packet.try_get_u16().ok()?;
            Some(Frame::Seen(id, SocketAddr::new(IpAddr::V6(ip).to_canonical(), port)))
        }
        LANES => Some(Frame::Lanes(id)),
        _ => None,
    }
}

/// The message that asks a relay to forward `packet` to `to`.
pub(crate) fn forward(to: Id, packet: &[u8]) -> Bytes {
    relayed(FORWARD, to, packet)
}

/// The message by which a relay hands over a packet of `from`.
pub(crate) fn forwarded(from: Id, packet: &[u8]) -> Bytes {
    relayed(FORWARDED, from, packet)
}

/// The message by which a relay says that it sees the node of `id` at `address`.
pub(crate) fn seen(id: Id, address: SocketAddr) -> Bytes {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut place = BytesMut::new();
    place.put_u128(ip.to_bits());
    place.put_u16(address.port());
    relayed(SEEN, id, &place)
}

/// The message by which a node says how many lanes it has.
pub(crate) fn lanes(count: u64) -> Bytes {
    relayed(LANES, count, &[])
}

fn relayed(tag: u8, id: Id, packet: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(HEADER + packet.len());
    message.put_u8(tag);
    message.put_u64(id);
    message.put_slice(packet);
    message.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(read(forward(7, b"quic")), Some(Frame::Forward(7, Bytes::from_static(b"quic"))));
        assert_eq!(read(forwarded(u64::MAX, b"")), Some(Frame::Forwarded(u64::MAX, Bytes::new())));
        for address in ["192.0.2.1:6444", "[2001:db8::1]:1"].map(|address| address.parse().unwrap()) {
            assert_eq!(read(seen(7, address)), Some(Frame::Seen(7, address)));
        }
        assert_eq!(read(lanes(4)), Some(Frame::Lanes(4)));
        assert_eq!(read(seen(7, "192.0.2.1:1".parse().unwrap()).slice(..20)), None);
        let packet = Bytes::from_static(&[0x45, 0, 0, 20]);
        assert_eq!(read(packet.clone()), Some(Frame::Packet(packet)));
        assert_eq!(read(Bytes::from_static(&[1, 0, 0])), None);
        assert_eq!(read(Bytes::from_static(&[9, 0, 0, 0, 0, 0, 0, 0, 0, 0])), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(message in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = read(Bytes::from(message));
        }
    }
}
