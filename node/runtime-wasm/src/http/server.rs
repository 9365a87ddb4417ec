//! A container's socket: HTTP/1.1 and HTTP/2 without TLS on the pod's address.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use ketch_runtime::{Body, HttpError};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wasmtime_wasi_http::Error as HttpProblem;

use super::service::{Service, outgoing};

/// Longest a client may take to send a request's header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Connections a container has at a time; more wait in the kernel's backlog.
const MAX_CONNECTIONS: usize = 1000;

/// Accepts connections until `closing`, then waits for the requests in flight.
pub(crate) async fn serve(listener: TcpListener, service: Arc<Service>, closing: CancellationToken) {
    let connections = TaskTracker::new();
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            biased;
            () = closing.cancelled() => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => connect(stream, &service, &graceful, &connections, place.ok()),
            // Out of descriptors, or the client left: neither ends the server.
            Err(error) => {
                tracing::debug!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    tokio::select! {
        () = service.over.cancelled() => {}
        () = async { graceful.shutdown().await; connections.wait().await } => {}
    }
}

fn connect(
    stream: TcpStream,
    service: &Arc<Service>,
    graceful: &GracefulShutdown,
    connections: &TaskTracker,
    place: Option<OwnedSemaphorePermit>,
) {
    // Without it answers only wait; failing to set it is no reason to fail.
    _ = stream.set_nodelay(true);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Some(Duration::from_secs(30)));
    let over = service.over.clone();
    let service = Arc::clone(service);
    let handler = service_fn(move |request: Request<Incoming>| {
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(answer(&service, request).await) }
    });
    let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), handler).into_owned());
    connections.spawn(async move {
        let _place = place;
        tokio::select! {
            () = over.cancelled() => {}
            result = connection => {
                if let Err(error) = result {
                    tracing::debug!(error, "connection ended");
                }
            }
        }
    });
}

async fn answer(service: &Arc<Service>, request: Request<Incoming>) -> Response<Body> {
    let request = request.map(|body| body.map_err(HttpProblem::from).boxed_unsync());
    match service.handle(request).await {
        Ok(response) => response.map(outgoing),
        Err(error) => refusal(&error),
    }
}

/// The answer when the guest gave none.
fn refusal(error: &HttpError) -> Response<Body> {
    let status = match error {
        HttpError::Failed(_) => StatusCode::BAD_GATEWAY,
        HttpError::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
        HttpError::Overloaded | HttpError::NotRunning => StatusCode::SERVICE_UNAVAILABLE,
    };
    let text = Bytes::from(format!("{error}\n"));
    let mut response = Response::new(Full::new(text).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
