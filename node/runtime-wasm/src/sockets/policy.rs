//! Where a pod's sockets may bind and what they may reach.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use ketch_runtime::{
    Port, Protocol,
    log::{Log, Stream},
};
use tokio::sync::OwnedSemaphorePermit;
use wasmtime_wasi::sockets::SocketAddrUse;

use crate::context::Pod;

/// Targets remembered per store; more are looked up again.
const MAX_KNOWN: usize = 1024;

/// See the module. One per store, so that what one instance was allowed is not another's.
pub(crate) struct Policy {
    pod: Arc<Pod>,
    ports: Arc<Vec<Port>>,
    log: Log,
    /// Endpoints that dialled addresses lead to, with those addresses.
    known: Mutex<HashMap<(SocketAddr, Protocol), SocketAddr>>,
    /// Where datagrams came from: an answer is part of the exchange that was allowed.
    heard: Mutex<HashSet<SocketAddr>>,
}

impl Policy {
    pub(crate) fn new(pod: Arc<Pod>, ports: Arc<Vec<Port>>, log: Log) -> Self {
        Self { pod, ports, log, known: Mutex::default(), heard: Mutex::default() }
    }

    pub(crate) fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    pub(super) fn log(&self) -> &Log {
        &self.log
    }

    pub(super) fn permit(&self) -> Option<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.pod.sockets).try_acquire_owned().ok();
        if permit.is_none() {
            self.say(&format!("socket refused: the pod has {} already", super::MAX_SOCKETS));
        }
        permit
    }

    fn ip(&self) -> IpAddr {
        self.pod.sandbox.ip
    }

    /// Whether the pod has a network namespace, so that addresses are what they are in it.
    fn is_sandboxed(&self) -> bool {
        self.pod.sandbox.network_namespace.is_some()
    }

    /// Whether the pod may bind `ip`.
    fn is_own(&self, ip: IpAddr) -> bool {
        ip == self.ip() || self.is_sandboxed() && (ip.is_unspecified() || ip.is_loopback())
    }

    /// Where a socket that asks for `wanted` binds.
    pub(super) fn bind_address(&self, wanted: SocketAddr) -> SocketAddr {
        if !self.is_sandboxed()
            && wanted.is_ipv4() == self.ip().is_ipv4()
            && (wanted.ip().is_unspecified() || is_localhost(wanted.ip()))
        {
            SocketAddr::new(self.ip(), wanted.port())
        } else {
            wanted
        }
    }

    /// Where a connection or datagram to `wanted` goes; `None`, with a line in the log, when it may not.
    pub(super) fn target(&self, wanted: SocketAddr, protocol: Protocol) -> Option<SocketAddr> {
        if protocol == Protocol::Udp && self.heard().contains(&wanted) {
            return Some(wanted);
        }
        let target = match self.local(wanted) {
            Some(local) => local,
            None => match self.pod.network.route(&self.pod.sandbox, wanted, protocol) {
                Ok(target) => target,
                Err(error) => {
                    self.say(&format!("connection to {wanted} refused: {error}"));
                    return None;
                }
            },
        };
        let mut known = self.known();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert((target, protocol), wanted);
        Some(target)
    }

    /// Notes that a datagram came from `source`.
    pub(super) fn hear(&self, source: SocketAddr) {
        let mut heard = self.heard();
        if heard.len() >= MAX_KNOWN {
            heard.clear();
        }
        heard.insert(source);
    }

    /// The address the guest dialled to reach `source`.
    pub(super) fn dialled(&self, source: SocketAddr, protocol: Protocol) -> SocketAddr {
        self.known().get(&(source, protocol)).copied().unwrap_or(source)
    }

    /// The pod itself, when that is where `wanted` leads.
    fn local(&self, wanted: SocketAddr) -> Option<SocketAddr> {
        if self.is_sandboxed() {
            return (wanted.ip() == self.ip() || wanted.ip().is_loopback()).then_some(wanted);
        }
        let own = wanted.ip() == self.ip() || is_localhost(wanted.ip()) && self.ip().is_ipv4();
        own.then(|| SocketAddr::new(self.ip(), wanted.port()))
    }

    /// wasmtime-wasi asks before each use of an address: the last word, whichever way it came here.
    pub(crate) fn check(&self, address: SocketAddr, reason: SocketAddrUse) -> bool {
        match reason {
            SocketAddrUse::TcpBind => self.may_bind(address, Protocol::Tcp),
            SocketAddrUse::UdpBind => self.may_bind(address, Protocol::Udp),
            SocketAddrUse::TcpListen => {
                self.is_own(address.ip()) && self.declared(address.port(), Protocol::Tcp)
            }
            SocketAddrUse::TcpAccept | SocketAddrUse::UdpReceive => true,
            SocketAddrUse::TcpConnect => self.may_reach(address, Protocol::Tcp),
            SocketAddrUse::UdpSend => self.may_reach(address, Protocol::Udp),
        }
    }

    /// A wildcard with port 0 is the kernel's choice for a client.
    fn may_bind(&self, address: SocketAddr, protocol: Protocol) -> bool {
        match address.port() {
            0 => self.is_own(address.ip()) || address.ip().is_unspecified(),
            port => self.is_own(address.ip()) && self.declared(port, protocol),
        }
    }

    fn declared(&self, number: u16, protocol: Protocol) -> bool {
        let declared = self.ports.contains(&Port { number, protocol });
        if !declared {
            self.say(&format!("listening on port {number} refused: declare it in the container's ports"));
        }
        declared
    }

    /// Known from [`Policy::target`], or a target that needs no rewriting.
    fn may_reach(&self, address: SocketAddr, protocol: Protocol) -> bool {
        self.known().contains_key(&(address, protocol)) || self.target(address, protocol) == Some(address)
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, HashSet<SocketAddr>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<(SocketAddr, Protocol), SocketAddr>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn say(&self, text: &str) {
        self.log.line(Stream::Stderr, &format!("{text}\n"));
    }
}

/// 127.0.0.1 only: the rest of 127/8 may be pods.
fn is_localhost(ip: IpAddr) -> bool {
    ip == IpAddr::V4(Ipv4Addr::LOCALHOST)
}
