//! exec, attach and port-forward over real connections, in every protocol.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use ketch_node::{ApiAddress, Node, NodeOptions, RuntimeEntry};
use ketch_runtime::fake::{Behaviour, Fake};
use ketch_spdy::frame::{Decoder, Encoder, Frame, Headers};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest},
};

use crate::{
    api::Api,
    runtime::Images,
    setup::{path, pod},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A node with a pod that runs programs, `cli`, and one that does not, `web`.
struct Bench {
    node: Node,
    address: SocketAddr,
    /// Address of `cli`.
    pod: String,
    _tasks: JoinSet<()>,
    _dir: tempfile::TempDir,
}

async fn bench() -> Bench {
    let (api, dir) = (Api::new(), tempfile::tempdir().unwrap());
    let fake = Fake::new().with_image("cli", Behaviour::Forever).with_image("web", Behaviour::Http);
    fake.fail("missing", Some(ketch_runtime::Error::Pull("no such image".into())));
    let node = Node::start(NodeOptions {
        name: "n1".into(),
        client: api.client(),
        data_dir: dir.path().into(),
        runtimes: vec![RuntimeEntry { handlers: vec!["ketch-wasm".into()], runtime: Arc::new(fake) }],
        unavailable: Vec::new(),
        dns: None,
        images: Arc::new(Images::default()),
        network: None,
        pod_cidr: "127.42.0.0/16".parse().unwrap(),
        addresses: vec!["192.0.2.1".parse().unwrap()],
        api: ApiAddress { host: "127.43.0.1".into(), port: 443 },
        max_pods: 110,
        labels: Vec::new(),
        annotations: Vec::new(),
    })
    .unwrap();
    for (name, image) in [("cli", "cli"), ("web", "web"), ("lost", "missing")] {
        api.put(&path(name), pod(name, image, json!({})));
    }
    let mut pod = String::new();
    for name in ["web", "cli"] {
        let at = path(name);
        let running = api.wait(&at, "running", |pod| {
            pod.is_some_and(|pod| {
                pod["status"]["containerStatuses"][0]["state"].get("running").is_some()
                    && pod["status"]["podIP"].is_string()
            })
        });
        pod = running.await.unwrap()["status"]["podIP"].as_str().unwrap().to_owned();
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    let router = node.router();
    tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
    Bench { node, address, pod, _tasks: tasks, _dir: dir }
}

impl Bench {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// A WebSocket; `Err`: code and message of the refusal.
    async fn websocket(&self, uri: &str, protocol: &str) -> Result<Socket, (u16, String)> {
        let mut request = format!("ws://node{uri}").into_client_request().unwrap();
        if !protocol.is_empty() {
            request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
        }
        match client_async(request, self.connect().await).await {
            Ok((socket, _)) => Ok(Socket(socket)),
            Err(Error::Http(response)) => {
                let body: Value =
                    serde_json::from_slice(&response.body().clone().unwrap_or_default()).unwrap_or_default();
                let message = body["message"].as_str().unwrap_or_default().to_owned();
                Err((response.status().as_u16(), message))
            }
            Err(other) => panic!("{other}"),
        }
    }

    async fn spdy(&self, uri: &str, protocol: &str) -> Spdy {
        let mut io = self.connect().await;
        let head = format!(
            "POST {uri} HTTP/1.1\r\nhost: node\r\nconnection: Upgrade\r\nupgrade: SPDY/3.1\r\n\
             x-stream-protocol-version: {protocol}\r\n\r\n"
        );
        io.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(io.read_u8().await.unwrap());
        }
        let answer = String::from_utf8(answer).unwrap().to_lowercase();
        assert!(answer.starts_with("http/1.1 101"), "{answer}");
        assert!(answer.contains(&format!("x-stream-protocol-version: {protocol}")), "{answer}");
        Spdy::new(io)
    }
}

/// The client's end of channels in a WebSocket.
struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    async fn send(&mut self, channel: u8, bytes: &[u8]) {
        self.0.send(Message::binary([&[channel], bytes].concat())).await.unwrap();
    }

    /// Everything by channel, until the server closes with the normal code.
    async fn rest(mut self) -> BTreeMap<u8, String> {
        let mut all: BTreeMap<u8, String> = BTreeMap::new();
        loop {
            let next = tokio::time::timeout(PATIENCE, self.0.next()).await.expect("a message comes");
            match next.expect("a close comes first").unwrap() {
                Message::Binary(bytes) => {
                    all.entry(bytes[0]).or_default().push_str(std::str::from_utf8(&bytes[1..]).unwrap());
                }
                Message::Close(frame) => {
                    assert_eq!(u16::from(frame.expect("a reason").code), 1000);
                    return all;
                }
                other => panic!("{other}"),
            }
        }
    }
}

/// The client's end of SPDY.
struct Spdy<T = TcpStream> {
    io: T,
    encoder: Encoder,
    decoder: Decoder,
    buffer: BytesMut,
}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Spdy<T> {
    fn new(io: T) -> Self {
        Self { io, encoder: Encoder::new(), decoder: Decoder::new(), buffer: BytesMut::new() }
    }

    async fn send(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        self.encoder.encode(&frame, &mut bytes).unwrap();
        self.io.write_all(&bytes).await.unwrap();
        self.io.flush().await.unwrap();
    }

    async fn open(&mut self, stream: u32, headers: &[(&str, &str)]) {
        self.send(Frame::SynStream { stream, fin: false, headers: Headers::new(headers) }).await;
    }

    async fn data(&mut self, stream: u32, text: &'static str, fin: bool) {
        self.send(Frame::Data { stream, fin, bytes: Bytes::from_static(text.as_bytes()) }).await;
    }

    async fn next(&mut self) -> Frame {
        let next = async {
            loop {
                if let Some(frame) = self.decoder.decode(&mut self.buffer).unwrap() {
                    return frame;
                }
                assert!(self.io.read_buf(&mut self.buffer).await.unwrap() > 0, "the connection ended");
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("a frame comes")
    }

    /// Data by stream until all of `streams` have ended.
    async fn until_ended(&mut self, streams: &[u32]) -> BTreeMap<u32, String> {
        let (mut all, mut ended) = (BTreeMap::<u32, String>::new(), Vec::new());
        while !streams.iter().all(|stream| ended.contains(stream)) {
            if let Frame::Data { stream, fin, bytes } = self.next().await {
                all.entry(stream).or_default().push_str(std::str::from_utf8(&bytes).unwrap());
                if fin {
                    ended.push(stream);
                }
            }
        }
        all
    }
}

/// Query of a shell command.
fn sh(script: &str) -> String {
    let script: String =
        script
            .bytes()
            .map(|byte| {
                if byte.is_ascii_alphanumeric() {
                    char::from(byte).to_string()
                } else {
                    format!("%{byte:02X}")
                }
            })
            .collect();
    format!("command=sh&command=-c&command={script}")
}

fn status(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test]
async fn exec_over_a_websocket() {
    let bench = bench().await;
    let uri = format!("/exec/default/cli/main?stdin=true&{}", sh("cat; echo err >&2; exit 3"));
    let mut socket = bench.websocket(&uri, "v5.channel.k8s.io").await.unwrap();
    socket.send(0, b"hello ").await;
    socket.send(0, b"there").await;
    // The end of the input, as v5 says it.
    socket.send(255, &[0]).await;
    let all = socket.rest().await;
    assert_eq!((all[&1].as_str(), all[&2].as_str()), ("hello there", "err\n"));
    assert_eq!(status(&all[&3])["reason"], "NonZeroExitCode");
    assert_eq!(status(&all[&3])["details"]["causes"][0]["message"], "3");

    let uri = format!("/exec/default/cli/main?{}", sh("head -c 300000 /dev/zero | tr '\\0' x"));
    let all = bench.websocket(&uri, "v4.channel.k8s.io").await.unwrap().rest().await;
    assert_eq!(all[&1].len(), 300_000);
    assert_eq!(status(&all[&3])["status"], "Success");
    // Before v4 success is silence.
    let all = bench.websocket(&format!("/exec/default/cli/main?{}", sh("echo a")), "").await.unwrap();
    assert_eq!(all.rest().await, BTreeMap::from([(1, "a\n".to_owned())]));
    bench.node.shutdown().await;
}

#[tokio::test]
async fn terminals_have_sizes() {
    let bench = bench().await;
    let uri = "/exec/default/cli/main?tty=true&command=size";
    let mut socket = bench.websocket(uri, "v5.channel.k8s.io").await.unwrap();
    socket.send(4, b"{\"Width\":80,\"Height\":24}\n").await;
    let all = socket.rest().await;
    assert_eq!(all[&1], "80x24\n");
    let mut spdy = bench.spdy(uri, "v4.channel.k8s.io").await;
    for (id, kind) in [(1, "error"), (3, "stdout"), (5, "resize")] {
        spdy.open(id, &[("streamType", kind)]).await;
    }
    spdy.data(5, "{\"Width\":100,\"Height\":30}\n", false).await;
    assert_eq!(spdy.until_ended(&[1, 3]).await[&3], "100x30\n");
}

#[tokio::test]
async fn exec_over_spdy() {
    let bench = bench().await;
    let uri = format!("/exec/default/cli/main?stdin=true&{}", sh("cat; echo err >&2; exit 3"));
    for (protocol, end) in [
        ("v4.channel.k8s.io", "\"reason\":\"ExitCode\""),
        ("channel.k8s.io", "command terminated with non-zero exit code: exit status 3"),
    ] {
        let mut spdy = bench.spdy(&uri, protocol).await;
        for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
            spdy.open(id, &[("streamType", kind)]).await;
        }
        spdy.data(3, "hello", true).await;
        let all = spdy.until_ended(&[1, 5, 7]).await;
        assert_eq!((all[&5].as_str(), all[&7].as_str()), ("hello", "err\n"));
        assert!(all[&1].contains(end), "{}", all[&1]);
    }
}

#[tokio::test]
async fn a_program_ends_with_its_client() {
    let bench = bench().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let script = format!("echo $$ > {}; exec sleep 1000", file.display());
    let socket =
        bench.websocket(&format!("/exec/default/cli/main?{}", sh(&script)), "v5.channel.k8s.io").await;
    let pid = eventually(|| std::fs::read_to_string(&file).ok().filter(|text| text.ends_with('\n'))).await;
    let process = format!("/proc/{}", pid.trim());
    assert!(std::fs::exists(&process).unwrap());
    drop(socket);
    eventually(|| (!std::fs::exists(&process).unwrap()).then_some(())).await;
}

async fn eventually<T>(mut test: impl FnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = test() {
                return found;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it comes true")
}

#[tokio::test]
async fn attach_joins_the_program() {
    let bench = bench().await;
    let mut socket =
        bench.websocket("/attach/default/cli/main?stdin=true", "v5.channel.k8s.io").await.unwrap();
    socket.send(0, b"hi\n").await;
    socket.send(255, &[0]).await;
    let all = socket.rest().await;
    assert_eq!(all[&1], "main runs\nhi\n");
    assert_eq!(status(&all[&3])["status"], "Success");
}

#[tokio::test]
async fn refusals_are_statuses() {
    let bench = bench().await;
    for (uri, protocol, code, text) in [
        ("/exec/default/none/main?command=x", "v5.channel.k8s.io", 404, "pod does not exist"),
        ("/exec/default/cli/none?command=x", "v5.channel.k8s.io", 500, "container not found (\"none\")"),
        ("/exec/default/lost/main?command=x", "v5.channel.k8s.io", 500, "container not found (\"main\")"),
        ("/exec/default/web/main?command=x", "v5.channel.k8s.io", 400, "it has no programs"),
        ("/exec/default/cli/main?command=x", "v9.channel.k8s.io", 400, "client supports [v9.channel.k8s.io]"),
        ("/exec/default/cli/main?stdout=false&stderr=false", "", 400, "at least 1 of stdin, stdout, stderr"),
        ("/portForward/default/cli", "v4.channel.k8s.io", 400, "\"ports\" is required"),
    ] {
        let Err((found, message)) = bench.websocket(uri, protocol).await else { panic!("{uri}") };
        assert_eq!(found, code, "{uri}: {message}");
        assert!(message.contains(text), "{uri}: {message}");
    }
    // What goes wrong with a program is told on the error channel.
    let all = bench.websocket("/exec/default/cli/main?command=/no/such", "v5.channel.k8s.io").await.unwrap();
    let end = status(&all.rest().await[&3]);
    assert!(end["message"].as_str().unwrap().contains("cannot run \"/no/such\""), "{end}");
}

/// Answers each connection with what it got, when that has ended.
async fn echo_server(tasks: &mut JoinSet<()>, address: &str) -> u16 {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tasks.spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut text = Vec::new();
            connection.read_to_end(&mut text).await.unwrap();
            connection.write_all(b"you said ").await.unwrap();
            connection.write_all(&text).await.unwrap();
        }
    });
    port
}

async fn port_forward_over_spdy<T>(mut spdy: Spdy<T>, port: u16)
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let port = port.to_string();
    let pair = |kind: &'static str, id: &'static str| {
        [("streamType", kind), ("port", port.as_str()), ("requestID", id)]
            .map(|(name, value)| (name, value.to_owned()))
    };
    for (stream, kind, id) in [(1, "error", "0"), (3, "data", "0"), (5, "data", "1"), (7, "error", "1")] {
        let headers = pair(kind, id);
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        spdy.open(stream, &headers).await;
    }
    spdy.data(5, "two", true).await;
    spdy.data(3, "one", true).await;
    let all = spdy.until_ended(&[1, 3, 5, 7]).await;
    assert_eq!((all[&3].as_str(), all[&5].as_str()), ("you said one", "you said two"));
    assert_eq!((all[&1].as_str(), all[&7].as_str()), ("", ""));
    // A port where nothing listens.
    for (stream, kind) in [(9, "error"), (11, "data")] {
        spdy.open(stream, &[("streamType", kind), ("port", "1"), ("requestID", "2")]).await;
    }
    let all = spdy.until_ended(&[9, 11]).await;
    assert!(all[&9].starts_with("error forwarding port 1 to pod "), "{}", all[&9]);
}

#[tokio::test]
async fn ports_are_forwarded() {
    let bench = bench().await;
    let mut tasks = JoinSet::new();
    let port = echo_server(&mut tasks, &bench.pod).await;
    let uri = "/portForward/default/cli";
    port_forward_over_spdy(bench.spdy(uri, "portforward.k8s.io").await, port).await;
    let socket = bench.websocket(uri, "SPDY/3.1+portforward.k8s.io").await.unwrap();
    port_forward_over_spdy(Spdy::new(tunnel(socket, &mut tasks)), port).await;

    let mut socket = bench.websocket(&format!("{uri}?ports={port}"), "v4.channel.k8s.io").await.unwrap();
    let [low, high] = port.to_le_bytes();
    for channel in [0, 1] {
        let first = socket.0.next().await.unwrap().unwrap().into_data();
        assert_eq!(first[..], [channel, low, high]);
    }
    // Nothing listens there: the error channel says so, and the connection is closed.
    let lost = bench.websocket(&format!("{uri}?ports=1"), "v4.channel.k8s.io").await.unwrap();
    assert!(lost.rest().await[&1].contains("error forwarding port 1"));
    socket.send(0, b"x").await;
    bench.node.shutdown().await;
}

/// Bytes in and out of a WebSocket's binary messages.
fn tunnel(socket: Socket, tasks: &mut JoinSet<()>) -> tokio::io::DuplexStream {
    let (near, far) = tokio::io::duplex(64 << 10);
    let (mut reader, mut writer) = tokio::io::split(far);
    let (mut sink, mut stream) = socket.0.split();
    tasks.spawn(async move {
        let mut piece = vec![0; 4096];
        while let Ok(size @ 1..) = reader.read(&mut piece).await {
            sink.send(Message::binary(piece[..size].to_vec())).await.unwrap();
        }
    });
    tasks.spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            if writer.write_all(&message.into_data()).await.is_err() {
                return;
            }
        }
    });
    near
}
