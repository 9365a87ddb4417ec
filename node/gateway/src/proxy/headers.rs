//! Headers that end at a hop, and those that tell the next one who asked (RFC 9110 §7.6).

use std::net::SocketAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        CONNECTION, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
};

const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Where a request came in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    pub(crate) peer: SocketAddr,
    /// `http` or `https`.
    pub(crate) scheme: &'static str,
    /// Port it came in on.
    pub(crate) port: u16,
}

/// The protocol a request wants to switch to.
pub(crate) fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let wanted = headers.get_all(CONNECTION).iter().filter_map(|v| v.to_str().ok());
    let named = wanted.flat_map(|v| v.split(',')).any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(UPGRADE).filter(|_| named).cloned()
}

/// Removes what concerns only the connection the message came over.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|token| token.trim().parse().ok())
        // `Connection: host` must not take away what the request means.
        .filter(|name| *name != HOST)
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

/// Prepares a request's headers for the next hop. This is the edge: what a client says about forwarding
/// is replaced, never trusted.
pub(crate) fn forward(headers: &mut HeaderMap, host: &HeaderValue, origin: Origin) {
    let trailers = headers
        .get_all(TE)
        .iter()
        .any(|v| v.to_str().is_ok_and(|v| v.to_ascii_lowercase().contains("trailers")));
    strip(headers);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    headers.remove("forwarded");
    headers.remove("x-real-ip");
    headers.insert(HOST, host.clone());
    headers.insert("x-forwarded-host", host.clone());
    headers.insert("x-forwarded-proto", HeaderValue::from_static(origin.scheme));
    headers.insert("x-forwarded-port", HeaderValue::from(origin.port));
    if let Ok(peer) = HeaderValue::from_str(&origin.peer.ip().to_canonical().to_string()) {
        headers.insert("x-forwarded-for", peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn what_ends_at_the_hop_is_removed() {
        let mut headers = map(&[
            ("connection", "close, X-Mine, host"),
            ("keep-alive", "1"),
            ("x-mine", "a"),
            ("host", "h"),
            ("transfer-encoding", "chunked"),
            ("te", "gzip, trailers"),
            ("x-kept", "b"),
            ("x-forwarded-for", "6.6.6.6"),
            ("forwarded", "for=6.6.6.6"),
        ]);
        let origin = Origin { peer: "[::ffff:10.0.0.9]:5".parse().unwrap(), scheme: "http", port: 80 };
        forward(&mut headers, &HeaderValue::from_static("a.example.com"), origin);
        let mut left: Vec<_> = headers.iter().map(|(k, v)| format!("{k}: {}", v.to_str().unwrap())).collect();
        left.sort();
        assert_eq!(
            left,
            [
                "host: a.example.com",
                "te: trailers",
                "x-forwarded-for: 10.0.0.9",
                "x-forwarded-host: a.example.com",
                "x-forwarded-port: 80",
                "x-forwarded-proto: http",
                "x-kept: b"
            ]
        );
    }

    #[test]
    fn an_upgrade_is_asked_for_in_two_places() {
        assert!(
            upgrade_of(&map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")])).is_some()
        );
        assert!(upgrade_of(&map(&[("upgrade", "websocket")])).is_none());
        assert!(upgrade_of(&map(&[("connection", "upgrade")])).is_none());
    }
}
