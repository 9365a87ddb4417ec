//! `/livez`, `/readyz`, `/healthz`.

use axum::response::Response;
use http::request::Parts;

use crate::{respond, route::query::Query, server::ApiServer};

/// Answers a health path, `/NAME` or `/NAME/CHECK`; `None` for other paths.
pub(crate) async fn handle(server: &ApiServer, parts: &Parts, path: &str) -> Option<Response> {
    let (endpoint, only) = path.strip_prefix('/')?.split_once('/').unwrap_or((path.strip_prefix('/')?, ""));
    if !matches!(endpoint, "livez" | "readyz" | "healthz") {
        return None;
    }
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let excluded = |name: &str| query.all("exclude").any(|other| other == name);
    let mut checks = checks(server, endpoint == "readyz").await;
    checks.retain(|(name, _)| (only.is_empty() || *name == only) && !excluded(name));
    if checks.is_empty() && !only.is_empty() {
        return Some(respond::text(404, "404 page not found\n"));
    }
    let failed = checks.iter().any(|(_, result)| result.is_err());
    if !failed && !query.flag("verbose") {
        return Some(respond::text(200, "ok"));
    }
    let mut text = checks.iter().fold(String::new(), |text, (name, result)| match result {
        Ok(()) => format!("{text}[+]{name} ok\n"),
        Err(why) => format!("{text}[-]{name} failed: {why}\n"),
    });
    let outcome = if failed { "failed" } else { "passed" };
    text.push_str(&format!("{endpoint} check {outcome}\n"));
    Some(respond::text(if failed { 500 } else { 200 }, text))
}

async fn checks(server: &ApiServer, ready: bool) -> Vec<(&'static str, Result<(), &'static str>)> {
    let storage = server.storage.revision().await;
    let mut checks =
        vec![("ping", Ok(())), ("storage", storage.map(|_| ()).map_err(|_| "the store does not answer"))];
    if ready {
        let stopping = server.stopping.is_cancelled();
        checks.push(("shutdown", if stopping { Err("the server is shutting down") } else { Ok(()) }));
    }
    checks
}
