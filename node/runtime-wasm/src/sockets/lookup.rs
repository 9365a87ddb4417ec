//! `wasi:sockets/ip-name-lookup@0.2`: names as the pod's namespace completes them.

use std::{net::IpAddr, sync::Arc, vec};

use ketch_runtime::{
    Error,
    log::{Log, Stream},
};
use tokio::sync::oneshot::error::TryRecvError;
use wasmtime::{
    StoreContextMut,
    component::{Linker, Resource, ResourceType},
};
use wasmtime_wasi::p2::{
    DynPollable, Pollable,
    bindings::sockets::network::{ErrorCode, IpAddress, Network},
    subscribe,
};

use super::Policy;
use crate::context::Ctx;

type Addresses = Result<vec::IntoIter<IpAddr>, ErrorCode>;

/// The addresses of one name, or the way to them.
enum Answers {
    /// The network is being asked.
    Asking(tokio::sync::oneshot::Receiver<Addresses>),
    /// It has answered.
    Known(Addresses),
}

fn resolve(ctx: &mut Ctx, network: &Resource<Network>, name: String) -> wasmtime::Result<Resource<Answers>> {
    // The handle is the permission to ask.
    ctx.table.get(network)?;
    let answers = match literal(&name) {
        Some(ip) => Answers::Known(Ok(vec![ip].into_iter())),
        None => ask(&ctx.policy(), name),
    };
    Ok(ctx.table.push(answers)?)
}

fn ask(policy: &Policy, name: String) -> Answers {
    let (mut answer, asking) = tokio::sync::oneshot::channel();
    let pod = Arc::clone(policy.pod());
    let log = policy.log().clone();
    pod.tasks.clone().spawn(async move {
        let found = tokio::select! {
            // The guest does not wait any more.
            () = answer.closed() => return,
            found = pod.network.resolve(&pod.sandbox, &name) => found,
        };
        // It may have stopped waiting just now.
        _ = answer.send(outcome(&log, &name, found));
    });
    Answers::Asking(asking)
}

fn outcome(log: &Log, name: &str, found: Result<Vec<IpAddr>, Error>) -> Addresses {
    match found {
        Ok(addresses) if addresses.is_empty() => Err(ErrorCode::NameUnresolvable),
        Ok(addresses) => Ok(addresses.into_iter()),
        Err(error) => {
            log.line(Stream::Stderr, &format!("looking up {name} failed: {error}\n"));
            Err(ErrorCode::TemporaryResolverFailure)
        }
    }
}

/// An address written out needs nobody to be asked.
pub(super) fn literal(name: &str) -> Option<IpAddr> {
    let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.parse().ok()
}

fn next(ctx: &mut Ctx, this: &Resource<Answers>) -> wasmtime::Result<Result<Option<IpAddress>, ErrorCode>> {
    let answers = ctx.table.get_mut(this)?;
    if let Answers::Asking(asking) = answers {
        match asking.try_recv() {
            Ok(known) => *answers = Answers::Known(known),
            Err(TryRecvError::Empty) => return Ok(Err(ErrorCode::WouldBlock)),
            Err(TryRecvError::Closed) => *answers = Answers::Known(Err(ErrorCode::TemporaryResolverFailure)),
        }
    }
    Ok(match answers {
        Answers::Known(Ok(addresses)) => Ok(addresses.next().map(IpAddress::from)),
        Answers::Known(Err(code)) => Err(*code),
        Answers::Asking(_) => Err(ErrorCode::WouldBlock),
    })
}

#[async_trait::async_trait]
impl Pollable for Answers {
    async fn ready(&mut self) {
        if let Self::Asking(asking) = self {
            let known = asking.await.unwrap_or(Err(ErrorCode::TemporaryResolverFailure));
            *self = Self::Known(known);
        }
    }
}

type Store<'a> = StoreContextMut<'a, Ctx>;

/// Names of the interface are those of its WIT.
pub(super) fn add_to_linker(linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
    let mut lookup = linker.instance("wasi:sockets/ip-name-lookup@0.2.12")?;
    lookup.resource("resolve-address-stream", ResourceType::host::<Answers>(), |mut store, handle| {
        store.data_mut().table.delete(Resource::<Answers>::new_own(handle))?;
        Ok(())
    })?;
    lookup.func_wrap(
        "resolve-addresses",
        |mut store: Store<'_>, (network, name): (Resource<Network>, String)| {
            let answers = resolve(store.data_mut(), &network, name)?;
            Ok((Ok::<_, ErrorCode>(answers),))
        },
    )?;
    lookup.func_wrap(
        "[method]resolve-address-stream.resolve-next-address",
        |mut store: Store<'_>, (this,): (Resource<Answers>,)| Ok((next(store.data_mut(), &this)?,)),
    )?;
    lookup.func_wrap(
        "[method]resolve-address-stream.subscribe",
        |mut store: Store<'_>, (this,): (Resource<Answers>,)| -> wasmtime::Result<(Resource<DynPollable>,)> {
            Ok((subscribe(&mut store.data_mut().table, this)?,))
        },
    )
}
