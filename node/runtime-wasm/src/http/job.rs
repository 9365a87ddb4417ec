//! A request on its way to an instance, and the queue for instances that take more than one.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures::channel::oneshot;
use ketch_runtime::HttpError;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit},
    time::Instant,
};
use wasmtime_wasi_http::{
    WasiBody,
    handler::{ExpirationError, Request},
};

/// What the guest answers, or why it does not.
pub(super) type Answer = Result<http::Response<WasiBody>, wasmtime::Error>;

/// A request with the way back to whoever waits.
pub(super) struct Job {
    pub(super) request: Request,
    pub(super) reply: oneshot::Sender<Answer>,
    pub(super) ticket: Ticket,
}

/// What an instance keeps of a job until it is done.
pub(super) struct Ticket {
    /// When the instance must be done.
    pub(super) deadline: Instant,
    /// Why there was no answer, for when the instance ends without one. Dropped with the instance at the
    /// latest, so that nobody waits for ever.
    pub(super) epitaph: tokio::sync::oneshot::Sender<HttpError>,
    /// One of the requests the container serves at a time.
    pub(super) _permit: Option<OwnedSemaphorePermit>,
}

/// Waits for a job's answer.
pub(super) struct Waiter {
    reply: oneshot::Receiver<Answer>,
    epitaph: tokio::sync::oneshot::Receiver<HttpError>,
}

/// A job and its waiter.
pub(super) fn job(
    request: Request,
    deadline: Instant,
    permit: Option<OwnedSemaphorePermit>,
) -> (Job, Waiter) {
    let (reply, reply_waits) = oneshot::channel();
    let (epitaph, epitaph_waits) = tokio::sync::oneshot::channel();
    let ticket = Ticket { deadline, epitaph, _permit: permit };
    (Job { request, reply, ticket }, Waiter { reply: reply_waits, epitaph: epitaph_waits })
}

impl Waiter {
    /// The answer. `expired` is what to say when the guest was out of time.
    pub(super) async fn wait(self, expired: HttpError) -> Result<http::Response<WasiBody>, HttpError> {
        match self.reply.await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is::<ExpirationError>() => Err(expired),
            Ok(Err(error)) => Err(HttpError::Failed(format!("{error:#}"))),
            Err(oneshot::Canceled) => {
                let silent = || HttpError::Failed("it returned without a response".into());
                Err(self.epitaph.await.unwrap_or_else(|_| silent()))
            }
        }
    }
}

/// Jobs that wait for instances, and how many instances would take one now.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    pushed: Notify,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    available: usize,
}

impl Queue {
    /// Adds a job. Whether a new instance is needed for it.
    pub(super) fn push(&self, job: Job) -> bool {
        let mut state = self.lock();
        state.jobs.push_back(job);
        let starved = state.available == 0;
        drop(state);
        if !starved {
            self.pushed.notify_one();
        }
        starved
    }

    /// Takes the oldest job, when there is one.
    pub(super) fn pop(&self) -> Option<Job> {
        self.lock().jobs.pop_front()
    }

    /// Waits for a job. Cancel-safe: a wake-up that is not used goes to the next.
    pub(super) async fn next(&self) -> Job {
        let mut pushed = pin!(self.pushed.notified());
        loop {
            pushed.as_mut().enable();
            if let Some(job) = self.pop() {
                return job;
            }
            pushed.as_mut().await;
            pushed.set(self.pushed.notified());
        }
    }

    /// Fails everything that waits, for instance because no instance can be made.
    pub(super) fn fail(&self, error: &HttpError) {
        let jobs = std::mem::take(&mut self.lock().jobs);
        for job in jobs {
            // Nobody waits: fine.
            _ = job.ticket.epitaph.send(error.clone());
        }
    }

    /// An instance takes jobs from now on.
    fn join(&self) {
        self.lock().available += 1;
    }

    /// It does not any more. Whether that leaves jobs with nobody to take them.
    fn leave(&self) -> bool {
        let mut state = self.lock();
        state.available -= 1;
        state.available == 0 && !state.jobs.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An instance's place at the queue: free or taken.
pub(super) struct Seat<'a, F: Fn()> {
    queue: &'a Queue,
    free: bool,
    /// Starts another instance.
    relief: F,
}

impl<'a, F: Fn()> Seat<'a, F> {
    /// A taken seat; `relief` is called when leaving strands a job.
    pub(super) fn new(queue: &'a Queue, relief: F) -> Self {
        Self { queue, free: false, relief }
    }

    /// Says whether the instance takes jobs.
    pub(super) fn set(&mut self, free: bool) {
        if free == self.free {
            return;
        }
        self.free = free;
        if free {
            self.queue.join();
        } else if self.queue.leave() {
            (self.relief)();
        }
    }
}

impl<F: Fn()> Drop for Seat<'_, F> {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use http_body_util::{BodyExt, Empty};

    use super::*;

    fn any() -> (Job, Waiter) {
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        job(http::Request::new(body), Instant::now(), None)
    }

    #[tokio::test]
    async fn a_job_goes_to_a_free_seat_or_asks_for_a_new_one() {
        let queue = Queue::default();
        let reliefs = Cell::new(0);
        assert!(queue.push(any().0), "nobody is there");
        let mut seat = Seat::new(&queue, || reliefs.set(reliefs.get() + 1));
        seat.set(true);
        queue.next().await;
        assert!(!queue.push(any().0), "the seat is free");
        assert!(!queue.push(any().0));
        queue.next().await;
        seat.set(false);
        assert_eq!(reliefs.get(), 1, "one job was left alone");
        drop(seat);
        assert_eq!(reliefs.get(), 1);
    }

    #[tokio::test]
    async fn a_waiter_learns_why_there_is_no_answer() {
        let expired = HttpError::Timeout(std::time::Duration::from_secs(1));
        let (job, waiter) = any();
        drop(job.reply);
        _ = job.ticket.epitaph.send(HttpError::Failed("trapped".into()));
        assert_eq!(
            waiter.wait(expired.clone()).await.unwrap_err().to_string(),
            "the component failed: trapped"
        );
        let (job, waiter) = any();
        drop(job);
        let text = waiter.wait(expired.clone()).await.unwrap_err().to_string();
        assert_eq!(text, "the component failed: it returned without a response");
        let (job, waiter) = any();
        _ = job.reply.send(Err(ExpirationError.into()));
        assert!(matches!(waiter.wait(expired).await, Err(HttpError::Timeout(_))));
    }
}
