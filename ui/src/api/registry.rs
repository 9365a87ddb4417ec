//! Pushing a file to the built-in registry, in pieces that can be sent again.

use gloo_net::http::Method;
use js_sys::Uint8Array;
use ketch_api::wasm::Inspection;
use ketch_ui_core::upload::{self, Chunk, MANIFEST_MEDIA_TYPE};
use wasm_bindgen::JsValue;

use super::{Error, Result, failure, request, send, send_any};
use crate::dom;

/// How often a broken piece is sent again before the user is asked.
const RETRIES: u32 = 3;

/// Bytes to push, and where.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    /// `NAMESPACE/NAME`.
    pub repository: String,
    /// All of it.
    pub bytes: Uint8Array,
    /// `sha256:…` of the bytes.
    pub digest: String,
    /// Repository that may have it already; often the same.
    pub known_in: String,
}

/// An upload that was begun: where it goes on. Kept when a connection breaks.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Progress {
    /// Address of the session; empty before it is open.
    pub location: String,
    /// Bytes the server has.
    pub sent: u64,
}

/// Pushes a blob, going on where `progress` stands; `report` hears of every piece. What the registry has
/// already is not sent. After an error the progress is still good for another call.
pub(crate) async fn push(blob: &Blob, progress: &mut Progress, report: impl Fn(u64)) -> Result<()> {
    let mut failures = 0;
    loop {
        match attempt(blob, progress, &report).await {
            Err(e) if e.is_transient() && failures < RETRIES => {
                failures += 1;
                dom::sleep(ketch_ui_core::watch::backoff(failures + 1, 0.5)).await;
            }
            outcome => return outcome,
        }
    }
}

async fn attempt(blob: &Blob, progress: &mut Progress, report: &impl Fn(u64)) -> Result<()> {
    if progress.location.is_empty() || !resume(progress).await? {
        // One question instead of a HEAD and a POST: either the blob is there, or a session is open.
        let path =
            format!("/v2/{}/blobs/uploads/?mount={}&from={}", blob.repository, blob.digest, blob.known_in);
        let response = send(request(Method::POST, &path), None).await?;
        if response.status() == 201 {
            report(u64::from(blob.bytes.length()));
            return Ok(());
        }
        *progress = Progress { location: location(&response)?, sent: 0 };
    }
    report(progress.sent);
    let total = u64::from(blob.bytes.length());
    while let Some(chunk) = Chunk::next(progress.sent, total) {
        send_chunk(blob, chunk, progress).await?;
        report(progress.sent);
    }
    let path = upload::commit(&progress.location, &blob.digest);
    send(request(Method::PUT, &path), None).await.map(drop)
}

/// Asks the server how much of a session arrived; `false` when it no longer knows the session.
async fn resume(progress: &mut Progress) -> Result<bool> {
    let response = send_any(request(Method::GET, &progress.location), None).await?;
    if response.status() == 404 {
        return Ok(false);
    }
    if !response.ok() {
        return Err(failure(response).await);
    }
    let range = response.headers().get("range").unwrap_or_default();
    progress.sent = upload::offset(&range, progress.sent);
    if let Ok(next) = location(&response) {
        progress.location = next;
    }
    Ok(true)
}

async fn send_chunk(blob: &Blob, chunk: Chunk, progress: &mut Progress) -> Result<()> {
    // Blobs beyond 4 GiB do not fit a browser's buffer, so the positions fit 32 bits.
    let piece = blob.bytes.subarray(chunk.start as u32, chunk.end as u32);
    let request = request(Method::PATCH, &progress.location)
        .header("content-type", "application/octet-stream")
        .header("content-range", &chunk.content_range());
    let response = send(request, Some(JsValue::from(piece))).await?;
    progress.location = location(&response)?;
    progress.sent = match response.headers().get("range") {
        Some(range) => upload::offset(&range, chunk.end),
        None => chunk.end,
    };
    Ok(())
}

fn location(response: &gloo_net::http::Response) -> Result<String> {
    let header = response.headers().get("location");
    header
        .map(|l| upload::location(&l))
        .ok_or_else(|| Error::local("The registry did not say where to send the file."))
}

/// What the registry reads off a stored blob or image.
pub(crate) async fn inspect(repository: &str, reference: &str) -> Result<Inspection> {
    let path = format!("/v2/{repository}/_ketch/inspect/{reference}");
    let answer = super::get(&path).await?;
    serde_json::from_value(answer).map_err(|e| Error::local(format!("The inspection cannot be read: {e}.")))
}

/// Makes an image of an inspected blob; its manifest's digest.
pub(crate) async fn tag(repository: &str, inspection: &Inspection, file: &str) -> Result<String> {
    let config = upload::config(inspection, &dom::now().to_string()).to_string();
    let config_bytes = Uint8Array::from(config.as_bytes());
    let config_digest = hash(&config_bytes).await?;
    let blob = Blob {
        repository: repository.to_owned(),
        bytes: config_bytes,
        digest: config_digest.clone(),
        known_in: repository.to_owned(),
    };
    push(&blob, &mut Progress::default(), |_| ()).await?;
    let manifest = upload::manifest(inspection, &config_digest, config.len(), file).to_string();
    let digest = hash(&Uint8Array::from(manifest.as_bytes())).await?;
    let path = format!("/v2/{repository}/manifests/{}", upload::tag(&inspection.digest));
    let request = request(Method::PUT, &path).header("content-type", MANIFEST_MEDIA_TYPE);
    send(request, Some(manifest.into())).await?;
    Ok(digest)
}

/// SHA-256 of bytes, as a digest.
pub(crate) async fn hash(bytes: &Uint8Array) -> Result<String> {
    let message =
        "This browser offers no WebCrypto here. Open the console at 127.0.0.1, localhost or over HTTPS.";
    dom::sha256(bytes).await.ok_or_else(|| Error::local(message))
}
