//! `wasi:http` 0.2: an instance serves one request at a time, by default only one in its life.

use std::sync::Arc;

use futures::channel::oneshot;
use ketch_runtime::HttpError;
use tokio::time::timeout_at;
use wasmtime::Store;
use wasmtime_wasi_http::{
    WasiHttpView,
    handler::Request,
    p2::bindings::{Proxy, ProxyPre, http::types::Scheme},
};

use super::{
    job::{Answer, Job, Ticket},
    service::{Service, WorkerSeat},
};
use crate::{context::Ctx, program::Program};

/// Serves one job with an instance of its own.
pub(super) async fn once(service: Arc<Service>, program: Arc<Program>, job: Job) {
    let Job { request, reply, ticket } = job;
    let result = match &*program {
        Program::Http(pre) => fresh(&service, pre, request, reply, &ticket).await,
        Program::HttpAsync(pre) => super::concurrent::once(&service, pre, request, reply, &ticket).await,
        _ => Err(HttpError::Failed("it does not serve HTTP".into())),
    };
    if let Err(error) = result {
        // Whoever asked may have gone.
        _ = ticket.epitaph.send(error);
    }
}

async fn fresh(
    service: &Service,
    pre: &ProxyPre<Ctx>,
    request: Request,
    reply: oneshot::Sender<Answer>,
    ticket: &Ticket,
) -> Result<(), HttpError> {
    let permit = service.instance(ticket.deadline).await?;
    let mut store = store(service)?;
    let guest = service.meter.run(async {
        let proxy = pre.instantiate_async(&mut store).await?;
        handle(&mut store, &proxy, request, reply).await
    });
    let result = finish(service, guest, ticket).await.map_err(|end| end.explain(service, &store));
    service.end(store, permit);
    result
}

/// An instance for up to `policy.requests` jobs of the queue, one after the other.
pub(super) async fn work(
    service: &Service,
    pre: &ProxyPre<Ctx>,
    mut seat: WorkerSeat<'_>,
) -> Result<(), HttpError> {
    let permit = service.instance(service.patience()).await?;
    let mut store = store(service)?;
    let proxy = service.meter.run(pre.instantiate_async(&mut store)).await;
    let proxy = proxy.map_err(|error| service.failure(&error, None))?;
    for _ in 0..service.policy.requests {
        seat.set(true);
        let job = tokio::select! {
            biased;
            () = service.over.cancelled() => break,
            job = tokio::time::timeout(service.policy.idle, service.queue.next()) => job,
        };
        // Leaving the seat hands a job that came in the last moment to another instance.
        seat.set(false);
        let Ok(Job { request, reply, ticket }) = job else { break };
        let guest = service.meter.run(handle(&mut store, &proxy, request, reply));
        if let Err(end) = finish(service, guest, &ticket).await {
            // Whoever asked may have gone.
            _ = ticket.epitaph.send(end.explain(service, &store));
            break;
        }
    }
    service.end(store, permit);
    Ok(())
}

pub(super) fn store(service: &Service) -> Result<Store<Ctx>, HttpError> {
    service.around.store().map_err(|error| HttpError::Failed(error.to_string()))
}

/// Calls the handler. The response leaves through the out-parameter while the handler goes on.
async fn handle(
    store: &mut Store<Ctx>,
    proxy: &Proxy,
    request: Request,
    reply: oneshot::Sender<Answer>,
) -> wasmtime::Result<()> {
    store.data_mut().outbound.serve(&request);
    let mut view = store.data_mut().http();
    let request = view.new_incoming_request(Scheme::Http, request)?;
    let out = view.new_response_outparam_from_callback(move |answer| {
        // Whoever asked may have gone.
        _ = reply.send(answer.map_err(|code| wasmtime::format_err!("it answered with an error: {code:?}")));
    })?;
    proxy.wasi_http_incoming_handler().call_handle(store, request, out).await
}

/// How an instance ended that did not do its work.
pub(super) enum End {
    Stopped,
    Expired,
    Failed(wasmtime::Error),
}

impl End {
    pub(super) fn explain(self, service: &Service, store: &Store<Ctx>) -> HttpError {
        match self {
            Self::Stopped => HttpError::NotRunning,
            Self::Expired => HttpError::Timeout(service.timeout),
            Self::Failed(error) => {
                let limiter = &store.data().limiter;
                service.failure(&error, limiter.exceeded().then_some(limiter.limit()))
            }
        }
    }
}

/// Runs a guest to its end, its deadline or the container's end.
pub(super) async fn finish(
    service: &Service,
    guest: impl Future<Output = wasmtime::Result<()>>,
    ticket: &Ticket,
) -> Result<(), End> {
    tokio::select! {
        biased;
        () = service.over.cancelled() => Err(End::Stopped),
        result = timeout_at(ticket.deadline, guest) => match result {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(End::Failed(error)),
            Err(_) => Err(End::Expired),
        },
    }
}
