//! The peers and how each is reached at the moment.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use ketch_net::Cidr;
use quinn_proto::ConnectionHandle;

use super::lanes::Way;
use crate::{
    config::{Counters, Peer},
    ranges::{Id, RangeMap, id, plan},
};

/// How long the peer that dials first (the lower name) is waited for.
const PATIENCE: Duration = Duration::from_millis(500);

/// Pause after the first attempt; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(300);

/// Longest pause: a link that is whole again is in use after at most that and a handshake.
const LONGEST_PAUSE: Duration = Duration::from_millis(1_200);

/// Longest pause while a relay carries the packets, or when the peer does not want any connection.
const LONG_PAUSE: Duration = Duration::from_secs(10);

/// A connection that ends sooner was not wanted: with TLS 1.3 who dials is done before the other side has judged.
const WANTED: Duration = Duration::from_secs(1);

/// Unwanted connections in a row after which there will hardly be another one soon.
const UNWANTED: u32 = 4;

/// A relay is asked when this long nothing else was reached.
const BEFORE_RELAY: Duration = Duration::from_millis(1_000);

/// All peers.
#[derive(Default)]
pub(super) struct Peers {
    nodes: HashMap<Id, Node>,
    pub(super) ranges: RangeMap,
}

/// A peer.
pub(super) struct Node {
    pub(super) peer: Peer,
    /// Where the relay sees it, which is what its address translation made of its address.
    seen: Option<SocketAddr>,
    /// The link that packets are sent on.
    pub(super) active: Option<ConnectionHandle>,
    pub(super) counters: Counters,
    /// The inner packet size last told to the routes.
    pub(super) mtu: usize,
    /// How many lanes it has, as it says.
    pub(super) lanes: u64,
    /// What each of this node's other lanes was last told of it.
    pub(super) ways: Vec<Way>,
    pub(super) dial: Dial,
}

/// When and where to dial next. Pure.
#[derive(Debug)]
pub(super) struct Dial {
    next: Instant,
    /// Since when nothing is reached.
    lost: Instant,
    relay_next: Instant,
    attempt: u32,
    /// Connections in a row that the peer did not want.
    unwanted: u32,
    /// Dial although a link is up: the addresses have changed, or its certificates end.
    forced: bool,
}

// === impl Peers ===

impl Peers {
    /// Takes over a new list. What is known of peers that stay, stays. Returns the peers that are gone.
    pub(super) fn replace(&mut self, list: Vec<Peer>, own: &str, local: &[Cidr], now: Instant) -> Vec<Id> {
        let list: Vec<Peer> = list.into_iter().filter(|peer| peer.name != own).collect();
        self.ranges = RangeMap::new(&plan(&list, local));
        let mut before = std::mem::take(&mut self.nodes);
        for peer in list {
            let id = id(&peer.name);
            let node = match before.remove(&id) {
                Some(node) => node.update(peer, now),
                None => Node::new(peer, own, now),
            };
            self.nodes.insert(id, node);
        }
        before.into_keys().collect()
    }

    pub(super) fn get(&self, id: Id) -> Option<&Node> {
        self.nodes.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut Node> {
        self.nodes.get_mut(&id)
    }

    pub(super) fn ids(&self) -> Vec<Id> {
        self.nodes.keys().copied().collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Id, &Node)> {
        self.nodes.iter()
    }

    /// The link to `id` and its counters, for sending.
    pub(super) fn route(&mut self, id: Id) -> Option<(Option<ConnectionHandle>, &mut Counters)> {
        self.nodes.get_mut(&id).map(|node| (node.active, &mut node.counters))
    }
}

// === impl Node ===

impl Node {
    fn new(peer: Peer, own: &str, now: Instant) -> Self {
        let dial = Dial::new(own < peer.name.as_str(), now);
        Self {
            peer,
            seen: None,
            active: None,
            counters: Counters::default(),
            mtu: 0,
            lanes: 1,
            ways: Vec::new(),
            dial,
        }
    }

    fn update(mut self, peer: Peer, now: Instant) -> Self {
        if peer.addresses != self.peer.addresses {
            self.dial.again(now);
        }
        self.peer = peer;
        self
    }

    /// From now on it is dialed here only, or not at all.
    pub(super) fn redirect(&mut self, to: Option<SocketAddr>, now: Instant) {
        let addresses: Vec<SocketAddr> = to.into_iter().collect();
        if addresses != self.peer.addresses {
            self.peer.addresses = addresses;
            self.dial.again(now);
        }
    }

    /// The peer that carries packets for this one.
    pub(super) fn relay(&self) -> Option<Id> {
        self.peer.relay.as_deref().map(id)
    }

    /// Takes the relay's word on where this peer is. Whether that is news.
    pub(super) fn seen_at(&mut self, address: SocketAddr, now: Instant) -> bool {
        let news = self.seen.replace(address) != Some(address);
        if news {
            self.dial.start_over(now);
        }
        news
    }

    /// Where to dial at `now`, if at all; counts as an attempt.
    pub(super) fn dial(&mut self, now: Instant, up: Up) -> Option<SocketAddr> {
        let seen = self.seen.filter(|seen| !self.peer.addresses.contains(seen));
        let places: Vec<SocketAddr> = self.peer.addresses.iter().copied().chain(seen).collect();
        let count = u32::try_from(places.len()).ok().filter(|count| *count > 0)?;
        let attempt = self.dial.attempt(now, up)?;
        places.get(usize::try_from(attempt % count).unwrap_or_default()).copied()
    }
}

/// How a peer is reached, for the decision to dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Up {
    Direct,
    Relayed,
    Nothing,
}

// === impl Dial ===

impl Dial {
    fn new(first: bool, now: Instant) -> Self {
        let wait = if first { Duration::ZERO } else { PATIENCE };
        Self {
            next: now + wait,
            lost: now,
            relay_next: now + BEFORE_RELAY + wait,
            attempt: 0,
            unwanted: 0,
            forced: false,
        }
    }

    /// A link came up: what follows is a new story, unless the last ones were not wanted.
    pub(super) fn connected(&mut self) {
        self.forced = false;
        if self.unwanted == 0 {
            self.attempt = 0;
        }
    }

    /// The last link is gone, which came up at `since`.
    pub(super) fn lost(&mut self, first: bool, since: Instant, now: Instant) {
        if now < since + WANTED {
            self.unwanted = self.unwanted.saturating_add(1);
            self.lost = now;
        } else {
            *self = Self::new(first, now);
        }
    }

    /// What is up is to be replaced.
    pub(super) fn again(&mut self, now: Instant) {
        self.start_over(now);
        self.forced = true;
    }

    /// There is something new to try.
    fn start_over(&mut self, now: Instant) {
        self.attempt = 0;
        self.next = now;
    }

    /// The number of the attempt that is due.
    fn attempt(&mut self, now: Instant, up: Up) -> Option<u32> {
        if now < self.next || (up == Up::Direct && !self.forced) {
            return None;
        }
        let attempt = self.attempt;
        let longest = if up == Up::Relayed || self.unwanted > UNWANTED { LONG_PAUSE } else { LONGEST_PAUSE };
        self.next = now + FIRST_PAUSE.saturating_mul(1 << attempt.min(8)).min(longest);
        self.attempt = attempt.saturating_add(1);
        // One forced round: the old link may well be the better one.
        self.forced &= attempt < 8;
        Some(attempt)
    }

    /// Whether a relay is to be tried at `now`; counts as an attempt.
    pub(super) fn relay(&mut self, now: Instant, up: Up) -> bool {
        let wanted = up == Up::Nothing || (up == Up::Relayed && self.forced);
        if !wanted || now < self.relay_next.max(self.lost + BEFORE_RELAY) {
            return false;
        }
        self.relay_next = now + LONGEST_PAUSE;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, addresses: &[&str]) -> Peer {
        let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        Peer { name: name.into(), addresses, ranges: Vec::new(), relay: None }
    }

    #[test]
    fn the_lower_name_dials_first_and_pauses_grow_to_a_bound() {
        let start = Instant::now();
        let mut first = Dial::new(true, start);
        let mut second = Dial::new(false, start);
        assert_eq!(first.attempt(start, Up::Nothing), Some(0));
        assert_eq!(second.attempt(start, Up::Nothing), None);
        assert_eq!(second.attempt(start + PATIENCE, Up::Nothing), Some(0));
        let mut now = start;
        for expected in 1..20 {
            let due = first.next;
            assert!(due - now <= LONGEST_PAUSE);
            now = due;
            assert_eq!(first.attempt(now, Up::Direct), None);
            assert_eq!(first.attempt(now, Up::Nothing), Some(expected));
        }
        assert_eq!(first.next - now, LONGEST_PAUSE);
    }

    #[test]
    fn a_relay_comes_after_some_time_and_slows_dialing() {
        let start = Instant::now();
        let mut dial = Dial::new(true, start);
        assert!(!dial.relay(start, Up::Nothing));
        assert!(dial.relay(start + BEFORE_RELAY, Up::Nothing));
        assert!(!dial.relay(start + BEFORE_RELAY, Up::Nothing), "one at a time");
        let later = start + BEFORE_RELAY + LONGEST_PAUSE;
        assert!(!dial.relay(later, Up::Relayed), "it is reached");
        dial.again(later);
        assert!(dial.relay(later, Up::Relayed), "the old one is to be replaced");
        dial.connected();
        for _ in 0..10 {
            let due = dial.next;
            dial.attempt(due, Up::Relayed);
        }
        let due = dial.next;
        dial.attempt(due, Up::Relayed);
        assert_eq!(dial.next - due, LONG_PAUSE);
    }

    #[test]
    fn who_is_not_wanted_asks_less_and_less() {
        let start = Instant::now();
        let mut dial = Dial::new(true, start);
        let (mut now, mut attempts) = (start, 0);
        while now < start + Duration::from_secs(60) {
            if dial.attempt(now, Up::Nothing).is_some() {
                attempts += 1;
                dial.connected();
                dial.lost(true, now, now + Duration::from_millis(5));
            }
            now += Duration::from_millis(10);
        }
        assert!((8..=14).contains(&attempts), "{attempts}");
        // Wanted at last, and lost: at once.
        dial.connected();
        dial.lost(true, now, now + Duration::from_secs(5));
        assert!(dial.attempt(now + Duration::from_secs(5), Up::Nothing).is_some());
    }

    #[test]
    fn a_moved_peer_is_dialed_at_its_new_addresses() {
        let (now, mut peers) = (Instant::now(), Peers::default());
        let b = id("b");
        assert!(peers.replace(vec![peer("a", &[]), peer("b", &["10.0.0.1:1"])], "a", &[], now).is_empty());
        assert!(peers.get(id("a")).is_none(), "not its own peer");
        let node = peers.get_mut(b).unwrap();
        assert_eq!(node.dial(now, Up::Nothing), Some("10.0.0.1:1".parse().unwrap()));
        node.dial.connected();
        node.counters.sent = 7;
        peers.replace(vec![peer("b", &["10.0.0.2:1"])], "a", &[], now);
        let node = peers.get_mut(b).unwrap();
        assert_eq!(node.counters.sent, 7);
        assert_eq!(node.dial(now, Up::Direct), Some("10.0.0.2:1".parse().unwrap()));
        assert_eq!(peers.replace(Vec::new(), "a", &[], now), [b]);
    }
}
