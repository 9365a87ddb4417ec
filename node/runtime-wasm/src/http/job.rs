//! A request on its way to an instance, and the queue for instances that take more than one.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures::channel::oneshot;
use ketch_runtime::HttpError;
use tokio::{sync::Notify, time::Instant};
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
}

/// Waits for a job's answer.
pub(super) struct Waiter {
    reply: oneshot::Receiver<Answer>,
    epitaph: tokio::sync::oneshot::Receiver<HttpError>,
}

/// A job and its waiter.
pub(super) fn job(request: Request, deadline: Instant) -> (Job, Waiter) {
    let (reply, reply_waits) = oneshot::channel();
    let (epitaph, epitaph_waits) = tokio::sync::oneshot::channel();
    let ticket = Ticket { deadline, epitaph };
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
///
/// A burst starts no more instances at a time than there are processors: those that are up soon take more
/// of it, if their policy lets them, and else call for the next.
pub(super) struct Queue {
    state: Mutex<State>,
    pushed: Notify,
    most_starting: usize,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    available: usize,
    starting: usize,
}

impl State {
    /// Whether an instance must be started; counts it.
    fn call(&mut self, most_starting: usize) -> bool {
        let call = self.available == 0 && !self.jobs.is_empty() && self.starting < most_starting;
        self.starting += usize::from(call);
        call
    }
}

impl Queue {
    pub(super) fn new(most_starting: usize) -> Self {
        Self { state: Mutex::default(), pushed: Notify::new(), most_starting }
    }

    /// Adds a job. Whether an instance is to be started for it.
    pub(super) fn push(&self, job: Job) -> bool {
        let mut state = self.lock();
        state.jobs.push_back(job);
        let call = state.call(self.most_starting);
        drop(state);
        self.pushed.notify_one();
        call
    }

    /// Takes the oldest job, when there is one.
    fn pop(&self) -> Option<Job> {
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

    /// Fails everything that waits, because no instance can be made.
    pub(super) fn fail(&self, error: &HttpError) {
        let jobs = std::mem::take(&mut self.lock().jobs);
        for job in jobs {
            // Nobody waits: fine.
            _ = job.ticket.epitaph.send(error.clone());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An instance's place at the queue.
pub(super) struct Seat<'a, F: Fn()> {
    queue: &'a Queue,
    place: Place,
    /// Starts another instance.
    relief: F,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Being started: nobody knows yet how it goes.
    Starting,
    /// Takes a job.
    Free,
    /// Does not.
    Taken,
}

impl<'a, F: Fn()> Seat<'a, F> {
    /// The seat of an instance that the queue called for; `relief` is called when it calls for another.
    pub(super) fn new(queue: &'a Queue, relief: F) -> Self {
        Self { queue, place: Place::Starting, relief }
    }

    /// Says whether the instance takes jobs.
    pub(super) fn set(&mut self, free: bool) {
        let place = if free { Place::Free } else { Place::Taken };
        if place == self.place {
            return;
        }
        let mut state = self.queue.lock();
        match self.place {
            Place::Starting => state.starting -= 1,
            Place::Free => state.available -= 1,
            Place::Taken => {}
        }
        self.place = place;
        state.available += usize::from(free);
        let call = state.call(self.queue.most_starting);
        drop(state);
        if call {
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
        job(http::Request::new(body), Instant::now())
    }

    #[tokio::test]
    async fn a_job_goes_to_a_free_seat_or_calls_for_a_new_one() {
        let queue = Queue::new(1);
        let reliefs = Cell::new(0);
        assert!(queue.push(any().0), "nobody is there");
        assert!(!queue.push(any().0), "one is on its way");
        let mut seat = Seat::new(&queue, || reliefs.set(reliefs.get() + 1));
        seat.set(true);
        queue.next().await;
        queue.next().await;
        assert!(!queue.push(any().0), "the seat is free");
        seat.set(false);
        assert_eq!(reliefs.get(), 1, "the job was left alone");
        drop(seat);
        assert_eq!(reliefs.get(), 1, "relief is on its way");
        drop(Seat::new(&queue, || reliefs.set(reliefs.get() + 1)));
        assert_eq!(reliefs.get(), 2, "it did not come up");
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
