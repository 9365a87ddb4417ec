//! The answer to one packet without a socket, for tests of hostile packets.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::AtomicUsize},
};

use ketch_net::Table;

use crate::{
    handler::{Handler, Verdict},
    upstream::Upstream,
};

/// The packet that answers `packet`; `None`: there is no answer, or it is not the cluster's.
pub fn respond(table: Arc<Table>, packet: &[u8], udp: bool) -> Option<Vec<u8>> {
    let held = Arc::clone(&table);
    let handler = Handler {
        source: Arc::new(move || Arc::clone(&held)),
        namespaces: Arc::new(|_| Some("shop".to_owned())),
        pods: Arc::default(),
        services: Arc::default(),
        servers: Arc::default(),
        upstream: Arc::new(Upstream::new(&[], &[], "").ok()?),
        turn: AtomicUsize::new(0),
    };
    let client = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    match handler.respond(table, packet, client, udp) {
        Verdict::Reply { packet, .. } => Some(packet),
        Verdict::Silence | Verdict::Ask(_) => None,
    }
}
