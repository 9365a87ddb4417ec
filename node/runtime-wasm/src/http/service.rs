//! The service of one container.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header::HOST};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use ketch_api::wasm::World;
use ketch_runtime::{Body, Error, HttpError, HttpService, Reuse};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wasmtime::Store;
use wasmtime_wasi_http::{Error as HttpProblem, WasiBody};

use super::{
    concurrent, fresh,
    job::{Job, Queue, Seat, job},
};
use crate::{
    background::Habit,
    context::{Ctx, Surroundings},
    images::{Images, Stored},
    limits::Meter,
    program::{Program, Programs},
};

/// How a service is set up.
pub(crate) struct ServiceOptions {
    pub(crate) around: Arc<Surroundings>,
    pub(crate) meter: Meter,
    pub(crate) programs: Arc<Programs>,
    pub(crate) images: Arc<Images>,
    pub(crate) stored: Stored,
    pub(crate) timeout: Duration,
    pub(crate) concurrency: Option<u32>,
    pub(crate) reuse: Reuse,
    pub(crate) over: CancellationToken,
}

/// See [`ServiceOptions`]. Cheap while idle: no instance, and after a while no code either.
pub(crate) struct Service {
    pub(super) around: Arc<Surroundings>,
    pub(super) meter: Meter,
    programs: Arc<Programs>,
    images: Arc<Images>,
    stored: Stored,
    pub(super) timeout: Duration,
    concurrency: Option<Arc<Semaphore>>,
    pub(super) policy: Policy,
    pub(super) queue: Queue,
    warm: Mutex<Warm>,
    habit: Arc<Habit>,
    pub(super) over: CancellationToken,
    /// Instances at work.
    pub(super) tasks: TaskTracker,
}

/// Bytes of an instance's memory that are not given back while others wait.
const MUCH_MEMORY: usize = 8 << 20;

/// Longest time-out and idle time: they come from annotations, and points in time are made of them.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// The seat of a service's instance.
pub(super) type WorkerSeat<'a> = Seat<'a, Box<dyn Fn() + Send + Sync>>;

#[derive(Default)]
struct Warm {
    program: Option<Arc<Program>>,
    used: Option<Instant>,
}

/// How instances are reused; the defaults of the component's world filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) requests: u32,
    pub(super) concurrent: u32,
    pub(super) idle: Duration,
}

impl Policy {
    /// 0.2: an instance per request, since its guests expect no other. 0.3: 128 requests, 16 at a time, as
    /// other hosts do. Pure.
    fn new(world: World, reuse: Reuse) -> Self {
        let (requests, concurrent) = if world == World::HttpAsync { (128, 16) } else { (1, 1) };
        let most = if world == World::HttpAsync { u32::MAX } else { 1 };
        Self {
            requests: reuse.requests.unwrap_or(requests).max(1),
            concurrent: reuse.concurrent.unwrap_or(concurrent).clamp(1, most),
            idle: reuse.idle.unwrap_or(Duration::from_secs(1)).min(LONGEST),
        }
    }
}

impl Service {
    pub(crate) fn new(options: ServiceOptions) -> Arc<Self> {
        let ServiceOptions { around, meter, programs, images, stored, timeout, concurrency, reuse, over } =
            options;
        let permits = |count| Arc::new(Semaphore::new(usize::try_from(count).unwrap_or(usize::MAX)));
        Arc::new(Self {
            policy: Policy::new(stored.world, reuse),
            around,
            meter,
            programs,
            images,
            stored,
            timeout: timeout.min(LONGEST),
            concurrency: concurrency.filter(|count| *count > 0).map(permits),
            queue: Queue::new(std::thread::available_parallelism().map_or(1, usize::from)),
            warm: Mutex::default(),
            habit: Arc::default(),
            over,
            tasks: TaskTracker::new(),
        })
    }

    /// The program, loaded when it is not.
    pub(crate) async fn program(&self) -> Result<Arc<Program>, Error> {
        {
            let mut warm = self.warm();
            warm.used = Some(Instant::now());
            if let Some(program) = &warm.program {
                return Ok(Arc::clone(program));
            }
        }
        let program = self.programs.get(&self.images, &self.stored).await?;
        self.warm().program = Some(Arc::clone(&program));
        Ok(program)
    }

    /// Lets go of the program when it was not used for `idle`.
    pub(crate) fn cool(&self, idle: Duration) {
        let mut warm = self.warm();
        if warm.used.is_none_or(|used| used.elapsed() >= idle) {
            warm.program = None;
        }
    }

    /// Waits for requests in flight.
    pub(crate) async fn drained(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn warm(&self) -> std::sync::MutexGuard<'_, Warm> {
        self.warm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn permit(&self) -> Result<Option<OwnedSemaphorePermit>, HttpError> {
        let Some(permits) = &self.concurrency else { return Ok(None) };
        Arc::clone(permits).try_acquire_owned().map(Some).map_err(|_| HttpError::Overloaded)
    }

    /// Serves one request.
    pub(crate) async fn handle(
        self: &Arc<Self>,
        request: Request<WasiBody>,
    ) -> Result<Response<WasiBody>, HttpError> {
        if self.over.is_cancelled() {
            return Err(HttpError::NotRunning);
        }
        let permit = self.permit()?;
        self.around.counters.requests.fetch_add(1, Relaxed);
        let expired = HttpError::Timeout(self.timeout);
        let deadline = Instant::now() + self.timeout;
        let work = async {
            let program = self.program().await.map_err(|error| HttpError::Failed(error.to_string()))?;
            let (job, waiter) = job(with_host(request), deadline);
            self.dispatch(program, job);
            waiter.wait(expired.clone()).await
        };
        // The instance is ended by its own worker; whoever asked does not wait for that.
        let response = tokio::time::timeout_at(deadline, work).await.unwrap_or(Err(expired.clone()))?;
        Ok(match permit {
            Some(permit) => response.map(|body| Counted { body, permit: Some(permit) }.boxed_unsync()),
            None => response,
        })
    }

    fn dispatch(self: &Arc<Self>, program: Arc<Program>, job: Job) {
        if self.policy.requests == 1 {
            let once = fresh::once(Arc::clone(self), program, job);
            self.tasks.spawn(self.around.engine.background.run(once, &self.habit));
        } else if self.queue.push(job) {
            self.start_worker();
        }
    }

    /// Starts an instance that takes jobs from the queue, which has called for it.
    pub(super) fn start_worker(self: &Arc<Self>) {
        let this = Arc::clone(self);
        let work = async move {
            let relief = Arc::clone(&this);
            let seat: WorkerSeat<'_> = Seat::new(&this.queue, Box::new(move || relief.start_worker()));
            let result = match this.program().await {
                Ok(program) => match &*program {
                    Program::HttpAsync(pre) => concurrent::work(&this, pre, seat).await,
                    Program::Http(pre) => fresh::work(&this, pre, seat).await,
                    _ => Err(HttpError::Failed("it does not serve HTTP".into())),
                },
                Err(error) => Err(HttpError::Failed(error.to_string())),
            };
            if let Err(error) = result {
                this.queue.fail(&error);
            }
        };
        self.tasks.spawn(self.around.engine.background.run(work, &self.habit));
    }

    /// Takes one of the node's instances, waiting for it until `deadline`.
    pub(super) async fn instance(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, HttpError> {
        let instances = Arc::clone(&self.around.engine.instances).acquire_owned();
        match tokio::time::timeout_at(deadline, instances).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(HttpError::Overloaded),
        }
    }

    /// Ends an instance. Giving much memory back takes the kernel milliseconds: nobody waits for it.
    pub(super) fn end(&self, store: Store<Ctx>, permit: OwnedSemaphorePermit) {
        if store.data().limiter.used() >= MUCH_MEMORY {
            self.around.engine.background.spawn(move || drop((store, permit)));
        }
    }

    /// Longest an instance may be waited for by the queue's workers.
    pub(super) fn patience(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Logs how an instance failed, and says it in a line.
    pub(super) fn failure(&self, error: &wasmtime::Error, out_of_memory: Option<usize>) -> HttpError {
        let text = match out_of_memory {
            Some(limit) => format!("it needs more memory than its limit of {} MiB", limit >> 20),
            None => crate::command::brief(error),
        };
        self.around.say(&format!("{text}\n{error:?}"));
        HttpError::Failed(text)
    }
}

/// A body that counts as one of the requests served at a time until its end.
struct Counted {
    body: WasiBody,
    permit: Option<OwnedSemaphorePermit>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = HttpProblem;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpProblem>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) || this.body.is_end_stream() {
            this.permit = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// HTTP/1.0 clients and in-process callers may leave out the host; guests are promised one.
fn with_host(mut request: Request<WasiBody>) -> Request<WasiBody> {
    if request.uri().authority().is_none() && !request.headers().contains_key(HOST) {
        request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
    }
    request
}

/// The service as the rest of the node calls it.
pub(crate) struct InProcess(pub(crate) Arc<Service>);

#[async_trait]
impl HttpService for InProcess {
    async fn call(&self, request: Request<Body>) -> Result<Response<Body>, HttpError> {
        let request = request.map(|body| {
            let broken = |error: Box<dyn std::error::Error + Send + Sync>| {
                HttpProblem::InternalError(Some(error.to_string()))
            };
            body.map_err(broken).boxed_unsync()
        });
        Ok(self.0.handle(request).await?.map(outgoing))
    }
}

/// A guest's body for whoever called.
pub(super) fn outgoing(body: WasiBody) -> Body {
    body.map_err(|error| format!("the component's body ended early: {error:?}").into()).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reuse_defaults_follow_the_world() {
        let default = |world| Policy::new(world, Reuse::default());
        assert_eq!(default(World::Http), Policy { requests: 1, concurrent: 1, idle: Duration::from_secs(1) });
        assert_eq!(
            default(World::HttpAsync),
            Policy { requests: 128, concurrent: 16, idle: Duration::from_secs(1) }
        );
        let wanted = Reuse { requests: Some(50), concurrent: Some(8), idle: Some(Duration::from_secs(9)) };
        let sync = Policy::new(World::Http, wanted);
        assert_eq!(sync, Policy { requests: 50, concurrent: 1, idle: Duration::from_secs(9) });
        assert_eq!(Policy::new(World::HttpAsync, wanted).concurrent, 8);
        let zero = Reuse { requests: Some(0), concurrent: Some(0), idle: None };
        assert_eq!(Policy::new(World::HttpAsync, zero).concurrent, 1);
    }

    #[test]
    fn no_idle_time_is_beyond_what_a_clock_can_show() {
        let endless = Reuse { idle: Some(Duration::MAX), ..Reuse::default() };
        let idle = Policy::new(World::HttpAsync, endless).idle;
        assert!(Instant::now().checked_add(idle).is_some(), "{idle:?}");
    }
}
