//! From the network to the device.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use quinn_proto::{ConnectionHandle, DatagramEvent, Dir, Event, Incoming, StreamEvent};

use super::{Datapath, TURNS, link::Link};
use crate::{
    frame::{self, Frame},
    lane::Lane,
    packet::classify,
    ranges::Id,
    socket::{Origin, virtual_address},
};

/// Handshakes under way before a dialing address must prove that it can be answered.
const UNPROVEN: usize = 64;

/// Handshakes under way before further ones are ignored.
const HANDSHAKES: usize = 512;

impl Datapath {
    /// Takes what a socket has.
    pub(super) fn receive(&mut self, socket: usize, now: Instant) {
        let mut packets = Vec::new();
        for _ in 0..TURNS {
            let Some(from) = self.sockets.get_mut(socket) else { return };
            if !from.receive(|origin, packet| packets.push((origin, packet))) {
                break;
            }
            for (origin, packet) in packets.drain(..) {
                self.handle(now, socket, origin, packet);
            }
        }
    }

    /// One QUIC packet, from a socket or from a relay.
    fn handle(&mut self, now: Instant, socket: usize, origin: Origin, packet: BytesMut) {
        let mut answer = std::mem::take(&mut self.buffer);
        answer.clear();
        let event = self.endpoint.handle(now, origin.remote, origin.local, origin.ecn, packet, &mut answer);
        match event {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(link) = self.links.get_mut(&handle) {
                    link.conn.handle_event(event);
                    self.enqueue(handle);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.admit(now, socket, incoming, &mut answer),
            Some(DatagramEvent::Response(transmit)) => {
                let size = transmit.size;
                self.transmit(socket, transmit, answer.get(..size).unwrap_or_default());
            }
            None => {}
        }
        self.buffer = answer;
    }

    fn admit(&mut self, now: Instant, socket: usize, incoming: Incoming, answer: &mut Vec<u8>) {
        if Lane::of(incoming.orig_dst_cid()) != self.lane {
            // Of a node that believes there are more lanes than there are.
            let transmit = self.endpoint.refuse(incoming, answer);
            let size = transmit.size;
            return self.transmit(socket, transmit, answer.get(..size).unwrap_or_default());
        }
        let handshakes = self.links.values().filter(|link| link.since.is_none()).count();
        if handshakes >= HANDSHAKES {
            return self.endpoint.ignore(incoming);
        }
        if handshakes >= UNPROVEN && !incoming.remote_address_validated() {
            if let Ok(transmit) = self.endpoint.retry(incoming, answer) {
                let size = transmit.size;
                self.transmit(socket, transmit, answer.get(..size).unwrap_or_default());
            }
            return;
        }
        match self.endpoint.accept(incoming, now, answer, None) {
            Ok((handle, conn)) => {
                self.links.insert(handle, Link::new(conn, socket, None));
                self.enqueue(handle);
            }
            Err(error) => {
                if let Some(transmit) = error.response {
                    let size = transmit.size;
                    self.transmit(socket, transmit, answer.get(..size).unwrap_or_default());
                }
            }
        }
    }

    /// What a connection has to say.
    pub(super) fn event(&mut self, handle: ConnectionHandle, event: Event, now: Instant) {
        match event {
            Event::Connected => self.connected(handle, now),
            Event::ConnectionLost { reason } => {
                let name = self.links.get(&handle).and_then(|link| self.peers.get(link.peer?));
                let peer = name.map(|node| node.peer.name.as_str()).unwrap_or_default();
                tracing::debug!(peer, %reason, "overlay connection ended");
                self.forget(handle, now);
            }
            Event::DatagramReceived => {
                while let Some(message) = self.links.get_mut(&handle).and_then(|l| l.conn.datagrams().recv())
                {
                    self.message(handle, message, now);
                }
            }
            Event::Stream(StreamEvent::Opened { dir: Dir::Uni }) => {
                let whole = self.links.get_mut(&handle).map(Link::accept).unwrap_or_default();
                for message in whole {
                    self.message(handle, message, now);
                }
            }
            Event::Stream(StreamEvent::Readable { id }) => {
                if let Some(message) = self.links.get_mut(&handle).and_then(|link| link.read(id)) {
                    self.message(handle, message, now);
                }
            }
            Event::Stream(_) | Event::HandshakeDataReady | Event::DatagramsUnblocked => {}
        }
    }

    /// A message of a peer. Nothing is taken from a connection whose peer is not known yet.
    fn message(&mut self, handle: ConnectionHandle, message: Bytes, now: Instant) {
        let Some(link) = self.links.get(&handle).filter(|link| link.since.is_some()) else { return };
        let Some(peer) = link.peer else { return };
        match frame::read(message) {
            Some(Frame::Packet(packet)) => self.let_in(handle, peer, packet),
            Some(Frame::Forward(to, packet)) if self.forward => {
                self.introduce(peer, to, now);
                self.pass_on(to, frame::forwarded(peer, &packet));
            }
            // Only the relay that this node uses for a peer may speak for it.
            Some(Frame::Forwarded(from, packet))
                if self.peers.get(from).is_some_and(|node| node.relay() == Some(peer)) =>
            {
                let origin = Origin { remote: virtual_address(from), local: None, ecn: None };
                self.handle(now, 0, origin, BytesMut::from(packet));
            }
            Some(Frame::Seen(id, address)) => {
                let node = self.peers.get_mut(id).filter(|node| node.relay() == Some(peer));
                if node.is_some_and(|node| node.seen_at(address, now)) {
                    self.tick = now;
                }
            }
            Some(Frame::Lanes(count)) => self.learn_lanes(peer, count, now),
            Some(Frame::Forward(..) | Frame::Forwarded(..)) | None => {}
        }
    }

    /// An inner packet: it must come from the peer's own addresses and be for this node's.
    fn let_in(&mut self, handle: ConnectionHandle, peer: Id, packet: Bytes) {
        let Some(link) = self.links.get(&handle) else { return };
        let Some(node) = self.peers.get_mut(peer) else { return };
        match classify(&packet) {
            Some(header) if !link.sources.iter().any(|range| range.contains(header.source)) => {
                node.counters.spoofed += 1;
            }
            Some(header) if self.local.iter().any(|range| range.contains(header.destination)) => {
                node.counters.received += 1;
                self.outbox.push(packet);
            }
            _ => node.counters.foreign += 1,
        }
    }
}
