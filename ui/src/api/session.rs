//! Logging in and out.

use gloo_net::http::Method;
use ketch_ui_core::object::text;

use super::{Result, get, request, send};

/// Who is logged in, and where.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Session {
    /// User name.
    pub user: String,
    /// Version of the server.
    pub version: String,
    /// `host:port` that apps answer on.
    pub gateway: String,
}

/// The current session; 401 without one.
pub(crate) async fn current() -> Result<Session> {
    let answer = get("/console/session").await?;
    let field = |name: &str| text(&answer, name).to_owned();
    Ok(Session { user: field("/user"), version: field("/version"), gateway: field("/gateway") })
}

/// Exchanges a token for the session cookie.
pub(crate) async fn login(token: &str) -> Result<()> {
    let body = serde_json::json!({ "token": token }).to_string();
    let request = request(Method::POST, "/console/login").header("content-type", "application/json");
    send(request, Some(body.into())).await.map(drop)
}

/// Ends the session.
pub(crate) async fn logout() -> Result<()> {
    send(request(Method::POST, "/console/logout"), None).await.map(drop)
}
