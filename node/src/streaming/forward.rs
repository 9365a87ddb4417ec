//! port-forward: connections to a pod's ports as pairs of channels, one for bytes and one for a failure.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use bytes::{Bytes, BytesMut};
use ketch_api::k8s::api::core::v1 as core;
use ketch_spdy::{Connection, Incoming, Limits, Stream};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    channel::{Input, Output},
    websocket::{self, Form, Inputs, Outgoing, Tunnel},
};

/// SPDY inside the binary messages of a WebSocket: what kubectl has done since 1.31.
pub(super) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Protocols over SPDY.
pub(super) const SPDY: &[&str] = &["portforward.k8s.io"];
/// Protocols over WebSockets.
pub(super) const WEBSOCKET: &[&str] = &[TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""];

/// Bytes taken from a pod at a time.
const PIECE: usize = 16 << 10;
/// For a connection to a pod to be made.
const CONNECT: Duration = Duration::from_secs(10);
/// Halves of pairs whose other half has not come yet.
const MAX_HALVES: usize = 64;

/// A connection that a client wants.
struct Pair {
    port: u16,
    input: Input,
    output: Output,
    error: Output,
    /// Cancelled when the client cuts the connection off.
    gone: CancellationToken,
}

/// Serves SPDY on a WebSocket's messages.
pub(super) async fn over_tunnel<T: AsyncRead + AsyncWrite + Unpin>(io: T, pod: &core::Pod) {
    over_spdy(Tunnel::new(websocket::socket(io).await), pod).await;
}

/// Serves connections over SPDY until the client goes.
pub(super) async fn over_spdy<T: AsyncRead + AsyncWrite + Unpin>(io: T, pod: &core::Pod) {
    let (connection, incoming, _closer) = Connection::new(io, Limits::default());
    tokio::select! {
        result = connection.run() => {
            if let Err(error) = result {
                tracing::debug!(%error, "a port-forward ended early");
            }
        }
        () = pairs(incoming, pod) => {}
    }
}

/// Joins streams to pairs, and serves the pairs.
async fn pairs(mut incoming: Incoming, pod: &core::Pod) {
    let mut halves: HashMap<String, (u16, Stream)> = HashMap::new();
    let mut connections = JoinSet::new();
    let pod = std::sync::Arc::new(pod.clone());
    loop {
        let stream = tokio::select! {
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            stream = incoming.next() => stream,
        };
        let Some(stream) = stream else { return };
        let header = |name: &str| stream.headers.get(name).unwrap_or_default();
        let port = header("port").parse().ok().filter(|port: &u16| *port > 0);
        let is_error = match header("streamtype") {
            "data" => false,
            "error" => true,
            // Dropped, so reset.
            _ => continue,
        };
        let Some(port) = port else { continue };
        let id = header("requestid").to_owned();
        let other = halves.remove(&id);
        let fits = other.as_ref().is_some_and(|(known, half)| {
            *known == port && (half.headers.get("streamtype") == Some("error")) != is_error
        });
        match other {
            Some((_, half)) if fits => {
                let (data, error) = if is_error { (half, stream) } else { (stream, half) };
                let pair = Pair {
                    port,
                    input: Input::Spdy(data.receiver),
                    output: Output::Spdy(data.sender),
                    error: Output::Spdy(error.sender),
                    gone: data.gone,
                };
                let pod = std::sync::Arc::clone(&pod);
                connections.spawn(async move { forward(&pod, pair).await });
            }
            // A half that does not fit is dropped with the new one.
            Some(_) => {}
            None if halves.len() < MAX_HALVES => {
                halves.insert(id, (port, stream));
            }
            None => {}
        }
    }
}

/// Serves one connection per port over the channels of a WebSocket: two per port, each beginning with the
/// port's number in two bytes, low one first.
pub(super) async fn over_websocket<T: AsyncRead + AsyncWrite + Unpin>(
    io: T,
    protocol: &str,
    pod: &core::Pod,
    ports: &[u16],
) {
    let (mut inputs, (to, outgoing)) = (Inputs::new(), websocket::outputs());
    let mut all = Vec::new();
    for (port, channel) in ports.iter().zip((0_u8..).step_by(2)) {
        let output = |channel| Output::WebSocket { channel, to: to.clone() };
        all.push(Pair {
            port: *port,
            input: Input::WebSocket(inputs.open(channel)),
            output: output(channel),
            error: output(channel.saturating_add(1)),
            gone: CancellationToken::new(),
        });
    }
    let work = async {
        futures::future::join_all(all.into_iter().map(|mut pair| async move {
            let number = Bytes::copy_from_slice(&pair.port.to_le_bytes());
            let told =
                pair.output.send(number.clone()).await.is_ok() && pair.error.send(number).await.is_ok();
            if told {
                forward(pod, pair).await;
            }
        }))
        .await;
        let _ = to.send(Outgoing::Close).await;
        std::future::pending::<()>().await;
    };
    let socket = websocket::socket(io).await;
    tokio::select! {
        () = websocket::serve(socket, Form::of(protocol), inputs, outgoing) => {}
        () = work => {}
    }
}

/// Carries one connection to its end, both ways.
async fn forward(pod: &core::Pod, pair: Pair) {
    let Pair { port, mut input, mut output, mut error, gone } = pair;
    let connection = match dial(pod, port).await {
        Ok(connection) => connection,
        Err(cause) => {
            let meta = &pod.metadata;
            let (name, uid) =
                (meta.name.as_deref().unwrap_or_default(), meta.uid.as_deref().unwrap_or_default());
            let text = format!("error forwarding port {port} to pod {name}, uid {uid}: {cause}");
            let _ = error.send(text.into()).await;
            error.finish().await;
            return output.finish().await;
        }
    };
    let (mut from, mut to) = connection.into_split();
    let client_to_pod = async {
        while let Some(bytes) = input.next().await {
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    let pod_to_client = async {
        let mut piece = BytesMut::with_capacity(PIECE);
        while from.read_buf(&mut piece).await.is_ok_and(|size| size > 0) {
            if output.send(piece.split().freeze()).await.is_err() {
                return;
            }
            piece.reserve(PIECE);
        }
        output.finish().await;
    };
    // The connection is over when the pod has ended it: what the client still sends goes nowhere.
    let both = async {
        tokio::pin!(client_to_pod);
        tokio::select! {
            () = pod_to_client => {}
            () = async { client_to_pod.await; std::future::pending::<()>().await } => {}
        }
    };
    gone.run_until_cancelled(both).await;
    error.finish().await;
}

/// A connection to a port of a pod.
async fn dial(pod: &core::Pod, port: u16) -> std::io::Result<TcpStream> {
    let status = pod.status.as_ref();
    let address: Option<IpAddr> = status.and_then(|s| s.pod_ip.as_deref()).and_then(|ip| ip.parse().ok());
    let address = address.ok_or_else(|| std::io::Error::other("the pod has no address yet"))?;
    let connection = tokio::time::timeout(CONNECT, TcpStream::connect((address, port))).await??;
    // What a client typed must not wait for the pod's acknowledgement of what came before.
    connection.set_nodelay(true)?;
    Ok(connection)
}
