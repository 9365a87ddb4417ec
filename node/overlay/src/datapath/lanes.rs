//! What the threads of a node's lanes tell each other.
//!
//! The first lane finds out how a peer is reached. While that is directly, and the peer has as many lanes, each other
//! lane gets a connection of its own: dialed by the node that has dialed the first one, to the address that has proved
//! good. What a lane has no connection for it hands to the first one.

use std::{
    net::SocketAddr,
    sync::mpsc::{self, Receiver, Sender, SyncSender, TrySendError, sync_channel},
    time::Instant,
};

use bytes::Bytes;
use quinn_proto::ConnectionHandle;

use super::{Command, Datapath, Wake};
use crate::{
    config::Peer,
    frame,
    lane::Lane,
    packet::classify,
    ranges::{Id, id},
};

/// Batches that wait for the first lane; with more it is overtaxed, and packets are dropped.
const ASTRAY: usize = 64;

/// How the first lane reaches a peer, for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Not directly, or the peer has no such lane: there can be no connection.
    None,
    /// The peer dials.
    Wait,
    /// This node dials, here.
    Dial(SocketAddr),
}

/// The way to the thread of a lane.
#[derive(Clone)]
pub(crate) struct Control {
    commands: Sender<Command>,
    pub(super) wake: Wake,
}

/// What the thread of a lane hears and speaks with.
pub(crate) struct End {
    pub(super) lane: Lane,
    pub(super) role: Role,
    pub(crate) control: Control,
    pub(super) commands: Receiver<Command>,
}

/// What is different between lanes.
pub(super) enum Role {
    First {
        /// The second lane and further ones.
        others: Vec<Control>,
        /// Packets that they have no connection for.
        astray: Receiver<Vec<Bytes>>,
    },
    Further {
        first: SyncSender<Vec<Bytes>>,
        wake: Wake,
        /// Packets for the first lane.
        astray: Vec<Bytes>,
    },
}

/// The ends of `count` lanes, the first one first.
///
/// # Errors
/// When there is no file descriptor left.
pub(crate) fn ends(count: usize) -> std::io::Result<Vec<End>> {
    let (to_first, astray) = sync_channel(ASTRAY);
    let (first, first_commands) = Control::new()?;
    let (mut others, mut ends) = (Vec::new(), Vec::new());
    for lane in (1..count).filter_map(Lane::new) {
        let (control, commands) = Control::new()?;
        others.push(control.clone());
        let role = Role::Further { first: to_first.clone(), wake: first.wake.clone(), astray: Vec::new() };
        ends.push(End { lane, role, control, commands });
    }
    let role = Role::First { others, astray };
    ends.insert(0, End { lane: Lane::FIRST, role, control: first, commands: first_commands });
    Ok(ends)
}

// === impl Control ===

impl Control {
    fn new() -> std::io::Result<(Self, Receiver<Command>)> {
        let (commands, inbox) = mpsc::channel();
        Ok((Self { commands, wake: Wake::new()? }, inbox))
    }

    pub(crate) fn tell(&self, command: Command) {
        // Nobody there: the thread has ended.
        let _ = self.commands.send(command);
        self.wake.wake();
    }
}

impl Datapath {
    /// First lane: tells a peer how many lanes there are, over a connection that has just come up.
    pub(super) fn tell_lanes(&mut self, handle: ConnectionHandle) {
        let Role::First { others, .. } = &self.role else { return };
        let count = others.len() as u64 + 1;
        if count > 1
            && let Some(link) = self.links.get_mut(&handle).filter(|link| !link.is_relayed())
        {
            let sent = link.send_stream(frame::lanes(count));
            tracing::trace!(?sent, "number of lanes");
            self.enqueue(handle);
        }
    }

    /// First lane: a peer has said how many lanes it has.
    pub(super) fn learn_lanes(&mut self, peer: Id, count: u64, now: Instant) {
        if let Some(node) = self.peers.get_mut(peer) {
            node.lanes = count;
            self.tick = now;
        }
    }

    /// First lane: tells the others how it reaches a peer, when that is news.
    pub(super) fn lead(&mut self, id: Id) {
        let Role::First { others, .. } = &self.role else { return };
        let Some(node) = self.peers.get_mut(id) else { return };
        let link = node.active.and_then(|handle| self.links.get(&handle));
        let way = match link.filter(|link| !link.is_relayed()) {
            None => Way::None,
            Some(link) if link.dialed => Way::Dial(link.remote()),
            Some(_) => Way::Wait,
        };
        let ways = (1..).take(others.len()).map(|lane| if lane < node.lanes { way } else { Way::None });
        let ways: Vec<Way> = ways.collect();
        if node.ways != ways {
            for (control, way) in others.iter().zip(&ways) {
                control.tell(Command::Way(id, *way));
            }
            node.ways = ways;
        }
    }

    /// Other lanes: goes to a peer as the first lane does.
    pub(super) fn go(&mut self, peer: Id, way: Way, now: Instant) {
        if way == Way::None {
            let links = self.links.iter().filter(|(_, link)| link.peer == Some(peer));
            let ends: Vec<ConnectionHandle> = links.map(|(handle, _)| *handle).collect();
            for handle in ends {
                self.close_link(handle, now, "the first lane has no direct connection");
            }
        }
        if let Some(node) = self.peers.get_mut(peer) {
            let to = if let Way::Dial(address) = way { Some(address) } else { None };
            node.redirect(to, now);
        }
        self.tick = now;
    }

    /// Other lanes: keeps to what the first one says of where peers are.
    pub(super) fn keep_ways(&self, list: &mut [Peer]) {
        if self.lane == Lane::FIRST {
            return;
        }
        for peer in list {
            let known = self.peers.get(id(&peer.name)).map(|node| node.peer.addresses.clone());
            peer.addresses = known.unwrap_or_default();
            peer.relay = None;
        }
    }

    /// Other lanes: whether this node has nothing to do but wait for a peer.
    pub(super) fn waits_for(&self, id: Id) -> bool {
        self.lane != Lane::FIRST && self.peers.get(id).is_none_or(|node| node.peer.addresses.is_empty())
    }

    /// Other lanes: hands packets without a connection to the first one.
    pub(super) fn hand_over(&mut self) {
        let Role::Further { first, wake, astray } = &mut self.role else { return };
        if astray.is_empty() {
            return;
        }
        match first.try_send(std::mem::take(astray)) {
            Ok(()) => wake.wake(),
            Err(TrySendError::Full(lost) | TrySendError::Disconnected(lost)) => {
                for packet in lost {
                    let id = classify(&packet).and_then(|header| self.peers.ranges.get(header.destination));
                    if let Some((_, counters)) = id.and_then(|id| self.peers.route(id)) {
                        counters.unsent += 1;
                    }
                }
            }
        }
    }

    /// First lane: sends what other lanes have handed over.
    pub(super) fn take_over(&mut self, now: Instant) {
        let Role::First { astray, .. } = &self.role else { return };
        let batches: Vec<Vec<Bytes>> = astray.try_iter().take(ASTRAY).collect();
        for packet in batches.into_iter().flatten() {
            self.send_out(packet, now);
        }
    }
}
