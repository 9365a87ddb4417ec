//! The node's end of the control tunnel: one QUIC connection to the server, over which requests come.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use ketch_api::join::{CONTROL_PROTOCOL, Cluster};
use quinn::{
    ClientConfig, Connection, Endpoint, IdleTimeout, RecvStream, SendStream, TransportConfig, VarInt,
    crypto::rustls::QuicClientConfig,
};
use tokio::{
    sync::watch,
    task::{JoinError as Ended, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::server::{self, ServerAddress};
use crate::overlay::RelayHost;

/// A server that is gone is noticed after the second; the first keeps the way through a NAT open.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(6);
/// For a connection to be made.
const CONNECT: Duration = Duration::from_secs(10);
/// For the server to say which port it is.
const ASKING: Duration = Duration::from_secs(5);
/// Requests at a time. Logs that are followed and terminals are requests, too.
const REQUESTS: u32 = 1024;
/// For the headers of a request.
const HEADERS: Duration = Duration::from_secs(10);
/// Between attempts: the first, doubled up to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Whether the server can reach this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TunnelState {
    /// Not yet, or not now.
    Closed,
    /// It can.
    Open,
}

/// What the tunnel is made of.
pub(super) struct Tunnel {
    pub(super) client: kube::Client,
    pub(super) server: ServerAddress,
    /// Port to try when the server does not say.
    pub(super) port: u16,
    pub(super) tls: rustls::ClientConfig,
    pub(super) router: Router,
    /// Where what the server says of its relay is written down.
    pub(super) relay: watch::Sender<Option<RelayHost>>,
}

// === impl Tunnel ===

impl Tunnel {
    /// Keeps a connection open until `stop`.
    pub(super) async fn run(mut self, told: watch::Sender<TunnelState>, stop: CancellationToken) {
        let mut wait = RETRY.0;
        loop {
            let attempt = tokio::time::timeout(CONNECT, self.connect());
            let connected = tokio::select! {
                () = stop.cancelled() => return,
                connected = attempt => connected.unwrap_or_else(|_| Err("no answer".to_owned())),
            };
            match connected {
                Ok((endpoint, connection, asked)) => {
                    let since = Instant::now();
                    told.send_replace(TunnelState::Open);
                    tracing::info!(server = %self.server, "the server can reach this node");
                    tokio::select! {
                        () = self.serve(&connection, &stop) => {}
                        () = self.ask_again(asked) => {}
                    }
                    told.send_replace(TunnelState::Closed);
                    connection.close(VarInt::from_u32(0), b"the node is stopping");
                    endpoint.wait_idle().await;
                    // A server that refuses our certificate does so after the handshake has ended for us.
                    if since.elapsed() > RETRY.1 {
                        wait = RETRY.0;
                    }
                }
                Err(why) => {
                    tracing::warn!(server = %self.server, why, "no tunnel to the server; trying again")
                }
            }
            if stop.run_until_cancelled(tokio::time::sleep(jittered(wait))).await.is_none() {
                return;
            }
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// The third: whether the server has said how the cluster is set up.
    async fn connect(&mut self) -> Result<(Endpoint, Connection, bool), String> {
        // The ports may have changed with a restart of the server.
        let asked = match tokio::time::timeout(ASKING, server::cluster(&self.client, &self.server)).await {
            Ok(Ok(cluster)) => {
                self.port = cluster.quic_port;
                self.note(&cluster);
                true
            }
            Ok(Err(error)) if error.is_refusal() => return Err(error.to_string()),
            _ => false,
        };
        let host = self.server.host().to_owned();
        let failed = |what: &dyn std::fmt::Display| format!("{host}:{} (UDP): {what}", self.port);
        let found = tokio::net::lookup_host((host.as_str(), self.port)).await;
        let target = found.map_err(|error| failed(&error))?.next();
        let target = target.ok_or_else(|| failed(&"the name has no address"))?;
        let any =
            if target.is_ipv4() { SocketAddr::from(([0; 4], 0)) } else { SocketAddr::from(([0; 16], 0)) };
        let endpoint = Endpoint::client(any).map_err(|error| failed(&error))?;
        let config = self.config().map_err(|error| failed(&error))?;
        let connecting = endpoint.connect_with(config, target, &host).map_err(|error| failed(&error))?;
        let connection = connecting.await.map_err(|error| failed(&error))?;
        Ok((endpoint, connection, asked))
    }

    /// Asks the server how the cluster is set up until it says so, unless it has; never ends.
    async fn ask_again(&self, mut asked: bool) {
        while !asked {
            tokio::time::sleep(RETRY.1).await;
            let answer = tokio::time::timeout(ASKING, server::cluster(&self.client, &self.server)).await;
            if let Ok(Ok(cluster)) = answer {
                self.note(&cluster);
                asked = true;
            }
        }
        std::future::pending().await
    }

    fn note(&self, cluster: &Cluster) {
        let now = RelayHost::of(cluster, self.server.host());
        self.relay.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
    }

    fn config(&self) -> Result<ClientConfig, String> {
        let mut tls = self.tls.clone();
        tls.alpn_protocols = vec![CONTROL_PROTOCOL.to_vec()];
        let tls = QuicClientConfig::try_from(tls).map_err(|error| error.to_string())?;
        let mut transport = TransportConfig::default();
        transport
            .keep_alive_interval(Some(KEEP_ALIVE))
            .max_idle_timeout(IdleTimeout::try_from(IDLE).ok())
            .max_concurrent_bidi_streams(VarInt::from_u32(REQUESTS))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .datagram_receive_buffer_size(None);
        let mut config = ClientConfig::new(Arc::new(tls));
        config.transport_config(Arc::new(transport));
        Ok(config)
    }

    /// Answers requests until the connection ends or `stop`.
    async fn serve(&self, connection: &Connection, stop: &CancellationToken) {
        let mut requests = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = requests.join_next(), if !requests.is_empty() => log_panic(&ended),
                stream = connection.accept_bi() => match stream {
                    Ok(stream) => {
                        requests.spawn(answer(stream, self.router.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(server = %self.server, %error, "the tunnel to the server broke");
                        break;
                    }
                },
            }
        }
        requests.shutdown().await;
    }
}

/// One request.
async fn answer((send, receive): (SendStream, RecvStream), router: Router) {
    let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        router.clone().oneshot(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(tokio::io::join(receive, send)), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        // Whoever asked has gone, most of the time.
        tracing::debug!(%error, "a request of the server ended early");
    }
}

fn log_panic(ended: &Result<(), Ended>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a request of the server failed");
    }
}

/// Up to half more: nodes that lost the same server must not all come back at once.
fn jittered(wait: Duration) -> Duration {
    let part = getrandom::u32().map_or(0.0, |random| f64::from(random) / f64::from(u32::MAX));
    wait.mul_f64(1.0 + part / 2.0)
}
