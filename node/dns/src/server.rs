//! [`Dns`]: sockets and their tasks.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use hickory_resolver::net::NetError;
use ketch_net::{Cidr, Table};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{handler::Handler, tcp, udp, upstream::Upstream};

/// Where the Services of now come from. Called for each packet: it has to be quick.
pub type Source = Arc<dyn Fn() -> Arc<Table> + Send + Sync>;
/// The namespace of the pod with an address.
pub type Namespaces = Arc<dyn Fn(IpAddr) -> Option<String> + Send + Sync>;

/// More sockets than this cost more than they bring.
const MAX_SOCKETS: usize = 8;
/// How long tasks may take to end.
const SHUTDOWN: Duration = Duration::from_secs(2);

/// What a DNS server is started with.
pub struct DnsOptions {
    /// Addresses to answer at, with UDP and TCP; port 0 picks one.
    pub bind: Vec<SocketAddr>,
    /// Services.
    pub source: Source,
    /// Resolvers for names outside the cluster, by preference; see [`crate::system_upstreams`].
    pub upstreams: Vec<SocketAddr>,
    /// Namespaces of pods, to complete their search paths.
    pub namespaces: Namespaces,
    /// Ranges of pod addresses in the cluster.
    pub pod_cidrs: Vec<Cidr>,
    /// Ranges of Service addresses.
    pub service_cidrs: Vec<Cidr>,
}

/// Why a DNS server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be used.
    #[error("cannot answer DNS at {address}: {source}")]
    Bind {
        /// Address.
        address: SocketAddr,
        /// Cause.
        source: io::Error,
    },
    /// The resolvers cannot be used.
    #[error("cannot use the host's resolvers: {0}")]
    Upstream(#[from] NetError),
}

impl StartError {
    /// Whether another program has the address.
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Bind { source, .. } if source.kind() == io::ErrorKind::AddrInUse)
    }
}

/// A running DNS server. Dropping it does not end it: call [`Dns::shutdown`].
pub struct Dns {
    addresses: Vec<SocketAddr>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Dns {
    /// Binds every address and starts to answer; the only waiting is for the kernel.
    ///
    /// # Errors
    /// When an address cannot be bound: then none is.
    pub async fn start(options: DnsOptions) -> Result<Self, StartError> {
        let mut bound = Vec::new();
        for address in options.bind {
            bound.push(bind(address).map_err(|source| StartError::Bind { address, source })?);
        }
        let addresses: Vec<SocketAddr> = bound.iter().map(|bound| bound.address).collect();
        let mark = format!("{:016x}.loop.ketch.dev.", random());
        let upstream = Arc::new(Upstream::new(&options.upstreams, &addresses, &mark)?);
        let handler = Arc::new(Handler {
            source: options.source,
            namespaces: options.namespaces,
            pods: options.pod_cidrs.into(),
            services: options.service_cidrs.into(),
            servers: addresses.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()).collect(),
            upstream: Arc::clone(&upstream),
            turn: AtomicUsize::new(0),
        });
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        for Bound { tcp, udp, .. } in bound {
            tasks.spawn(tcp::serve(tcp, Arc::clone(&handler), stop.clone()));
            for socket in udp {
                let (handler, stop) = (Arc::clone(&handler), stop.clone());
                tasks.spawn(udp::serve(Arc::new(socket), handler, tasks.clone(), stop));
            }
        }
        let stopped = stop.clone();
        tasks.spawn(async move {
            stopped.run_until_cancelled(upstream.probe()).await;
        });
        tasks.close();
        Ok(Self { addresses, stop, tasks })
    }

    /// Addresses it answers at, in the order they were asked for.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Ends it: open connections are closed, questions in flight are not answered.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        if tokio::time::timeout(SHUTDOWN, self.tasks.wait()).await.is_err() {
            tracing::warn!("some of the DNS server's tasks did not end in time");
        }
    }
}

struct Bound {
    address: SocketAddr,
    tcp: TcpListener,
    udp: Vec<UdpSocket>,
}

/// TCP first, because it says whether another program has the address: UDP sockets share theirs.
fn bind(address: SocketAddr) -> io::Result<Bound> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let udp = (0..cores.min(MAX_SOCKETS)).map(|_| udp_socket(address)).collect::<io::Result<Vec<_>>>()?;
    Ok(Bound { address, tcp: TcpListener::from_std(listener)?, udp })
}

/// One of several sockets at an address, among which the kernel spreads clients.
fn udp_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    // A burst of questions should wait rather than get lost; the kernel gives what it allows.
    let _ = socket.set_recv_buffer_size(1 << 20);
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// A number that nobody guesses.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
