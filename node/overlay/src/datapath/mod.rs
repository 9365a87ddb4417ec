//! The thread of a lane: it alone owns a queue of the device, its sockets and its connections, so nothing on
//! the way of a packet is locked, sent through a channel or woken.
//!
//! One turn: wait for the device, the sockets, a timer or a command; take what is there in batches; let the
//! connections that were touched send. `receive` is the way from the network to the device, `send` the
//! way back, `dial` decides which connections there are. `lanes` is what the threads tell each other.

mod dial;
mod lanes;
mod life;
mod link;
mod peers;
mod receive;
mod send;

use std::{
    collections::{HashMap, VecDeque},
    os::fd::AsFd,
    sync::{Arc, mpsc},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use ketch_net::Cidr;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use quinn_proto::{ClientConfig, ConnectionHandle, Endpoint, VarInt};
use tokio::sync::mpsc::UnboundedSender;

use crate::{
    board::Board,
    config::Peer,
    device::Device,
    lane::Lane,
    ranges::Id,
    socket::Socket,
    transport::{self, Sides},
};
pub(crate) use lanes::{Control, End, ends};
use lanes::{Role, Way};
use link::Link;
use peers::Peers;

/// Batches that one side may be served with before the other gets its turn.
const TURNS: usize = 8;

/// What the thread is told.
#[derive(Clone)]
pub(crate) enum Command {
    /// The peers are these.
    Peers(Vec<Peer>),
    /// Connections from now on are made with this identity.
    Identity(Box<Sides>),
    /// To all lanes but the first: how it reaches a peer.
    Way(Id, Way),
    /// Close everything.
    Shutdown,
}

/// What the thread tells.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Inner packets to this peer may have this many bytes.
    Mtu(Id, usize),
}

/// Tells the thread to look at its commands.
#[derive(Clone)]
pub(crate) struct Wake(Arc<EventFd>);

/// What a datapath is made of.
pub(crate) struct Parts {
    pub(crate) name: String,
    pub(crate) end: End,
    pub(crate) sides: Sides,
    /// The one that peers dial, and the one to dial them with if that is another.
    pub(crate) sockets: Vec<Socket>,
    pub(crate) device: Option<Device>,
    pub(crate) local: Vec<Cidr>,
    pub(crate) payload: u16,
    pub(crate) forward: bool,
    pub(crate) notices: UnboundedSender<Notice>,
    pub(crate) board: Board,
}

/// See the module.
pub(crate) struct Datapath {
    name: String,
    lane: Lane,
    role: Role,
    endpoint: Endpoint,
    client: ClientConfig,
    /// When this node's certificate ends.
    expires: SystemTime,
    sockets: Vec<Socket>,
    device: Option<Device>,
    local: Vec<Cidr>,
    forward: bool,
    wake: Wake,
    commands: mpsc::Receiver<Command>,
    notices: UnboundedSender<Notice>,
    board: Board,
    peers: Peers,
    links: HashMap<ConnectionHandle, Link>,
    /// When two nodes that talk through this one were last told about each other.
    introduced: HashMap<(Id, Id), Instant>,
    /// Links that may have something to do.
    queue: VecDeque<ConnectionHandle>,
    /// Inner packets for the device.
    outbox: Vec<Bytes>,
    /// Next round of `dial`.
    tick: Instant,
    buffer: Vec<u8>,
}

/// What one wait has found.
struct Ready {
    device: bool,
    command: bool,
    /// By socket: whether it has packets, and whether it can send again.
    sockets: Vec<(bool, bool)>,
}

// === impl Wake ===

impl Wake {
    pub(crate) fn new() -> std::io::Result<Self> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self(Arc::new(event)))
    }

    pub(crate) fn wake(&self) {
        // Full means that a wake-up is pending.
        let _ = self.0.write(1);
    }
}

// === impl Datapath ===

impl Datapath {
    pub(crate) fn new(parts: Parts) -> Self {
        let probing = !parts.sockets.iter().any(Socket::may_fragment);
        let End { lane, role, control, commands } = parts.end;
        let config = Arc::new(transport::endpoint(lane, parts.payload));
        let mut this = Self {
            name: parts.name,
            lane,
            role,
            endpoint: Endpoint::new(config, None, probing, None),
            client: parts.sides.client.clone(),
            expires: parts.sides.expires,
            sockets: parts.sockets,
            device: parts.device,
            local: parts.local,
            forward: parts.forward,
            wake: control.wake,
            commands,
            notices: parts.notices,
            board: parts.board,
            peers: Peers::default(),
            links: HashMap::new(),
            introduced: HashMap::new(),
            queue: VecDeque::new(),
            outbox: Vec::new(),
            tick: Instant::now(),
            buffer: Vec::new(),
        };
        this.set_identity(parts.sides);
        this
    }

    /// Makes connections with this identity from now on.
    fn set_identity(&mut self, mut sides: Sides) {
        sides.client.initial_dst_cid_provider(self.lane.first_ids());
        self.endpoint.set_server_config(Some(Arc::new(sides.server)));
        (self.client, self.expires) = (sides.client, sides.expires);
    }

    /// Runs until it is told to shut down, or everyone who could tell it is gone.
    pub(crate) fn run(mut self) {
        loop {
            let Some(ready) = self.wait() else { return };
            let now = Instant::now();
            if ready.command && !self.obey(now) {
                self.close(now);
                return;
            }
            self.take_over(now);
            for (socket, (readable, writable)) in ready.sockets.into_iter().enumerate() {
                if let Some(socket) = self.sockets.get_mut(socket).filter(|_| writable) {
                    socket.resume();
                }
                if readable {
                    self.receive(socket, now);
                }
            }
            if ready.device {
                self.take(now);
                self.hand_over();
            }
            self.expire(now);
            if now >= self.tick {
                self.tick = now + self.round(now);
            }
            self.drive(now);
            if let Some(device) = &mut self.device {
                device.write(&mut self.outbox);
            }
            self.outbox.clear();
        }
    }

    /// Waits for something to do; `None` when waiting is impossible.
    fn wait(&self) -> Option<Ready> {
        let blocked = self.is_blocked();
        let mut fds = vec![PollFd::new(self.wake.0.as_fd(), PollFlags::POLLIN)];
        for socket in &self.sockets {
            let write = if socket.is_blocked() { PollFlags::POLLOUT } else { PollFlags::empty() };
            fds.push(PollFd::new(socket.as_fd(), PollFlags::POLLIN | write));
        }
        // While nothing can be sent, packets wait in the device's queue.
        if let Some(device) = self.device.as_ref().filter(|_| !blocked) {
            fds.push(PollFd::new(device.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, self.timeout(blocked)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => {
                tracing::error!(%error, "the overlay cannot wait for packets and stops");
                return None;
            }
        }
        let mut found = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        let command = found.next().is_some_and(|flags| !flags.is_empty());
        let of_socket = |flags: PollFlags| {
            (flags.intersects(PollFlags::POLLIN | PollFlags::POLLERR), flags.contains(PollFlags::POLLOUT))
        };
        let sockets = found.by_ref().take(self.sockets.len()).map(of_socket).collect();
        Some(Ready { command, sockets, device: found.next().is_some_and(|flags| !flags.is_empty()) })
    }

    /// Whether a message waits for a socket; nothing is sent then.
    fn is_blocked(&self) -> bool {
        self.sockets.iter().any(Socket::is_blocked)
    }

    fn timeout(&self, blocked: bool) -> PollTimeout {
        if !self.queue.is_empty() && !blocked {
            return PollTimeout::ZERO;
        }
        let timers = self.links.values().filter_map(|link| link.timer);
        let next = timers.chain([self.tick]).min().unwrap_or(self.tick);
        let left = next.saturating_duration_since(Instant::now());
        // Rounded up: waking before the timer would turn in circles.
        let left = left.as_micros().div_ceil(1000);
        PollTimeout::try_from(left.min(60_000)).unwrap_or(PollTimeout::ZERO)
    }

    /// Carries out the commands; `false` to stop.
    fn obey(&mut self, now: Instant) -> bool {
        let _ = self.wake.0.read();
        loop {
            match self.commands.try_recv() {
                Ok(Command::Peers(list)) => self.set_peers(list, now),
                Ok(Command::Identity(sides)) => self.set_identity(*sides),
                Ok(Command::Way(peer, way)) => self.go(peer, way, now),
                Ok(Command::Shutdown) | Err(mpsc::TryRecvError::Disconnected) => return false,
                Err(mpsc::TryRecvError::Empty) => return true,
            }
        }
    }

    /// Says good-bye, so that peers need not wait for silence.
    fn close(&mut self, now: Instant) {
        let all: Vec<ConnectionHandle> = self.links.keys().copied().collect();
        // Relayed ones first: their last words need the others.
        let (relayed, direct): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|handle| self.links.get(handle).is_some_and(Link::is_relayed));
        for handles in [relayed, direct] {
            for handle in handles {
                self.close_link(handle, now, "shutdown");
            }
            self.drive(now);
        }
    }

    /// Closes a link; its peer is told why.
    fn close_link(&mut self, handle: ConnectionHandle, now: Instant, why: &'static str) {
        if let Some(link) = self.links.get_mut(&handle) {
            link.conn.close(now, VarInt::from_u32(0), Bytes::from_static(why.as_bytes()));
            self.forget(handle, now);
            self.enqueue(handle);
        }
    }

    /// Marks a link as having something to do.
    fn enqueue(&mut self, handle: ConnectionHandle) {
        if let Some(link) = self.links.get_mut(&handle)
            && !link.queued
        {
            link.queued = true;
            self.queue.push_back(handle);
        }
    }

    /// Lets timers that are due act.
    fn expire(&mut self, now: Instant) {
        let due: Vec<ConnectionHandle> = self
            .links
            .iter()
            .filter(|(_, link)| link.timer.is_some_and(|timer| timer <= now))
            .map(|(handle, _)| *handle)
            .collect();
        for handle in due {
            if let Some(link) = self.links.get_mut(&handle) {
                link.conn.handle_timeout(now);
                // Set anew when the link is driven, which a full socket may put off.
                link.timer = None;
                self.enqueue(handle);
            }
        }
    }

    fn notice(&self, notice: Notice) {
        // Nobody listens when there are no routes to keep.
        let _ = self.notices.send(notice);
    }
}

/// How often `dial` looks around while something is missing or new, and when all is well.
const BUSY: Duration = Duration::from_millis(100);
const QUIET: Duration = Duration::from_millis(1000);
