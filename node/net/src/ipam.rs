//! Which pod has which address. Pure: the node keeps the result on disk and in pod statuses.

use std::{collections::BTreeMap, collections::HashMap, net::IpAddr};

use crate::cidr::Cidr;

/// Addresses at the start of a range that pods never get: the network's own and one for the node.
const RESERVED: u128 = 2;

/// Addresses a half must have at least to be worth making.
const LEAST_HALF: u128 = 8;

/// A node's pod addresses by what needs them.
///
/// Every address of `wasm` is local to the machine ([`crate::anyip`]), which would swallow what is meant for a
/// pod that has a network namespace of its own: those have their addresses from `sandboxed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodRanges {
    /// For pods that are Wasm only: the first half.
    pub wasm: Cidr,
    /// For pods with a network namespace: the second half. `None` where there can be none: loopback addresses,
    /// or too few.
    pub sandboxed: Option<Cidr>,
}

impl PodRanges {
    /// Splits a node's range.
    pub fn of(range: Cidr) -> Self {
        let half = range.size() / 2;
        if range.base().is_loopback() || half < LEAST_HALF {
            return Self { wasm: range, sandboxed: None };
        }
        let prefix = range.prefix() + 1;
        Self {
            wasm: Cidr::new(range.base(), prefix),
            sandboxed: range.nth(half).map(|base| Cidr::new(base, prefix)),
        }
    }
}

/// Every address is taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no free pod address in {range}: all {size} are in use; give the node a larger pod range")]
pub struct Exhausted {
    range: Cidr,
    size: u128,
}

/// Hands out the addresses of a range. An address that was given back is used again as late as possible,
/// so that a client with an old answer does not reach another pod.
#[derive(Clone, Debug)]
pub struct Allocator {
    range: Cidr,
    owners: HashMap<String, IpAddr>,
    taken: BTreeMap<u128, String>,
    cursor: u128,
}

impl Allocator {
    /// An allocator over `range` with nothing taken.
    pub fn new(range: Cidr) -> Self {
        Self { range, owners: HashMap::new(), taken: BTreeMap::new(), cursor: RESERVED }
    }

    /// The range.
    pub fn range(&self) -> Cidr {
        self.range
    }

    /// The address of `owner`: the one it has, else the next free one.
    pub fn allocate(&mut self, owner: &str) -> Result<IpAddr, Exhausted> {
        if let Some(address) = self.owners.get(owner) {
            return Ok(*address);
        }
        let offset = self.free_from(self.cursor).or_else(|| self.free_from(RESERVED));
        let found = offset.and_then(|offset| Some((offset, self.range.nth(offset)?)));
        let Some((offset, address)) = found else {
            return Err(Exhausted { range: self.range, size: self.last().saturating_sub(RESERVED) });
        };
        self.put(owner, offset, address);
        self.cursor = offset + 1;
        Ok(address)
    }

    /// Notes that `owner` has `address` already. `false`: outside the range, reserved, or another's.
    pub fn adopt(&mut self, owner: &str, address: IpAddr) -> bool {
        let Some(offset) = self.range.offset(address) else { return false };
        if self.owners.get(owner) == Some(&address) {
            return true;
        }
        let free = (RESERVED..self.last()).contains(&offset) && !self.taken.contains_key(&offset);
        if free && !self.owners.contains_key(owner) {
            self.put(owner, offset, address);
            self.cursor = self.cursor.max(offset + 1);
            return true;
        }
        false
    }

    /// Gives back what `owner` has.
    pub fn release(&mut self, owner: &str) {
        if let Some(offset) = self.owners.remove(owner).and_then(|address| self.range.offset(address)) {
            self.taken.remove(&offset);
        }
    }

    /// The address that `owner` has.
    pub fn address(&self, owner: &str) -> Option<IpAddr> {
        self.owners.get(owner).copied()
    }

    /// The owner of `address`.
    pub fn owner(&self, address: IpAddr) -> Option<&str> {
        self.taken.get(&self.range.offset(address)?).map(String::as_str)
    }

    /// Owners with their addresses.
    pub fn entries(&self) -> impl Iterator<Item = (&str, IpAddr)> {
        self.owners.iter().map(|(owner, address)| (owner.as_str(), *address))
    }

    fn put(&mut self, owner: &str, offset: u128, address: IpAddr) {
        self.taken.insert(offset, owner.to_owned());
        self.owners.insert(owner.to_owned(), address);
    }

    /// One past the last address that may be given: an IPv4 range's broadcast address is not.
    fn last(&self) -> u128 {
        self.range.size() - u128::from(self.range.base().is_ipv4() && self.range.size() > 1)
    }

    /// First free offset at or after `start`, by walking the taken ones while they are dense.
    fn free_from(&self, start: u128) -> Option<u128> {
        let mut candidate = start;
        for taken in self.taken.range(start..).map(|(offset, _)| *offset) {
            if taken > candidate {
                break;
            }
            candidate = taken + 1;
        }
        (candidate < self.last()).then_some(candidate)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> Allocator {
        Allocator::new(text.parse().unwrap())
    }

    #[test]
    fn addresses_are_stable_distinct_and_reused_late() {
        let mut ipam = range("10.42.0.0/29");
        let a = ipam.allocate("a").unwrap();
        assert_eq!(a.to_string(), "10.42.0.2");
        assert_eq!(ipam.allocate("a").unwrap(), a);
        let b = ipam.allocate("b").unwrap();
        ipam.release("a");
        let c = ipam.allocate("c").unwrap();
        assert_ne!(c, a, "a released address comes back only when the others are used up");
        assert_ne!(c, b);
        assert_eq!(ipam.owner(b), Some("b"));
        assert_eq!(ipam.owner(a), None);
    }

    #[test]
    fn a_range_has_two_halves_unless_it_is_loopback_or_small() {
        for (range, wasm, sandboxed) in [
            ("10.42.32.0/19", "10.42.32.0/20", Some("10.42.48.0/20")),
            ("10.42.0.0/28", "10.42.0.0/29", Some("10.42.0.8/29")),
            ("10.42.0.0/29", "10.42.0.0/29", None),
            ("127.42.0.0/16", "127.42.0.0/16", None),
            ("fd00:42::/64", "fd00:42::/65", Some("fd00:42:0:0:8000::/65")),
        ] {
            let halves = PodRanges::of(range.parse().unwrap());
            assert_eq!(halves.wasm.to_string(), wasm);
            assert_eq!(halves.sandboxed.map(|half| half.to_string()).as_deref(), sandboxed);
        }
    }

    #[test]
    fn a_full_range_says_so() {
        let mut ipam = range("10.42.0.0/29");
        for n in 0..5 {
            ipam.allocate(&n.to_string()).unwrap();
        }
        let error = ipam.allocate("x").unwrap_err();
        assert!(error.to_string().contains("10.42.0.0/29"), "{error}");
        ipam.release("3");
        assert_eq!(ipam.allocate("x").unwrap().to_string(), "10.42.0.5");
    }

    #[test]
    fn adopting_refuses_what_is_not_free() {
        let mut ipam = range("10.42.0.0/24");
        assert!(ipam.adopt("a", "10.42.0.9".parse().unwrap()));
        assert!(ipam.adopt("a", "10.42.0.9".parse().unwrap()));
        for (owner, address) in [
            ("b", "10.42.0.9"),
            ("a", "10.42.0.10"),
            ("b", "10.42.1.9"),
            ("b", "10.42.0.0"),
            ("b", "10.42.0.255"),
        ] {
            assert!(!ipam.adopt(owner, address.parse().unwrap()), "{owner} {address}");
        }
        assert_eq!(ipam.allocate("a").unwrap().to_string(), "10.42.0.9");
    }

    proptest! {
        #[test]
        fn no_two_owners_share_an_address(ops in prop::collection::vec((0_u8..2, 0_u8..20), 0..200)) {
            let mut ipam = range("10.42.0.0/27");
            for (op, owner) in ops {
                let owner = owner.to_string();
                if op == 0 { ipam.allocate(&owner).unwrap(); } else { ipam.release(&owner); }
                let mut seen: Vec<IpAddr> = ipam.entries().map(|(_, a)| a).collect();
                let count = seen.len();
                seen.sort();
                seen.dedup();
                prop_assert_eq!(seen.len(), count);
            }
        }
    }
}
