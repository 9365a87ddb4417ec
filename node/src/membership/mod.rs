//! Being part of a cluster whose server is on another machine: joining it, staying in it, being reached.
//!
//! [`join`] buys an [`Identity`] with a token; [`Member`] is the node's side of everything that needs one: the
//! clients, the renewal of the certificate, the [`Tunnel`] that the server's requests come through, and the [`Door`]
//! by which pods of the node reach the API. All connections between the machines are made from here.

mod door;
mod error;
mod identity;
mod join;
mod renew;
mod server;
mod tunnel;

use std::{path::Path, sync::Arc, time::Duration};

use axum::Router;
use ketch_api::join::Cluster;
use ketch_client::secure::{self, Authority, Keyring};
use ketch_net::Cidr;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use error::JoinError;
pub use identity::Identity;
pub use join::{join, signing_request};
pub use server::ServerAddress;
pub use tunnel::TunnelState;

use door::Door;
use renew::Renewal;
use tunnel::Tunnel;

use crate::overlay::RelayHost;

/// How long the first question to the server may take before what is on disk is used.
const ASKING: Duration = Duration::from_secs(5);

/// A node's membership in use.
pub struct Member {
    identity: Identity,
    server: ServerAddress,
    tls: rustls::ClientConfig,
    client: kube::Client,
    gateway: kube::Client,
    keyring: Arc<Keyring>,
    relay: watch::Sender<Option<RelayHost>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

// === impl Member ===

impl Member {
    /// Takes up the identity. Its certificate is renewed in time, in memory and in `path`.
    ///
    /// # Errors
    /// When the identity cannot be used, or its certificates have ended.
    pub fn start(identity: Identity, path: &Path) -> Result<Self, JoinError> {
        let now = jiff::Timestamp::now();
        if identity.expires <= now {
            return Err(JoinError::Expired(identity.expires, now));
        }
        let server: ServerAddress = identity.server.parse()?;
        let unusable =
            |why: &dyn std::fmt::Display| JoinError::Identity { path: path.to_owned(), why: why.to_string() };
        let authority = Authority::of(&identity.authority).map_err(|error| unusable(&error))?;
        let keyring =
            |certificate: &str| Keyring::new(certificate, &identity.key).map_err(|error| unusable(&error));
        let (node, gateway) = (keyring(&identity.certificate)?, keyring(&identity.gateway_certificate)?);
        let tls = |keyring: &Arc<Keyring>| {
            secure::tls(&authority, Some(Arc::clone(keyring))).map_err(|error| unusable(&error))
        };
        let client = secure::connect(server.uri(), tls(&node)?);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let renewal = Renewal {
            identity: identity.clone(),
            path: path.to_owned(),
            client: client.clone(),
            node: Arc::clone(&node),
            gateway: Arc::clone(&gateway),
        };
        tasks.spawn(renewal.run(stop.clone()));
        let wide = secure::connect(server.uri(), tls(&gateway)?);
        let relay = watch::Sender::new(RelayHost::of(&identity.cluster, server.host()));
        Ok(Self {
            tls: tls(&node)?,
            identity,
            server,
            client,
            gateway: wide,
            keyring: node,
            relay,
            stop,
            tasks,
        })
    }

    /// A client with the node's rights.
    pub fn client(&self) -> &kube::Client {
        &self.client
    }

    /// A client with the rights of the gateway on this node.
    pub fn gateway_client(&self) -> &kube::Client {
        &self.gateway
    }

    /// The node's certificate and key, always the current ones: for connections between nodes.
    pub fn keyring(&self) -> &Arc<Keyring> {
        &self.keyring
    }

    /// Certificate of the cluster's authority, PEM.
    pub fn authority(&self) -> &str {
        &self.identity.authority
    }

    /// Where the server is.
    pub fn server(&self) -> &ServerAddress {
        &self.server
    }

    /// How the cluster is set up: the server's answer, or what it said last when it is away.
    ///
    /// # Errors
    /// When the server does not accept this node any more.
    pub async fn cluster(&self) -> Result<Cluster, JoinError> {
        match tokio::time::timeout(ASKING, server::cluster(&self.client, &self.server)).await {
            Ok(Ok(cluster)) => {
                self.relay.send_replace(RelayHost::of(&cluster, self.server.host()));
                Ok(cluster)
            }
            Ok(Err(error)) if error.is_refusal() => Err(error),
            Ok(Err(error)) => {
                tracing::warn!(server = %self.server, %error, "the server is away; waiting for it");
                Ok(self.identity.cluster.clone())
            }
            Err(_) => {
                tracing::warn!(server = %self.server, "the server does not answer; waiting for it");
                Ok(self.identity.cluster.clone())
            }
        }
    }

    /// Where nodes meet that cannot reach each other: what the server said last. It is asked each time the tunnel is
    /// opened.
    pub fn relay(&self) -> watch::Receiver<Option<RelayHost>> {
        self.relay.subscribe()
    }

    /// Opens the tunnel through which the server reaches `router`, and keeps it open.
    pub fn open_tunnel(&self, router: Router) -> watch::Receiver<TunnelState> {
        let tunnel = Tunnel {
            client: self.client.clone(),
            server: self.server.clone(),
            port: self.identity.cluster.quic_port,
            tls: self.tls.clone(),
            router,
            relay: self.relay.clone(),
        };
        let (told, state) = watch::channel(TunnelState::Closed);
        self.tasks.spawn(tunnel.run(told, self.stop.clone()));
        state
    }

    /// Hands connections to `listener` on to the API, from this machine and pods with addresses in `pods` only.
    ///
    /// # Errors
    /// When the listener cannot be used.
    pub fn open_door(&self, listener: std::net::TcpListener, pods: Cidr) -> std::io::Result<()> {
        let door = Door::new(listener, pods, self.server.clone())?;
        self.tasks.spawn(door.run(self.stop.clone()));
        Ok(())
    }

    /// Closes the tunnel and the door, and ends renewal.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
