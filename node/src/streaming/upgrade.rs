//! Agreeing with a client on how to go on: a WebSocket or SPDY/3.1, and what is spoken inside.

use std::time::Duration;

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use ketch_api::Status;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::target::Refusal;

/// Upstream's names for the negotiation over SPDY.
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
const ACCEPTED: &str = "x-accepted-stream-protocol-versions";

/// What carries the channels, with the protocol inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    Spdy(&'static str),
    WebSocket(&'static str),
}

/// An upgrade that was agreed on.
pub(super) struct Upgrade {
    pub(super) wire: Wire,
    pub(super) response: Response<Body>,
    pub(super) connection: Pending,
}

/// The connection, once the client has read the answer.
pub(super) struct Pending(Option<OnUpgrade>);

impl Pending {
    pub(super) fn take(&mut self) -> Self {
        Self(self.0.take())
    }

    /// Waits for it; `None` when the client went away instead.
    pub(super) async fn established(self, limit: Duration) -> Option<TokioIo<Upgraded>> {
        let upgraded = tokio::time::timeout(limit, self.0?).await;
        upgraded.ok()?.ok().map(TokioIo::new)
    }
}

impl Upgrade {
    /// Chooses the first of the client's protocols that is in `spdy` or in `websocket`. No protocol at all
    /// is the empty one.
    pub(super) fn negotiate(
        request: &mut Request,
        spdy: &[&'static str],
        websocket: &[&'static str],
    ) -> Result<Self, Refusal> {
        let (wire, response) = agree(request.headers(), spdy, websocket)?;
        let connection = request.extensions_mut().remove::<OnUpgrade>();
        let connection =
            connection.ok_or_else(|| Status::bad_request("this connection cannot be upgraded"))?;
        Ok(Self { wire, response, connection: Pending(Some(connection)) })
    }
}

pub(super) fn agree(
    headers: &HeaderMap,
    spdy: &[&'static str],
    websocket: &[&'static str],
) -> Result<(Wire, Response<Body>), Refusal> {
    let wanted = headers.get(header::UPGRADE).map(HeaderValue::as_bytes).unwrap_or_default();
    if wanted.eq_ignore_ascii_case(b"websocket") {
        return agree_on_websocket(headers, websocket);
    }
    if !wanted.eq_ignore_ascii_case(b"SPDY/3.1") {
        let text = "unable to upgrade: only WebSocket and SPDY/3.1 connections are served here";
        return Err(Status::bad_request(text).into());
    }
    let protocol = choose(headers, STREAM_PROTOCOL, spdy).map_err(|offered| {
        let text = format!(
            "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
            offered.join(" "),
            spdy.join(" ")
        );
        Refusal(Status::new(403, "Forbidden", text))
    })?;
    let mut response = switching("SPDY/3.1");
    if !protocol.is_empty() {
        response.headers_mut().insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
    }
    for accepted in spdy {
        response.headers_mut().append(ACCEPTED, HeaderValue::from_static(accepted));
    }
    Ok((Wire::Spdy(protocol), response))
}

fn agree_on_websocket(
    headers: &HeaderMap,
    protocols: &[&'static str],
) -> Result<(Wire, Response<Body>), Refusal> {
    let version = headers.get(header::SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes);
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| version == Some(b"13"));
    let key =
        key.ok_or_else(|| Status::bad_request("unable to upgrade: not a WebSocket handshake of version 13"))?;
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes())).map_err(Status::internal)?;
    let protocol =
        choose(headers, header::SEC_WEBSOCKET_PROTOCOL.as_str(), protocols).map_err(|offered| {
            let text = format!(
                "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
                offered.join(" "),
                protocols.join(" ").trim()
            );
            Refusal(Status::bad_request(text))
        })?;
    let mut response = switching("websocket");
    response.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if !protocol.is_empty() {
        let value = HeaderValue::from_static(protocol);
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, value);
    }
    Ok((Wire::WebSocket(protocol), response))
}

/// The first protocol of the client's that is known; all of them when none is.
fn choose(headers: &HeaderMap, name: &str, known: &[&'static str]) -> Result<&'static str, Vec<String>> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let mut offered: Vec<String> =
        values.flat_map(|text| text.split(',')).map(|one| one.trim().to_owned()).collect();
    offered.retain(|one| !one.is_empty());
    if offered.is_empty() {
        offered.push(String::new());
    }
    let found = offered.iter().find_map(|one| known.iter().find(|own| *own == one).copied());
    found.ok_or(offered)
}

fn switching(to: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(to));
    response
}

#[cfg(test)]
mod tests {
    use super::super::{command, forward};
    use super::*;

    fn wire(headers: &[(&'static str, &'static str)]) -> Result<(Wire, Response<Body>), u16> {
        let headers = headers
            .iter()
            .map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        agree(&headers, command::SPDY, command::WEBSOCKET).map_err(|refusal| refusal.0.code)
    }

    #[test]
    fn the_clients_first_known_protocol_is_taken() {
        let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let websocket = |protocols| {
            wire(&[
                ("upgrade", "WebSocket"),
                ("sec-websocket-version", "13"),
                key,
                ("sec-websocket-protocol", protocols),
            ])
        };
        let (chosen, response) = websocket("v9.x, v5.channel.k8s.io,v4.channel.k8s.io").unwrap();
        assert_eq!(chosen, Wire::WebSocket("v5.channel.k8s.io"));
        assert_eq!(response.status(), 101);
        // The example of RFC 6455, section 1.3.
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
        assert_eq!(websocket("v9.x").unwrap_err(), 400);
        assert_eq!(websocket("").unwrap().0, Wire::WebSocket(""));
        let spdy = |protocol| wire(&[("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", protocol)]);
        let (chosen, response) = spdy("v4.channel.k8s.io").unwrap();
        assert_eq!(chosen, Wire::Spdy("v4.channel.k8s.io"));
        assert_eq!(response.headers()["x-stream-protocol-version"], "v4.channel.k8s.io");
        assert_eq!(spdy("v5.channel.k8s.io").unwrap_err(), 403);
        assert_eq!(wire(&[("upgrade", "SPDY/3.1")]).unwrap().0, Wire::Spdy(""));
        assert_eq!(wire(&[("upgrade", "h2c")]).unwrap_err(), 400);
        assert_eq!(wire(&[]).unwrap_err(), 400);
        assert_eq!(wire(&[("upgrade", "websocket"), key]).unwrap_err(), 400);
        assert!(forward::WEBSOCKET.contains(&forward::TUNNEL));
    }
}
