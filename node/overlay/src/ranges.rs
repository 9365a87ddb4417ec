//! Which peer an address belongs to. Pure.

use std::{collections::HashMap, net::IpAddr};

use ketch_net::Cidr;
use sha2::{Digest, Sha256};

use crate::config::Peer;

/// A node's name in eight bytes, for tables and relay frames. Two nodes that collide could not read each
/// other's packets: certificates carry the whole name.
pub(crate) type Id = u64;

/// The [`Id`] of a name.
pub(crate) fn id(name: &str) -> Id {
    let digest = Sha256::digest(name.as_bytes());
    digest.first_chunk().map(|bytes| u64::from_be_bytes(*bytes)).unwrap_or_default()
}

/// The ranges that packets are sent to, and to whom: those of the peers, without any that overlaps a local
/// range (own pods never leave the node) and without doubles, where the first name wins.
pub(crate) fn plan(peers: &[Peer], local: &[Cidr]) -> Vec<(Cidr, Id)> {
    let mut sorted: Vec<&Peer> = peers.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let mut planned: HashMap<Cidr, Id> = HashMap::new();
    let mut order = Vec::new();
    for peer in sorted {
        for range in &peer.ranges {
            if local.iter().any(|own| own.covers(range) || range.covers(own)) || planned.contains_key(range) {
                tracing::warn!(peer = peer.name, %range, "range overlaps another node's or this one's: not routed");
                continue;
            }
            planned.insert(*range, id(&peer.name));
            order.push((*range, id(&peer.name)));
        }
    }
    order
}

/// The part of `a` that is in `b`.
pub(crate) fn intersect(a: &[Cidr], b: &[Cidr]) -> Vec<Cidr> {
    let mut both = Vec::new();
    for x in a {
        for y in b {
            if x.covers(y) {
                both.push(*y);
            } else if y.covers(x) {
                both.push(*x);
            }
        }
    }
    both
}

/// Longest-prefix lookup: a hash table per prefix length in use, which is one in most clusters.
#[derive(Debug, Default)]
pub(crate) struct RangeMap {
    lengths: Vec<(u8, HashMap<IpAddr, Id>)>,
    /// The last answer: packets come in trains.
    last: Option<(IpAddr, Option<Id>)>,
}

impl RangeMap {
    pub(crate) fn new(planned: &[(Cidr, Id)]) -> Self {
        let mut lengths: Vec<(u8, HashMap<IpAddr, Id>)> = Vec::new();
        for (range, id) in planned {
            match lengths.iter_mut().find(|(prefix, _)| *prefix == range.prefix()) {
                Some((_, table)) => drop(table.insert(range.base(), *id)),
                None => lengths.push((range.prefix(), HashMap::from([(range.base(), *id)]))),
            }
        }
        lengths.sort_by_key(|(prefix, _)| std::cmp::Reverse(*prefix));
        Self { lengths, last: None }
    }

    pub(crate) fn get(&mut self, address: IpAddr) -> Option<Id> {
        if let Some((last, id)) = self.last
            && last == address
        {
            return id;
        }
        let find = |(prefix, table): &(u8, HashMap<IpAddr, Id>)| {
            let range = Cidr::new(address, *prefix);
            table.get(&range.base()).filter(|_| range.prefix() == *prefix).copied()
        };
        let id = self.lengths.iter().find_map(find);
        self.last = Some((address, id));
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, ranges: &[&str]) -> Peer {
        let ranges = ranges.iter().map(|r| r.parse().unwrap()).collect();
        Peer { name: name.into(), addresses: Vec::new(), ranges, relay: None }
    }

    #[test]
    fn the_longest_prefix_wins() {
        let peers = [peer("b", &["10.42.0.0/16", "fd00::/64"]), peer("c", &["10.42.7.0/24"])];
        let mut map = RangeMap::new(&plan(&peers, &[]));
        for (address, owner) in [("10.42.1.1", "b"), ("10.42.7.1", "c"), ("fd00::5", "b"), ("10.42.7.1", "c")]
        {
            assert_eq!(map.get(address.parse().unwrap()), Some(id(owner)), "{address}");
        }
        for stranger in ["10.43.0.1", "fd00:0:0:1::1", "::ffff:10.42.1.1"] {
            assert_eq!(map.get(stranger.parse().unwrap()), None, "{stranger}");
        }
    }

    #[test]
    fn own_ranges_and_doubles_are_left_out() {
        let peers =
            [peer("c", &["10.42.2.0/24"]), peer("b", &["10.42.0.0/16", "10.42.2.0/24", "10.42.1.128/25"])];
        let planned = plan(&peers, &["10.42.1.0/24".parse().unwrap()]);
        assert_eq!(planned, [("10.42.2.0/24".parse().unwrap(), id("b"))]);
    }

    #[test]
    fn certificates_narrow_ranges() {
        let ranges = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<Cidr>>();
        let said = ranges(&["10.42.0.0/16", "10.50.1.0/24"]);
        let certified = ranges(&["10.42.3.0/24", "10.50.0.0/16"]);
        assert_eq!(intersect(&said, &certified), ranges(&["10.42.3.0/24", "10.50.1.0/24"]));
        assert_eq!(intersect(&said, &ranges(&["10.9.0.0/16"])), []);
    }
}
