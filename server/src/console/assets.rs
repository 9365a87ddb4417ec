//! The console's files: built by Trunk, embedded in the binary (read from disk in debug builds).
//!
//! Hashed names are served as immutable, `index.html` never cached. A path that is no file is the
//! single-page application's and gets `index.html`. Brotli copies made at build time are used when the
//! client takes them.

use std::sync::LazyLock;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use rust_embed::RustEmbed;
use sha2::{Digest, Sha256};

#[derive(RustEmbed)]
#[folder = "$CARGO_MANIFEST_DIR/../ui/dist"]
#[allow_missing = true]
struct Dist;

const NOT_BUILT: &str = "<!doctype html><title>Ketch</title><p>This build of Ketch has no console. Build it with \
                         <code>cargo xtask ui</code>, then build Ketch again.";

/// Serves one file of the console.
pub(crate) fn serve(method: &Method, path: &str, headers: &HeaderMap) -> Response<Body> {
    if method != Method::GET && method != Method::HEAD {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "the console's files can only be read\n");
    }
    let path = path.trim_start_matches('/');
    match Dist::get(path).filter(|_| !path.is_empty() && path != "index.html") {
        Some(file) => asset(path, file, headers),
        // A missing script must not be answered with a page.
        None if path.rsplit('/').next().is_some_and(|name| name.contains('.')) => {
            plain(StatusCode::NOT_FOUND, "no such file\n")
        }
        None => index(),
    }
}

fn asset(path: &str, raw: rust_embed::EmbeddedFile, headers: &HeaderMap) -> Response<Body> {
    let brotli = accepts_brotli(headers).then(|| Dist::get(&format!("{path}.br"))).flatten();
    let mut response = Response::new(Body::empty());
    let out = response.headers_mut();
    if brotli.is_some() {
        out.insert(header::CONTENT_ENCODING, HeaderValue::from_static("br"));
    }
    out.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type(path)));
    out.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable"));
    out.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    *response.body_mut() = Body::from(brotli.unwrap_or(raw).data.into_owned());
    response
}

fn index() -> Response<Body> {
    let page = Dist::get("index.html").map(|file| file.data.into_owned());
    let mut response = Response::new(Body::from(page.unwrap_or_else(|| NOT_BUILT.as_bytes().to_vec())));
    let out = response.headers_mut();
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    out.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    out.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    out.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    out.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        out.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// Everything from our own origin, WebAssembly allowed, and Trunk's inline loader by its hash.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let page = Dist::get("index.html").map(|file| file.data.into_owned()).unwrap_or_default();
    let hashes = inline_scripts(&String::from_utf8_lossy(&page))
        .into_iter()
        .map(|script| format!(" 'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(script))))
        .collect::<String>();
    format!(
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'{hashes}; style-src 'self' 'unsafe-inline'; \
         img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    )
});

/// Texts of the scripts a page carries inline.
fn inline_scripts(page: &str) -> Vec<&str> {
    page.split("<script")
        .skip(1)
        .filter_map(|rest| rest.split_once('>'))
        .filter(|(attributes, _)| !attributes.contains("src="))
        .filter_map(|(_, rest)| rest.split_once("</script>"))
        .map(|(text, _)| text)
        .filter(|text| !text.trim().is_empty())
        .collect()
}

fn accepts_brotli(headers: &HeaderMap) -> bool {
    let accepted =
        headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accepted.split(',').any(|coding| coding.trim().split(';').next() == Some("br"))
}

fn media_type(path: &str) -> &'static str {
    match path.rsplit('.').next().unwrap_or_default() {
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "wasm" => "application/wasm",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "json" | "webmanifest" => "application/json",
        "woff2" => "font/woff2",
        "html" => "text/html; charset=utf-8",
        _ => "application/octet-stream",
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_inline_scripts_only() {
        let page =
            "<script src=\"a.js\"></script><script type=\"module\">\nimport x;\n</script><script> </script>";
        assert_eq!(inline_scripts(page), ["\nimport x;\n"]);
    }

    #[test]
    fn brotli_is_a_whole_token() {
        let with = |value: &'static str| {
            accepts_brotli(&HeaderMap::from_iter([(
                header::ACCEPT_ENCODING,
                HeaderValue::from_static(value),
            )]))
        };
        assert!(with("gzip, br;q=1.0"));
        assert!(!with("gzip, brx"));
    }

    #[test]
    fn missing_scripts_are_not_answered_with_the_page() {
        let missing = serve(&Method::GET, "/nowhere-1234.js", &HeaderMap::new());
        assert_eq!(missing.status(), StatusCode::NOT_FOUND);
        assert_eq!(serve(&Method::GET, "/apps/default/hello", &HeaderMap::new()).status(), StatusCode::OK);
        assert_eq!(serve(&Method::POST, "/", &HeaderMap::new()).status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
