//! TLS to the server for a process that has a certificate: a node, and a node that wants to become one.
//!
//! [`Keyring`] holds the certificate in use and can be given the next one while connections go on;
//! [`Authority`] says whom to believe; [`connect`] makes a [`kube::Client`] of both. [`explain`] turns a
//! failed handshake into a sentence for the person at the terminal.

mod authority;
mod failure;
mod keyring;

use std::{sync::Arc, time::Duration};

use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use kube::client::{Body, middleware::BaseUriLayer};
use rustls::{ClientConfig, client::ResolvesClientCert};
use tower::Layer;

pub use authority::Authority;
pub use failure::{Failure, explain};
pub use keyring::{Keyring, KeyringError};

/// For a TCP connection to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// A server that is gone is noticed after these two: watches would wait for ever, and a heartbeat must not.
const PING_INTERVAL: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(4);
/// The server's own figures.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 25 * 1024 * 1024;

/// TLS to the server. Without a `keyring` no certificate is shown.
///
/// # Errors
/// When the authority's certificate cannot be used.
pub fn tls(authority: &Authority, keyring: Option<Arc<Keyring>>) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(authority.verifier(provider)?);
    Ok(match keyring {
        Some(keyring) => builder.with_client_cert_resolver(keyring as Arc<dyn ResolvesClientCert>),
        None => builder.with_no_client_auth(),
    })
}

/// A client of the API at `server` (`https://HOST:PORT`) over one HTTP/2 connection that is made anew when it
/// breaks.
pub fn connect(server: &http::Uri, tls: ClientConfig) -> kube::Client {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    let https = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_only()
        .enable_http1()
        .enable_http2()
        .wrap_connector(tcp);
    let http: Client<_, Body> = Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .http2_keep_alive_while_idle(true)
        .build(https);
    kube::Client::new(BaseUriLayer::new(server.clone()).layer(http), "default")
}
