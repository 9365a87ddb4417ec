//! The door: a port of this node by which its pods reach the API. Connections are handed on to the server.
//!
//! The Service `kubernetes` leads to the address at which the server sees itself. A node outside of the server's
//! network may not reach that one; it reaches the server at the address it has joined by, which its pods know nothing
//! of. So they are led here instead. Bytes are passed as they come: TLS is between the pod and the server, nothing is
//! read or answered here, and the server sees the node's address, as it does of pods that are masqueraded.
//!
//! Only pods of this node and its own programs get in, by the address they come from: the answers to anybody else who
//! says to be one of them go astray, and no connection is made.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ketch_net::Cidr;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::AsyncWriteExt,
    net::{
        TcpListener, TcpStream, lookup_host,
        tcp::{ReadHalf, WriteHalf},
    },
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::ServerAddress;

/// Connections at a time, and of one address: a pod must not keep others out.
const CONNECTIONS: usize = 4_096;
const OF_ONE: usize = 256;
/// For the server to be connected to, at all its addresses and at one of them.
const CONNECT: Duration = Duration::from_secs(10);
const CONNECT_ONE: Duration = Duration::from_secs(4);
/// After a failure to accept.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes that are passed at a time. There is room for them only while they are passed.
const CHUNK: usize = 16 * 1024;
/// Who does not answer these is gone: silent for longer than the first, then that often, so many times.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);
const SILENCE: Silence = Silence {
    // The API itself ends sessions that were idle for four hours.
    open: Duration::from_secs(5 * 3_600),
    half: Duration::from_secs(60),
};

/// How long nothing may come on a connection before it ends.
#[derive(Clone, Copy)]
struct Silence {
    /// While both sides are open.
    open: Duration,
    /// When one has said its last.
    half: Duration,
}

/// The port, and where it leads.
pub(super) struct Door {
    listener: TcpListener,
    /// Addresses of this node's pods.
    pods: Cidr,
    server: ServerAddress,
    places: Arc<Places>,
    silence: Silence,
}

// === impl Door ===

impl Door {
    /// Leads from `listener` to `server`, for pods with addresses in `pods`.
    pub(super) fn new(
        listener: std::net::TcpListener,
        pods: Cidr,
        server: ServerAddress,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let places = Arc::new(Places { all: CONNECTIONS, of_one: OF_ONE, taken: Mutex::default() });
        Ok(Self { listener, pods, server, places, silence: SILENCE })
    }

    /// Hands connections on until `stop`, which ends them.
    pub(super) async fn run(self, stop: CancellationToken) {
        let connections = TaskTracker::new();
        while let Some(accepted) = stop.run_until_cancelled(self.listener.accept()).await {
            let (client, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "a connection to the API could not be accepted");
                    // Out of files: some have to be closed first.
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let Some(place) = self.admit(from.ip()) else {
                reset(&client);
                continue;
            };
            let (server, silence) = (self.server.clone(), self.silence);
            let work = async move {
                let _place = place;
                hand_on(client, &server, silence).await;
            };
            connections.spawn(stop.clone().run_until_cancelled_owned(work));
        }
        connections.close();
        connections.wait().await;
    }

    /// A place for a connection from there; `None`: it gets none.
    fn admit(&self, from: IpAddr) -> Option<Place> {
        if !self.pods.contains(from) && !is_own(from) {
            tracing::debug!(%from, "only pods of this node reach the API through it");
            return None;
        }
        let place = Places::take(&self.places, from);
        if place.is_none() {
            tracing::debug!(%from, "too many connections to the API through this node");
        }
        place
    }
}

/// Whether it is an address of this machine.
fn is_own(address: IpAddr) -> bool {
    let own = |of: &nix::ifaddrs::InterfaceAddress| {
        let four = of.address.as_ref().and_then(|address| address.as_sockaddr_in());
        four.is_some_and(|four| IpAddr::V4(four.ip()) == address)
    };
    address.is_loopback() || nix::ifaddrs::getifaddrs().into_iter().flatten().any(|one| own(&one))
}

/// Counts connections by where they come from.
struct Places {
    all: usize,
    of_one: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

struct Place(Arc<Places>, IpAddr);

impl Places {
    fn take(places: &Arc<Self>, from: IpAddr) -> Option<Place> {
        let mut taken = places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, own) = (taken.values().sum::<usize>(), taken.get(&from).copied().unwrap_or_default());
        if all >= places.all || own >= places.of_one {
            return None;
        }
        taken.insert(from, own + 1);
        Some(Place(Arc::clone(places), from))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.1) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.remove(&self.1)),
        }
    }
}

/// Makes the end of a connection a failure: a plain end would be an answer without content.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

/// A connection, to its end.
async fn hand_on(mut client: TcpStream, server: &ServerAddress, silence: Silence) {
    let dialled = timeout(CONNECT, dial(server)).await;
    let mut server = match dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%server, %error, "a pod does not reach the API: the server does not answer");
            return reset(&client);
        }
    };
    for side in [&client, &server] {
        keep_alive(side);
    }
    if !pass(&mut client, &mut server, silence).await {
        reset(&client);
        reset(&server);
    }
}

/// Connects to the first of the server's addresses that answers.
async fn dial(server: &ServerAddress) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    let addresses: Vec<SocketAddr> = lookup_host((server.host(), server.port())).await?.collect();
    for address in addresses {
        match timeout(CONNECT_ONE, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

fn keep_alive(stream: &TcpStream) {
    let (time, interval, retries) = KEEP_ALIVE;
    let wanted = TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries);
    // Without it the limits on silence do, only later.
    let _ = SockRef::from(stream).set_tcp_keepalive(&wanted);
    let _ = stream.set_nodelay(true);
}

/// When something came last, and whether a side has ended.
struct Clock {
    start: Instant,
    /// Milliseconds from the start.
    last: AtomicU64,
    ended: AtomicU64,
}

impl Clock {
    fn note(&self) {
        let passed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(passed, Ordering::Relaxed);
    }

    /// Returns when it was silent for too long.
    async fn silent(&self, silence: Silence) {
        loop {
            let patience = if self.ended.load(Ordering::Relaxed) > 0 { silence.half } else { silence.open };
            let end = self.start + Duration::from_millis(self.last.load(Ordering::Relaxed)) + patience;
            if end <= Instant::now() {
                return;
            }
            // A side may end meanwhile, and patience be less then.
            sleep_until(end.min(Instant::now() + silence.half)).await;
        }
    }
}

/// Copies both ways until both sides have ended, which is `true`, or one breaks, or nothing comes any more.
async fn pass(client: &mut TcpStream, server: &mut TcpStream, silence: Silence) -> bool {
    let clock = Clock { start: Instant::now(), last: AtomicU64::new(0), ended: AtomicU64::new(0) };
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let both = async {
        tokio::try_join!(copy(from_client, to_server, &clock), copy(from_server, to_client, &clock))
    };
    tokio::select! {
        ended = both => ended.is_ok(),
        () = clock.silent(silence) => false,
    }
}

async fn copy(from: ReadHalf<'_>, mut to: WriteHalf<'_>, clock: &Clock) -> io::Result<()> {
    loop {
        from.readable().await?;
        let mut chunk = Vec::with_capacity(CHUNK);
        match from.try_read_buf(&mut chunk) {
            Ok(0) => break,
            Ok(_) => {
                clock.note();
                to.write_all(&chunk).await?;
                clock.note();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    clock.note();
    clock.ended.fetch_add(1, Ordering::Relaxed);
    to.shutdown().await
}

#[cfg(test)]
mod tests;
