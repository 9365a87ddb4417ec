//! How many requests are served at once.

use std::sync::Arc;

use ketch_api::Status;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::server::Limits;

/// Hands out turns; reads and writes are counted apart, so neither can starve the other.
pub(crate) struct Limiter {
    limits: Limits,
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
}

impl Limiter {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            reads: Arc::new(Semaphore::new(limits.reads)),
            writes: Arc::new(Semaphore::new(limits.writes)),
        }
    }

    /// Time for a request that is no stream.
    pub(crate) fn timeout(&self) -> std::time::Duration {
        self.limits.timeout
    }

    /// Waits for a turn; 429 when none comes in time.
    pub(crate) async fn turn(&self, write: bool) -> Result<OwnedSemaphorePermit, Status> {
        let semaphore = if write { &self.writes } else { &self.reads };
        match tokio::time::timeout(self.limits.queue, semaphore.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(Status::unavailable("the server is shutting down")),
            Err(_) => Err(Status::too_many_requests("too many requests, please try again later", 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn writes_do_not_wait_for_reads() {
        let limits = Limits { reads: 1, writes: 1, queue: Duration::ZERO, timeout: Duration::from_secs(1) };
        let limiter = Limiter::new(limits);
        let turn = limiter.turn(false).await.unwrap();
        assert_eq!(limiter.turn(false).await.unwrap_err().code, 429);
        let _write = limiter.turn(true).await.unwrap();
        drop(turn);
        let _read = limiter.turn(false).await.unwrap();
    }
}
