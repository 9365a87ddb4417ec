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
    PodImages, Wanted,
    auth::{self, Bearer, Challenge},
    hosts::{self, Endpoint, RegistryHosts},
    keyring::Credential,
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
/// How long a mirror may take to answer before the next one is asked.
const MIRROR_PATIENCE: Duration = Duration::from_secs(5);
const SILENT: &str = "the registry did not answer in time";
/// Most bytes of an error that are read, and most characters of it that are shown.
const WORDS_LIMIT: usize = 64 << 10;
const WORDS: usize = 200;
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

/// Images from the built-in registry (`ketch.local/…`) and any other.
#[derive(Clone)]
pub struct Registries {
    shared: Arc<Shared>,
    wanted: Wanted,
}

struct Shared {
    local: LocalRegistry,
    hosts: RegistryHosts,
    transport: Transport,
    /// What was accepted last, by place and credential.
    authorizations: Mutex<HashMap<String, (String, Instant)>>,
}

impl Registries {
    /// Images from `local`, and from other registries as `hosts` says, over HTTPS where it says nothing.
    pub fn new(local: LocalRegistry, hosts: RegistryHosts) -> Self {
        let shared =
            Shared { local, hosts, transport: Transport::default(), authorizations: Mutex::default() };
        Self { shared: Arc::new(shared), wanted: Wanted::default() }
    }

    /// The answer to a GET of `path` under the reference's repository.
    async fn get(&self, reference: &Reference, path: &str) -> Result<Response<Body>, Error> {
        let path = format!("/v2/{}/{path}", reference.repository);
        let asked = match reference.is_local() {
            true => self.get_local(&path).await,
            false => self.get_remote(reference, &path).await,
        };
        asked.map_err(|message| Error::Pull(format!("{}: {message}", reference.title())))
    }

    async fn get_local(&self, path: &str) -> Result<Response<Body>, String> {
        let request = |builder: http::request::Builder| builder.uri(path).header(header::ACCEPT, ACCEPT);
        let asked = async {
            match &self.shared.local {
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
        };
        tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(SILENT.to_owned()))
    }

    /// Asks the registry's mirrors, then itself: what it says counts.
    async fn get_remote(&self, reference: &Reference, path: &str) -> Result<Response<Body>, String> {
        let endpoints = hosts::endpoints(&self.shared.hosts, &reference.host)?;
        let Some((registry, mirrors)) = endpoints.split_last() else { return Err(SILENT.to_owned()) };
        for mirror in mirrors {
            let asked = tokio::time::timeout(MIRROR_PATIENCE, self.ask(mirror, reference, path)).await;
            let why = match asked {
                Ok(Ok(response)) if response.status().is_success() => return Ok(response),
                Ok(Ok(response)) => response.status().to_string(),
                Ok(Err(error)) => error,
                Err(_) => SILENT.to_owned(),
            };
            tracing::debug!(
                image = reference.title(),
                mirror = mirror.host,
                why,
                "a mirror does not have an image"
            );
        }
        let asked = tokio::time::timeout(PATIENCE, self.ask(registry, reference, path)).await;
        asked.unwrap_or_else(|_| Err(SILENT.to_owned()))
    }

    /// Asks with each credential for the place until one is let in; without any as nobody.
    async fn ask(
        &self,
        place: &Endpoint,
        reference: &Reference,
        path: &str,
    ) -> Result<Response<Body>, String> {
        let url = place.url.join(path).map_err(|error| error.to_string())?;
        let mut credentials: Vec<Option<&Credential>> =
            self.wanted.keyring.of(&place.host, &reference.repository).into_iter().map(Some).collect();
        let last = credentials.pop().unwrap_or_default();
        for credential in credentials {
            match self.ask_as(credential, place, &url, reference).await {
                Ok(response) if !is_denied(response.status()) => return Ok(response),
                _ => {}
            }
        }
        self.ask_as(last, place, &url, reference).await
    }

    async fn ask_as(
        &self,
        credential: Option<&Credential>,
        place: &Endpoint,
        url: &url::Url,
        reference: &Reference,
    ) -> Result<Response<Body>, String> {
        let who = credential.map(Credential::fingerprint).unwrap_or_default();
        let key = format!("{} {} {who}", url.origin().ascii_serialization(), reference.repository);
        let response = self.follow(place, url, self.authorization(&key)).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let authorization = match (Challenge::of(response.headers()), credential) {
            (Some(Challenge::Bearer(bearer)), _) => {
                let token = self.ask_token(&bearer, &reference.repository, place, credential).await?;
                format!("Bearer {token}")
            }
            (Some(Challenge::Basic), Some(credential)) => credential.basic(),
            _ => return Ok(response),
        };
        let answer = self.follow(place, url, Some(authorization.clone())).await?;
        if !is_denied(answer.status()) {
            self.keep_authorization(key, authorization);
        }
        Ok(answer)
    }

    fn keep_authorization(&self, key: String, authorization: String) {
        let mut kept = self.shared.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|_, (_, at)| at.elapsed() < TOKEN_LIFE);
        kept.insert(key, (authorization, Instant::now()));
    }

    fn authorization(&self, key: &str) -> Option<String> {
        let kept = self.shared.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(key).filter(|(_, at)| at.elapsed() < TOKEN_LIFE).map(|(text, _)| text.clone())
    }

    async fn ask_token(
        &self,
        bearer: &Bearer,
        repository: &str,
        place: &Endpoint,
        credential: Option<&Credential>,
    ) -> Result<String, String> {
        let realm = url::Url::parse(&bearer.realm).map_err(|error| format!("{}: {error}", bearer.realm))?;
        if place.url.scheme() == "https" && realm.scheme() != "https" {
            return Err(format!("the registry sends for a token to {realm}, which is not HTTPS"));
        }
        let response = match credential.and_then(|credential| credential.identity.as_ref()) {
            Some(identity) => {
                let request = Request::post(realm.as_str())
                    .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(Body::from(bearer.form(repository, identity)));
                let request = request.map_err(|error| error.to_string())?;
                self.send(place, &realm, request).await?
            }
            None => {
                let url = url::Url::parse(&bearer.url(repository)).map_err(|error| error.to_string())?;
                self.follow(place, &url, credential.map(Credential::basic)).await?
            }
        };
        let status = response.status();
        let body = read(response, MANIFEST_LIMIT).await?;
        if !status.is_success() {
            let words = words(&body);
            return Err(format!(
                "access denied: no token for {repository}: {realm} answered {status}{words}"
            ));
        }
        auth::token(&body).ok_or_else(|| format!("no token for {repository}: {realm} sent none"))
    }

    /// Sends a request to where `place` leads.
    async fn send(
        &self,
        place: &Endpoint,
        url: &url::Url,
        request: Request<Body>,
    ) -> Result<Response<Body>, String> {
        let trusted = hosts::trusted(&self.shared.hosts, &place.host, url);
        self.shared.transport.send(url, trusted, request).await
    }

    /// GET with redirects; an authorization is shown to nobody else.
    async fn follow(
        &self,
        place: &Endpoint,
        url: &url::Url,
        mut authorization: Option<String>,
    ) -> Result<Response<Body>, String> {
        let mut url = url.clone();
        for _ in 0..REDIRECTS {
            let mut request = Request::get(url.as_str()).header(header::ACCEPT, ACCEPT);
            if let Some(authorization) = &authorization {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            let request = request.body(Body::empty()).map_err(|error| error.to_string())?;
            let response = self.send(place, &url, request).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let next =
                location.and_then(|location| url.join(location).ok()).ok_or("a redirect without a target")?;
            if url.scheme() == "https" && next.scheme() != "https" {
                // The rest of such an address can be a key to what it leads to.
                return Err(format!("a redirect from HTTPS to {}", next.origin().ascii_serialization()));
            }
            if next.origin() != url.origin() {
                authorization = None;
            }
            url = next;
        }
        Err("too many redirects".to_owned())
    }

    async fn fetch_manifest(&self, reference: &Reference, version: &str) -> Result<Manifest, Error> {
        let response = self.get(reference, &format!("manifests/{version}")).await?;
        let status = response.status();
        if !status.is_success() {
            return Err(refused(reference, response).await);
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
        match platform(&manifest.bytes, self.wanted.native) {
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
            return Err(refused(&reference, response).await);
        }
        let result = save(response.into_body(), digest, size, path).await;
        if result.is_err() {
            let _ = tokio::fs::remove_file(path).await;
        }
        result.map_err(|message| Error::Pull(format!("{}: blob {digest}: {message}", reference.title())))
    }
}

impl PodImages for Registries {
    fn with(&self, wanted: &Wanted) -> Arc<dyn ImageSource> {
        Arc::new(Self { shared: Arc::clone(&self.shared), wanted: wanted.clone() })
    }
}

fn is_denied(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// Why a registry's answer is no image, in its own words as far as it has some, and what to do.
async fn refused(reference: &Reference, response: Response<Body>) -> Error {
    let (title, status) = (reference.title(), response.status());
    let body = tokio::time::timeout(PATIENCE, read(response, WORDS_LIMIT)).await;
    let words = body.ok().and_then(Result::ok).map(|body| words(&body)).unwrap_or_default();
    let text = match status {
        StatusCode::NOT_FOUND if reference.is_local() => format!(
            "manifest unknown: {title}: nothing was pushed under this name; push it first with \
             `ketch deploy FILE.wasm` or any OCI client"
        ),
        StatusCode::NOT_FOUND => {
            format!("manifest unknown: {title}: the registry has no such image; check name and tag")
        }
        status if is_denied(status) => format!(
            "{title}: access denied ({status}){words}; the image does not exist, or imagePullSecrets have no \
             credentials that may read it"
        ),
        StatusCode::TOO_MANY_REQUESTS => {
            format!("{title}: the registry limits requests ({status}){words}; it is tried again later")
        }
        _ => format!("{title}: the registry answered {status}{words}"),
    };
    Error::Pull(text)
}

/// The messages of a registry's error, after a colon; nothing when there are none.
pub(super) fn words(body: &[u8]) -> String {
    let answer: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let errors = answer.get("errors").and_then(serde_json::Value::as_array).into_iter().flatten();
    let messages: Vec<&str> = errors.filter_map(|error| error.get("message")?.as_str()).collect();
    let details = answer.get("details").and_then(serde_json::Value::as_str);
    let text: String =
        messages.into_iter().chain(details).collect::<Vec<_>>().join("; ").chars().take(WORDS).collect();
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.is_empty() { clean } else { format!(": {clean}") }
}

/// For an index, the digest of the variant that can run here, Wasm first unless `native`; `None` when it is no index.
pub(super) fn platform(manifest: &[u8], native: bool) -> Option<Option<String>> {
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
    let (wasm, other) = (entries.iter().find(is_wasm), entries.iter().find(is_native));
    let chosen = if native { other.or(wasm) } else { wasm.or(other) };
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
        Registries::new(LocalRegistry::Router(router.layer(marked), identity), RegistryHosts::new())
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
    fn a_registrys_words_are_passed_on() {
        let body =
            br#"{"errors":[{"code":"DENIED","message":"requested access to\n the resource is denied"}]}"#;
        assert_eq!(words(body), ": requested access to  the resource is denied");
        assert_eq!(
            words(br#"{"details":"incorrect username or password"}"#),
            ": incorrect username or password"
        );
        assert_eq!(words(b"<html>"), "");
        let long = serde_json::json!({"errors": [{"message": "x".repeat(1000)}]}).to_string();
        assert_eq!(words(long.as_bytes()).len(), WORDS + 2);
    }

    #[test]
    fn an_index_gives_the_wasm_variant_first_unless_the_pod_wants_a_container() {
        let (a, b) = (format!("sha256:{}", "a".repeat(64)), format!("sha256:{}", "b".repeat(64)));
        let arch = crate::host::architecture();
        let native = format!(r#"{{"digest":"{a}","platform":{{"os":"linux","architecture":"{arch}"}}}}"#);
        let wasm = format!(r#"{{"digest":"{b}","platform":{{"os":"wasip1","architecture":"wasm"}}}}"#);
        let both = format!(r#"{{"manifests":[{native},{wasm}]}}"#);
        assert_eq!(platform(both.as_bytes(), false), Some(Some(b)));
        assert_eq!(platform(both.as_bytes(), true), Some(Some(a.clone())), "the runtime class says so");
        assert_eq!(platform(format!(r#"{{"manifests":[{native}]}}"#).as_bytes(), false), Some(Some(a)));
        assert_eq!(platform(br#"{"manifests":[]}"#, false), Some(None));
        assert_eq!(platform(br#"{"layers":[]}"#, true), None);
    }
}
