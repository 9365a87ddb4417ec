//! Serves one request: finds its target, picks an endpoint, tries another when the first did not take it.

pub(crate) mod headers;
mod replay;
mod respond;
pub(crate) mod upstream;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use ketch_runtime::{Body, HttpError};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    headers::Origin,
    replay::Replay,
    respond::Fault,
    upstream::{Guarded, Upstreams},
};
use crate::{
    LocalServices,
    routes::{Endpoint, RouteTable, Routes, Target},
};

/// How long after a refusal endpoints are tried again while a request is held.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// What an in-process service gets on top of its own time-out before the gateway gives up on it.
const LOCAL_SLACK: Duration = Duration::from_secs(2);

/// Serves requests by the table in force.
pub(crate) struct Proxy {
    pub(crate) routes: Routes,
    pub(crate) local: Arc<dyn LocalServices>,
    pub(crate) upstreams: Upstreams,
    /// How long a request waits for a pod.
    pub(crate) hold: Duration,
    pub(crate) tasks: TaskTracker,
    pub(crate) kill: CancellationToken,
}

/// A request on its way, ready to be sent more than once.
struct Outgoing {
    parts: http::request::Parts,
    host: String,
    path: String,
    body: Replay,
    upgrade: Option<(HeaderValue, OnUpgrade)>,
}

/// Where to go next.
enum Next {
    /// An endpoint, and what it is an endpoint of.
    Try(Endpoint, String),
    /// A pod is missing that should be there soon.
    Hold(Fault),
    /// Nothing to be done.
    Fail(Fault),
}

/// How an attempt failed.
enum Failed {
    /// The endpoint did not take the request; another may.
    Refused(Fault),
    /// So, but because it is busy: waiting would add to its load.
    Busy(Fault),
    /// For good.
    Final(Fault),
}

impl Proxy {
    /// Answers a request.
    pub(crate) async fn serve(&self, mut request: Request<Body>, origin: Origin) -> Response<Body> {
        let asked = request.headers().clone();
        let upgrade = headers::upgrade_of(&asked).map(|value| (value, hyper::upgrade::on(&mut request)));
        let result = match outgoing(request, upgrade, origin) {
            Ok(outgoing) => self.deliver(outgoing).await,
            Err(fault) => Err(fault),
        };
        result.unwrap_or_else(|fault| fault.into_response(&asked))
    }

    async fn deliver(&self, mut outgoing: Outgoing) -> Result<Response<Body>, Fault> {
        let deadline = Instant::now() + self.hold;
        let mut changes = self.routes.changes();
        let mut tried = Vec::new();
        let mut last = None;
        loop {
            // Marked as seen before the table is read, so that a change after it wakes the wait below.
            changes.borrow_and_update();
            let table = self.routes.current();
            let fault = match next(&table, &outgoing, &tried) {
                Next::Fail(fault) => return Err(last.unwrap_or(fault)),
                Next::Hold(fault) => fault,
                Next::Try(endpoint, what) => match self.attempt(&endpoint, &what, &mut outgoing).await {
                    Ok(response) => return Ok(response),
                    Err(Failed::Final(fault)) => return Err(fault),
                    Err(Failed::Busy(fault) | Failed::Refused(fault)) if outgoing.body.is_consumed() => {
                        return Err(fault);
                    }
                    Err(Failed::Refused(fault)) => {
                        tried.push(endpoint.address);
                        last = Some(fault);
                        continue;
                    }
                    Err(Failed::Busy(fault)) => {
                        tried.push(endpoint.address);
                        if !has_untried(&table, &outgoing, &tried) {
                            return Err(fault);
                        }
                        continue;
                    }
                },
            };
            let now = Instant::now();
            if now >= deadline {
                return Err(last.unwrap_or(fault));
            }
            let until = if tried.is_empty() { deadline } else { deadline.min(now + RETRY_PAUSE) };
            // Either way the loop looks again.
            let _ = tokio::time::timeout_at(until, changes.changed()).await;
            tried.clear();
        }
    }

    async fn attempt(
        &self,
        endpoint: &Endpoint,
        what: &str,
        outgoing: &mut Outgoing,
    ) -> Result<Response<Body>, Failed> {
        let in_flight = endpoint.load.enter();
        if let Some(service) = self.local.by_address(endpoint.address) {
            let call = service.call(outgoing.request(false));
            let answered = tokio::time::timeout(endpoint.timeout + LOCAL_SLACK, call).await;
            let mut response = match answered.unwrap_or(Err(HttpError::Timeout(endpoint.timeout))) {
                Ok(response) => response,
                Err(error) => return Err(local_failure(what, &error)),
            };
            headers::strip(response.headers_mut());
            return Ok(response.map(|body| Guarded::wrap(body, in_flight)));
        }
        let sent = self.upstreams.send(endpoint, outgoing.request(true));
        let mut response = match tokio::time::timeout(endpoint.timeout, sent).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(remote_failure(what, &error, outgoing)),
            Err(_) => return Err(Failed::Final(Fault::of(what, &HttpError::Timeout(endpoint.timeout)))),
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return match outgoing.upgrade.take() {
                Some((_, client)) => {
                    let upstream = hyper::upgrade::on(&mut response);
                    upstream::tunnel(&self.tasks, self.kill.clone(), client, upstream, in_flight);
                    Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
                }
                None => {
                    let text = format!("{what} switched protocols without being asked");
                    Err(Failed::Final(Fault::new(StatusCode::BAD_GATEWAY, text)))
                }
            };
        }
        headers::strip(response.headers_mut());
        Ok(response.map(|body| Guarded::wrap(body.map_err(Into::into).boxed_unsync(), in_flight)))
    }
}

impl Outgoing {
    /// The request for one attempt.
    fn request(&self, may_upgrade: bool) -> Request<Body> {
        let mut request = Request::new(self.body.body());
        self.parts.method.clone_into(request.method_mut());
        self.parts.uri.clone_into(request.uri_mut());
        self.parts.headers.clone_into(request.headers_mut());
        if let Some((protocol, _)) = self.upgrade.as_ref().filter(|_| may_upgrade) {
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            request.headers_mut().insert(header::UPGRADE, protocol.clone());
        }
        request
    }
}

/// Checks a request and puts it in the form it is sent on in: path only, `Host`, forwarding headers.
fn outgoing(
    request: Request<Body>,
    upgrade: Option<(HeaderValue, OnUpgrade)>,
    origin: Origin,
) -> Result<Outgoing, Fault> {
    let (mut parts, body) = request.into_parts();
    if parts.method == Method::CONNECT {
        return Err(Fault::new(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not served here"));
    }
    let host = match parts.uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => one_host(&parts.headers),
    };
    let text = host.as_ref().and_then(|h| h.to_str().ok()).map(str::to_owned).filter(|h| !h.is_empty());
    let (Some(host), Some(text)) = (host, text) else {
        return Err(Fault::new(StatusCode::BAD_REQUEST, "the request needs exactly one Host header"));
    };
    if text.contains(['/', '@', ' ']) {
        return Err(Fault::new(StatusCode::BAD_REQUEST, "the Host header is malformed"));
    }
    headers::forward(&mut parts.headers, &host, origin);
    let path = parts.uri.path().to_owned();
    let target = parts.uri.path_and_query().cloned();
    parts.uri = target.map(Uri::from).unwrap_or_default();
    Ok(Outgoing { parts, host: text, path, body: Replay::new(body), upgrade })
}

fn one_host(headers: &http::HeaderMap) -> Option<HeaderValue> {
    let mut all = headers.get_all(header::HOST).iter();
    let first = all.next()?;
    all.next().is_none().then(|| first.clone())
}

fn next(table: &RouteTable, outgoing: &Outgoing, tried: &[SocketAddr]) -> Next {
    if !table.is_complete() {
        return Next::Fail(Fault::unavailable("the gateway has not read its routes yet"));
    }
    match table.find(&outgoing.host, &outgoing.path) {
        None => Next::Fail(not_found(table, outgoing)),
        Some(Target::Broken(why)) => Next::Fail(Fault::new(StatusCode::SERVICE_UNAVAILABLE, why)),
        Some(Target::Service(name, backend)) => match backend.pick(tried) {
            Some(endpoint) => Next::Try(endpoint.clone(), name.clone()),
            None => Next::Fail(Fault::unavailable(format!("{name} has no ready endpoints"))),
        },
        Some(Target::Function(function)) => {
            let name = format!("function {}/{}", function.namespace, function.name);
            if function.shares.is_empty() {
                let text = format!("{name} has no ready revision: {}", function.reason);
                return Next::Fail(Fault::unavailable(text));
            }
            match function.pick(tried) {
                Some(endpoint) => Next::Try(endpoint.clone(), name),
                None => Next::Hold(Fault::unavailable(format!("{name} has no ready pod"))),
            }
        }
    }
}

fn has_untried(table: &RouteTable, outgoing: &Outgoing, tried: &[SocketAddr]) -> bool {
    matches!(next(table, outgoing, tried), Next::Try(..))
}

fn not_found(table: &RouteTable, outgoing: &Outgoing) -> Fault {
    let text = match table.function_of_host(&outgoing.host) {
        Some((namespace, name)) => format!("there is no function {name} in namespace {namespace}"),
        None => format!("no function or ingress answers for {}{}", outgoing.host, outgoing.path),
    };
    Fault::new(StatusCode::NOT_FOUND, text)
}

fn local_failure(what: &str, error: &HttpError) -> Failed {
    let fault = Fault::of(what, error);
    match error {
        HttpError::NotRunning => Failed::Refused(fault),
        HttpError::Overloaded => Failed::Busy(fault),
        HttpError::Failed(_) | HttpError::Timeout(_) => Failed::Final(fault),
    }
}

fn remote_failure(what: &str, error: &hyper_util::client::legacy::Error, outgoing: &Outgoing) -> Failed {
    let text = format!("{what} could not be reached: {}", upstream::cause(error));
    if error.is_connect() {
        return Failed::Refused(Fault::unavailable(text));
    }
    let safe = matches!(outgoing.parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
    let fault = Fault::new(StatusCode::BAD_GATEWAY, text);
    if safe && upstream::is_hang_up(error) { Failed::Refused(fault) } else { Failed::Final(fault) }
}
