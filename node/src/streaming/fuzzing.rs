//! What clients of exec, attach and port-forward send.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;

use super::{command, forward, options, upgrade, websocket::Form};

/// A message of a WebSocket, in each form.
pub(crate) fn message(bytes: &[u8]) {
    for protocol in command::WEBSOCKET.iter().chain(forward::WEBSOCKET) {
        let form = Form::of(protocol);
        if let Some((channel, rest)) = form.decode(Bytes::copy_from_slice(bytes)) {
            assert!(rest.len() < bytes.len());
            let _ = form.encode(channel, &rest);
        }
    }
}

/// A query, and the headers that ask for an upgrade.
pub(crate) fn request(query: &str, protocols: &[u8]) {
    let _ = (options::Options::parse(query), options::ports(query));
    let Ok(value) = HeaderValue::from_bytes(protocols) else { return };
    let mut headers = HeaderMap::new();
    for (name, fixed) in [("sec-websocket-version", "13"), ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")]
    {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(fixed));
    }
    headers.insert("sec-websocket-protocol", value.clone());
    headers.insert("x-stream-protocol-version", value);
    for upgrade in ["websocket", "SPDY/3.1"] {
        headers.insert("upgrade", HeaderValue::from_static(upgrade));
        let _ = upgrade::agree(&headers, command::SPDY, command::WEBSOCKET);
        let _ = upgrade::agree(&headers, forward::SPDY, forward::WEBSOCKET);
    }
}
