//! `wasi:http` 0.3: an instance serves several requests at a time and lives on between them.
//!
//! An instance takes another request only when all it has are waiting, so one that computes does not hold up
//! requests that another instance could serve. A request out of time retires its instance: it takes no more
//! and ends when the others are done, or out of time too. That last limit is kept from outside the store's
//! event loop, which a computing guest blocks.

use std::{
    pin::Pin,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use futures::{StreamExt, channel::oneshot, future::poll_fn, stream::FuturesUnordered};
use ketch_runtime::HttpError;
use tokio::time::{Instant, sleep_until};
use wasmtime::{
    AsContextMut,
    component::{Accessor, Func},
};
use wasmtime_wasi_http::{
    WasiHttpView,
    handler::{Prepared, Proxy, Request},
    p3::bindings::ServicePre,
};

use super::{
    fresh::{End, finish, store},
    job::{Answer, Job, Ticket},
    service::{Policy, Service, WorkerSeat},
};
use crate::context::Ctx;

/// Serves one job with an instance of its own.
pub(super) async fn once(
    service: &Service,
    pre: &ServicePre<Ctx>,
    request: Request,
    reply: oneshot::Sender<Answer>,
    ticket: &Ticket,
) -> Result<(), HttpError> {
    let permit = service.instance(ticket.deadline).await?;
    let mut store = store(service)?;
    let guest = service.meter.run(async {
        let proxy = Proxy::P3(pre.instantiate_async(&mut store).await?);
        let run = store.run_concurrent(async |accessor| {
            let prepared = prepare(accessor, &proxy, request, reply)?;
            prepared.run(accessor, std::future::pending()).await?;
            poll_fn(|context| accessor.poll_no_interesting_tasks(context)).await;
            Ok(())
        });
        run.await?
    });
    let result = finish(service, guest, ticket).await.map_err(|end| end.explain(service, &store));
    service.end(store, permit);
    result
}

/// An instance for jobs of the queue, as the container's policy says.
pub(super) async fn work(
    service: &Service,
    pre: &ServicePre<Ctx>,
    seat: WorkerSeat<'_>,
) -> Result<(), HttpError> {
    let permit = service.instance(service.patience()).await?;
    let mut store = store(service)?;
    let proxy = service.meter.run(pre.instantiate_async(&mut store)).await;
    let proxy = Proxy::P3(proxy.map_err(|error| service.failure(&error, None))?);
    let life = Life::new(service.policy);
    let end = {
        let run = store.run_concurrent(async |accessor| {
            let mut worker = Worker::new(service, accessor, &proxy, &life, seat);
            poll_fn(|context| worker.poll(context)).await
        });
        let mut run = std::pin::pin!(service.meter.run(run));
        tokio::select! {
            biased;
            () = service.over.cancelled() => Err(End::Stopped),
            end = life.watch(&mut run) => end,
        }
    };
    if let Err(end) = end {
        let error = end.explain(service, &store);
        for ticket in life.tickets() {
            // Whoever asked may have gone.
            _ = ticket.epitaph.send(error.clone());
        }
    }
    service.end(store, permit);
    Ok(())
}

fn prepare<'a>(
    accessor: &Accessor<Ctx>,
    proxy: &'a Proxy,
    request: Request,
    reply: oneshot::Sender<Answer>,
) -> wasmtime::Result<Prepared<'a, Ctx>> {
    accessor.with(|mut access| {
        let mut store = access.as_context_mut();
        store.data_mut().outbound.serve(&request);
        Prepared::new(store, proxy, request, Ctx::http, reply)
    })
}

/// What is known of an instance outside of its event loop.
struct Life {
    policy: Policy,
    /// Whether everything the instance does is waiting.
    calm: AtomicBool,
    state: Mutex<LifeState>,
}

struct LifeState {
    tickets: Vec<(u32, Ticket)>,
    /// Latest deadline of any request so far: what the guest does after it, too, ends then.
    until: Instant,
    idle_since: Option<Instant>,
}

impl Life {
    fn new(policy: Policy) -> Self {
        let now = Instant::now();
        let state = LifeState { tickets: Vec::new(), until: now, idle_since: Some(now) };
        Self { policy, calm: AtomicBool::new(true), state: Mutex::new(state) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, LifeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, number: u32, ticket: Ticket) {
        self.calm.store(false, Relaxed);
        let mut state = self.state();
        state.until = state.until.max(ticket.deadline);
        state.idle_since = None;
        state.tickets.push((number, ticket));
    }

    fn done(&self, number: u32) {
        self.state().tickets.retain(|(other, _)| *other != number);
    }

    fn idle(&self) {
        self.state().idle_since.get_or_insert_with(Instant::now);
    }

    /// When the instance must end, whatever it does.
    fn end(&self) -> (Instant, bool) {
        let state = self.state();
        match state.idle_since {
            Some(since) => (since + self.policy.idle, true),
            None => (state.until, false),
        }
    }

    fn tickets(&self) -> Vec<Ticket> {
        std::mem::take(&mut self.state().tickets).into_iter().map(|(_, ticket)| ticket).collect()
    }

    /// Drives an instance until it ends or must.
    async fn watch<F>(&self, run: &mut Pin<&mut F>) -> Result<(), End>
    where
        F: Future<Output = wasmtime::Result<wasmtime::Result<()>>>,
    {
        let mut alarm = Box::pin(sleep_until(self.end().0));
        poll_fn(|context| {
            loop {
                if let Poll::Ready(result) = run.as_mut().poll(context) {
                    return Poll::Ready(result.and_then(|result| result).map_err(End::Failed));
                }
                // Everything waits: it may take another request. It looks for one when polled again.
                if self.calm.swap(true, Relaxed) {
                    break;
                }
            }
            let (end, idle) = self.end();
            if alarm.deadline() != end {
                alarm.as_mut().reset(end);
            }
            alarm.as_mut().poll(context).map(|()| if idle { Ok(()) } else { Err(End::Expired) })
        })
        .await
    }
}

type Running<'a> = Pin<Box<dyn Future<Output = (u32, wasmtime::Result<bool>)> + Send + 'a>>;
type Next<'a> = Pin<Box<dyn Future<Output = Job> + Send + 'a>>;

/// An instance from inside its event loop.
struct Worker<'a> {
    service: &'a Service,
    accessor: &'a Accessor<Ctx>,
    proxy: &'a Proxy,
    handler: Func,
    life: &'a Life,
    running: FuturesUnordered<Running<'a>>,
    next: Option<Next<'a>>,
    seat: WorkerSeat<'a>,
    served: u32,
    retired: bool,
}

impl<'a> Worker<'a> {
    fn new(
        service: &'a Service,
        accessor: &'a Accessor<Ctx>,
        proxy: &'a Proxy,
        life: &'a Life,
        seat: WorkerSeat<'a>,
    ) -> Self {
        let handler = match proxy {
            Proxy::P3(guest) => *guest.wasi_http_handler().func_handle().func(),
            Proxy::P2(guest) => *guest.wasi_http_incoming_handler().func_handle().func(),
        };
        Self {
            service,
            accessor,
            proxy,
            handler,
            life,
            running: FuturesUnordered::new(),
            next: None,
            seat,
            served: 0,
            retired: false,
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<wasmtime::Result<()>> {
        loop {
            // First what is done or out of time: that may be a reason to take no more.
            while let Poll::Ready(Some((number, result))) = self.running.poll_next_unpin(context) {
                match result {
                    Ok(answered) => {
                        self.life.done(number);
                        self.retired |= !answered;
                    }
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            let callable = self.accessor.poll_ready_for_concurrent_call(self.handler, context).is_ready();
            if let Some(job) = self.take(callable, context) {
                self.accept(job);
                continue;
            }
            if !self.running.is_empty() || self.accessor.poll_no_interesting_tasks(context).is_pending() {
                return Poll::Pending;
            }
            if self.retired || !callable {
                return Poll::Ready(Ok(()));
            }
            self.life.idle();
            return Poll::Pending;
        }
    }

    /// The next job, when there is one and this instance should have it.
    fn take(&mut self, callable: bool, context: &mut Context<'_>) -> Option<Job> {
        let policy = self.service.policy;
        self.retired |= self.served >= policy.requests;
        let busy = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        let room = busy == 0 || busy < policy.concurrent && self.life.calm.load(Relaxed);
        let free = !self.retired && callable && room;
        self.seat.set(free);
        if !free {
            // A wake-up it may have had goes to another instance.
            self.next = None;
            return None;
        }
        let queue = &self.service.queue;
        let next = self.next.get_or_insert_with(|| Box::pin(queue.next()));
        match next.as_mut().poll(context) {
            Poll::Ready(job) => {
                self.next = None;
                Some(job)
            }
            Poll::Pending => None,
        }
    }

    fn accept(&mut self, job: Job) {
        let Job { request, reply, ticket } = job;
        self.served += 1;
        let number = self.served;
        let deadline = ticket.deadline;
        self.life.begin(number, ticket);
        let prepared = prepare(self.accessor, self.proxy, request, reply);
        let accessor = self.accessor;
        self.running.push(Box::pin(async move {
            let result = async { prepared?.run(accessor, sleep_until(deadline)).await };
            (number, result.await)
        }));
    }
}
