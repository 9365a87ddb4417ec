//! Listeners and connections.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use ketch_runtime::Body;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::proxy::{Proxy, headers::Origin};

/// Bytes of a request's head.
const HEAD_MAX: usize = 64 * 1024;
/// Header lines of a request.
const HEADERS_MAX: usize = 128;
/// How long a request's head may take, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2: how often an idle peer is asked whether it lives, and how long it may take to say so.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
const STREAMS_MAX: u32 = 1000;
/// Pause after the system refused a connection (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Runs hyper's tasks under the gateway's own tracker.
#[derive(Clone)]
pub(crate) struct Tasks(pub(crate) TaskTracker);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

/// What a listener needs to serve.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) tasks: TaskTracker,
    /// Ends accepting; connections finish what they have begun.
    pub(crate) stop: CancellationToken,
    /// Ends everything at once.
    pub(crate) kill: CancellationToken,
    pub(crate) connections: Arc<Semaphore>,
}

impl Server {
    /// Accepts connections until told to stop.
    pub(crate) async fn listen(self, listener: TcpListener, tls: Option<TlsAcceptor>) {
        let port = listener.local_addr().map_or(0, |a| a.port());
        while let Some((stream, peer, permit)) = self.accept(&listener).await {
            let (server, tls) = (self.clone(), tls.clone());
            self.tasks.spawn(async move {
                let _permit = permit;
                // Small answers must not wait for a full segment; failing to say so is no reason to refuse.
                let _ = stream.set_nodelay(true);
                let Some(tls) = tls else {
                    return server.connection(stream, Origin { peer, scheme: "http", port }).await;
                };
                match tokio::time::timeout(TLS_TIMEOUT, tls.accept(stream)).await {
                    Ok(Ok(stream)) => server.connection(stream, Origin { peer, scheme: "https", port }).await,
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "tls handshake failed"),
                    Err(_) => tracing::debug!(%peer, "tls handshake timed out"),
                }
            });
        }
    }

    async fn accept(
        &self,
        listener: &TcpListener,
    ) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
        loop {
            let accepted = async {
                let permit = Arc::clone(&self.connections).acquire_owned().await.ok()?;
                Some((listener.accept().await, permit))
            };
            let (accepted, permit) = tokio::select! {
                accepted = accepted => accepted?,
                () = self.stop.cancelled() => return None,
            };
            match accepted {
                Ok((stream, peer)) => return Some((stream, peer, permit)),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connection<S>(&self, stream: S, origin: Origin)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let begun = Arc::new(AtomicBool::new(false));
        let service = service_fn({
            let (proxy, begun) = (Arc::clone(&self.proxy), Arc::clone(&begun));
            move |request: Request<Incoming>| {
                begun.store(true, Ordering::Relaxed);
                let proxy = Arc::clone(&proxy);
                async move {
                    let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
                    Ok::<Response<Body>, std::convert::Infallible>(proxy.serve(request, origin).await)
                }
            }
        });
        let builder = builder(&self.tasks);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        // Until a first request the protocol may not even be known, so hyper's own time-outs do not run.
        let mut first = std::pin::pin!(tokio::time::sleep(HEAD_TIMEOUT));
        let (mut waiting, mut stopping) = (true, false);
        loop {
            tokio::select! {
                result = connection.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(peer = %origin.peer, %error, "connection ended");
                    }
                    return;
                }
                () = self.stop.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = self.kill.cancelled() => return,
                () = first.as_mut(), if waiting => {
                    waiting = false;
                    if !begun.load(Ordering::Relaxed) {
                        return;
                    }
                }
            }
        }
    }
}

fn builder(tasks: &TaskTracker) -> auto::Builder<Tasks> {
    let mut builder = auto::Builder::new(Tasks(tasks.clone()));
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX)
        .max_headers(HEADERS_MAX)
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(HEAD_MAX).unwrap_or(u32::MAX))
        .adaptive_window(true);
    builder
}
