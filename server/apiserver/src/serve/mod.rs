//! Listeners: connections to requests, with a limit on everything a client can hold on to.
//!
//! hyper is driven from here and not through `axum::serve`, which has no time-outs: a client that sends
//! its headers slowly, stops in the middle of the TLS handshake, or opens a connection and says nothing
//! would be kept for ever. Time-outs for requests and bodies are the pipeline's; whatever happens before
//! and between requests is decided here.

mod idle;
mod unread;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use ketch_api::join;
use rustls::{ServerConfig, pki_types::CertificateDer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::auth::User;
use idle::{Activity, Counted};

/// How long and how many.
#[derive(Clone, Debug)]
pub struct Limits {
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For the headers of an HTTP/1 request, counted from the end of the last one.
    pub headers: Duration,
    /// For a connection without a request in flight.
    pub idle: Duration,
    /// Open connections; more wait in the listener's queue. WebSockets do not count.
    pub connections: usize,
    /// For requests in flight at shutdown. Longer ones are cut off.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            headers: Duration::from_secs(10),
            idle: Duration::from_secs(180),
            connections: 8192,
            drain: Duration::from_secs(10),
        }
    }
}

/// Largest request header block, in bytes.
const MAX_HEADERS: usize = 64 * 1024;
/// HTTP/2 flow control, per stream and per connection: kube-apiserver's figures. The first bounds what
/// one slow handler can make the server hold, the second lets a client with many streams use the link.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 25 * 1024 * 1024;
/// HTTP/2 requests at a time on one connection.
const MAX_STREAMS: u32 = 1000;
/// A peer that is gone is noticed after these two.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// For a connection to end after it was told to.
const CLOSING: Duration = Duration::from_secs(2);
/// Pause after the listener failed for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` on `listener` until `stop`, then lets requests in flight end. With `tls`, requests carry
/// the [`User`] of the client certificate, when there is one, in their extensions; all carry
/// [`ConnectInfo`] with the peer's address.
///
/// Returns when every connection has ended.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(limits.connections));
    let drain = limits.drain;
    let server = Arc::new(Server { tls: tls.map(TlsAcceptor::from), router, limits, stop: stop.clone() });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            (stream, peer, permit) = accept(&listener, &permits) => {
                connections.spawn(Arc::clone(&server).connection(stream, peer, permit));
            }
        }
    }
    drop(listener);
    if timeout(drain, async { while connections.join_next().await.is_some() {} }).await.is_err() {
        tracing::info!(connections = connections.len(), "closing connections that did not end in time");
        connections.shutdown().await;
    }
}

/// The next connection. Cancel-safe: what is lost is a place in the queue.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed, so there always is a permit in the end.
    let permit = Arc::clone(permits).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, permit),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

struct Server {
    tls: Option<TlsAcceptor>,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
}

/// What is known of the other side.
#[derive(Clone)]
struct Peer {
    address: SocketAddr,
    user: Option<User>,
}

// === impl Server ===

impl Server {
    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        _permit: Option<OwnedSemaphorePermit>,
    ) {
        // Small answers must not wait for the peer's acknowledgement of the last ones.
        let _ = stream.set_nodelay(true);
        let Some(acceptor) = &self.tls else {
            return self.drive(stream, Peer { address, user: None }, false).await;
        };
        let stream = match timeout(self.limits.handshake, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%address, %error, "TLS handshake failed"),
            Err(_) => return tracing::debug!(%address, "TLS handshake took too long"),
        };
        let session = stream.get_ref().1;
        let user = session.peer_certificates().and_then(|chain| chain.first()).and_then(certificate_user);
        let http2 = session.alpn_protocol() == Some(b"h2");
        self.drive(stream, Peer { address, user }, http2).await;
    }

    /// Serves requests on `stream` until it ends, is idle for too long, or the server stops.
    async fn drive<I>(&self, stream: I, peer: Peer, http2: bool)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let activity = Arc::new(Activity::default());
        let router = self.router.clone();
        let service = {
            let activity = Arc::clone(&activity);
            hyper::service::service_fn(move |request| {
                answer(router.clone(), peer.clone(), &activity, request)
            })
        };
        let builder = self.builder(http2);
        let mut connection =
            std::pin::pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
        tokio::select! {
            _ = connection.as_mut() => return,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                // The drain time-out is around all connections.
                let _ = connection.await;
                return;
            }
            () = activity.idle_for(self.limits.idle) => connection.as_mut().graceful_shutdown(),
        }
        let _ = timeout(CLOSING, connection).await;
    }

    fn builder(&self, http2: bool) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.headers)
            .max_buf_size(MAX_HEADERS);
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(u32::try_from(MAX_HEADERS).unwrap_or(u32::MAX))
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        // The protocol is known from the handshake. Looking at the first bytes instead would wait for them
        // without a time-out.
        if http2 { builder.http2_only() } else { builder.http1_only() }
    }
}

fn answer(
    router: Router,
    peer: Peer,
    activity: &Arc<Activity>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Counted>, std::convert::Infallible>> + use<> {
    let busy = activity.begin();
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(ConnectInfo(peer.address));
    if let Some(user) = peer.user {
        request.extensions_mut().insert(user);
    }
    async move {
        let response = unread::read_rest(request, |request| router.oneshot(request)).await?;
        Ok(response.map(|body| Counted::new(body, busy)))
    }
}

/// The user a client certificate is for: common name and organisations; `extra` has the pod ranges of a node that
/// has joined. `None` when it has no name.
pub fn certificate_user(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok().filter(|name| !name.is_empty())?;
    let groups: Vec<&str> = subject.iter_organization().filter_map(|group| group.as_str().ok()).collect();
    let mut user = User::new(name, &groups);
    let names = certificate.subject_alternative_name().ok().flatten();
    let uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let ranges: Vec<String> = join::pod_ranges(uris).into_iter().map(str::to_owned).collect();
    if !ranges.is_empty() {
        user.extra.insert(join::POD_RANGE_EXTRA.to_owned(), ranges);
    }
    Some(user)
}

#[cfg(test)]
mod tests;
