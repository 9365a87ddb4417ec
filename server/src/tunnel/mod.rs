//! The control tunnel: nodes connect to us, and over their connections we send them requests.
//!
//! A node opens one QUIC connection and proves itself with its certificate. Each request is HTTP/1.1 on a
//! stream of its own, so requests do not wait for each other, bodies stream, and dropping an answer ends the
//! request at the node.

use std::{
    io,
    net::UdpSocket,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Body, Bytes};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use ketch_api::Status;
use ketch_apiserver::{auth::node::node_name, pki::Pki, serve::certificate_user};
use quinn::{
    Connection, Endpoint, EndpointConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt,
    crypto::rustls::QuicServerConfig, rustls::pki_types::CertificateDer,
};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{nodes::Nodes, server::StartError};

/// A node that is gone is noticed after the second; the first keeps the way through a NAT open.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(6);
/// For a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at a time.
const HANDSHAKES: usize = 256;
/// For a stream to be had, when the node has as many requests as it takes.
const OPENING: Duration = Duration::from_secs(10);
/// Why a connection was closed: another one of the same node came.
const REPLACED: VarInt = VarInt::from_u32(1);
/// Why a connection was closed: its certificate is not a node's.
const NOT_A_NODE: VarInt = VarInt::from_u32(2);

/// The listening end.
pub(crate) struct Tunnel {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

// === impl Tunnel ===

impl Tunnel {
    /// Listens on `socket` and makes connected nodes known to `nodes`.
    pub(crate) fn listen(socket: UdpSocket, pki: &Pki, nodes: Arc<Nodes>) -> Result<Self, StartError> {
        let failed = |error: &dyn std::fmt::Display| StartError::Api(format!("control tunnel: {error}"));
        let tls = QuicServerConfig::try_from(pki.control_config()?).map_err(|error| failed(&error))?;
        let mut config = ServerConfig::with_crypto(Arc::new(tls));
        config.transport_config(Arc::new(transport()));
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = Endpoint::new(EndpointConfig::default(), Some(config), socket, runtime);
        let endpoint = endpoint.map_err(|error: io::Error| failed(&error))?;
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(endpoint, nodes, stop.clone()));
        Ok(Self { stop, tasks })
    }

    /// Closes every connection.
    pub(crate) async fn shutdown(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(IdleTimeout::try_from(IDLE).ok())
        // Nodes answer, they do not ask: they have the API for that.
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    transport
}

async fn accept(endpoint: Endpoint, nodes: Arc<Nodes>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { break };
                // Whoever sends from an address that is not theirs must not cost us a handshake.
                if !incoming.remote_address_validated() {
                    let _ = incoming.retry();
                } else if endpoint.open_connections() > nodes.connected() + HANDSHAKES {
                    incoming.refuse();
                } else {
                    connections.spawn(connection(incoming, Arc::clone(&nodes)));
                }
            }
        }
    }
    endpoint.close(VarInt::from_u32(0), b"the server is stopping");
    connections.shutdown().await;
    endpoint.wait_idle().await;
}

/// One connection, to its end.
async fn connection(incoming: quinn::Incoming, nodes: Arc<Nodes>) {
    let address = incoming.remote_address();
    let connection = match tokio::time::timeout(HANDSHAKE, async { incoming.await }).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(%address, %error, "control tunnel: the handshake failed"),
        Err(_) => return tracing::debug!(%address, "control tunnel: the handshake took too long"),
    };
    let Some(name) = node_of(&connection) else {
        connection.close(NOT_A_NODE, b"this certificate is not a node's");
        return;
    };
    tracing::info!(node = name, %address, "a node has connected");
    let way = Way { connection, requests: TaskTracker::new() };
    nodes.arrive(&name, way.clone());
    let reason = way.connection.closed().await;
    way.requests.close();
    // Their streams have ended, and so do they.
    way.requests.wait().await;
    nodes.leave(&name, &way);
    tracing::info!(node = name, %reason, "a node has disconnected");
}

fn node_of(connection: &Connection) -> Option<String> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let user = certificate_user(identity.first()?)?;
    node_name(&user).map(str::to_owned)
}

/// The way to a connected node.
#[derive(Clone)]
pub(crate) struct Way {
    connection: Connection,
    requests: TaskTracker,
}

// === impl Way ===

impl Way {
    /// Whether both are the same connection.
    pub(crate) fn is(&self, other: &Way) -> bool {
        self.connection.stable_id() == other.connection.stable_id()
    }

    /// Closes the connection because the node has come with another one.
    pub(crate) fn replaced(&self) {
        self.connection.close(REPLACED, b"the node has connected again");
    }

    /// Sends a request to the node. When the answer's body is dropped the request ends.
    pub(crate) async fn request(
        &self,
        node: &str,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let broken = |what: &dyn std::fmt::Display| {
            Status::new(502, "BadGateway", format!("the connection to node \"{node}\" broke: {what}"))
        };
        let opened = tokio::time::timeout(OPENING, self.connection.open_bi()).await;
        let opened =
            opened.map_err(|_| Status::unavailable(format!("node \"{node}\" has too many requests")))?;
        let (send, receive) = opened.map_err(|error| broken(&error))?;
        let stream = TokioIo::new(tokio::io::join(receive, send));
        let (mut sender, driver) = http1::handshake(stream).await.map_err(|error| broken(&error))?;
        let driver = self.requests.spawn(async move {
            let _ = driver.with_upgrades().await;
        });
        let driver = Driver(Some(driver.abort_handle()));
        address(&mut request).map_err(|error| broken(&error))?;
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            // From here on the stream belongs to whoever takes the upgrade; it ends with that.
            driver.detach();
            return Ok(response.map(|_| Body::empty()));
        }
        Ok(response.map(|body| Body::new(Driven { body, _driver: driver })))
    }
}

/// HTTP/1.1 wants the path alone, and a host.
fn address<B>(request: &mut Request<B>) -> Result<(), http::Error> {
    let path = request.uri().path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    *request.uri_mut() = path.parse()?;
    *request.version_mut() = http::Version::HTTP_11;
    request.headers_mut().insert(header::HOST, HeaderValue::from_static("node"));
    Ok(())
}

/// Ends the task that moves a request's bytes when it is dropped.
struct Driver(Option<AbortHandle>);

impl Driver {
    fn detach(mut self) {
        self.0 = None;
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// A body and what moves it: they end together.
struct Driven {
    body: Incoming,
    _driver: Driver,
}

impl http_body::Body for Driven {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
