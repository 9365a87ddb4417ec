//! `wasi:sockets/udp@0.2`.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use ketch_runtime::Protocol;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::p2::{
    DynPollable, SocketResult, UdpSocket,
    bindings::sockets::{
        network::{ErrorCode, IpAddressFamily, IpSocketAddress, Network},
        udp::{
            self, HostIncomingDatagramStream, HostOutgoingDatagramStream, HostUdpSocket, IncomingDatagram,
            IncomingDatagramStream, OutgoingDatagram, OutgoingDatagramStream,
        },
        udp_create_socket,
    },
};

use super::{HasSockets, Sockets, view};
use crate::context::Ctx;

/// What wasmtime-wasi does as it is.
macro_rules! forward {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $result:ty;)*) => {
        $(fn $name(&mut self, this: Resource<UdpSocket> $(, $argument: $kind)*) -> $result {
            HostUdpSocket::$name(&mut self.inner, this $(, $argument)*)
        })*
    };
}

impl udp::Host for Sockets<'_> {}

impl udp_create_socket::Host for Sockets<'_> {
    async fn create_udp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Resource<UdpSocket>> {
        let permit = self.permit()?;
        let pod = Arc::clone(self.state.policy.pod());
        let socket = {
            let mut making = pin!(udp_create_socket::Host::create_udp_socket(&mut self.inner, family));
            // The first poll makes the socket; the rest waits for it to be writable, wherever.
            let first = pod.make(|| making.as_mut().poll(&mut Context::from_waker(Waker::noop())));
            match first {
                Ok(Poll::Ready(socket)) => Ok(socket?),
                Ok(Poll::Pending) => Ok(making.await?),
                Err(error) => Err(error),
            }
        };
        let socket = socket.map_err(|error| self.unmade(&error))?;
        self.state.permits.insert(socket.rep(), permit);
        Ok(socket)
    }
}

impl Sockets<'_> {
    fn udp_target(&self, address: IpSocketAddress) -> SocketResult<IpSocketAddress> {
        let target =
            self.state.policy.target(address.into(), Protocol::Udp).ok_or(ErrorCode::AccessDenied)?;
        Ok(target.into())
    }

    fn udp_source(&self, address: IpSocketAddress) -> IpSocketAddress {
        self.state.policy.dialled(SocketAddr::from(address), Protocol::Udp).into()
    }
}

impl HostUdpSocket for Sockets<'_> {
    forward! {
        finish_bind() -> SocketResult<()>;
        local_address() -> SocketResult<IpSocketAddress>;
        address_family() -> wasmtime::Result<IpAddressFamily>;
        unicast_hop_limit() -> SocketResult<u8>;
        set_unicast_hop_limit(value: u8) -> SocketResult<()>;
        receive_buffer_size() -> SocketResult<u64>;
        set_receive_buffer_size(value: u64) -> SocketResult<()>;
        send_buffer_size() -> SocketResult<u64>;
        set_send_buffer_size(value: u64) -> SocketResult<()>;
        subscribe() -> wasmtime::Result<Resource<DynPollable>>;
    }

    async fn start_bind(
        &mut self,
        this: Resource<UdpSocket>,
        network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        let address = self.state.policy.bind_address(address.into());
        HostUdpSocket::start_bind(&mut self.inner, this, network, address.into()).await
    }

    async fn stream(
        &mut self,
        this: Resource<UdpSocket>,
        remote: Option<IpSocketAddress>,
    ) -> SocketResult<(Resource<IncomingDatagramStream>, Resource<OutgoingDatagramStream>)> {
        let remote = remote.map(|address| self.udp_target(address)).transpose()?;
        HostUdpSocket::stream(&mut self.inner, this, remote).await
    }

    fn remote_address(&mut self, this: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        let address = HostUdpSocket::remote_address(&mut self.inner, this)?;
        Ok(self.udp_source(address))
    }

    fn drop(&mut self, this: Resource<UdpSocket>) -> wasmtime::Result<()> {
        self.state.permits.remove(&this.rep());
        HostUdpSocket::drop(&mut self.inner, this)
    }
}

impl HostIncomingDatagramStream for Sockets<'_> {
    fn receive(
        &mut self,
        this: Resource<IncomingDatagramStream>,
        most: u64,
    ) -> SocketResult<Vec<IncomingDatagram>> {
        let mut datagrams = HostIncomingDatagramStream::receive(&mut self.inner, this, most)?;
        for datagram in &mut datagrams {
            self.state.policy.hear(datagram.remote_address.into());
            // A Service's client hears from the Service, not from the endpoint behind it.
            datagram.remote_address = self.udp_source(datagram.remote_address);
        }
        Ok(datagrams)
    }

    fn subscribe(
        &mut self,
        this: Resource<IncomingDatagramStream>,
    ) -> wasmtime::Result<Resource<DynPollable>> {
        HostIncomingDatagramStream::subscribe(&mut self.inner, this)
    }

    fn drop(&mut self, this: Resource<IncomingDatagramStream>) -> wasmtime::Result<()> {
        HostIncomingDatagramStream::drop(&mut self.inner, this)
    }
}

impl HostOutgoingDatagramStream for Sockets<'_> {
    fn check_send(&mut self, this: Resource<OutgoingDatagramStream>) -> SocketResult<u64> {
        HostOutgoingDatagramStream::check_send(&mut self.inner, this)
    }

    fn send(
        &mut self,
        this: Resource<OutgoingDatagramStream>,
        mut datagrams: Vec<OutgoingDatagram>,
    ) -> SocketResult<u64> {
        for datagram in &mut datagrams {
            datagram.remote_address =
                datagram.remote_address.map(|address| self.udp_target(address)).transpose()?;
        }
        HostOutgoingDatagramStream::send(&mut self.inner, this, datagrams)
    }

    fn subscribe(
        &mut self,
        this: Resource<OutgoingDatagramStream>,
    ) -> wasmtime::Result<Resource<DynPollable>> {
        HostOutgoingDatagramStream::subscribe(&mut self.inner, this)
    }

    async fn drop(&mut self, this: Resource<OutgoingDatagramStream>) -> wasmtime::Result<()> {
        HostOutgoingDatagramStream::drop(&mut self.inner, this).await
    }
}

pub(super) fn add_to_linker(linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
    udp::add_to_linker::<_, HasSockets>(linker, view)?;
    udp_create_socket::add_to_linker::<_, HasSockets>(linker, view)
}
