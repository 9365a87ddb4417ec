//! The rest of a request body that nobody read.
//!
//! A handler that refuses a request does not read its body. Closing an HTTP/1 connection then, while the
//! client still sends, resets it, and most clients report the reset instead of the refusal. So the rest is
//! read and thrown away first, up to a size and a time. HTTP/2 needs none of this: it can end one stream.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, Version, header};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::{sync::oneshot, time::timeout};

/// Most bytes that are thrown away: a large component of an interpreted language.
const LIMIT: usize = 64 << 20;
/// Longest time it is done for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Calls `serve`, and reads what it left of the request's body before its answer is returned.
pub(super) async fn read_rest<F>(request: Request<Body>, serve: impl FnOnce(Request<Body>) -> F) -> F::Output
where
    F: Future<Output = Result<Response<Body>, std::convert::Infallible>>,
{
    // A client that waits for leave to send has sent nothing.
    let waits = request.headers().contains_key(header::EXPECT);
    if request.version() > Version::HTTP_11 || waits || http_body::Body::is_end_stream(request.body()) {
        return serve(request).await;
    }
    let (sender, mut receiver) = oneshot::channel();
    let request = request.map(|body| Body::new(Lent { body, back: Some(sender) }));
    let response = serve(request).await;
    // A body that is still in use is read by whoever uses it.
    if let Ok(body) = receiver.try_recv() {
        let _ = timeout(PATIENCE, discard(body)).await;
    }
    response
}

async fn discard(mut body: Body) {
    let mut left = LIMIT;
    while let Some(Ok(frame)) = body.frame().await {
        let size = frame.data_ref().map_or(0, Bytes::len);
        let Some(rest) = left.checked_sub(size) else { return };
        left = rest;
    }
}

/// A body that comes back when it is dropped.
struct Lent {
    body: Body,
    back: Option<oneshot::Sender<Body>>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(back) = self.back.take() {
            let _ = back.send(std::mem::take(&mut self.body));
        }
    }
}

impl http_body::Body for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
