//! Durable writes, against etcd on the same disk.
//!
//! Both sides sync before they acknowledge. The store is called in process, as the API server calls it;
//! etcd over gRPC on loopback, as an API server would, with a client that does nothing but frame the bytes.

use crate::{ROUNDS, Row, cluster::Process, statistics::median};
use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use futures::future::try_join_all;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ketch_store::{RedbOptions, RedbStore, Storage, Update};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Length of a round.
const WINDOW: Duration = Duration::from_secs(3);
/// Bytes of a value: a small Kubernetes object.
const VALUE_BYTES: usize = 1_024;
/// Keys each client writes to in turn.
const KEYS_PER_CLIENT: usize = 10;
/// Connections that etcd's clients share.
const CONNECTIONS: usize = 10;
/// How long etcd may take to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures writes per second with one client and with a thousand.
pub(crate) fn run() -> Result<Vec<Row>> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let directory = tempfile::tempdir()?;
        let ours = Ours::open(&directory.path().join("ketch"))?;
        let peer = Etcd::start(&directory.path().join("etcd")).await?;
        let mut rows = Vec::new();
        for clients in [1, 1_000] {
            rows.push(compare(&ours, &peer, clients).await?);
        }
        Ok(rows)
    })
}

async fn compare(ours: &Ours, peer: &Etcd, clients: usize) -> Result<Row> {
    let (mut own, mut other) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        own.push(rate(clients, |client, write| ours.put(client, write)).await?);
        other.push(rate(clients, |client, write| peer.put(client, write)).await?);
    }
    let (own, other) = (median(&mut own), median(&mut other));
    Ok(Row {
        what: format!("durable writes of {VALUE_BYTES} bytes, {clients} client(s)"),
        ours: format!("{own:.0}/s"),
        peer: format!("etcd {other:.0}/s"),
        ratio: format!("{:.2}", own / other),
    })
}

/// Writes per second of `clients` that each write one after the other.
async fn rate<F: Future<Output = Result<()>>>(
    clients: usize,
    put: impl Fn(usize, usize) -> F,
) -> Result<f64> {
    let start = Instant::now();
    let counts = try_join_all((0..clients).map(|client| {
        let put = &put;
        async move {
            let mut writes = 0;
            while start.elapsed() < WINDOW {
                put(client, writes).await?;
                writes += 1;
            }
            anyhow::Ok(writes)
        }
    }));
    let writes: usize = counts.await?.iter().sum();
    Ok(writes as f64 / start.elapsed().as_secs_f64())
}

fn key(client: usize, write: usize) -> String {
    format!("/core/pods/bench/{client:04}-{}", write % KEYS_PER_CLIENT)
}

struct Ours {
    store: RedbStore,
    value: Bytes,
}

impl Ours {
    fn open(directory: &Path) -> Result<Self> {
        let store = RedbStore::open(directory, RedbOptions::default()).map_err(failed)?;
        Ok(Ours { store, value: vec![b'x'; VALUE_BYTES].into() })
    }

    async fn put(&self, client: usize, write: usize) -> Result<()> {
        let value = self.value.clone();
        let update = Box::new(move |_: Option<&_>| Ok(Update::Put(value.clone())));
        self.store.update(&key(client, write), update).await.map_err(failed)?;
        Ok(())
    }
}

/// The store's error can carry a callback's own, which is not `Sync`.
fn failed(error: ketch_store::Error) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}

struct Etcd {
    _process: Process,
    _connections: JoinSet<()>,
    senders: Vec<SendRequest<Full<Bytes>>>,
    authority: String,
    value: Arc<[u8]>,
}

impl Etcd {
    async fn start(directory: &Path) -> Result<Self> {
        let (client, peer) = (free_address()?, free_address()?);
        let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(directory).args(["--log-level", "error"]);
        for flag in ["--listen-client-urls", "--advertise-client-urls"] {
            command.args([flag, &client_url]);
        }
        for flag in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
            command.args([flag, &peer_url]);
        }
        command.arg("--initial-cluster").arg(format!("default={peer_url}"));
        let process = Process::start(&mut command).context("install etcd-server to compare with it")?;
        let mut connections = JoinSet::new();
        let mut senders = Vec::new();
        for _ in 0..CONNECTIONS {
            let (sender, connection) =
                handshake(TokioExecutor::new(), TokioIo::new(connect(&client).await?)).await?;
            // When it breaks, the next request says so.
            connections.spawn(async move { drop(connection.await) });
            senders.push(sender);
        }
        let value = vec![b'x'; VALUE_BYTES].into();
        let etcd = Etcd { _process: process, _connections: connections, senders, authority: client, value };
        etcd.wait().await?;
        Ok(etcd)
    }

    /// It takes connections before it has elected itself.
    async fn wait(&self) -> Result<()> {
        let start = Instant::now();
        while let Err(error) = self.put(0, 0).await {
            ensure!(start.elapsed() < PATIENCE, "etcd does not take writes: {error:#}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    async fn put(&self, client: usize, write: usize) -> Result<()> {
        let mut sender = self.senders[client % self.senders.len()].clone();
        sender.ready().await?;
        let request = http::Request::post(format!("http://{}/etcdserverpb.KV/Put", self.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(put_request(key(client, write).as_bytes(), &self.value)))?;
        let response = sender.send_request(request).await?;
        let early = response.headers().get("grpc-status").cloned();
        let answer = response.into_body().collect().await?;
        let status = early.or_else(|| answer.trailers()?.get("grpc-status").cloned());
        match status {
            Some(status) if status == "0" => Ok(()),
            status => bail!("etcd answered {status:?}"),
        }
    }
}

async fn connect(address: &str) -> Result<TcpStream> {
    let start = Instant::now();
    loop {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => ensure!(start.elapsed() < PATIENCE, "etcd does not listen: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn free_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// A gRPC frame around `PutRequest { bytes key = 1; bytes value = 2; }`.
fn put_request(key: &[u8], value: &[u8]) -> Bytes {
    let mut message = BytesMut::new();
    for (field, bytes) in [(1_u8, key), (2, value)] {
        message.put_u8(field << 3 | 2);
        let mut length = bytes.len();
        while length >= 0x80 {
            message.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(bytes);
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put(message);
    frame.freeze()
}
