//! Requests that guests send with `wasi:http`. Each is dialled through the cluster's [`Network`], which knows
//! the pod's permissions and checks the resolved address.
//!
//! [`Network`]: ketch_runtime::Network

use std::{net::IpAddr, net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Request, Response, Uri, uri::Scheme};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use ketch_runtime::log::{Log, Stream};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use wasmtime_wasi_http::{Error, RequestOptions, Result, WasiBody, WasiHttpHooks};

use crate::context::Pod;

/// How many components a request has passed: what ends two that call each other for ever.
pub(crate) const HOPS: HeaderName = HeaderName::from_static("x-ketch-hops");

/// Most components in one chain of requests.
const MAX_HOPS: u32 = 16;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(600);

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
    let limit = options.and_then(|options| options.connect_timeout).unwrap_or(CONNECT_TIMEOUT);
    let stream =
        timeout(limit, connect(&pod, &log, &host, port)).await.map_err(|_| Error::ConnectionTimeout)??;
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    let first_byte = options.and_then(|options| options.first_byte_timeout).unwrap_or(FIRST_BYTE_TIMEOUT);
    if tls {
        let name = rustls::pki_types::ServerName::try_from(host).map_err(|_| Error::HttpRequestUriInvalid)?;
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&pod.tls));
        let handshake = timeout(limit, connector.connect(name, stream));
        let stream = handshake.await.map_err(|_| Error::ConnectionTimeout)?.map_err(Error::Tls)?;
        exchange(stream, request, first_byte).await
    } else {
        exchange(stream, request, first_byte).await
    }
}

/// Connects to the first address that answers.
async fn connect(pod: &Pod, log: &Log, host: &str, port: u16) -> Result<TcpStream> {
    let addresses = pod.network.dial(&pod.sandbox, host, port).await.map_err(|error| {
        log.line(Stream::Stderr, &format!("request to {host}:{port} refused: {error}\n"));
        Error::HttpRequestDenied
    })?;
    let mut last = Error::DnsError { rcode: Some("NXDOMAIN".into()), info_code: None };
    for address in addresses {
        match connect_from(pod.sandbox.ip, address).await {
            Ok(stream) => {
                // Without it small requests only wait; failing to set it is no reason to fail.
                _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => last = Error::Connect(error),
        }
    }
    Err(last)
}

async fn connect_from(ip: IpAddr, target: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if from_pod(ip, target.ip()) {
        socket.bind(SocketAddr::new(ip, 0))?;
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

/// Sends over one HTTP/1 connection. The future that comes with the response drives the connection on.
async fn exchange<S>(stream: S, request: Request<WasiBody>, first_byte: Duration) -> Sent
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut connection = Box::pin(connection);
    let response = {
        let response = timeout(first_byte, sender.send_request(request));
        tokio::pin!(response);
        tokio::select! {
            biased;
            response = &mut response => response,
            // The connection may end, its work done, before the response was taken.
            result = &mut connection => {
                result?;
                let response = response.await.map_err(|_| Error::ConnectionReadTimeout)??;
                return Ok((response.map(|body| body.map_err(Error::from).boxed_unsync()), Box::new(async { Ok(()) })));
            }
        }
    };
    let response = response.map_err(|_| Error::ConnectionReadTimeout)??;
    let io = async move { connection.await.map_err(Error::from) };
    Ok((response.map(|body| body.map_err(Error::from).boxed_unsync()), Box::new(io)))
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
