//! `pods/exec`, `pods/attach`, `pods/portforward`: connections that are upgraded and handed to the pod's node.
//!
//! The node speaks the protocols (WebSocket, SPDY/3.1); here is only who may, and where to. A node in this
//! process takes the client's connection itself; one that is elsewhere upgrades its own, and bytes are
//! copied.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use ketch_api::{Status, request::RequestInfo};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::log::{container, refusal};
use crate::{
    registry::Resource,
    rest::{Call, transaction::failure},
    route,
    wire::stored,
};

/// How long a connection may carry nothing: the kubelet's `streamingConnectionIdleTimeout`.
const IDLE: Duration = Duration::from_secs(4 * 3600);
/// For the two sides to finish their upgrade.
const UPGRADE: Duration = Duration::from_secs(30);
/// Bytes copied at a time.
const PIECE: usize = 16 << 10;

/// Checks, and hands the connection to the node.
pub(crate) async fn connect(call: &Call, resource: &Arc<Resource>) -> Result<Response, Status> {
    // A WebSocket begins with GET; the right to read must not be the right to run programs.
    if call.info.verb != "create" {
        let info = RequestInfo { verb: "create".to_owned(), ..call.info.clone() };
        route::permit(&call.server, &call.user, &info, call.parts.uri.query())?;
    }
    let name = &call.info.name;
    let key = resource.key(&call.info.namespace, name);
    let found = call.server.storage.get(&key).await.map_err(failure)?;
    let pod = stored::decode(&found.ok_or_else(|| Status::not_found(resource.group_resource(), name))?)?;
    let path = path(call, &pod)?;
    let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    }
    if !is_upgrade(&call.parts.headers) {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let client = call.parts.extensions.get::<OnUpgrade>().cloned();
    let client = client.ok_or_else(|| Status::bad_request("Upgrade request required: use HTTP/1.1"))?;
    let nodes = call.server.nodes.as_ref();
    let nodes = nodes.ok_or_else(|| Status::unavailable("this server has no connection to nodes"))?;
    let answer = nodes.request(node, request(call, &path, client.clone())?).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(answer).await);
    }
    Ok(handed_over(call, client, answer))
}

/// The node's path for the request.
fn path(call: &Call, pod: &Value) -> Result<String, Status> {
    let (name, namespace) = (call.info.name.as_str(), call.info.namespace.as_str());
    let escape = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let path = match call.info.subresource.as_str() {
        "portforward" => ["portForward", namespace, name].map(escape).join("/"),
        kind => {
            let container = container(pod, name, call.query.get("container"))?;
            if kind == "exec" && call.query.get("command").is_none() {
                return Err(Status::bad_request("you must specify at least one command for the container"));
            }
            [kind, namespace, name, &container].map(escape).join("/")
        }
    };
    let query = call.parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    Ok(format!("/{path}{query}"))
}

/// The request as the node gets it: what makes the upgrade, nothing of who asks.
fn request(call: &Call, path: &str, client: OnUpgrade) -> Result<Request<Body>, Status> {
    let mut request = Request::builder().method(&call.parts.method).uri(path);
    for (name, value) in &call.parts.headers {
        let name_text = name.as_str();
        let passed = matches!(name, &header::CONNECTION | &header::UPGRADE | &header::HOST)
            || (name_text.starts_with("sec-websocket-") && name != header::SEC_WEBSOCKET_PROTOCOL)
            || name_text.starts_with("x-stream-");
        if passed {
            request = request.header(name, value);
        }
    }
    for value in call.parts.headers.get_all(header::SEC_WEBSOCKET_PROTOCOL) {
        if let Some(value) = without_token(value) {
            request = request.header(header::SEC_WEBSOCKET_PROTOCOL, value);
        }
    }
    request.extension(client).body(Body::empty()).map_err(Status::internal)
}

/// Subprotocols without the bearer token that a browser may have hidden among them.
fn without_token(value: &HeaderValue) -> Option<HeaderValue> {
    let text = value.to_str().ok()?;
    let kept: Vec<&str> = text
        .split(',')
        .map(str::trim)
        .filter(|one| !one.starts_with("base64url.bearer.authorization.k8s.io."))
        .collect();
    HeaderValue::from_str(&kept.join(", ")).ok()
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    let asks = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    headers.contains_key(header::UPGRADE)
        && asks.flat_map(|text| text.split(',')).any(|word| word.trim().eq_ignore_ascii_case("upgrade"))
}

/// The node's answer for the client, with whoever carries the bytes behind it.
fn handed_over(call: &Call, client: OnUpgrade, mut answer: Response) -> Response {
    if let Some(node) = answer.extensions_mut().remove::<OnUpgrade>() {
        let stop = call.server.stopping.clone();
        call.server.upgraded.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = join(client, node) => {}
            }
        });
    }
    // That header is about one connection. The node's may say that it closes, which is not the client's: Go's
    // client then takes the answer for none.
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer
}

/// Copies bytes between the two until both have ended, one breaks, or nothing moves for [`IDLE`].
async fn join(client: OnUpgrade, node: OnUpgrade) {
    let upgraded = tokio::time::timeout(UPGRADE, async { tokio::try_join!(client, node) }).await;
    let (client, node) = match upgraded {
        Ok(Ok(both)) => both,
        Ok(Err(error)) => return tracing::debug!(%error, "a stream to a node was not upgraded"),
        Err(_) => return tracing::debug!("a stream to a node was not upgraded in time"),
    };
    let (from_client, to_client) = tokio::io::split(TokioIo::new(client));
    let (from_node, to_node) = tokio::io::split(TokioIo::new(node));
    let moved = tokio::sync::watch::Sender::new(Instant::now());
    let both =
        async { tokio::try_join!(copy(from_client, to_node, &moved), copy(from_node, to_client, &moved)) };
    tokio::select! {
        result = both => {
            if let Err(error) = result {
                tracing::debug!(%error, "a stream to a node broke");
            }
        }
        () = idle(&moved) => tracing::debug!("a stream to a node was idle for too long"),
    }
}

/// One way; the end of the source is passed on.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    moved: &tokio::sync::watch::Sender<Instant>,
) -> std::io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let size = from.read(&mut piece).await?;
        moved.send_replace(Instant::now());
        let Some(bytes) = piece.get(..size).filter(|bytes| !bytes.is_empty()) else {
            return to.shutdown().await;
        };
        to.write_all(bytes).await?;
        to.flush().await?;
    }
}

async fn idle(moved: &tokio::sync::watch::Sender<Instant>) {
    loop {
        let deadline = *moved.borrow() + IDLE;
        if deadline <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(deadline).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upgrades_are_told_by_two_headers() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            let pairs = pairs.iter().map(|(name, value)| {
                (header::HeaderName::from_static(name), HeaderValue::from_static(value))
            });
            pairs.collect::<HeaderMap>()
        };
        assert!(is_upgrade(&headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")])));
        assert!(!is_upgrade(&headers(&[("connection", "Upgrade")])));
        assert!(!is_upgrade(&headers(&[("connection", "close"), ("upgrade", "SPDY/3.1")])));
    }

    #[test]
    fn tokens_do_not_reach_the_node() {
        let value = "base64url.bearer.authorization.k8s.io.c2VjcmV0, v5.channel.k8s.io, v4.channel.k8s.io";
        let kept = without_token(&HeaderValue::from_static(value)).unwrap();
        assert_eq!(kept, "v5.channel.k8s.io, v4.channel.k8s.io");
    }
}
