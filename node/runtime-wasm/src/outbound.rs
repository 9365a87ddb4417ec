//! Requests that guests send with `wasi:http`. Each is dialled through the cluster's [`Network`], which knows
//! the pod's permissions and checks the resolved address.
//!
//! [`Network`]: ketch_runtime::Network

use std::{
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, Uri, uri::Scheme};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use ketch_runtime::log::{Log, Stream};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use wasmtime_wasi_http::{Error, RequestOptions, Result, WasiBody, WasiHttpHooks};

use crate::context::Pod;

/// How many components a request has passed: what ends two that call each other for ever.
pub(crate) const HOPS: HeaderName = HeaderName::from_static("x-ketch-hops");

/// Most components in one chain of requests.
const MAX_HOPS: u32 = 16;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(600);

/// How long an unused connection is kept, and how many a pod keeps.
const KEEP_ALIVE: Duration = Duration::from_secs(4);
const MAX_IDLE: usize = 32;

/// A pod's way out.
pub(crate) struct Outbound {
    pod: Arc<Pod>,
    log: Log,
    /// Hops of the request being served.
    pub(crate) hops: u32,
}

type Io = Box<dyn Future<Output = Result<()>> + Send>;
type Sent = Result<(Response<WasiBody>, Io)>;

impl Outbound {
    pub(crate) fn new(pod: Arc<Pod>, log: Log) -> Self {
        Self { pod, log, hops: 0 }
    }

    /// Remembers how far an incoming request has come.
    pub(crate) fn serve<B>(&mut self, request: &Request<B>) {
        let hops =
            request.headers().get(HOPS).and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0);
        self.hops = self.hops.max(hops);
    }
}

impl WasiHttpHooks for Outbound {
    fn send_request(
        &mut self,
        mut request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _finished: Io,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let hops = self.hops + 1;
        if hops > MAX_HOPS {
            self.log.line(
                Stream::Stderr,
                &format!("request refused: it passed {MAX_HOPS} components; is it a loop?\n"),
            );
            return Box::new(async { Err(Error::LoopDetected) });
        }
        request.headers_mut().insert(HOPS, HeaderValue::from(hops));
        Box::new(send(Arc::clone(&self.pod), self.log.clone(), request, options))
    }
}

async fn send(
    pod: Arc<Pod>,
    log: Log,
    mut request: Request<WasiBody>,
    options: Option<RequestOptions>,
) -> Sent {
    let tls = request.uri().scheme() == Some(&Scheme::HTTPS);
    let authority = request.uri().authority().ok_or(Error::HttpRequestUriInvalid)?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    // Every request asks, also one that finds a connection: what may be reached can change.
    let targets = targets(&pod, &log, &host, port).await?;
    let peer = tls.then(|| Peer { is_api: pod.network.is_api(&pod.sandbox, &host, port), name: host });
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    let limit = options.and_then(|options| options.connect_timeout).unwrap_or(CONNECT_TIMEOUT);
    let (mut sender, key) = match pod.connections.take(&targets, peer.as_ref()) {
        Some(kept) => kept,
        None => {
            timeout(limit, connect(&pod, targets, peer)).await.map_err(|_| Error::ConnectionTimeout)??
        }
    };
    let limit = options.and_then(|options| options.first_byte_timeout).unwrap_or(FIRST_BYTE_TIMEOUT);
    let response = timeout(limit, sender.send_request(request)).await;
    let response = response.map_err(|_| Error::ConnectionReadTimeout)??;
    let response = response.map(|body| Kept { body, back: Some((pod, key, sender)) }.boxed_unsync());
    // The connection has a task of its own: nothing is left to do for the response.
    Ok((response, Box::new(std::future::ready(Ok(())))))
}

/// Where a request to `host` may go.
async fn targets(pod: &Pod, log: &Log, host: &str, port: u16) -> Result<Vec<SocketAddr>> {
    let targets = pod.network.dial(&pod.sandbox, host, port).await.map_err(|error| {
        log.line(Stream::Stderr, &format!("request to {host}:{port} refused: {error}\n"));
        Error::HttpRequestDenied
    })?;
    if targets.is_empty() {
        return Err(Error::DnsError { rcode: Some("NXDOMAIN".into()), info_code: None });
    }
    Ok(targets)
}

/// Connects to the first address that answers, with TLS when there is somebody to check.
async fn connect(pod: &Pod, targets: Vec<SocketAddr>, tls: Option<Peer>) -> Result<(Sender, Key)> {
    let mut last = Error::ConnectionRefused;
    for target in targets {
        match connect_from(pod, target).await {
            Ok(stream) => {
                // Without it small requests only wait; failing to set it is no reason to fail.
                _ = stream.set_nodelay(true);
                let sender = match &tls {
                    Some(peer) => {
                        let server = ServerName::try_from(peer.name.clone());
                        let server = server.map_err(|_| Error::HttpRequestUriInvalid)?;
                        let connector = TlsConnector::from(pod.trust.of(peer.is_api));
                        handshake(pod, connector.connect(server, stream).await.map_err(Error::Tls)?).await?
                    }
                    None => handshake(pod, stream).await?,
                };
                return Ok((sender, (target, tls)));
            }
            Err(error) => last = Error::Connect(error),
        }
    }
    Err(last)
}

/// Starts HTTP/1 on a stream. The connection lives as long as its sender, or a body that comes over it.
async fn handshake<S>(pod: &Pod, stream: S) -> Result<Sender>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    pod.tasks.spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "outbound connection ended");
        }
    });
    Ok(sender)
}

async fn connect_from(pod: &Pod, target: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = pod.make(|| if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() })??;
    if pod.binds(target.ip()) {
        socket.bind(SocketAddr::new(pod.sandbox.ip, 0))?;
    }
    socket.connect(target).await
}

/// Whether connections to `target` come from the pod's own address: those that stay in the pod network, where
/// it is known. Others leave with the node's.
pub(crate) fn from_pod(ip: IpAddr, target: IpAddr) -> bool {
    match (ip, target) {
        (IpAddr::V4(ip), IpAddr::V4(target)) if ip.is_loopback() => target.is_loopback(),
        (IpAddr::V4(ip), IpAddr::V4(target)) => ip.octets()[..2] == target.octets()[..2],
        (IpAddr::V6(ip), IpAddr::V6(target)) => ip.segments()[..4] == target.segments()[..4],
        _ => false,
    }
}

type Sender = http1::SendRequest<WasiBody>;

/// Who is to be at the other end of a TLS connection.
#[derive(Clone, PartialEq, Eq)]
struct Peer {
    /// The name its certificate is for.
    name: String,
    /// Whether it is the cluster's API, which has its certificate from the cluster's authority.
    is_api: bool,
}

/// Address and, with TLS, who was checked to be there.
type Key = (SocketAddr, Option<Peer>);

/// Connections that wait for another request. Without them each request would use up a port for a minute.
#[derive(Default)]
pub(crate) struct Connections(Mutex<Vec<Idle>>);

struct Idle {
    key: Key,
    sender: Sender,
    since: Instant,
}

impl Connections {
    /// An open connection to one of the targets.
    fn take(&self, targets: &[SocketAddr], tls: Option<&Peer>) -> Option<(Sender, Key)> {
        let mut idle = self.lock();
        idle.retain(|idle| idle.since.elapsed() < KEEP_ALIVE && idle.sender.is_ready());
        let fits = |idle: &Idle| targets.contains(&idle.key.0) && idle.key.1.as_ref() == tls;
        // The last one used is the least likely to be closed by the other side.
        let position = idle.iter().rposition(fits)?;
        let Idle { key, sender, .. } = idle.remove(position);
        Some((sender, key))
    }

    fn keep(&self, key: Key, sender: Sender) {
        let mut idle = self.lock();
        if idle.len() < MAX_IDLE {
            idle.push(Idle { key, sender, since: Instant::now() });
        }
    }

    /// Closes what waited too long.
    pub(crate) fn cool(&self) {
        self.lock().retain(|idle| idle.since.elapsed() < KEEP_ALIVE);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A response's body that gives its connection back when it was read to the end.
struct Kept {
    body: Incoming,
    back: Option<(Arc<Pod>, Key, Sender)>,
}

impl Body for Kept {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        match &frame {
            Some(Err(_)) => this.back = None,
            Some(Ok(_)) if !this.body.is_end_stream() => {}
            _ => this.give_back(),
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Kept {
    fn give_back(&mut self) {
        let Some((pod, key, mut sender)) = self.back.take() else { return };
        let keeper = Arc::clone(&pod);
        // The connection is ready a moment after its body ended.
        pod.tasks.spawn(async move {
            if matches!(timeout(KEEP_ALIVE, sender.ready()).await, Ok(Ok(()))) {
                keeper.connections.keep(key, sender);
            }
        });
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // A body nobody looked at, because it is empty, has ended too.
        if self.body.is_end_stream() {
            self.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pod_network_sees_the_pod_address() {
        for (ip, target, expected) in [
            ("10.42.1.5", "10.42.7.9", true),
            ("10.42.1.5", "10.43.0.1", false),
            ("10.42.1.5", "93.184.216.34", false),
            ("127.42.0.5", "127.42.0.9", true),
            ("127.42.0.5", "127.0.0.1", true),
            ("127.42.0.5", "93.184.216.34", false),
            ("127.42.0.5", "::1", false),
        ] {
            assert_eq!(from_pod(ip.parse().unwrap(), target.parse().unwrap()), expected, "{ip} to {target}");
        }
    }
}
