//! HTTP to other registries: one connection per request, with the system's certificate authorities and those that the
//! configuration names for a registry.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::SystemTime,
};

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, header};
use http_body::{Frame, SizeHint};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{CertificateError, ClientConfig, pki_types::ServerName};
use rustls_platform_verifier::{BuilderVerifierExt, Verifier};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
};

use super::hosts::authorities;

/// HTTP to other registries.
#[derive(Default)]
pub(super) struct Transport {
    /// By the files with further authorities.
    tls: Mutex<BTreeMap<BTreeSet<PathBuf>, Tls>>,
}

/// What connections are made with, and when the files it was made of were written.
type Tls = (Vec<Option<SystemTime>>, Arc<ClientConfig>);

impl Transport {
    /// Sends a request to the host of `url`, which may be known by an authority of the files `trusted`.
    pub(super) async fn send(
        &self,
        url: &url::Url,
        trusted: BTreeSet<PathBuf>,
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
        let config = self.configuration(trusted)?;
        let name = ServerName::try_from(host.to_owned()).map_err(|error| format!("{host}: {error}"))?;
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await;
        exchange(stream.map_err(|error| insecure(&authority, &error))?, &authority, request).await
    }

    /// A file that changed is read again.
    fn configuration(&self, trusted: BTreeSet<PathBuf>) -> Result<Arc<ClientConfig>, String> {
        let written = |path: &PathBuf| std::fs::metadata(path).and_then(|data| data.modified()).ok();
        let written: Vec<Option<SystemTime>> = trusted.iter().map(written).collect();
        let mut all = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((then, config)) = all.get(&trusted)
            && *then == written
        {
            return Ok(Arc::clone(config));
        }
        let config = configure(&trusted)?;
        all.insert(trusted, (written, Arc::clone(&config)));
        Ok(config)
    }
}

fn insecure(authority: &str, error: &std::io::Error) -> String {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    let fix = match cause {
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => format!(
            "; if it has an authority of its own, name it in config.toml: [registries.\"{authority}\"] ca = \"FILE\""
        ),
        _ => String::new(),
    };
    format!("no secure connection to {authority}: {error}{fix}")
}

fn configure(trusted: &BTreeSet<PathBuf>) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let failed = |error: rustls::Error| {
        format!("the system's certificate authorities cannot be used: {error}; install ca-certificates")
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed)?;
    if trusted.is_empty() {
        return Ok(Arc::new(builder.with_platform_verifier().map_err(failed)?.with_no_client_auth()));
    }
    let mut further = Vec::new();
    for path in trusted {
        further.extend(authorities(path)?);
    }
    let verifier = Verifier::new_with_extra_roots(further, Arc::clone(builder.crypto_provider()));
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier.map_err(failed)?));
    Ok(Arc::new(builder.with_no_client_auth()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_authorities_that_changes_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let own = rcgen::generate_simple_self_signed(["r.lan".to_owned()]).unwrap();
        std::fs::write(&path, own.cert.pem()).unwrap();
        let (transport, files) = (Transport::default(), BTreeSet::from([path.clone()]));
        let read = || transport.configuration(files.clone());
        let first = read().unwrap();
        assert!(Arc::ptr_eq(&first, &read().unwrap()));
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(!Arc::ptr_eq(&first, &read().unwrap()));
        std::fs::remove_file(&path).unwrap();
        assert!(read().unwrap_err().contains("ca.pem"));
    }
}
