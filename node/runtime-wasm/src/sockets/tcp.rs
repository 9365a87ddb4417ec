//! `wasi:sockets/tcp@0.2`.

use std::sync::Arc;

use ketch_runtime::Protocol;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, DynPollable, SocketResult, TcpSocket,
    bindings::sockets::{
        network::{ErrorCode, IpAddressFamily, IpSocketAddress, Network},
        tcp::{self, HostTcpSocket, ShutdownType},
        tcp_create_socket,
    },
};

use super::{HasSockets, Sockets, view};
use crate::context::Ctx;

/// What wasmtime-wasi does as it is.
macro_rules! forward {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $result:ty;)*) => {
        $(fn $name(&mut self, this: Resource<TcpSocket> $(, $argument: $kind)*) -> $result {
            HostTcpSocket::$name(&mut self.inner, this $(, $argument)*)
        })*
    };
}

impl tcp::Host for Sockets<'_> {}

impl tcp_create_socket::Host for Sockets<'_> {
    fn create_tcp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Resource<TcpSocket>> {
        let permit = self.permit()?;
        let pod = Arc::clone(self.state.policy.pod());
        let inner = &mut self.inner;
        let made = pod.make(|| tcp_create_socket::Host::create_tcp_socket(inner, family));
        let socket = made.map_err(|error| self.unmade(&error))??;
        self.state.permits.insert(socket.rep(), permit);
        Ok(socket)
    }
}

impl HostTcpSocket for Sockets<'_> {
    forward! {
        finish_bind() -> SocketResult<()>;
        finish_connect() -> SocketResult<(Resource<DynInputStream>, Resource<DynOutputStream>)>;
        finish_listen() -> SocketResult<()>;
        local_address() -> SocketResult<IpSocketAddress>;
        is_listening() -> wasmtime::Result<bool>;
        address_family() -> wasmtime::Result<IpAddressFamily>;
        set_listen_backlog_size(value: u64) -> SocketResult<()>;
        keep_alive_enabled() -> SocketResult<bool>;
        set_keep_alive_enabled(value: bool) -> SocketResult<()>;
        keep_alive_idle_time() -> SocketResult<u64>;
        set_keep_alive_idle_time(value: u64) -> SocketResult<()>;
        keep_alive_interval() -> SocketResult<u64>;
        set_keep_alive_interval(value: u64) -> SocketResult<()>;
        keep_alive_count() -> SocketResult<u32>;
        set_keep_alive_count(value: u32) -> SocketResult<()>;
        hop_limit() -> SocketResult<u8>;
        set_hop_limit(value: u8) -> SocketResult<()>;
        receive_buffer_size() -> SocketResult<u64>;
        set_receive_buffer_size(value: u64) -> SocketResult<()>;
        send_buffer_size() -> SocketResult<u64>;
        set_send_buffer_size(value: u64) -> SocketResult<()>;
        subscribe() -> wasmtime::Result<Resource<DynPollable>>;
        shutdown(how: ShutdownType) -> SocketResult<()>;
    }

    async fn start_bind(
        &mut self,
        this: Resource<TcpSocket>,
        network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        let address = self.state.policy.bind_address(address.into());
        HostTcpSocket::start_bind(&mut self.inner, this, network, address.into()).await
    }

    fn start_connect(
        &mut self,
        this: Resource<TcpSocket>,
        network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        let policy = &self.state.policy;
        let target = policy.target(address.into(), Protocol::Tcp).ok_or(ErrorCode::AccessDenied)?;
        let ip = policy.pod().sandbox.ip;
        let binds = policy.pod().binds(target.ip());
        let socket = Resource::<TcpSocket>::new_borrow(this.rep());
        // Like a process in the pod: it is the pod's address that connects, unless the guest chose one.
        if binds && self.local_address(socket).is_err() {
            let bound = self.bind_now(this.rep(), network.rep(), (ip, 0).into());
            futures::FutureExt::now_or_never(bound).unwrap_or(Err(ErrorCode::Unknown.into()))?;
        }
        HostTcpSocket::start_connect(&mut self.inner, this, network, target.into())
    }

    async fn start_listen(&mut self, this: Resource<TcpSocket>) -> SocketResult<()> {
        HostTcpSocket::start_listen(&mut self.inner, this).await
    }

    fn accept(
        &mut self,
        this: Resource<TcpSocket>,
    ) -> SocketResult<(Resource<TcpSocket>, Resource<DynInputStream>, Resource<DynOutputStream>)> {
        let permit = self.permit()?;
        let accepted = HostTcpSocket::accept(&mut self.inner, this)?;
        self.state.permits.insert(accepted.0.rep(), permit);
        Ok(accepted)
    }

    fn remote_address(&mut self, this: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        let address = HostTcpSocket::remote_address(&mut self.inner, this)?;
        Ok(self.state.policy.dialled(address.into(), Protocol::Tcp).into())
    }

    fn drop(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<()> {
        self.state.permits.remove(&this.rep());
        HostTcpSocket::drop(&mut self.inner, this)
    }
}

impl Sockets<'_> {
    /// Binds in one step. Nothing in it waits: the check answers at once.
    async fn bind_now(
        &mut self,
        socket: u32,
        network: u32,
        address: std::net::SocketAddr,
    ) -> SocketResult<()> {
        let this = || Resource::new_borrow(socket);
        HostTcpSocket::start_bind(&mut self.inner, this(), Resource::new_borrow(network), address.into())
            .await?;
        HostTcpSocket::finish_bind(&mut self.inner, this())
    }
}

pub(super) fn add_to_linker(linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
    tcp::add_to_linker::<_, HasSockets>(linker, view)?;
    tcp_create_socket::add_to_linker::<_, HasSockets>(linker, view)
}
