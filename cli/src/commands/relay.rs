//! Where nodes meet that cannot reach each other: beside the server, which all of them reach.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Result;
use ketch_api::{
    join::{Relay, SERVER_RELAY},
    names::{GATEWAY_GROUP, GATEWAY_USER_PREFIX, NODE_USER_PREFIX},
};
use ketch_node::{IdentitySource, NodeOverlay, OverlayIdentity, OverlayOptions};
use ketch_server::{Server, User};
use tokio::sync::watch;

use super::machine::Machine;
use crate::options::Options;

/// UDP address of the overlay in the server's process; `None` on loopback, where no other machine comes.
pub(crate) fn address(tunnel: SocketAddr) -> Option<SocketAddr> {
    // The control tunnel has the port itself.
    let port = tunnel.port().checked_add(1).unwrap_or(0);
    (!tunnel.ip().is_loopback()).then(|| SocketAddr::new(tunnel.ip(), port))
}

/// An identity that `sign` makes anew at two thirds of the life it is given.
pub(crate) fn renewed(
    life: Duration,
    sign: impl Fn(Duration) -> Result<OverlayIdentity> + Send + Sync + 'static,
) -> Result<IdentitySource> {
    let current = Mutex::new((Instant::now(), sign(life)?));
    Ok(Arc::new(move || {
        let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.0.elapsed() > life * 2 / 3 {
            match sign(life) {
                Ok(next) => *current = (Instant::now(), next),
                Err(error) => tracing::warn!("the overlay's certificate cannot be renewed: {error:#}"),
            }
        }
        Some(current.1.clone())
    }))
}

/// The relay of a server without a node. `None`, with a word to the log, when there can be none.
pub(crate) async fn start(server: &Server, options: &Options) -> Result<Option<NodeOverlay>> {
    let Some(bind) = address(server.quic_addr) else { return Ok(None) };
    let pki = Arc::clone(server.pki());
    let sign = move |life: Duration| -> Result<_> {
        // No group: with this certificate nothing can be had from the API.
        let signed = pki.client_cert(&format!("{NODE_USER_PREFIX}{SERVER_RELAY}"), &[], life)?;
        let (certificate, key) = (signed.certificate, signed.key.to_string());
        Ok(OverlayIdentity { certificate, key, authority: pki.ca_pem().to_owned() })
    };
    let started = NodeOverlay::start(OverlayOptions {
        name: SERVER_RELAY.to_owned(),
        client: server.client(User::new(format!("{GATEWAY_USER_PREFIX}{SERVER_RELAY}"), &[GATEWAY_GROUP])),
        identity: renewed(options.node_cert_life(), sign)?,
        bind,
        range: None,
        forward: true,
        relay: watch::Sender::new(None).subscribe(),
    });
    let started = started.await;
    let started = started
        .inspect_err(|error| tracing::warn!(%error, "nodes that cannot reach each other have no relay here"));
    Ok(started.ok().flatten())
}

/// What nodes are told of the relay in this process.
pub(crate) fn told(node: Option<(&Machine, &str)>, alone: Option<&NodeOverlay>) -> Option<Relay> {
    let of_node = node.and_then(|(node, name)| Some((name, node.overlay_port()?)));
    let (name, port) = of_node.or_else(|| Some((SERVER_RELAY, alone?.port())))?;
    Some(Relay { name: name.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn other_machines_come_beside_the_tunnel_or_not_at_all() {
        let of = |text: &str| address(text.parse().unwrap()).map(|address| address.to_string());
        assert_eq!(of("0.0.0.0:6444").as_deref(), Some("0.0.0.0:6445"));
        assert_eq!(of("192.0.2.1:65535").as_deref(), Some("192.0.2.1:0"));
        assert_eq!(of("127.0.0.1:6444"), None);
    }

    #[test]
    fn an_identity_is_kept_until_it_is_due() {
        let count = Arc::new(AtomicUsize::new(0));
        let source = |life| {
            let count = Arc::clone(&count);
            let sign = move |_| {
                let certificate = count.fetch_add(1, Ordering::Relaxed).to_string();
                Ok(OverlayIdentity { certificate, key: String::new(), authority: String::new() })
            };
            renewed(life, sign).unwrap()
        };
        let long = source(Duration::from_secs(3600));
        assert_eq!(long().unwrap().certificate, long().unwrap().certificate);
        let over = source(Duration::ZERO);
        assert_ne!(over().unwrap().certificate, over().unwrap().certificate);
    }
}
