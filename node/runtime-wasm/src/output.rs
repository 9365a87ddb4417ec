//! Standard output and error of a guest, to the container's log and to whoever is attached.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use ketch_runtime::log::{LogStream, Stream};
use tokio::{
    io::AsyncWrite,
    sync::mpsc::{self, error::TrySendError},
};
use wasmtime_wasi::{
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamResult},
};

/// Bytes taken in one write.
const CHUNK: usize = 64 << 10;

/// Who reads a container's output beside its log. One that does not keep up misses some: no guest waits for
/// it.
#[derive(Default)]
pub(crate) struct Taps {
    readers: Mutex<Vec<(Stream, mpsc::Sender<Bytes>)>>,
    /// How many, for those who write.
    count: AtomicUsize,
}

impl Taps {
    fn readers(&self) -> MutexGuard<'_, Vec<(Stream, mpsc::Sender<Bytes>)>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, stream: Stream, to: mpsc::Sender<Bytes>) {
        let mut readers = self.readers();
        readers.retain(|(_, reader)| !reader.is_closed());
        readers.push((stream, to));
        self.count.store(readers.len(), Ordering::Release);
    }

    /// Nothing more will come.
    pub(crate) fn clear(&self) {
        self.count.store(0, Ordering::Release);
        self.readers().clear();
    }

    fn take(&self, stream: Stream, bytes: &[u8]) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut readers = self.readers();
        let bytes = Bytes::copy_from_slice(bytes);
        readers.retain(|(own, to)| {
            let lost = *own == stream && matches!(to.try_send(bytes.clone()), Err(TrySendError::Closed(_)));
            !lost
        });
        self.count.store(readers.len(), Ordering::Release);
    }
}

/// One output of one instance. The log takes what comes, so a guest never waits here.
#[derive(Clone)]
pub(crate) struct Output {
    log: Arc<Mutex<LogStream>>,
    stream: Stream,
    taps: Arc<Taps>,
}

impl Output {
    pub(crate) fn new(log: LogStream, stream: Stream, taps: Arc<Taps>) -> Self {
        Self { log: Arc::new(Mutex::new(log)), stream, taps }
    }

    fn take(&self, bytes: &[u8]) {
        self.taps.take(self.stream, bytes);
        self.log.lock().unwrap_or_else(PoisonError::into_inner).write(bytes);
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.take(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(CHUNK)
    }
}

#[async_trait::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.take(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
