//! Which connections there are: dialing, choosing among several to one peer, and what is told of them.

use std::time::{Duration, Instant, SystemTime};

use quinn_proto::ConnectionHandle;

use super::{BUSY, Datapath, Notice, QUIET, life::Life, link::Link, peers::Up, send::SEARCH};
use crate::{
    config::{Peer, PeerStatus, Reach},
    lane::Lane,
    ranges::{Id, id, intersect},
    socket::virtual_address,
};

/// Time for packets under way on a connection that a newer one replaces.
const GRACE: Duration = Duration::from_secs(1);

/// Unfinished attempts to dial one peer.
const ATTEMPTS: usize = 3;

impl Datapath {
    /// Takes over a new list of peers.
    pub(super) fn set_peers(&mut self, mut list: Vec<Peer>, now: Instant) {
        self.keep_ways(&mut list);
        let gone = self.peers.replace(list, &self.name, &self.local, now);
        let of_gone = |link: &Link| link.peer.is_some_and(|peer| gone.contains(&peer));
        let ends: Vec<ConnectionHandle> =
            self.links.iter().filter(|(_, link)| of_gone(link)).map(|(handle, _)| *handle).collect();
        for handle in ends {
            self.close_link(handle, now, "no longer a peer");
        }
        self.introduced.retain(|(a, b), _| !gone.contains(a) && !gone.contains(b));
        let handles: Vec<ConnectionHandle> = self.links.keys().copied().collect();
        for handle in handles {
            self.set_sources(handle);
        }
        self.tick = now;
    }

    /// Which inner sources a link lets through: the peer's ranges, as far as its certificate covers them.
    fn set_sources(&mut self, handle: ConnectionHandle) {
        let Some(link) = self.links.get_mut(&handle).filter(|link| link.since.is_some()) else { return };
        let Some(node) = link.peer.and_then(|peer| self.peers.get(peer)) else { return };
        let certified = link.identity().map(|named| named.ranges).unwrap_or_default();
        link.sources = match certified.as_slice() {
            [] => node.peer.ranges.clone(),
            some => intersect(&node.peer.ranges, some),
        };
    }

    /// A handshake is finished: the certificate is good, and says who it is.
    pub(super) fn connected(&mut self, handle: ConnectionHandle, now: Instant) {
        let Some(link) = self.links.get_mut(&handle) else { return };
        let named = link.identity();
        let name = named.as_ref().map(|named| named.name.clone()).unwrap_or_default();
        let peer = id(&name);
        if self.peers.get(peer).is_none_or(|node| node.peer.name != name) {
            tracing::info!(peer = name, address = %link.remote(), "refused an overlay connection: not a peer");
            return self.close_link(handle, now, "not a peer of this node");
        }
        link.peer = Some(peer);
        link.since = Some(now);
        let ends = named.map_or(self.expires, |named| named.expires.min(self.expires));
        link.life = Some(Life::new(now, ends.duration_since(SystemTime::now()).unwrap_or_default()));
        tracing::debug!(peer = name, address = %link.remote(), "overlay connection is up");
        self.set_sources(handle);
        // One of the two closes what is left over, or each might close what the other uses.
        if self.name < name {
            self.retire_older(handle, peer, now);
        }
        self.choose(peer);
        if let Some(node) = self.peers.get_mut(peer) {
            node.dial.connected();
        }
        self.tell_lanes(handle);
        self.tick = now;
    }

    /// Plans the end of links to `peer` that `newest` replaces: all, or the relayed ones if it is one.
    fn retire_older(&mut self, newest: ConnectionHandle, peer: Id, now: Instant) {
        let relayed = self.links.get(&newest).is_some_and(Link::is_relayed);
        for (handle, link) in &mut self.links {
            if *handle != newest && link.peer == Some(peer) && link.is_up() && (!relayed || link.is_relayed())
            {
                link.retire.get_or_insert(now + GRACE);
            }
        }
    }

    /// Sends to `peer` on the newest direct link from now on, else on the newest relayed one.
    fn choose(&mut self, peer: Id) {
        let links = self.links.iter().filter(|(_, link)| link.peer == Some(peer) && link.is_up());
        let best = links.max_by_key(|(_, link)| (!link.is_relayed(), link.since)).map(|(handle, _)| *handle);
        if let Some(node) = self.peers.get_mut(peer) {
            node.active = best;
        }
    }

    /// A link has ended: its peer is reached over another one, or dialed.
    pub(super) fn forget(&mut self, handle: ConnectionHandle, now: Instant) {
        let Some(link) = self.links.get_mut(&handle) else { return };
        let Some(since) = link.since.take() else { return };
        let Some(peer) = link.peer else { return };
        self.choose(peer);
        let first = self.peers.get(peer).is_some_and(|node| self.name < node.peer.name);
        if let Some(node) = self.peers.get_mut(peer).filter(|node| node.active.is_none()) {
            node.dial.lost(first, since, now);
            node.lanes = 1;
        }
        self.tick = now;
    }

    /// Dials, retires, reports. Returns the time until the next round.
    pub(super) fn round(&mut self, now: Instant) -> Duration {
        let replaced = |link: &Link| link.retire.is_some_and(|at| at <= now);
        self.close_links(replaced, now, "replaced by a newer connection");
        let over = |link: &Link| link.life.is_some_and(|life| life.is_over(now));
        self.close_links(over, now, "a certificate has ended");
        let mut quiet =
            self.links.values().all(|link| link.since.is_some_and(|since| now > since + SEARCH * 2));
        for id in self.peers.ids() {
            self.renew(id, now);
            quiet &= self.up(id) == Up::Direct || self.waits_for(id);
            self.dial(id, now);
            self.report_mtu(id, now);
            self.lead(id);
        }
        self.board.publish(self.lane, self.peers.iter().map(|(_, node)| self.status(node)).collect());
        if quiet { QUIET } else { BUSY }
    }

    /// Closes links that are up.
    fn close_links(&mut self, which: impl Fn(&Link) -> bool, now: Instant, why: &'static str) {
        let chosen = self.links.iter().filter(|(_, link)| link.is_up() && which(link));
        let ends: Vec<ConnectionHandle> = chosen.map(|(handle, _)| *handle).collect();
        for handle in ends {
            self.close_link(handle, now, why);
        }
    }

    /// Has a peer dialed again whose link's certificates do not last for long.
    fn renew(&mut self, id: Id, now: Instant) {
        let Some(node) = self.peers.get_mut(id) else { return };
        let link = node.active.and_then(|handle| self.links.get_mut(&handle));
        if link.and_then(|link| link.life.as_mut()).is_some_and(|life| life.renew(now)) {
            node.dial.again(now);
        }
    }

    fn up(&self, id: Id) -> Up {
        let active = self.peers.get(id).and_then(|node| self.links.get(&node.active?));
        match active {
            Some(link) if link.is_relayed() => Up::Relayed,
            Some(_) => Up::Direct,
            None if self.lane == Lane::FIRST => Up::Nothing,
            // The first lane carries its packets.
            None => Up::Relayed,
        }
    }

    fn dial(&mut self, id: Id, now: Instant) {
        let up = self.up(id);
        let waiting = |relayed: bool| {
            let same =
                |link: &&Link| link.peer == Some(id) && link.since.is_none() && link.is_relayed() == relayed;
            self.links.values().filter(same).filter(|link| !link.conn.is_closed()).count()
        };
        let (direct, relayed) = (waiting(false), waiting(true));
        let relay = self.peers.get(id).and_then(super::peers::Node::relay);
        let relay_up = relay.is_some_and(|relay| self.up(relay) == Up::Direct);
        let Some(node) = self.peers.get_mut(id) else { return };
        let name = node.peer.name.clone();
        let through = (relay_up && relayed == 0 && node.dial.relay(now, up)).then(|| virtual_address(id));
        let straight = if direct < ATTEMPTS { node.dial(now, up) } else { None };
        let socket = self.sockets.len().saturating_sub(1);
        let straight = straight.and_then(|address| self.sockets.get(socket)?.reach(address));
        for address in [straight, through].into_iter().flatten() {
            match self.endpoint.connect(now, self.client.clone(), address, &name) {
                Ok((handle, conn)) => {
                    self.links.insert(handle, Link::new(conn, socket, Some(id)));
                    self.enqueue(handle);
                }
                Err(error) => tracing::debug!(peer = name, %address, %error, "cannot dial"),
            }
        }
    }

    /// Tells the routes what fits, once the search is over.
    fn report_mtu(&mut self, id: Id, now: Instant) {
        let Some(node) = self.peers.get_mut(id) else { return };
        let Some(link) = node.active.and_then(|handle| self.links.get_mut(&handle)) else { return };
        if link.since.is_none_or(|since| now < since + SEARCH) {
            return;
        }
        let fits = link.conn.datagrams().max_size().unwrap_or_default();
        if std::mem::replace(&mut node.mtu, fits) != fits && self.lane == Lane::FIRST {
            self.notice(Notice::Mtu(id, fits));
        }
    }

    fn status(&self, node: &super::peers::Node) -> PeerStatus {
        let link = node.active.and_then(|handle| self.links.get(&handle));
        let reach = match link {
            Some(link) if link.is_relayed() => Reach::Relayed(node.peer.relay.clone().unwrap_or_default()),
            Some(link) => Reach::Direct(link.remote()),
            None => Reach::Nothing,
        };
        PeerStatus {
            name: node.peer.name.clone(),
            reach,
            rtt: link.map(|link| link.conn.rtt()).unwrap_or_default(),
            mtu: link
                .map(|link| {
                    usize::from(link.conn.current_mtu()).saturating_sub(crate::transport::OVERHEAD.into())
                })
                .unwrap_or_default(),
            counters: node.counters,
            lanes: Vec::new(),
        }
    }
}
