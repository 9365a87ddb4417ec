//! Upstreams over TCP: pooled connections, and connections that become tunnels.

use std::{
    error::Error as _,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, Error, connect::HttpConnector},
    rt::{TokioIo, TokioTimer},
};
use ketch_runtime::Body;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    routes::{Endpoint, InFlight},
    server::Tasks,
};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an idle connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Idle connections kept per endpoint.
const IDLE_MAX: usize = 64;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Connections to endpoints.
pub(crate) struct Upstreams {
    h1: Client<HttpConnector, Body>,
    h2: Client<HttpConnector, Body>,
}

impl Upstreams {
    pub(crate) fn new(tasks: &TaskTracker) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let client = |h2: bool| {
            let mut builder = Client::builder(Tasks(tasks.clone()));
            builder.pool_timer(TokioTimer::new()).timer(TokioTimer::new());
            builder.pool_idle_timeout(IDLE_TIMEOUT).pool_max_idle_per_host(IDLE_MAX);
            builder.set_host(false).http2_only(h2);
            builder.build(connector.clone())
        };
        Self { h1: client(false), h2: client(true) }
    }

    /// Sends a request, whose URI has only a path, to an endpoint.
    pub(crate) async fn send(
        &self,
        endpoint: &Endpoint,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, Error> {
        let path = request.uri().path_and_query().cloned();
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(http::uri::Scheme::HTTP);
        parts.authority = endpoint.address.to_string().parse().ok();
        parts.path_and_query = path.or_else(|| Some(http::uri::PathAndQuery::from_static("/")));
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
        if endpoint.h2c {
            *request.version_mut() = http::Version::HTTP_2;
            return self.h2.request(request).await;
        }
        *request.version_mut() = http::Version::HTTP_11;
        self.h1.request(request).await
    }
}

/// Whether the other side closed the connection before it answered: for a request that changes nothing,
/// another try is safe.
pub(crate) fn is_hang_up(error: &Error) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<hyper::Error>()
            && (error.is_incomplete_message() || error.is_closed() || error.is_canceled())
        {
            return true;
        }
        source = cause.source();
    }
    false
}

/// The innermost cause: what people understand.
pub(crate) fn cause(error: &Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Joins the client's connection to the upstream's once both have switched protocols, until one side
/// ends or `kill`.
pub(crate) fn tunnel(
    tasks: &TaskTracker,
    kill: CancellationToken,
    client: hyper::upgrade::OnUpgrade,
    upstream: hyper::upgrade::OnUpgrade,
    in_flight: InFlight,
) {
    tasks.spawn(async move {
        let _in_flight = in_flight;
        let joined = async {
            let (client, upstream) = tokio::try_join!(client, upstream)?;
            let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
            // A side that goes away ends the tunnel; there is nobody left to tell.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
            Ok::<_, hyper::Error>(())
        };
        tokio::select! {
            result = joined => if let Err(error) = result {
                tracing::debug!(%error, "upgrade failed");
            },
            () = kill.cancelled() => {}
        }
    });
}

/// A body that counts as in flight until it is dropped.
pub(crate) struct Guarded {
    body: Body,
    _in_flight: InFlight,
}

impl Guarded {
    pub(crate) fn wrap(body: Body, in_flight: InFlight) -> Body {
        Self { body, _in_flight: in_flight }.boxed_unsync()
    }
}

impl http_body::Body for Guarded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
