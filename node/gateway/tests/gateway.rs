//! A gateway on real sockets, with made-up services and routes.

#![cfg(test)]

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use ketch_gateway::{
    Bind, Gateway, GatewayOptions, LocalServices, RouteTable, Routes, Snapshot,
    routes::{self},
};
use ketch_runtime::{Body, HttpError, HttpService};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
};

mod watched;

// === services ===

/// How a made-up service answers.
#[derive(Clone)]
enum Answer {
    /// With its name, the request's headers and body.
    Echo,
    /// With an error.
    Error(HttpError),
    /// When told to.
    Wait(Arc<Notify>, Arc<Notify>),
}

struct Service {
    name: String,
    answer: Answer,
    calls: AtomicUsize,
    refused: AtomicUsize,
    running: AtomicBool,
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: Request<Body>) -> Result<Response<Body>, HttpError> {
        if !self.running.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(HttpError::NotRunning);
        }
        self.calls.fetch_add(1, Ordering::SeqCst);
        match &self.answer {
            Answer::Error(error) => return Err(error.clone()),
            Answer::Wait(entered, go) => {
                entered.notify_one();
                go.notified().await;
            }
            Answer::Echo => {}
        }
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(|e| HttpError::Failed(e.to_string()))?.to_bytes();
        let headers: HashMap<_, _> =
            parts.headers.iter().map(|(k, v)| (k.to_string(), v.to_str().unwrap().to_owned())).collect();
        let echo = json!({"service": self.name, "uri": parts.uri.to_string(), "method": parts.method.as_str(),
                          "headers": headers, "body": String::from_utf8_lossy(&body)});
        let mut response = Response::new(full(echo.to_string()));
        response.headers_mut().insert("connection", "x-private".parse().unwrap());
        response.headers_mut().insert("x-private", "1".parse().unwrap());
        Ok(response)
    }
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

#[derive(Clone, Default)]
struct Local(Arc<Mutex<HashMap<SocketAddr, Arc<Service>>>>);

impl LocalServices for Local {
    fn by_address(&self, address: SocketAddr) -> Option<Arc<dyn HttpService>> {
        self.0.lock().unwrap().get(&address).map(|s| Arc::clone(s) as Arc<dyn HttpService>)
    }
}

impl Local {
    fn add(&self, ip: &str, answer: Answer) -> Arc<Service> {
        let service = Arc::new(Service {
            name: ip.to_owned(),
            answer,
            calls: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            running: AtomicBool::new(true),
        });
        self.0.lock().unwrap().insert(format!("{ip}:8080").parse().unwrap(), Arc::clone(&service));
        service
    }
}

// === objects ===

fn function(traffic: &[(&str, i32)]) -> Value {
    let traffic: Vec<_> = traffic.iter().map(|(r, p)| json!({"revisionName": r, "percent": p})).collect();
    json!({"apiVersion": "ketch.dev/v1", "kind": "Function", "metadata": {"name": "hello", "namespace": "default"},
           "spec": {"image": "i"}, "status": {"traffic": traffic}})
}

fn pod(revision: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod-{}", ip.replace('.', "-")), "namespace": "default",
                     "labels": {"ketch.dev/function": "hello", "ketch.dev/revision": revision},
                     "annotations": {"ketch.dev/timeout-seconds": "5"}},
        "spec": {"containers": [{"name": "function"}]},
        "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).unwrap())
}

fn snapshot(traffic: &[(&str, i32)], pods: &[(&str, &str)]) -> Snapshot {
    Snapshot {
        functions: vec![typed(function(traffic))],
        pods: pods.iter().map(|(revision, ip)| typed(pod(revision, ip))).collect(),
        ..Snapshot::default()
    }
}

fn publish(routes: &Routes, snapshot: &Snapshot) {
    let table = routes::build(snapshot, "localhost", &routes.current());
    assert!(table.problems().is_empty(), "{:?}", table.problems());
    routes.publish(table);
}

// === gateway and client ===

fn options(local: &Local) -> GatewayOptions {
    let mut options = GatewayOptions::new(Bind::Address("127.0.0.1:0".parse().unwrap()));
    options.local = Arc::new(local.clone());
    options
}

fn serve(local: &Local) -> Gateway {
    Gateway::serve(Routes::default(), options(local)).unwrap()
}

struct Caller {
    client: Client<HttpConnector, Body>,
    address: SocketAddr,
}

struct Answered {
    status: StatusCode,
    headers: http::HeaderMap,
    text: String,
}

impl Answered {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }
}

impl Caller {
    fn new(gateway: &Gateway) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), address: gateway.http_addr() }
    }

    async fn send(&self, mut request: Request<Body>) -> Answered {
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        *request.uri_mut() = format!("http://{}{path}", self.address).parse().unwrap();
        let response = self.client.request(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Answered { status: parts.status, headers: parts.headers, text }
    }

    async fn get(&self, host: &str, path: &str) -> Answered {
        self.send(Request::get(path).header(header::HOST, host).body(full("")).unwrap()).await
    }
}

const HOST: &str = "hello.default.localhost:8080";

// === tests ===

#[tokio::test]
async fn nothing_is_served_before_the_routes_are_known() {
    let gateway = serve(&Local::default());
    let caller = Caller::new(&gateway);
    let early = caller.get(HOST, "/").await;
    assert_eq!(early.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(early.headers.contains_key(header::RETRY_AFTER));
    publish(gateway.routes(), &Snapshot::default());
    let unknown = caller.get(HOST, "/").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert_eq!(unknown.text, "there is no function hello in namespace default\n");
    assert_eq!(
        caller.get("other.example.com", "/x").await.text,
        "no function or ingress answers for other.example.com/x\n"
    );
}

#[tokio::test]
async fn a_local_function_is_called_in_process() {
    let local = Local::default();
    let service = local.add("10.42.0.1", Answer::Echo);
    let gateway = serve(&local);
    publish(gateway.routes(), &snapshot(&[("r1", 100)], &[("r1", "10.42.0.1")]));
    let request = Request::post("/a/b?c=d")
        .header(header::HOST, HOST)
        .header("x-mine", "1")
        .header("x-forwarded-for", "6.6.6.6")
        .body(full("payload"))
        .unwrap();
    let answered = Caller::new(&gateway).send(request).await;
    let echo = answered.json();
    assert_eq!(echo["method"], "POST");
    assert_eq!(echo["uri"], "/a/b?c=d");
    assert_eq!(echo["body"], "payload");
    assert_eq!(echo["headers"]["host"], HOST);
    assert_eq!(echo["headers"]["x-mine"], "1");
    assert_eq!(echo["headers"]["x-forwarded-for"], "127.0.0.1");
    assert_eq!(echo["headers"]["x-forwarded-proto"], "http");
    assert!(!answered.headers.contains_key("x-private"), "named in Connection, so it ends here");
    assert_eq!(service.calls.load(Ordering::SeqCst), 1);
}

/// The echo of a request over HTTP/2 on `stream`.
async fn over_h2<S>(stream: S) -> Value
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(connection);
    let request = Request::get(format!("http://{HOST}/x")).body(full("")).unwrap();
    let response = sender.send_request(request).await.unwrap();
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

#[tokio::test]
async fn http2_is_served_without_tls() {
    let local = Local::default();
    local.add("10.42.0.1", Answer::Echo);
    let gateway = serve(&local);
    publish(gateway.routes(), &snapshot(&[("r1", 100)], &[("r1", "10.42.0.1")]));
    let echo = over_h2(tokio::net::TcpStream::connect(gateway.http_addr()).await.unwrap()).await;
    assert_eq!(echo["headers"]["host"], HOST, "the authority of HTTP/2 becomes the host");
    assert_eq!(echo["headers"]["x-forwarded-proto"], "http");
}

#[tokio::test]
async fn errors_of_components_become_status_codes() {
    for (error, status, retry) in [
        (HttpError::Failed("trap: unreachable".into()), StatusCode::BAD_GATEWAY, false),
        (HttpError::Timeout(Duration::from_secs(3)), StatusCode::GATEWAY_TIMEOUT, false),
        (HttpError::Overloaded, StatusCode::SERVICE_UNAVAILABLE, true),
    ] {
        let local = Local::default();
        local.add("10.42.0.1", Answer::Error(error.clone()));
        let gateway = serve(&local);
        publish(gateway.routes(), &snapshot(&[("r1", 100)], &[("r1", "10.42.0.1")]));
        let answered = Caller::new(&gateway).get(HOST, "/").await;
        assert_eq!(answered.status, status, "{error}");
        assert_eq!(answered.headers.contains_key(header::RETRY_AFTER), retry);
        assert_eq!(answered.text, format!("function default/hello: {error}\n"));
    }
}

#[tokio::test]
async fn a_request_that_a_pod_does_not_take_goes_to_another() {
    let local = Local::default();
    let (gone, busy) =
        (local.add("10.42.0.1", Answer::Echo), local.add("10.42.0.2", Answer::Error(HttpError::Overloaded)));
    gone.running.store(false, Ordering::SeqCst);
    let good = local.add("10.42.0.3", Answer::Echo);
    let gateway = serve(&local);
    publish(
        gateway.routes(),
        &snapshot(&[("r1", 100)], &[("r1", "10.42.0.1"), ("r1", "10.42.0.2"), ("r1", "10.42.0.3")]),
    );
    let caller = Caller::new(&gateway);
    for _ in 0..6 {
        let request = Request::post("/").header(header::HOST, HOST).body(full("once")).unwrap();
        let answered = caller.send(request).await;
        assert_eq!(answered.json()["body"], "once", "the body arrives whole at the pod that takes it");
    }
    assert_eq!(good.calls.load(Ordering::SeqCst), 6);
    assert!(busy.calls.load(Ordering::SeqCst) > 0, "the others were tried");
}

#[tokio::test]
async fn a_request_waits_for_a_pod() {
    let local = Local::default();
    let gateway = serve(&local);
    publish(gateway.routes(), &snapshot(&[("r1", 100)], &[]));
    let caller = Caller::new(&gateway);
    let pending = caller.get(HOST, "/");
    let arrival = async {
        local.add("10.42.0.9", Answer::Echo);
        publish(gateway.routes(), &snapshot(&[("r1", 100)], &[("r1", "10.42.0.9")]));
    };
    let (answered, ()) = tokio::join!(pending, arrival);
    assert_eq!(answered.status, StatusCode::OK);
}

#[tokio::test]
async fn a_wait_for_a_pod_ends() {
    let mut options = options(&Local::default());
    options.hold = Duration::from_millis(20);
    let gateway = Gateway::serve(Routes::default(), options).unwrap();
    publish(gateway.routes(), &snapshot(&[("r1", 100)], &[]));
    let caller = Caller::new(&gateway);
    let answered = caller.get(HOST, "/").await;
    assert_eq!(answered.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answered.text, "function default/hello has no ready pod\n");
    publish(gateway.routes(), &snapshot(&[], &[]));
    let mut request = Request::get("/").header(header::HOST, HOST).body(full("")).unwrap();
    request.headers_mut().insert(header::ACCEPT, "application/json".parse().unwrap());
    let answered = caller.send(request).await;
    assert_eq!(
        answered.json()["error"],
        "function default/hello has no ready revision: it is being prepared"
    );
}

/// Waits for `done` while all callers run; a caller that ended has failed.
async fn until(callers: &mut tokio::task::JoinSet<usize>, done: impl Fn() -> bool) {
    while !done() {
        if let Some(ended) = callers.try_join_next() {
            panic!("a request failed: {ended:?}");
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn no_request_fails_while_traffic_moves() {
    let local = Local::default();
    let mut serving = local.add("10.42.0.1", Answer::Echo);
    let gateway = serve(&local);
    publish(gateway.routes(), &snapshot(&[("r1", 100)], &[("r1", "10.42.0.1")]));
    let caller = Arc::new(Caller::new(&gateway));
    let done = Arc::new(AtomicBool::new(false));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (caller, done) = (Arc::clone(&caller), Arc::clone(&done));
        callers.spawn(async move {
            let mut served = 0;
            while !done.load(Ordering::SeqCst) {
                let answered = caller.get(HOST, "/").await;
                assert_eq!(answered.status, StatusCode::OK, "{}", answered.text);
                served += 1;
            }
            served
        });
    }
    let mut old = "10.42.0.1".to_owned();
    for n in 2..30_u8 {
        // The old pod stops while the table still sends everything to it: the gateway's watch is behind.
        let (revision, ip) = (format!("r{n}"), format!("10.42.0.{n}"));
        let before = format!("r{}", n - 1);
        let service = local.add(&ip, Answer::Echo);
        publish(gateway.routes(), &snapshot(&[(&before, 100)], &[(&before, &old), (&revision, &ip)]));
        serving.running.store(false, Ordering::SeqCst);
        until(&mut callers, || serving.refused.load(Ordering::SeqCst) >= 4).await;
        publish(gateway.routes(), &snapshot(&[(&revision, 100)], &[(&before, &old), (&revision, &ip)]));
        until(&mut callers, || service.calls.load(Ordering::SeqCst) >= 20).await;
        publish(gateway.routes(), &snapshot(&[(&revision, 100)], &[(&revision, &ip)]));
        (old, serving) = (ip, service);
    }
    done.store(true, Ordering::SeqCst);
    let mut served = 0;
    while let Some(result) = callers.join_next().await {
        served += result.unwrap();
    }
    assert!(served > 500, "{served}");
}

#[tokio::test]
async fn traffic_is_split_by_percent() {
    let local = Local::default();
    let (a, b) = (local.add("10.42.0.1", Answer::Echo), local.add("10.42.0.2", Answer::Echo));
    let gateway = serve(&local);
    publish(gateway.routes(), &snapshot(&[("a", 80), ("b", 20)], &[("a", "10.42.0.1"), ("b", "10.42.0.2")]));
    let caller = Caller::new(&gateway);
    for _ in 0..100 {
        assert_eq!(caller.get(HOST, "/").await.status, StatusCode::OK);
    }
    assert_eq!((a.calls.load(Ordering::SeqCst), b.calls.load(Ordering::SeqCst)), (80, 20));
}

/// Accepts connections and answers each as `serve` does.
async fn upstream<F, Fut>(tasks: &mut tokio::task::JoinSet<()>, serve: F) -> SocketAddr
where
    F: Fn(tokio::net::TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = tokio::net::TcpListener::bind("127.42.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            serve(stream).await;
        }
    });
    address
}

/// An Ingress for `a.example.com` to a Service with these addresses.
fn ingress(addresses: &[SocketAddr]) -> Snapshot {
    let slice = |n: usize, address: &SocketAddr| {
        typed(json!({
            "metadata": {"name": format!("web-{n}"), "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"port": address.port()}], "endpoints": [{"addresses": [address.ip()]}],
        }))
    };
    Snapshot {
        services: vec![typed(
            json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {"ports": [{"port": 80}]}}),
        )],
        slices: addresses.iter().enumerate().map(|(n, a)| slice(n, a)).collect(),
        ingresses: vec![typed(
            json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {"rules": [{"host": "a.example.com", "http": {
            "paths": [{"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"number": 80}}}}]}}]}}),
        )],
        ..Snapshot::default()
    }
}

async fn read_head(stream: &mut tokio::net::TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte).await {
            Ok(1) => head.push(byte[0]),
            _ => break,
        }
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn a_service_is_reached_over_tcp() {
    let mut tasks = tokio::task::JoinSet::new();
    let good = upstream(&mut tasks, |mut stream| async move {
        let head = read_head(&mut stream).await;
        let body = head.lines().next().unwrap_or_default().to_owned()
            + "|"
            + head.lines().find(|l| l.starts_with("host")).unwrap_or_default();
        let answer =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    // Bound, then closed: nobody listens there.
    let refused = std::net::TcpListener::bind("127.42.0.2:0").unwrap().local_addr().unwrap();
    let gateway = serve(&Local::default());
    publish(gateway.routes(), &ingress(&[good, refused]));
    let caller = Caller::new(&gateway);
    for _ in 0..4 {
        let answered = caller.get("a.example.com", "/x?y=1").await;
        assert_eq!(answered.text, "GET /x?y=1 HTTP/1.1|host: a.example.com");
    }
    publish(gateway.routes(), &ingress(&[refused]));
    let answered = caller.get("a.example.com", "/").await;
    assert_eq!(answered.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answered.text.starts_with("service default/web could not be reached: "), "{}", answered.text);
    publish(gateway.routes(), &ingress(&[]));
    assert_eq!(caller.get("a.example.com", "/").await.text, "service default/web has no ready endpoints\n");
}

#[tokio::test]
async fn websockets_pass_through() {
    let mut tasks = tokio::task::JoinSet::new();
    let address = upstream(&mut tasks, |mut stream| async move {
        let head = read_head(&mut stream).await.to_ascii_lowercase();
        assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
        stream
            .write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
            )
            .await
            .unwrap();
        let mut frame = [0; 4];
        stream.read_exact(&mut frame).await.unwrap();
        frame.reverse();
        stream.write_all(&frame).await.unwrap();
    })
    .await;
    let gateway = serve(&Local::default());
    publish(gateway.routes(), &ingress(&[address]));
    let mut stream = tokio::net::TcpStream::connect(gateway.http_addr()).await.unwrap();
    stream
        .write_all(b"GET /ws HTTP/1.1\r\nhost: a.example.com\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\r\n")
        .await
        .unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    stream.write_all(b"ping").await.unwrap();
    let mut frame = [0; 4];
    stream.read_exact(&mut frame).await.unwrap();
    assert_eq!(&frame, b"gnip");
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let gateway = serve(&Local::default());
    publish(gateway.routes(), &Snapshot::default());
    let status = |request: String| {
        let address = gateway.http_addr();
        async move {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            read_head(&mut stream).await.split(' ').nth(1).unwrap_or_default().to_owned()
        }
    };
    assert_eq!(status("GET / HTTP/1.1\r\n\r\n".into()).await, "400");
    assert_eq!(status("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n".into()).await, "400");
    assert_eq!(status("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n".into()).await, "405");
    let long = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(80 * 1024));
    assert_eq!(status(long).await, "431");
}

#[tokio::test]
async fn shutdown_lets_requests_finish() {
    let local = Local::default();
    let (entered, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    local.add("10.42.0.1", Answer::Wait(Arc::clone(&entered), Arc::clone(&go)));
    let gateway = serve(&local);
    publish(gateway.routes(), &snapshot(&[("r1", 100)], &[("r1", "10.42.0.1")]));
    let address = gateway.http_addr();
    let caller = Caller::new(&gateway);
    let mut request = tokio::task::JoinSet::new();
    request.spawn(async move { caller.get(HOST, "/").await.status });
    entered.notified().await;
    let mut shutdown = tokio::task::JoinSet::new();
    shutdown.spawn(gateway.shutdown(Duration::from_secs(30)));
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(shutdown.try_join_next().is_none(), "a request is in flight");
    go.notify_one();
    assert_eq!(request.join_next().await.unwrap().unwrap(), StatusCode::OK);
    assert!(shutdown.join_next().await.unwrap().unwrap(), "all finished in time");
}

#[tokio::test]
async fn shutdown_ends_what_does_not_finish() {
    let local = Local::default();
    let (entered, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    local.add("10.42.0.1", Answer::Wait(Arc::clone(&entered), go));
    let gateway = serve(&local);
    publish(gateway.routes(), &snapshot(&[("r1", 100)], &[("r1", "10.42.0.1")]));
    let address = gateway.http_addr();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
    entered.notified().await;
    assert!(!gateway.shutdown(Duration::from_millis(10)).await);
    assert_eq!(read_head(&mut stream).await, "", "the connection is closed without an answer");
}

#[tokio::test]
async fn tls_is_served() {
    use tokio_rustls::{TlsConnector, rustls};
    let local = Local::default();
    local.add("10.42.0.1", Answer::Echo);
    let mut options = options(&local);
    let config = ketch_gateway::self_signed(&["localhost".to_owned()]).unwrap();
    options.https = Some((Bind::Address("127.0.0.1:0".parse().unwrap()), config));
    let gateway = Gateway::serve(Routes::default(), options).unwrap();
    publish(gateway.routes(), &snapshot(&[("r1", 100)], &[("r1", "10.42.0.1")]));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(watched::AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = tokio::net::TcpStream::connect(gateway.https_addr().unwrap()).await.unwrap();
    let stream =
        TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream).await.unwrap();
    let echo = over_h2(stream).await;
    assert_eq!(echo["headers"]["x-forwarded-proto"], "https");
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = Gateway::serve(Routes::default(), GatewayOptions::new(Bind::Address(address))).err().unwrap();
    assert!(error.to_string().starts_with(&format!("cannot listen on {address}: ")), "{error}");
    assert!(!RouteTable::default().is_complete());
}
