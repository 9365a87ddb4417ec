//! A door to what is done to headers, for the fuzz targets only.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::proxy::headers::{Origin, forward, upgrade_of};

/// Passes a request's headers on, given as lines of `name: value`. None that ends at this hop may be left.
pub fn headers(lines: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n').take(200) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = line.split_at(colon);
        let name = HeaderName::from_bytes(name);
        let value = HeaderValue::from_bytes(value.get(1..).unwrap_or_default().trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let _ = upgrade_of(&headers);
    let origin = Origin { peer: std::net::SocketAddr::from(([192, 0, 2, 1], 1)), scheme: "http", port: 80 };
    forward(&mut headers, &HeaderValue::from_static("a.example.com"), origin);
    for name in ["connection", "keep-alive", "transfer-encoding", "upgrade", "forwarded", "x-real-ip"] {
        assert!(!headers.contains_key(name), "{name}");
    }
    assert_eq!(headers.get_all("host").iter().count(), 1);
    assert_eq!(headers.get_all("x-forwarded-for").iter().count(), 1);
}
