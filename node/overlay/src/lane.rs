//! Lanes: several connections to one peer, each moved by a thread of its own that has a queue of the device and
//! sockets to itself. Pure.
//!
//! A flow stays on one lane, so its packets keep their order: the kernel sends a flow to one queue by its hash, and
//! once an answer was written to a queue, to that one (`tun_automq_select_queue` in Linux' drivers/net/tun.c). So
//! both directions meet on the lane that the first packet took.
//!
//! All lanes of a node are accepted at one UDP port. Connection ids say in their first byte which lane they belong to,
//! and a filter in the kernel reads it there. A lane is dialed from a port of its own: the kernel joins packets of one
//! pair of ports before it looks at the filter.

use std::sync::Arc;

use nix::libc::{self, sock_filter};
use quinn_proto::{
    ConnectionId, ConnectionIdGenerator, HashedConnectionIdGenerator, InvalidCid, RandomConnectionIdGenerator,
};

/// Most lanes of a node: the values of [`BITS`].
pub(crate) const MOST: usize = 4;

/// Where the first byte of a connection id says its lane.
const BITS: u8 = 0b11;

/// Bytes of the id that a dialing node makes up: RFC 9000, section 7.2, wants at least 8.
const FIRST_ID: usize = 16;

/// One of a node's lanes. The first one does all that is not about speed: it finds peers, goes through relays, and
/// carries what other lanes cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lane(u8);

// === impl Lane ===

impl Lane {
    pub(crate) const FIRST: Self = Self(0);

    /// The lane of this number; `None` when no node has so many.
    pub(crate) fn new(number: usize) -> Option<Self> {
        u8::try_from(number).ok().filter(|number| *number <= BITS).map(Self)
    }

    pub(crate) fn number(self) -> usize {
        self.0.into()
    }

    /// The lane that a connection id belongs to.
    pub(crate) fn of(id: &ConnectionId) -> Self {
        Self(id.first().map_or(0, |first| first & BITS))
    }

    /// Makes the ids by which peers call this lane before they know one of its own.
    pub(crate) fn first_ids(self) -> Arc<dyn Fn() -> ConnectionId + Send + Sync> {
        Arc::new(move || {
            let mut bytes = RandomConnectionIdGenerator::new(FIRST_ID).generate_cid().to_vec();
            if let Some(first) = bytes.first_mut() {
                *first = *first & !BITS | self.0;
            }
            ConnectionId::new(&bytes)
        })
    }
}

/// Makes the connection ids of one lane.
pub(crate) struct LaneIds {
    lane: Lane,
    ids: HashedConnectionIdGenerator,
}

// === impl LaneIds ===

impl LaneIds {
    pub(crate) fn new(lane: Lane) -> Self {
        Self { lane, ids: HashedConnectionIdGenerator::new() }
    }
}

impl ConnectionIdGenerator for LaneIds {
    fn generate_cid(&mut self) -> ConnectionId {
        // One in four fits; changing one would spoil its hash.
        loop {
            let id = self.ids.generate_cid();
            if Lane::of(&id) == self.lane {
                return id;
            }
        }
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        self.ids.validate(id)
    }

    fn cid_len(&self) -> usize {
        self.ids.cid_len()
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        self.ids.cid_lifetime()
    }
}

/// The filter that gives a UDP payload to the socket of its lane: classic BPF whose result is the number of the
/// socket. In packets with a long header (RFC 9000, section 17.2) the id begins at byte 6, else at byte 1. What is
/// shorter is the first lane's.
pub(crate) fn steering() -> [sock_filter; 7] {
    let op = |code: u32, k: u32, jt: u8, jf: u8| sock_filter { code: code as u16, jt, jf, k };
    let byte = |at: u32| op(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, at, 0, 0);
    [
        byte(0),
        op(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0x80, 0, 2),
        byte(6),
        op(libc::BPF_JMP | libc::BPF_JA, 1, 0, 0),
        byte(1),
        op(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, BITS.into(), 0, 0),
        op(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_say_their_lane() {
        for number in 0..MOST {
            let lane = Lane::new(number).unwrap();
            assert_eq!(lane.number(), number);
            let mut ids = LaneIds::new(lane);
            for _ in 0..20 {
                let id = ids.generate_cid();
                assert_eq!(Lane::of(&id), lane);
                assert!(ids.validate(&id).is_ok());
                assert_eq!(Lane::of(&lane.first_ids()()), lane);
            }
        }
        assert_eq!(Lane::new(MOST), None);
        assert_ne!(Lane::FIRST.first_ids()(), Lane::FIRST.first_ids()());
    }
}
