//! Encrypted pod traffic between nodes.
//!
//! A TUN device takes packets for pods of other nodes; each travels in a QUIC datagram (RFC 9221) to the
//! node of its destination, over a connection with mutual TLS; a pair of nodes has one per lane (`lane`).
//! [`Overlay`] is the handle. A thread per lane owns a queue of the device, sockets and connections and moves packets
//! in batches (`datapath`); a task keeps the routes (`routes`). `lane`, `packet`, `ranges`, `frame` and `congestion`
//! are pure.
//!
//! What a peer may do is checked here: a packet is taken from it only when its source is in the peer's
//! ranges and its destination in this node's. Nodes that cannot reach each other go through a third one that carries
//! their QUIC packets without being able to read them.
//!
//! Packets between pods of the same node never come here. Nothing here knows of Kubernetes: the node agent
//! says who the peers are.

mod board;
mod config;
mod congestion;
mod datapath;
mod device;
mod frame;
#[cfg(fuzzing)]
pub mod fuzzing;
mod identity;
mod lane;
mod overlay;
mod packet;
mod ranges;
mod routes;
mod socket;
mod transport;

pub use config::{
    Counters, DeviceConfig, ETHERNET_PAYLOAD, LaneStatus, OverlayConfig, Peer, PeerStatus, Reach,
};
pub use identity::{Identity, IdentityError};
pub use overlay::{Overlay, OverlayError};
pub use routes::RouteError;
