//! Real connections: identities, slow clients, limits, shutdown.

use std::{future::pending, sync::Arc, time::Duration};

use axum::{Extension, extract::ConnectInfo, routing::get};
use http_body_util::{BodyExt, Empty};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::*;
use crate::pki::{ClientCertificate, Pki};

/// Generous: a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(50);

struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

async fn start(tls: Option<Arc<ServerConfig>>, router: Router, limits: Limits) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(listener, tls, router, limits, stop.clone()));
    Running { address, stop, tasks }
}

impl Running {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn stopped(mut self) {
        self.stop.cancel();
        timeout(PATIENCE, self.tasks.join_next()).await.expect("the server stops").unwrap().unwrap();
    }
}

fn who() -> Router {
    Router::new().route(
        "/",
        get(|user: Option<Extension<User>>, peer: ConnectInfo<SocketAddr>| async move {
            let user = user
                .map_or("nobody".to_owned(), |Extension(user)| format!("{} {:?}", user.name, user.groups));
            format!("{user} from {}", peer.0.ip())
        }),
    )
}

async fn closed(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut rest = Vec::new();
    // A reset is a way to close as well.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("the server closes the connection");
    rest
}

async fn get_root(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    String::from_utf8(closed(stream).await).unwrap()
}

struct Tls {
    pki: Pki,
    _dir: tempfile::TempDir,
}

impl Tls {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { pki: Pki::open(dir.path(), &[]).unwrap(), _dir: dir }
    }

    fn server(&self) -> Option<Arc<ServerConfig>> {
        Some(Arc::new(self.pki.server_config().unwrap()))
    }

    async fn connect(
        &self,
        to: &Running,
        client: Option<&ClientCertificate>,
        alpn: &str,
    ) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pki.ca_pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match client {
            None => builder.with_no_client_auth(),
            Some(client) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(client.certificate.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(client.key.as_bytes()).unwrap(),
                )
                .unwrap(),
        };
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, to.connect().await).await.unwrap()
    }
}

#[tokio::test]
async fn a_client_certificate_is_the_user() {
    let tls = Tls::new();
    let server = start(tls.server(), who(), Limits::default()).await;
    let jane = tls.pki.client_cert("jane", &["dev"], PATIENCE).unwrap();
    let answer = get_root(tls.connect(&server, Some(&jane), "http/1.1").await).await;
    assert!(answer.ends_with("jane [\"dev\", \"system:authenticated\"] from 127.0.0.1"), "{answer}");
    let answer = get_root(tls.connect(&server, None, "http/1.1").await).await;
    assert!(answer.ends_with("nobody from 127.0.0.1"), "{answer}");
    server.stopped().await;
}

#[tokio::test]
async fn another_authoritys_certificate_is_refused() {
    let (tls, other) = (Tls::new(), Tls::new());
    let server = start(tls.server(), who(), Limits::default()).await;
    let forged = other.pki.client_cert("admin", &["system:masters"], PATIENCE).unwrap();
    let mut stream = tls.connect(&server, Some(&forged), "http/1.1").await;
    // TLS 1.3 lets the client finish first: the refusal arrives with the first read.
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(closed(stream).await, b"");
    server.stopped().await;
}

#[tokio::test]
async fn http2_is_served() {
    let tls = Tls::new();
    let server = start(tls.server(), who(), Limits::default()).await;
    let stream = TokioIo::new(tls.connect(&server, None, "h2").await);
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async { connection.await.unwrap() });
    let request = Request::get("https://localhost/").body(Empty::<bytes::Bytes>::new()).unwrap();
    let response = client.send_request(request).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "nobody from 127.0.0.1");
    drop(client);
    server.stopped().await;
}

#[tokio::test]
async fn slow_and_silent_clients_are_closed() {
    let tls = Tls::new();
    let limits = Limits { handshake: SHORT, headers: SHORT, idle: SHORT, ..Limits::default() };
    let plain = start(None, who(), limits.clone()).await;
    let secure = start(tls.server(), who(), limits).await;
    for first in ["", "GET / HT", "GET / HTTP/1.1\r\nhost: x\r\n"] {
        let mut stream = plain.connect().await;
        stream.write_all(first.as_bytes()).await.unwrap();
        assert!(!String::from_utf8_lossy(&closed(stream).await).contains("200 OK"), "{first:?}");
    }
    // Before the handshake, and after it without a preface or a request.
    closed(secure.connect().await).await;
    for protocol in ["h2", "http/1.1"] {
        closed(tls.connect(&secure, None, protocol).await).await;
    }
    plain.stopped().await;
    secure.stopped().await;
}

#[tokio::test]
async fn an_answer_that_takes_longer_than_the_idle_limit_is_not_cut() {
    let (begin, mut begun) = mpsc::channel::<()>(1);
    let (release, _) = tokio::sync::broadcast::channel::<()>(1);
    let router = {
        let release = release.clone();
        Router::new().route(
            "/",
            get(move || {
                let (begin, mut released) = (begin.clone(), release.subscribe());
                async move {
                    begin.send(()).await.unwrap();
                    released.recv().await.unwrap();
                    "done"
                }
            }),
        )
    };
    let limits = Limits { idle: SHORT, ..Limits::default() };
    let server = start(None, router, limits).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    begun.recv().await.unwrap();
    // Another connection, opened later, being closed for idling proves that the limit has passed.
    closed(server.connect().await).await;
    release.send(()).unwrap();
    let answer = String::from_utf8(closed(stream).await).unwrap();
    assert!(answer.ends_with("done"), "{answer}");
    server.stopped().await;
}

#[tokio::test]
async fn shutdown_lets_requests_end_and_cuts_off_those_that_do_not() {
    let (begin, mut begun) = mpsc::channel::<()>(1);
    let router = Router::new().route(
        "/",
        get(move || {
            let begin = begin.clone();
            async move {
                begin.send(()).await.unwrap();
                pending::<()>().await;
            }
        }),
    );
    let server = start(None, router, Limits { drain: SHORT, ..Limits::default() }).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    begun.recv().await.unwrap();
    let address = server.address;
    server.stopped().await;
    assert_eq!(closed(stream).await, b"");
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn connections_over_the_limit_wait() {
    let server = start(None, who(), Limits { connections: 1, headers: PATIENCE, ..Limits::default() }).await;
    let mut first = server.connect().await;
    // One answered request proves that the first connection holds the only permit.
    first.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut byte = [0];
    first.read_exact(&mut byte).await.unwrap();
    let mut second = server.connect().await;
    second.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(timeout(SHORT, second.read_exact(&mut byte)).await.is_err(), "the second must wait");
    drop(first);
    assert!(String::from_utf8(closed(second).await).unwrap().ends_with("127.0.0.1"));
    server.stopped().await;
}

#[tokio::test]
async fn huge_headers_are_refused() {
    let server = start(None, who(), Limits::default()).await;
    let mut stream = server.connect().await;
    let header = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "a".repeat(MAX_HEADERS));
    let _ = stream.write_all(header.as_bytes()).await;
    let answer = String::from_utf8(closed(stream).await).unwrap();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    server.stopped().await;
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let router = Router::new().route("/", axum::routing::post(|| async { http::StatusCode::UNAUTHORIZED }));
    let running = start(None, router, Limits::default()).await;
    let mut stream = running.connect().await;
    let body = vec![b'x'; 8 << 20];
    let head = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    timeout(PATIENCE, stream.write_all(&body)).await.unwrap().expect("the whole body is taken");
    let mut answer = [0; 64];
    let count = timeout(PATIENCE, stream.read(&mut answer)).await.unwrap().unwrap();
    assert!(answer[..count].starts_with(b"HTTP/1.1 401"), "{:?}", String::from_utf8_lossy(&answer[..count]));
    drop(stream);
    running.stopped().await;
}
