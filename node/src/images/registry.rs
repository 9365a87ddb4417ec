//! [`Registries`]: images over the OCI distribution protocol, from the built-in registry and any other.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use axum::body::Body;
use bytes::Bytes;
use http::{Extensions, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use ketch_runtime::{Error, ImageSource, Manifest};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tower::ServiceExt;

use super::{
    auth::{self, Challenge},
    reference::{Reference, is_digest},
    transport::Transport,
};

/// Largest manifest accepted (upstream registries' limit).
const MANIFEST_LIMIT: usize = 4 << 20;
/// What is asked for, in order of preference.
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
                      application/vnd.docker.distribution.manifest.v2+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json";
/// A redirect leads from registries to where they keep blobs.
const REDIRECTS: usize = 5;
/// Longest silence of a registry.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a token is used; registries promise at least 60 s.
const TOKEN_LIFE: Duration = Duration::from_secs(55);

/// Marks a request as the node's own.
pub type Identity = Arc<dyn Fn(&mut Extensions) + Send + Sync>;

/// The built-in registry.
#[derive(Clone)]
pub enum LocalRegistry {
    /// In this process; every request is marked by the closure.
    Router(axum::Router, Identity),
    /// At the API server's address, with the node's credentials.
    Client(kube::Client),
}

/// Images from the built-in registry (`ketch.local/…`) and any other (anonymously).
pub struct Registries {
    local: LocalRegistry,
    transport: Transport,
    tokens: Mutex<HashMap<String, (String, Instant)>>,
}

impl Registries {
    /// Images from `local`, and from other registries over HTTPS.
    pub fn new(local: LocalRegistry) -> Self {
        Self { local, transport: Transport::default(), tokens: Mutex::default() }
    }

    /// The answer to a GET of `path` under the reference's repository.
    async fn get(&self, reference: &Reference, path: &str) -> Result<Response<Body>, Error> {
        let path = format!("/v2/{}/{path}", reference.repository);
        let asked = async {
            if reference.is_local() {
                self.get_local(&path).await
            } else {
                self.get_remote(reference, &path).await
            }
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(message)) => Err(Error::Pull(format!("{}: {message}", reference.title()))),
            Err(_) => Err(Error::Pull(format!("{}: the registry did not answer in time", reference.title()))),
        }
    }

    async fn get_local(&self, path: &str) -> Result<Response<Body>, String> {
        let request = |builder: http::request::Builder| builder.uri(path).header(header::ACCEPT, ACCEPT);
        match &self.local {
            LocalRegistry::Router(router, identity) => {
                let mut request =
                    request(Request::builder()).body(Body::empty()).map_err(|error| error.to_string())?;
                identity(request.extensions_mut());
                router.clone().oneshot(request).await.map_err(|never| match never {})
            }
            LocalRegistry::Client(client) => {
                let request = request(Request::builder()).body(kube::client::Body::empty());
                let request = request.map_err(|error| error.to_string())?;
                let response = client.send(request).await.map_err(|error| error.to_string())?;
                Ok(response.map(Body::new))
            }
        }
    }

    async fn get_remote(&self, reference: &Reference, path: &str) -> Result<Response<Body>, String> {
        let (tls, host) = reference.endpoint();
        let url = format!("{}://{host}{path}", if tls { "https" } else { "http" });
        let scope = format!("{host}/{}", reference.repository);
        let response = self.follow(&url, self.token(&scope)).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let Some(challenge) = Challenge::of(response.headers()) else { return Ok(response) };
        let token = self.ask_token(&challenge, &reference.repository, tls).await?;
        self.keep_token(scope, &token);
        self.follow(&url, Some(token)).await
    }

    fn keep_token(&self, scope: String, token: &str) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|_, (_, at)| at.elapsed() < TOKEN_LIFE);
        tokens.insert(scope, (token.to_owned(), Instant::now()));
    }

    fn token(&self, scope: &str) -> Option<String> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(scope).filter(|(_, at)| at.elapsed() < TOKEN_LIFE).map(|(token, _)| token.clone())
    }

    async fn ask_token(&self, challenge: &Challenge, repository: &str, tls: bool) -> Result<String, String> {
        let url = challenge.url(repository);
        if tls && !url.starts_with("https://") {
            return Err(format!("the registry sends for a token to {url}, which is not HTTPS"));
        }
        let response = self.follow(&url, None).await?;
        let status = response.status();
        let body = read(response, MANIFEST_LIMIT).await?;
        if !status.is_success() {
            return Err(format!("no token for {repository}: {} answered {status}", challenge.realm));
        }
        auth::token(&body).ok_or_else(|| format!("no token for {repository}: {} sent none", challenge.realm))
    }

    /// GET with redirects; a token is not shown to another host.
    async fn follow(&self, url: &str, token: Option<String>) -> Result<Response<Body>, String> {
        let mut url = url::Url::parse(url).map_err(|error| format!("{url}: {error}"))?;
        let mut token = token;
        for _ in 0..REDIRECTS {
            let mut request = Request::get(url.as_str()).header(header::ACCEPT, ACCEPT);
            if let Some(token) = &token {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let request = request.body(Body::empty()).map_err(|error| error.to_string())?;
            let response = self.transport.send(&url, request).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let next =
                location.and_then(|location| url.join(location).ok()).ok_or("a redirect without a target")?;
            if url.scheme() == "https" && next.scheme() != "https" {
                return Err(format!("a redirect from HTTPS to {next}"));
            }
            if next.host_str() != url.host_str() {
                token = None;
            }
            url = next;
        }
        Err("too many redirects".to_owned())
    }

    async fn fetch_manifest(&self, reference: &Reference, version: &str) -> Result<Manifest, Error> {
        let response = self.get(reference, &format!("manifests/{version}")).await?;
        let status = response.status();
        if !status.is_success() {
            return Err(refused(reference, status));
        }
        let pull = |message: String| Error::Pull(format!("{}: {message}", reference.title()));
        let bytes = read(response, MANIFEST_LIMIT).await.map_err(pull)?;
        let digest = hex_digest(&Sha256::digest(&bytes));
        if is_digest(version) && version != digest {
            return Err(pull(format!("the registry sent a manifest with digest {digest}")));
        }
        Ok(Manifest { digest, bytes })
    }
}

#[async_trait]
impl ImageSource for Registries {
    async fn manifest(&self, reference: &str) -> Result<Manifest, Error> {
        let reference = Reference::parse(reference)?;
        let manifest = self.fetch_manifest(&reference, &reference.version).await?;
        match platform(&manifest.bytes) {
            None => Ok(manifest),
            Some(Some(digest)) => self.fetch_manifest(&reference, &digest).await,
            Some(None) => {
                let text = format!(
                    "{}: the image has no variant for Wasm or linux/{}",
                    reference.title(),
                    crate::host::architecture()
                );
                Err(Error::Image(text))
            }
        }
    }

    async fn blob(&self, reference: &str, digest: &str, size: u64, path: &Path) -> Result<(), Error> {
        let reference = Reference::parse(reference)?;
        if !is_digest(digest) {
            return Err(Error::Image(format!("{}: {digest:?} is no sha256 digest", reference.title())));
        }
        let response = self.get(&reference, &format!("blobs/{digest}")).await?;
        if !response.status().is_success() {
            return Err(refused(&reference, response.status()));
        }
        let result = save(response.into_body(), digest, size, path).await;
        if result.is_err() {
            let _ = tokio::fs::remove_file(path).await;
        }
        result.map_err(|message| Error::Pull(format!("{}: blob {digest}: {message}", reference.title())))
    }
}

/// Why a registry's answer is no image, and what to do.
fn refused(reference: &Reference, status: StatusCode) -> Error {
    let title = reference.title();
    let text = match status {
        StatusCode::NOT_FOUND if reference.is_local() => format!(
            "manifest unknown: {title}: nothing was pushed under this name; push it first with \
             `ketch deploy FILE.wasm` or any OCI client"
        ),
        StatusCode::NOT_FOUND => {
            format!("manifest unknown: {title}: the registry has no such image; check name and tag")
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            format!("{title}: access denied ({status}); the image does not exist or is not public")
        }
        StatusCode::TOO_MANY_REQUESTS => {
            format!("{title}: the registry limits requests ({status}); it is tried again later")
        }
        _ => format!("{title}: the registry answered {status}"),
    };
    Error::Pull(text)
}

/// For an index, the digest of the variant that can run here, Wasm first; `None` when it is no index.
fn platform(manifest: &[u8]) -> Option<Option<String>> {
    let index: serde_json::Value = serde_json::from_slice(manifest).ok()?;
    let entries = index.get("manifests")?.as_array()?;
    let text = |entry: &serde_json::Value, pointer: &str| {
        entry.pointer(pointer).and_then(|value| value.as_str()).unwrap_or_default().to_owned()
    };
    let is_wasm = |entry: &&serde_json::Value| text(entry, "/platform/architecture") == "wasm";
    let is_native = |entry: &&serde_json::Value| {
        text(entry, "/platform/architecture") == crate::host::architecture()
            && text(entry, "/platform/os") == "linux"
    };
    let chosen = entries.iter().find(is_wasm).or_else(|| entries.iter().find(is_native));
    Some(chosen.map(|entry| text(entry, "/digest")).filter(|digest| is_digest(digest)))
}

async fn read(response: Response<Body>, limit: usize) -> Result<Bytes, String> {
    let body = Limited::new(response.into_body(), limit).collect().await;
    body.map(http_body_util::Collected::to_bytes).map_err(|error| error.to_string())
}

fn hex_digest(hash: &[u8]) -> String {
    hash.iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// Writes a body to `path`, checked as it goes.
async fn save(mut body: Body, digest: &str, size: u64, path: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut file = tokio::fs::File::create(path).await.map_err(failed)?;
    let (mut hash, mut written) = (Sha256::new(), 0_u64);
    loop {
        let frame = tokio::time::timeout(PATIENCE, body.frame()).await;
        let Some(frame) = frame.map_err(|_| "the registry went silent".to_owned())? else { break };
        let Ok(data) = frame.map_err(|error| error.to_string())?.into_data() else { continue };
        written += data.len() as u64;
        if written > size {
            return Err(format!("it is larger than the {size} bytes its manifest says"));
        }
        hash.update(&data);
        file.write_all(&data).await.map_err(failed)?;
    }
    let found = hex_digest(&hash.finalize());
    if written != size {
        return Err(format!("it has {written} bytes, its manifest says {size}"));
    }
    if found != digest {
        return Err(format!("its content has digest {found}"));
    }
    file.flush().await.map_err(failed)
}

#[cfg(test)]
mod tests {
    use axum::{extract::Path as Segments, routing::get};

    use super::*;

    fn registry() -> Registries {
        let blob = |Segments(digest): Segments<String>| async move {
            if digest.ends_with('0') { Err(StatusCode::NOT_FOUND) } else { Ok("hello") }
        };
        let manifest = |Segments(version): Segments<String>| async move {
            if version == "1" { Ok(r#"{"layers":[]}"#) } else { Err(StatusCode::NOT_FOUND) }
        };
        let router = axum::Router::new()
            .route("/v2/default/web/manifests/{version}", get(manifest))
            .route("/v2/default/web/blobs/{digest}", get(blob));
        let marked = axum::middleware::from_fn(
            |request: axum::extract::Request, next: axum::middleware::Next| async {
                match request.extensions().get::<u8>() {
                    Some(7) => Ok(next.run(request).await),
                    _ => Err(StatusCode::UNAUTHORIZED),
                }
            },
        );
        let identity: Identity = Arc::new(|extensions| {
            extensions.insert(7_u8);
        });
        Registries::new(LocalRegistry::Router(router.layer(marked), identity))
    }

    #[tokio::test]
    async fn the_built_in_registry_is_asked_in_process() {
        let manifest = registry().manifest("ketch.local/default/web:1").await.unwrap();
        assert_eq!(manifest.digest, hex_digest(&Sha256::digest(br#"{"layers":[]}"#)));
        let error = registry().manifest("ketch.local/default/web:2").await.unwrap_err().to_string();
        assert!(error.starts_with("manifest unknown: ketch.local/default/web:2"), "{error}");
        assert!(error.contains("ketch deploy"), "{error}");
    }

    #[tokio::test]
    async fn blobs_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        let digest = hex_digest(&Sha256::digest(b"hello"));
        let reference = "ketch.local/default/web:1";
        registry().blob(reference, &digest, 5, &path).await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"hello");
        for (digest, size, word) in [
            (digest.as_str(), 4, "larger"),
            (&digest, 6, "its manifest says 6"),
            (&format!("sha256:{}", "1".repeat(64)), 5, "digest"),
        ] {
            let error = registry().blob(reference, digest, size, &path).await.unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
            assert!(!path.exists(), "a bad blob is removed");
        }
    }

    #[test]
    fn an_index_gives_the_wasm_variant_first() {
        let (a, b) = (format!("sha256:{}", "a".repeat(64)), format!("sha256:{}", "b".repeat(64)));
        let arch = crate::host::architecture();
        let native = format!(r#"{{"digest":"{a}","platform":{{"os":"linux","architecture":"{arch}"}}}}"#);
        let wasm = format!(r#"{{"digest":"{b}","platform":{{"os":"wasip1","architecture":"wasm"}}}}"#);
        assert_eq!(platform(format!(r#"{{"manifests":[{native},{wasm}]}}"#).as_bytes()), Some(Some(b)));
        assert_eq!(platform(format!(r#"{{"manifests":[{native}]}}"#).as_bytes()), Some(Some(a)));
        assert_eq!(platform(br#"{"manifests":[]}"#), Some(None));
        assert_eq!(platform(br#"{"layers":[]}"#), None);
    }
}
