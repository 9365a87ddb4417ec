//! From the device to the network, and everything else that connections send.

use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::{ConnectionHandle, Transmit};

use super::{
    Datapath, TURNS,
    lanes::Role,
    link::{Link, Oversize, Sent},
};
use crate::{
    frame,
    packet::{IPV6_MIN_MTU, classify, too_big},
    ranges::Id,
    socket::virtual_id,
};

/// How long the size that a path carries is searched for. What does not fit until then goes over streams:
/// an ICMP error would make the sender remember a size that grows within milliseconds.
pub(super) const SEARCH: Duration = Duration::from_secs(2);

/// Between words to two nodes about each other; address translations keep what nobody answers for 30 s.
const INTRODUCTION: Duration = Duration::from_secs(5);

/// Packets of this size must get through relays, however small their own path: QUIC knows no smaller one.
const QUIC_MIN: usize = 1200;

impl Datapath {
    /// Takes what the device has.
    pub(super) fn take(&mut self, now: Instant) {
        let Some(mut device) = self.device.take() else { return };
        let mut packets = Vec::new();
        for _ in 0..TURNS {
            if !device.read(|packet| packets.push(packet)) {
                break;
            }
            for packet in packets.drain(..) {
                self.send_out(packet, now);
            }
        }
        self.device = Some(device);
    }

    /// An inner packet of this node.
    pub(super) fn send_out(&mut self, packet: Bytes, now: Instant) {
        let Some(header) = classify(&packet) else { return };
        let Some(id) = self.peers.ranges.get(header.destination) else { return };
        let Some((active, counters)) = self.peers.route(id) else { return };
        let Some((handle, link)) = active.and_then(|h| self.links.get_mut(&h).map(|link| (h, link))) else {
            match &mut self.role {
                Role::First { .. } => counters.unsent += 1,
                Role::Further { astray, .. } => astray.push(packet),
            }
            return;
        };
        let searching = link.since.is_none_or(|since| now < since + SEARCH);
        let small = header.source.is_ipv6() && packet.len() <= IPV6_MIN_MTU;
        let oversize =
            if searching || header.fragmentable || small { Oversize::Stream } else { Oversize::Refuse };
        match link.send(packet.clone(), oversize) {
            Sent::Datagram => counters.sent += 1,
            Sent::Stream => {
                counters.sent += 1;
                counters.streamed += 1;
            }
            Sent::TooBig(fits) => {
                counters.too_big += 1;
                self.outbox.extend(too_big(&packet, fits).map(Bytes::from));
            }
            Sent::Dropped => counters.unsent += 1,
        }
        self.enqueue(handle);
    }

    /// Hands a relayed packet to a peer that is connected directly; relays are not chained.
    pub(super) fn pass_on(&mut self, to: Id, message: Bytes) {
        let Some(handle) = self.peers.get(to).and_then(|node| node.active) else { return };
        if let Some(link) = self.links.get_mut(&handle).filter(|link| !link.is_relayed()) {
            send_relayed(link, message);
            self.enqueue(handle);
        }
    }

    /// Tells two nodes that talk through this relay where it sees them: if both then dial each other at the same
    /// time, each opens its own firewall or address translation for the other.
    pub(super) fn introduce(&mut self, a: Id, b: Id, now: Instant) {
        let pair = (a.min(b), a.max(b));
        if self.introduced.get(&pair).is_some_and(|last| now < *last + INTRODUCTION) {
            return;
        }
        self.introduced.insert(pair, now);
        for (to, about) in [(a, b), (b, a)] {
            let handle = self.peers.get(about).and_then(|node| node.active);
            let link = handle.and_then(|handle| self.links.get(&handle)).filter(|link| !link.is_relayed());
            if let Some(address) = link.map(Link::remote) {
                self.pass_on(to, frame::seen(about, address));
            }
        }
    }

    /// Drives the links that were touched until none has anything left to do, or the socket is full.
    pub(super) fn drive(&mut self, now: Instant) {
        while !self.is_blocked() {
            let Some(handle) = self.queue.pop_front() else { return };
            if let Some(link) = self.links.get_mut(&handle) {
                link.queued = false;
                self.drive_link(handle, now);
            }
        }
    }

    fn drive_link(&mut self, handle: ConnectionHandle, now: Instant) {
        while let Some(event) = self.links.get_mut(&handle).and_then(|link| link.conn.poll()) {
            self.event(handle, event, now);
        }
        let Some(link) = self.links.get_mut(&handle) else { return };
        let mut drained = false;
        while let Some(event) = link.conn.poll_endpoint_events() {
            drained |= event.is_drained();
            if let Some(event) = self.endpoint.handle_event(handle, event) {
                link.conn.handle_event(event);
            }
        }
        if drained {
            self.links.remove(&handle);
            return;
        }
        self.send_link(handle, now);
        if let Some(link) = self.links.get_mut(&handle) {
            link.timer = link.conn.poll_timeout();
        }
    }

    /// Sends what a connection has. Its queue may be emptied only in part when the socket is full.
    fn send_link(&mut self, handle: ConnectionHandle, now: Instant) {
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some(link) = self.links.get_mut(&handle) {
            buffer.clear();
            let relayed = link.is_relayed();
            let (socket, mtu) = (link.socket, link.conn.current_mtu());
            let most = self.sockets.get(socket).map_or(1, |socket| socket.segments(mtu));
            let segments = if relayed { 1 } else { most };
            let Some(transmit) = link.conn.poll_transmit(now, segments, &mut buffer) else { break };
            let size = transmit.size;
            self.transmit(socket, transmit, buffer.get(..size).unwrap_or_default());
            if self.is_blocked() {
                self.enqueue(handle);
                break;
            }
        }
        self.buffer = buffer;
    }

    /// Sends a QUIC packet to its address, which may stand for a node behind a relay.
    pub(super) fn transmit(&mut self, socket: usize, transmit: Transmit, data: &[u8]) {
        let Some(to) = virtual_id(transmit.destination) else {
            if let Some(socket) = self.sockets.get_mut(socket).filter(|socket| !socket.is_blocked()) {
                socket.send(transmit, data);
            }
            return;
        };
        let Some(relay) = self.peers.get(to).and_then(super::peers::Node::relay) else { return };
        self.pass_on(relay, frame::forward(to, data));
    }
}

/// Sends a relayed packet; larger ones than QUIC's smallest are probes that are to fail when they do not
/// fit.
fn send_relayed(link: &mut Link, message: Bytes) {
    let must = message.len() <= QUIC_MIN + frame::HEADER;
    let sent = link.send(message, if must { Oversize::Stream } else { Oversize::Refuse });
    tracing::trace!(?sent, "relayed packet");
}
