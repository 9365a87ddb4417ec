//! HTTP to other registries: one connection per request, with the system's certificate authorities.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, header};
use http_body::{Frame, SizeHint};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
};

/// HTTP to other registries.
#[derive(Default)]
pub(super) struct Transport {
    tls: OnceLock<Result<Arc<ClientConfig>, String>>,
}

impl Transport {
    /// Sends a request to the host of `url`.
    pub(super) async fn send(
        &self,
        url: &url::Url,
        request: Request<Body>,
    ) -> Result<Response<Body>, String> {
        let host = url.host_str().ok_or_else(|| format!("{url} has no host"))?;
        let port = url.port_or_known_default().unwrap_or(443);
        let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await;
        let stream = stream.map_err(|error| format!("cannot connect to {host}:{port}: {error}"))?;
        let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        if url.scheme() == "http" {
            return exchange(stream, &authority, request).await;
        }
        let config = self.tls.get_or_init(configure).clone()?;
        let name = ServerName::try_from(host.to_owned()).map_err(|error| format!("{host}: {error}"))?;
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await;
        exchange(
            stream.map_err(|error| format!("no secure connection to {host}: {error}"))?,
            &authority,
            request,
        )
        .await
    }
}

fn configure() -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let failed = |error: rustls::Error| {
        format!("the system's certificate authorities cannot be used: {error}; install ca-certificates")
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed)?;
    Ok(Arc::new(builder.with_platform_verifier().map_err(failed)?.with_no_client_auth()))
}

async fn exchange<S>(stream: S, authority: &str, mut request: Request<Body>) -> Result<Response<Body>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let path = request.uri().path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    *request.uri_mut() = path.parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
    let host = authority.parse().map_err(|error: http::header::InvalidHeaderValue| error.to_string())?;
    request.headers_mut().insert(header::HOST, host);
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        let _ = connection.await;
    });
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    Ok(response.map(|body| Body::new(Driven { body, _driver: driver })))
}

/// A body and the task that drives its connection: they end together.
struct Driven {
    body: Incoming,
    _driver: JoinSet<()>,
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
