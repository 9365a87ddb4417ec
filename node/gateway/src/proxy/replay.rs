//! A request body that can be sent again as long as nobody has read from it.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use ketch_runtime::Body;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

struct Slot {
    body: Body,
    touched: bool,
}

/// Hands out the same body for each attempt. Only one of the handed-out bodies may be in use at a time:
/// an attempt that failed has dropped its own.
#[derive(Clone)]
pub(crate) struct Replay(Arc<Mutex<Slot>>);

impl Replay {
    pub(crate) fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(Slot { body, touched: false })))
    }

    /// The body for an attempt.
    pub(crate) fn body(&self) -> Body {
        Attempt(Arc::clone(&self.0)).boxed_unsync()
    }

    /// Whether part of it is gone, so that it cannot be sent again.
    pub(crate) fn is_consumed(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).touched
    }
}

struct Attempt(Arc<Mutex<Slot>>);

impl Attempt {
    fn with<T>(&self, read: impl FnOnce(&mut Slot) -> T) -> T {
        read(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl http_body::Body for Attempt {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.with(|slot| {
            let polled = Pin::new(&mut slot.body).poll_frame(cx);
            // The end of an empty body costs nothing to read again.
            slot.touched |= matches!(polled, Poll::Ready(Some(_)));
            polled
        })
    }

    fn is_end_stream(&self) -> bool {
        self.with(|slot| slot.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|slot| slot.body.size_hint())
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;
    use http_body_util::Full;

    use super::*;

    #[tokio::test]
    async fn a_body_nobody_read_is_sent_again() {
        let body = Full::new(Bytes::from_static(b"hello")).map_err(|never| match never {}).boxed_unsync();
        let replay = Replay::new(body);
        drop(replay.body());
        assert!(!replay.is_consumed());
        assert_eq!(replay.body().size_hint().exact(), Some(5));
        let read = replay.body().collect().await.map(|c| c.to_bytes());
        assert_eq!(read.ok().as_deref(), Some(b"hello".as_slice()));
        assert!(replay.is_consumed());
    }
}
