//! `wasi:sockets` on the pod's address.
//!
//! wasmtime-wasi does the socket work; what is ours is where sockets bind and connect ([`Policy`]) and how many
//! there may be. 0.2 goes through `tcp`, `udp` and `lookup`, which rewrite addresses: the unspecified address
//! and 127.0.0.1 become the pod's, a Service's address becomes one of its endpoints. Of 0.3 there are names and
//! TCP clients (`preview3`).
//!
//! A pod with containers has a network namespace. Sockets are made in it then, and these two addresses are what
//! they are in it, so that guests and containers meet at localhost.

mod lookup;
mod policy;
mod preview3;
mod tcp;
mod udp;

use std::{collections::HashMap, sync::Arc};

use tokio::sync::OwnedSemaphorePermit;
use wasmtime::component::{HasData, Linker, Resource};
use wasmtime_wasi::{
    p2::{
        IoError, SocketError,
        bindings::sockets::network::{self, ErrorCode},
    },
    sockets::WasiSocketsCtxView,
};

pub(crate) use policy::Policy;

use crate::context::Ctx;

/// Sockets one pod may have.
pub(crate) const MAX_SOCKETS: usize = 128;

/// A store's sockets.
pub(crate) struct State {
    policy: Arc<Policy>,
    /// What each socket counts for, by its handle; given back at the latest with the store.
    permits: HashMap<u32, OwnedSemaphorePermit>,
}

impl State {
    pub(crate) fn new(policy: Arc<Policy>) -> Self {
        Self { policy, permits: HashMap::new() }
    }

    pub(crate) fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy)
    }
}

/// The view of a store that the interfaces work on.
pub(crate) struct Sockets<'a> {
    inner: WasiSocketsCtxView<'a>,
    state: &'a mut State,
}

impl Sockets<'_> {
    /// Takes one of the pod's sockets.
    fn permit(&self) -> Result<OwnedSemaphorePermit, SocketError> {
        self.state.policy.permit().ok_or_else(|| ErrorCode::NewSocketLimit.into())
    }

    /// Says why no socket could be made in the pod's namespace.
    fn unmade(&self, error: &std::io::Error) -> SocketError {
        self.state.policy.say(&format!("socket refused: {error}"));
        ErrorCode::Unknown.into()
    }
}

impl network::Host for Sockets<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        self.inner.convert_error_code(error)
    }

    fn network_error_code(&mut self, error: Resource<IoError>) -> wasmtime::Result<Option<ErrorCode>> {
        self.inner.network_error_code(error)
    }
}

impl network::HostNetwork for Sockets<'_> {
    fn drop(&mut self, this: Resource<network::Network>) -> wasmtime::Result<()> {
        network::HostNetwork::drop(&mut self.inner, this)
    }
}

struct HasSockets;

impl HasData for HasSockets {
    type Data<'a> = Sockets<'a>;
}

fn view(ctx: &mut Ctx) -> Sockets<'_> {
    let (inner, state) = ctx.sockets();
    Sockets { inner, state }
}

/// Puts our interfaces over wasmtime-wasi's.
pub(crate) fn add_to_linker(linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    tcp::add_to_linker(linker)?;
    udp::add_to_linker(linker)?;
    lookup::add_to_linker(linker)?;
    preview3::add_to_linker(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}
