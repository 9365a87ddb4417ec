//! Which part of the server answers a path: the API, the registry, or the console.

use std::sync::Arc;

use axum::{Router, body::Body};
use http::{HeaderMap, Request, Response, header};
use tower::ServiceExt;

use crate::{
    console::{Console, assets},
    images::Images,
    join::Joins,
};

/// In the extensions of requests that came over TLS.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tls;

/// First segments of paths that the API server answers.
const API: &[&str] =
    &["api", "apis", "openapi", "version", "livez", "readyz", "healthz", "metrics", ".well-known"];

/// The parts behind every listener.
#[derive(Clone)]
pub(crate) struct Front {
    pub(crate) api: Router,
    pub(crate) images: Images,
    pub(crate) console: Console,
    pub(crate) joins: Arc<Joins>,
}

impl Front {
    /// A router over all parts. `tls`: whether the listener speaks TLS.
    pub(crate) fn router(self, tls: bool) -> Router {
        Router::new().fallback(move |mut request: axum::extract::Request| {
            if tls {
                request.extensions_mut().insert(Tls);
            }
            self.clone().serve(request)
        })
    }

    async fn serve(self, request: Request<Body>) -> Response<Body> {
        let path = request.uri().path();
        let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        match first {
            "v2" => self.images.serve(request).await,
            "ketch" => self.joins.serve(request).await,
            "console" => self.console.serve(request).await,
            first if API.contains(&first) || (first.is_empty() && !is_browser(request.headers())) => {
                let Ok(response) = self.api.oneshot(request).await;
                response
            }
            _ if path.starts_with("/openid/") => {
                let Ok(response) = self.api.oneshot(request).await;
                response
            }
            _ => assets::serve(request.method(), path, request.headers()),
        }
    }
}

fn is_browser(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.contains("text/html"))
}
