//! `wasi:sockets@0.3`: names and TCP clients, on the same terms as 0.2. Servers and UDP are refused, with a
//! line in the log, because what they accept could not be counted.

use std::net::IpAddr;

use futures::FutureExt;
use ketch_runtime::Protocol;
use wasmtime::{
    StoreContextMut,
    component::{Accessor, Linker, Resource, ResourceType, StreamReader},
};
use wasmtime_wasi::{
    p3::{
        bindings::sockets::{
            ip_name_lookup::ErrorCode as LookupError,
            types::{
                ErrorCode, HostTcpSocket, HostTcpSocketWithStore, IpAddress, IpAddressFamily, IpSocketAddress,
            },
        },
        sockets::SocketError,
    },
    sockets::{TcpSocket, UdpSocket, WasiSockets},
};

use super::lookup::literal;
use crate::context::Ctx;

type Store<'a> = StoreContextMut<'a, Ctx>;
type Answer<T> = Result<T, ErrorCode>;

/// An error code is the guest's to handle; anything else ends it.
fn answer<T>(result: Result<T, SocketError>) -> wasmtime::Result<Answer<T>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error) => Ok(Err(error.downcast()?)),
    }
}

fn create(ctx: &mut Ctx, family: IpAddressFamily) -> wasmtime::Result<Answer<Resource<TcpSocket>>> {
    let Some(permit) = ctx.policy().permit() else {
        return Ok(Err(ErrorCode::Other(Some("the pod has as many sockets as it may".into()))));
    };
    let policy = ctx.policy();
    let mut view = ctx.sockets().0;
    let made = match policy.pod().make(|| HostTcpSocket::create(&mut view, family)) {
        Ok(made) => made,
        Err(error) => {
            policy.say(&format!("socket refused: {error}"));
            return Ok(Err(ErrorCode::Other(Some("the pod's network is gone".into()))));
        }
    };
    let socket = answer(made)?;
    if let Ok(socket) = &socket {
        ctx.sockets().1.permits.insert(socket.rep(), permit);
    }
    Ok(socket)
}

fn bind(ctx: &mut Ctx, socket: u32, wanted: IpSocketAddress) -> wasmtime::Result<Answer<()>> {
    let address = ctx.policy().bind_address(wanted.into());
    let mut view = ctx.sockets().0;
    // Nothing in it waits: the check answers at once.
    let bound = HostTcpSocket::bind(&mut view, Resource::new_borrow(socket), address.into()).now_or_never();
    bound.map_or(Ok(Err(ErrorCode::InvalidState)), answer)
}

/// Where a connection goes, the socket bound for it.
fn prepare(ctx: &mut Ctx, socket: u32, wanted: IpSocketAddress) -> wasmtime::Result<Answer<IpSocketAddress>> {
    let policy = ctx.policy();
    let Some(target) = policy.target(wanted.into(), Protocol::Tcp) else {
        return Ok(Err(ErrorCode::AccessDenied));
    };
    let ip = policy.pod().sandbox.ip;
    let unbound =
        HostTcpSocket::get_local_address(&mut ctx.sockets().0, Resource::new_borrow(socket)).is_err();
    if unbound && policy.pod().binds(target.ip()) {
        let bound = bind(ctx, socket, std::net::SocketAddr::new(ip, 0).into())?;
        return Ok(bound.map(|()| target.into()));
    }
    Ok(Ok(target.into()))
}

async fn connect(
    accessor: &Accessor<Ctx>,
    socket: Resource<TcpSocket>,
    wanted: IpSocketAddress,
) -> wasmtime::Result<(Answer<()>,)> {
    let target = match accessor.with(|mut store| prepare(store.get(), socket.rep(), wanted))? {
        Ok(target) => target,
        Err(code) => return Ok((Err(code),)),
    };
    let accessor = accessor.with_getter::<WasiSockets>(|ctx| ctx.sockets().0);
    let connected = <WasiSockets as HostTcpSocketWithStore<Ctx>>::connect(&accessor, socket, target).await;
    Ok((answer(connected)?,))
}

async fn resolve(accessor: &Accessor<Ctx>, name: String) -> Result<Vec<IpAddress>, LookupError> {
    if let Some(ip) = literal(&name) {
        return Ok(vec![ip.into()]);
    }
    let policy = accessor.with(|mut store| store.get().policy());
    let pod = policy.pod();
    match pod.network.resolve(&pod.sandbox, &name).await {
        Ok(found) if found.is_empty() => Err(LookupError::NameUnresolvable),
        Ok(found) => Ok(found.into_iter().map(|ip: IpAddr| ip.into()).collect()),
        Err(error) => {
            policy.say(&format!("looking up {name} failed: {error}"));
            Err(LookupError::TemporaryResolverFailure)
        }
    }
}

/// Names of the interface are those of its WIT.
pub(super) fn add_to_linker(linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
    let mut types = linker.instance("wasi:sockets/types@0.3.0")?;
    types.resource("tcp-socket", ResourceType::host::<TcpSocket>(), |mut store, handle| {
        store.data_mut().sockets().1.permits.remove(&handle);
        store.data_mut().table.delete(Resource::<TcpSocket>::new_own(handle))?;
        Ok(())
    })?;
    types.func_wrap("[static]tcp-socket.create", |mut store: Store<'_>, (family,): (IpAddressFamily,)| {
        Ok((create(store.data_mut(), family)?,))
    })?;
    types.func_wrap(
        "[method]tcp-socket.bind",
        |mut store: Store<'_>, (socket, wanted): (Resource<TcpSocket>, IpSocketAddress)| {
            Ok((bind(store.data_mut(), socket.rep(), wanted)?,))
        },
    )?;
    types.func_wrap_concurrent(
        "[method]tcp-socket.connect",
        |accessor, (socket, wanted): (Resource<TcpSocket>, IpSocketAddress)| {
            Box::pin(connect(accessor, socket, wanted))
        },
    )?;
    types.func_wrap("[method]tcp-socket.listen", |mut store: Store<'_>, (_,): (Resource<TcpSocket>,)| {
        store.data_mut().policy().say("listening refused: servers need wasi:sockets 0.2, or wasi:http");
        Ok((Answer::<StreamReader<Resource<TcpSocket>>>::Err(ErrorCode::NotSupported),))
    })?;
    types.func_wrap("[static]udp-socket.create", |mut store: Store<'_>, (_,): (IpAddressFamily,)| {
        store.data_mut().policy().say("UDP socket refused: UDP needs wasi:sockets 0.2");
        Ok((Answer::<Resource<UdpSocket>>::Err(ErrorCode::NotSupported),))
    })?;
    let mut lookup = linker.instance("wasi:sockets/ip-name-lookup@0.3.0")?;
    lookup.func_wrap_concurrent("resolve-addresses", |accessor, (name,): (String,)| {
        Box::pin(async move { Ok((resolve(accessor, name).await,)) })
    })
}
