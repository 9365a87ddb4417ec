//! The listening end against connections as a node makes them.

use std::net::SocketAddr;

use axum::{Router, extract::Request as Asked, routing::any};
use http_body_util::BodyExt;
use ketch_api::join::CONTROL_PROTOCOL;
use ketch_apiserver::NodeConnector;
use quinn::{ClientConfig, crypto::rustls::QuicClientConfig};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    pki: Pki,
    nodes: Arc<Nodes>,
    address: SocketAddr,
    tunnel: Tunnel,
    _dir: tempfile::TempDir,
}

fn server() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path(), &[]).unwrap();
    let socket = crate::listeners::bind_udp(([127, 0, 0, 1], 0).into(), "quic-addr").unwrap();
    let address = socket.local_addr().unwrap();
    let nodes = Arc::new(Nodes::default());
    let tunnel = Tunnel::listen(socket, &pki, nodes.clone()).unwrap();
    Server { pki, nodes, address, tunnel, _dir: dir }
}

/// Certificates of node `n1` (the node's and the gateway's) and their key.
fn identity(pki: &Pki) -> (String, String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let signed = pki.sign_node(&request, "n1", &[], Duration::from_secs(3600)).unwrap();
    (signed.node, signed.gateway, key.serialize_pem())
}

impl Server {
    async fn connect(&self, shown: Option<(&str, &str)>) -> Result<(Endpoint, Connection), String> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pki.ca_pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut tls = match shown {
            None => tls.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                tls.with_client_auth_cert(chain, key).unwrap()
            }
        };
        tls.alpn_protocols = vec![CONTROL_PROTOCOL.to_vec()];
        let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        let connecting = endpoint.connect_with(config, self.address, "localhost").unwrap();
        let connection = connecting.await.map_err(|error| error.to_string())?;
        Ok((endpoint, connection))
    }

    /// A node that answers with `router`.
    async fn node(&self, router: Router) -> (Endpoint, Connection, JoinSet<()>) {
        let (certificate, _, key) = identity(&self.pki);
        let (endpoint, connection) = self.connect(Some((&certificate, &key))).await.unwrap();
        let mut tasks = JoinSet::new();
        let accepting = connection.clone();
        tasks.spawn(async move {
            let mut requests = JoinSet::new();
            while let Ok((send, receive)) = accepting.accept_bi().await {
                let router = router.clone();
                requests.spawn(async move {
                    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                        router.clone().oneshot(request.map(Body::new))
                    });
                    let stream = TokioIo::new(tokio::io::join(receive, send));
                    let serving =
                        hyper::server::conn::http1::Builder::new().serve_connection(stream, service);
                    let _ = serving.with_upgrades().await;
                });
            }
        });
        (endpoint, connection, tasks)
    }

    async fn until(&self, connected: bool) {
        let wait = async {
            while (self.nodes.connected() == 1) != connected {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the node connects or disconnects");
    }

    async fn get(&self, path: &str) -> Result<Response<Body>, Status> {
        let request = Request::get(path).body(Body::empty()).unwrap();
        tokio::time::timeout(PATIENCE, self.nodes.request("n1", request)).await.expect("an answer")
    }
}

async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_to_the_node_and_an_unknown_one_is_said_to_be_away() {
    let server = server();
    assert_eq!(server.get("/healthz").await.unwrap_err().code, 503);
    let router = Router::new().fallback(any(|request: Asked| async move { request.uri().to_string() }));
    let (_endpoint, connection, _tasks) = server.node(router).await;
    server.until(true).await;
    let paths: Vec<String> = (0..50).map(|index| format!("/logs/{index}?follow=true")).collect();
    let answers = futures::future::join_all(paths.iter().map(|path| server.get(path))).await;
    for (path, answer) in paths.iter().zip(answers) {
        assert_eq!(text(answer.unwrap()).await, *path);
    }
    connection.close(VarInt::from_u32(0), b"");
    server.until(false).await;
    assert_eq!(server.get("/healthz").await.unwrap_err().code, 503);
    server.tunnel.shutdown().await;
}

/// Tells when it is dropped.
struct End(tokio::sync::mpsc::UnboundedSender<()>);

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_reads_ends_at_the_node() {
    let server = server();
    let (ended, mut told) = tokio::sync::mpsc::unbounded_channel();
    // Sends a line, then nothing for ever.
    let router = Router::new().fallback(any(move || {
        let end = End(ended.clone());
        async move {
            let lines = futures::stream::unfold((end, 0), |(end, line)| async move {
                if line > 0 {
                    std::future::pending::<()>().await;
                }
                Some((Ok::<_, std::io::Error>("line\n"), (end, line + 1)))
            });
            Body::from_stream(lines)
        }
    }));
    let (_endpoint, _connection, _tasks) = server.node(router).await;
    server.until(true).await;
    let mut body = server.get("/follow").await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "line\n");
    drop(body);
    tokio::time::timeout(PATIENCE, told.recv()).await.expect("the request ends at the node");
    server.tunnel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_can_become_a_stream_of_bytes_both_ways() {
    let server = server();
    let echoes = TaskTracker::new();
    let tracker = echoes.clone();
    let router = Router::new().fallback(any(move |mut request: Asked| async move {
        let upgrade = hyper::upgrade::on(&mut request);
        tracker.spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            let mut word = [0; 5];
            stream.read_exact(&mut word).await.unwrap();
            word.reverse();
            stream.write_all(&word).await.unwrap();
            stream.shutdown().await.unwrap();
        });
        let answer =
            Response::builder().status(101).header("connection", "upgrade").header("upgrade", "echo");
        answer.body(Body::empty()).unwrap()
    }));
    let (_endpoint, _connection, _tasks) = server.node(router).await;
    server.until(true).await;
    let request = Request::post("/exec").header("connection", "upgrade").header("upgrade", "echo");
    let mut response = server.nodes.request("n1", request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 101);
    let upgrade = hyper::upgrade::on(&mut response);
    drop(response);
    let mut stream = TokioIo::new(tokio::time::timeout(PATIENCE, upgrade).await.unwrap().unwrap());
    stream.write_all(b"ketch").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "hctek");
    echoes.close();
    echoes.wait().await;
    server.tunnel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_nodes_get_in() {
    let (server, other) = (server(), server());
    let (_, gateway, key) = identity(&server.pki);
    let (foreign, _, foreign_key) = identity(&other.pki);
    for (what, shown) in [
        ("nothing", None),
        ("a gateway's certificate", Some((gateway.as_str(), key.as_str()))),
        ("another cluster's node", Some((foreign.as_str(), foreign_key.as_str()))),
    ] {
        // With TLS 1.3 the client's end of a handshake is over before the server has judged.
        if let Ok((_endpoint, connection)) = server.connect(shown).await {
            tokio::time::timeout(PATIENCE, connection.closed()).await.expect(what);
        }
        assert_eq!(server.nodes.connected(), 0, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_again_replaces_itself() {
    let server = server();
    let answering = |word: &'static str| Router::new().fallback(any(move || async move { word }));
    let (_first_endpoint, first, _tasks) = server.node(answering("first")).await;
    server.until(true).await;
    let (_second_endpoint, second, _other_tasks) = server.node(answering("second")).await;
    let closed = tokio::time::timeout(PATIENCE, first.closed()).await.expect("the first is closed");
    assert!(closed.to_string().contains("connected again"), "{closed}");
    assert_eq!(text(server.get("/").await.unwrap()).await, "second");
    assert_eq!(server.nodes.connected(), 1, "the end of the first does not take the second away");
    assert!(second.close_reason().is_none());
}
