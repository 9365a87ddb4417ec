//! Asking the server: requests to its own endpoints, and what their failures mean.

use std::{fmt, str::FromStr, time::Duration};

use http::{Method, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use ketch_api::join::{CLUSTER_PATH, Cluster};
use ketch_client::secure;
use kube::client::Body;
use serde::{Serialize, de::DeserializeOwned};

use super::JoinError;

/// Longest answer.
const MAX_ANSWER: usize = 256 * 1024;

/// Between questions to a server that is starting.
const STARTING: Duration = Duration::from_millis(200);

/// Where a server is: `https://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAddress(Uri);

impl ServerAddress {
    /// As the base of requests.
    pub fn uri(&self) -> &Uri {
        &self.0
    }

    /// Name or address, without brackets.
    pub fn host(&self) -> &str {
        self.0.host().unwrap_or_default().trim_matches(['[', ']'])
    }

    /// Port of the API.
    pub fn port(&self) -> u16 {
        self.0.port_u16().unwrap_or(443)
    }
}

impl FromStr for ServerAddress {
    type Err = JoinError;

    fn from_str(text: &str) -> Result<Self, JoinError> {
        let wrong = || JoinError::Address(text.to_owned());
        let uri: Uri = text.trim_end_matches('/').parse().map_err(|_| wrong())?;
        let plain = uri.scheme_str() == Some("https")
            && uri.host().is_some_and(|host| !host.is_empty())
            && matches!(uri.path(), "" | "/")
            && uri.query().is_none();
        if plain { Ok(Self(uri)) } else { Err(wrong()) }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.0.authority().map_or("", |authority| authority.as_str()))
    }
}

/// What went wrong with a request.
#[derive(Debug)]
pub(super) enum Fault {
    Connection(secure::Failure),
    Status(StatusCode, String),
    Unreadable(String),
}

/// Sends `body` to `path`, with a bearer token if there is one.
pub(super) async fn ask<T: DeserializeOwned>(
    client: &kube::Client,
    method: Method,
    path: &str,
    token: Option<&str>,
    body: &impl Serialize,
) -> Result<T, Fault> {
    let unreadable = |why: &dyn fmt::Display| Fault::Unreadable(why.to_string());
    let mut request =
        http::Request::builder().method(method).uri(path).header("content-type", "application/json");
    if let Some(token) = token {
        request = request.header(http::header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let body = serde_json::to_vec(body).map_err(|error| unreadable(&error))?;
    let request = request.body(Body::from(body)).map_err(|error| unreadable(&error))?;
    let response = client.send(request).await.map_err(|error| Fault::Connection(secure::explain(&error)))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|error| unreadable(&error))?.to_bytes();
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(|error| unreadable(&error));
    }
    let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = answer.get("message").and_then(serde_json::Value::as_str);
    Err(Fault::Status(status, message.map_or_else(|| status.to_string(), str::to_owned)))
}

impl Fault {
    /// What it means for a node that showed its certificate.
    pub(super) fn of_member(self, server: &ServerAddress) -> JoinError {
        match self {
            Self::Status(status, message) if matches!(status.as_u16(), 401 | 403) => {
                JoinError::Refused(message)
            }
            Self::Status(_, message) | Self::Unreadable(message) => {
                JoinError::Answer(server.clone(), message)
            }
            Self::Connection(failure) => JoinError::of(failure, server),
        }
    }
}

/// How the cluster is set up. A server that is starting is waited for.
pub(super) async fn cluster(client: &kube::Client, server: &ServerAddress) -> Result<Cluster, JoinError> {
    loop {
        match ask(client, Method::GET, CLUSTER_PATH, None, &()).await {
            Err(Fault::Status(StatusCode::SERVICE_UNAVAILABLE, _)) => tokio::time::sleep(STARTING).await,
            answer => return answer.map_err(|fault| fault.of_member(server)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_https_with_a_host() {
        for (text, shown, host, port) in [
            ("https://box.example:6443", "https://box.example:6443", "box.example", 6443),
            ("https://10.0.0.1:6443/", "https://10.0.0.1:6443", "10.0.0.1", 6443),
            ("https://[::1]:1", "https://[::1]:1", "::1", 1),
            ("https://box.example", "https://box.example", "box.example", 443),
        ] {
            let address: ServerAddress = text.parse().unwrap();
            assert_eq!((address.to_string().as_str(), address.host(), address.port()), (shown, host, port));
        }
        for text in ["", "box.example:6443", "http://box.example", "https://", "https://a/b", "https://a?b"] {
            let error = text.parse::<ServerAddress>().unwrap_err().to_string();
            assert!(error.contains("https://HOST:6443"), "{text}: {error}");
        }
    }
}
