//! `/console/invoke/{namespace}/{name}/{path}`: calls a Function through the gateway, so that the page
//! can show the answer of what lives on another origin.

use std::{net::SocketAddr, time::Instant};

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, Request, Response, Uri, header},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use ketch_api::Status;

/// Headers that belong to the console's own request.
const OWN_HEADERS: &[&str] = &["cookie", "authorization", "x-ketch-console", "origin", "referer"];

/// Calls Functions through one gateway.
#[derive(Clone)]
pub(crate) struct Invoker {
    client: Client<HttpConnector, Body>,
}

impl Invoker {
    pub(crate) fn new() -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http() }
    }

    /// Forwards `request` to Function `namespace/name` and adds `x-ketch-duration-ms`.
    pub(crate) async fn call(
        &self,
        gateway: SocketAddr,
        (namespace, name, path): (&str, &str, &str),
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
        let target = format!("http://{gateway}/{path}{query}");
        *request.uri_mut() =
            target.parse::<Uri>().map_err(|_| Status::bad_request("the path is not a URL path"))?;
        let host = format!("{name}.{namespace}.localhost:{}", gateway.port());
        let headers = request.headers_mut();
        OWN_HEADERS.iter().for_each(|name| {
            headers.remove(*name);
        });
        headers.insert(header::HOST, HeaderValue::from_str(&host).map_err(Status::internal)?);
        let start = Instant::now();
        let response = self.client.request(request).await;
        let mut response =
            response.map_err(|e| Status::unavailable(format!("the gateway does not answer: {e}")))?;
        let headers = response.headers_mut();
        // What a function returns must never act as the console: no cookies, no page with its origin.
        headers.remove(header::SET_COOKIE);
        headers
            .insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox; default-src 'none'"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        let duration = HeaderValue::from(u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX));
        headers.insert(HeaderName::from_static("x-ketch-duration-ms"), duration);
        Ok(response.map(Body::new))
    }
}
