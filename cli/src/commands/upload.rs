//! A push of one Wasm file to the built-in registry.

use anyhow::{Context, Result, bail};
use ketch_api::wasm::{CONFIG_MEDIA_TYPE, Inspection, LAYER_MEDIA_TYPE};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Cluster, connect::failure};

const MANIFEST_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// A pushed image.
pub(crate) struct Pushed {
    /// `ketch.local/NAMESPACE/NAME@sha256:…`.
    pub(crate) reference: String,
    pub(crate) inspection: Inspection,
}

/// Pushes `wasm` as `namespace/name:tag` in the CNCF layout and reads back what it is.
pub(crate) async fn push(cluster: &Cluster, name: &str, tag: &str, wasm: Vec<u8>) -> Result<Pushed> {
    let repository = format!("{}/{name}", cluster.namespace);
    let (layer, size) = (digest(&wasm), wasm.len());
    blob(cluster, &repository, &layer, wasm).await?;
    let inspection = inspect(cluster, &repository, &layer).await?;
    let config = serde_json::to_vec(&json!({
        "architecture": "wasm", "os": "wasip2", "layerDigests": [layer],
        "component": { "exports": inspection.exports, "imports": inspection.imports },
    }))?;
    let config_digest = digest(&config);
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": MANIFEST_MEDIA_TYPE,
        "config": { "mediaType": CONFIG_MEDIA_TYPE, "digest": config_digest, "size": config.len() },
        "layers": [{ "mediaType": LAYER_MEDIA_TYPE, "digest": layer, "size": size }],
    }))?;
    blob(cluster, &repository, &config_digest, config).await?;
    let reference = format!("ketch.local/{repository}@{}", digest(&manifest));
    let request = http::Request::put(format!("/v2/{repository}/manifests/{tag}"))
        .header("content-type", MANIFEST_MEDIA_TYPE)
        .body(manifest)?;
    accepted(cluster.send(request).await?).context("push the manifest")?;
    Ok(Pushed { reference, inspection })
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

fn accepted(response: http::Response<bytes::Bytes>) -> Result<http::Response<bytes::Bytes>> {
    match response.status().is_success() {
        true => Ok(response),
        false => Err(failure(response.status(), response.body())),
    }
}

async fn blob(cluster: &Cluster, repository: &str, digest: &str, bytes: Vec<u8>) -> Result<()> {
    let head = http::Request::head(format!("/v2/{repository}/blobs/{digest}")).body(Vec::new())?;
    if cluster.send(head).await?.status().is_success() {
        return Ok(());
    }
    let start = http::Request::post(format!("/v2/{repository}/blobs/uploads/")).body(Vec::new())?;
    let started = accepted(cluster.send(start).await?).context("start the upload")?;
    let Some(location) = started.headers().get("location").and_then(|value| value.to_str().ok()) else {
        bail!("the registry did not say where to upload to");
    };
    let separator = if location.contains('?') { '&' } else { '?' };
    let put = http::Request::put(format!("{location}{separator}digest={digest}"))
        .header("content-type", "application/octet-stream")
        .body(bytes)?;
    accepted(cluster.send(put).await?).context("upload")?;
    Ok(())
}

async fn inspect(cluster: &Cluster, repository: &str, digest: &str) -> Result<Inspection> {
    let request = http::Request::get(format!("/v2/{repository}/_ketch/inspect/{digest}")).body(Vec::new())?;
    let response = accepted(cluster.send(request).await?)?;
    serde_json::from_slice(response.body()).context("the registry's report cannot be read")
}
