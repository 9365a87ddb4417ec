//! Finding and talking to the cluster.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use http_body_util::BodyExt;
use kube::client::Body;

use super::Connection;
use crate::options::default_user_dir;

/// One TLS provider for the process; two in one program are a run-time error.
pub(crate) fn install_crypto() {
    // Fails only when one is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// A client and the namespace its commands are about.
pub(crate) struct Cluster {
    pub(crate) client: kube::Client,
    pub(crate) namespace: String,
}

impl Connection {
    /// Connects with the named kubeconfig, `$KUBECONFIG`, or that of a Ketch on this machine.
    pub(crate) async fn open(&self) -> Result<Cluster> {
        let path = self.kubeconfig_path()?;
        let client = ketch_client::from_kubeconfig(&path, self.context.as_deref())
            .await
            .with_context(|| format!("cannot use kubeconfig {}", path.display()))?;
        let namespace = self.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
        Ok(Cluster { client, namespace })
    }

    /// The kubeconfig in use: its path, and what it says of the cluster.
    pub(crate) async fn config(&self) -> Result<(PathBuf, kube::Config)> {
        let path = self.kubeconfig_path()?;
        let config = ketch_client::config_of(&path, self.context.as_deref()).await;
        let config = config.with_context(|| format!("cannot use kubeconfig {}", path.display()))?;
        Ok((path, config))
    }

    fn kubeconfig_path(&self) -> Result<PathBuf> {
        if let Some(path) = &self.kubeconfig {
            return Ok(path.clone());
        }
        if let Some(path) = std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty()) {
            return Ok(path.into());
        }
        local_kubeconfig(self.data_dir.clone()).ok_or_else(|| {
            anyhow!("no cluster found: start one with `ketch up`, or name a kubeconfig with --kubeconfig")
        })
    }
}

/// The administrator's kubeconfig of a Ketch on this machine.
pub(crate) fn local_kubeconfig(data_dir: Option<PathBuf>) -> Option<PathBuf> {
    let dirs = match data_dir {
        Some(dir) => vec![dir],
        None => std::iter::once(PathBuf::from("/var/lib/ketch")).chain(default_user_dir().ok()).collect(),
    };
    dirs.into_iter().map(|dir| dir.join("admin.kubeconfig")).find(|path| std::fs::File::open(path).is_ok())
}

impl Cluster {
    /// Sends a request and reads the whole answer. A failure is the server's own `Status` text.
    pub(crate) async fn send(&self, request: http::Request<Vec<u8>>) -> Result<http::Response<Bytes>> {
        let path = request.uri().path().to_owned();
        let response = self.client.send(request.map(Body::from)).await.map_err(|e| unreachable(&e))?;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.with_context(|| format!("read the answer to {path}"))?.to_bytes();
        if parts.status.is_success() || parts.status == http::StatusCode::NOT_FOUND {
            return Ok(http::Response::from_parts(parts, bytes));
        }
        Err(failure(parts.status, &bytes))
    }

    /// `GET`, as JSON; `None` when there is no such thing.
    pub(crate) async fn get(&self, path: &str) -> Result<Option<serde_json::Value>> {
        let request = http::Request::get(path).header("accept", "application/json").body(Vec::new())?;
        let response = self.send(request).await?;
        if response.status() == http::StatusCode::NOT_FOUND {
            return Ok(None);
        }
        Ok(Some(
            serde_json::from_slice(response.body())
                .with_context(|| format!("the answer to {path} is not JSON"))?,
        ))
    }
}

/// The server's words for a failed answer.
pub(crate) fn failure(status: http::StatusCode, body: &[u8]) -> anyhow::Error {
    let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let message = json.as_ref().and_then(|json| {
        json.get("message").or_else(|| json.pointer("/errors/0/message")).and_then(serde_json::Value::as_str)
    });
    match message {
        Some(message) => anyhow!("{message}"),
        None => anyhow!("the server answered {status}: {}", String::from_utf8_lossy(body).trim()),
    }
}

fn unreachable(error: &kube::Error) -> anyhow::Error {
    let text = ketch_client::status_text(error);
    anyhow!("{text}")
}
