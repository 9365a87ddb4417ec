//! What a table of the kernel should hold, as values that can be compared.

use std::{borrow::Cow, collections::BTreeMap, net::Ipv4Addr};

use nftables::stmt::Statement;

use crate::services::Transport;

/// Name of a set or map.
pub type Name = Cow<'static, str>;

/// Key of an element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Address, transport and port.
    Service(Ipv4Addr, Transport, u16),
    /// Transport and port.
    Port(Transport, u16),
    /// Address.
    Address(Ipv4Addr),
    /// Source and target.
    Pair(Ipv4Addr, Ipv4Addr),
}

/// Which [`Key`]s a set or map has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// [`Key::Service`].
    Service,
    /// [`Key::Port`].
    Port,
    /// [`Key::Address`].
    Address,
    /// [`Key::Pair`].
    Pair,
}

/// A set or a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collection {
    /// A set with elements of ours.
    Set(Shape),
    /// A map to chains, with elements of ours.
    Map(Shape),
    /// A set of addresses that rules fill. Seconds until one is forgotten.
    Clients(u32),
}

/// Everything of a table, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// Chains with their rules.
    pub chains: BTreeMap<String, Vec<Vec<Statement<'static>>>>,
    /// Sets and maps.
    pub collections: BTreeMap<Name, Collection>,
    /// Their elements; the chain a map's element leads to.
    pub elements: BTreeMap<(Name, Key), Option<String>>,
}

impl Rules {
    /// Adds an element to a set.
    pub(super) fn insert(&mut self, set: impl Into<Name>, key: Key) {
        self.elements.insert((set.into(), key), None);
    }

    /// Adds an element to a map.
    pub(super) fn map(&mut self, map: impl Into<Name>, key: Key, chain: String) {
        self.elements.insert((map.into(), key), Some(chain));
    }
}
