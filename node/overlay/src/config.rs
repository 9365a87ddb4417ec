//! What an overlay is told, and what it tells.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ketch_net::Cidr;

use crate::{identity::Identity, lane};

/// UDP payload of a full Ethernet frame over IPv4.
pub const ETHERNET_PAYLOAD: u16 = 1472;

/// An overlay of one node.
#[derive(Clone, Debug)]
pub struct OverlayConfig {
    /// Who this node is.
    pub identity: Identity,
    /// Addresses of this node's pods; packets for others are not taken from peers.
    pub local_ranges: Vec<Cidr>,
    /// UDP address; port 0 picks one.
    pub bind: SocketAddr,
    /// The network device; `None` for a relay that has no pods.
    pub device: Option<DeviceConfig>,
    /// Largest UDP payload that is tried, in bytes: [`ETHERNET_PAYLOAD`], or more where all links between
    /// nodes carry jumbo frames. What a path carries is found out per peer, from 1,200 up.
    pub max_udp_payload: u16,
    /// Whether peers may reach each other through this node ([`Peer::relay`]).
    pub forward: bool,
    /// Threads and connections to each peer side by side, 1 to 4. Two nodes use as many as both have; relayed
    /// packets all take one.
    pub lanes: usize,
}

/// The network device of an overlay.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// Name, at most 15 bytes. It must not be in use.
    pub name: String,
    /// The node's own address in the pod network: source of what the node itself sends to remote pods.
    /// In one of the local ranges, or peers drop what comes from it.
    pub address: Option<IpAddr>,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Name of the node, as in its certificate.
    pub name: String,
    /// Where its overlay listens; empty when it cannot be dialed.
    pub addresses: Vec<SocketAddr>,
    /// Addresses of its pods.
    pub ranges: Vec<Cidr>,
    /// Name of the peer through which it is reached when it cannot be reached directly. Packets stay
    /// encrypted from end to end.
    pub relay: Option<String>,
}

/// How a peer is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Not at the moment.
    Nothing,
    /// Directly, at this address.
    Direct(SocketAddr),
    /// Through the peer of this name.
    Relayed(String),
}

/// State of a peer, at most a second old.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Name of the node.
    pub name: String,
    /// How it is reached.
    pub reach: Reach,
    /// Round trip time; zero when it is not reached.
    pub rtt: Duration,
    /// Largest inner packet that fits one datagram, in bytes; zero when it is not reached.
    pub mtu: usize,
    /// Inner packets on all lanes.
    pub counters: Counters,
    /// This node's lanes; empty while the state is not known yet.
    pub lanes: Vec<LaneStatus>,
}

/// State of one lane to a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneStatus {
    /// Whether it has a connection to the peer. Without one its packets take the first lane.
    pub up: bool,
    /// Inner packets that it carried itself.
    pub counters: Counters,
}

/// Inner packets of a peer since it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sent to the peer.
    pub sent: u64,
    /// Received from the peer and handed to the device.
    pub received: u64,
    /// Sent over a stream because they did not fit a datagram.
    pub streamed: u64,
    /// Dropped: received with a source outside the peer's ranges.
    pub spoofed: u64,
    /// Dropped: received for a destination outside the local ranges.
    pub foreign: u64,
    /// Dropped: too large for the path; the sender was told the size that fits.
    pub too_big: u64,
    /// Dropped: the peer was not reached, or its queue was full.
    pub unsent: u64,
}

// === impl OverlayConfig ===

impl OverlayConfig {
    /// An overlay with a device called `device`, for the pods in `local_ranges`. It has a lane per core, as far as
    /// there are that many.
    pub fn new(identity: Identity, bind: SocketAddr, device: DeviceConfig, local_ranges: Vec<Cidr>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            identity,
            local_ranges,
            bind,
            device: Some(device),
            max_udp_payload: ETHERNET_PAYLOAD,
            forward: false,
            lanes: cores.min(lane::MOST),
        }
    }

    /// A relay without pods and without a device: needs no rights.
    pub fn relay(identity: Identity, bind: SocketAddr) -> Self {
        Self {
            identity,
            local_ranges: Vec::new(),
            bind,
            device: None,
            max_udp_payload: ETHERNET_PAYLOAD,
            forward: true,
            lanes: 1,
        }
    }
}

// === impl Counters ===

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        self.received += other.received;
        self.streamed += other.streamed;
        self.spoofed += other.spoofed;
        self.foreign += other.foreign;
        self.too_big += other.too_big;
        self.unsent += other.unsent;
    }
}
