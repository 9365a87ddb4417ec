//! The handle of a running overlay, and the task that keeps its routes.

use std::{collections::HashMap, net::SocketAddr};

use ketch_net::Cidr;
use tokio::{
    sync::{
        mpsc::{UnboundedReceiver, unbounded_channel},
        oneshot, watch,
    },
    task::JoinSet,
};

use crate::{
    board::Board,
    config::{OverlayConfig, Peer, PeerStatus},
    datapath::{Command, Control, Datapath, End, Notice, Parts, ends},
    device::Device,
    identity::{Identity, IdentityError},
    lane,
    ranges::{Id, plan},
    routes::{RouteError, Routes},
    socket::Socket,
    transport::{self, OVERHEAD},
};

/// Largest inner packet at the start, in bytes: fits a datagram on Ethernet with room for IPv6 and PPPoE.
const FIRST_MTU: u32 = 1380;

/// The kernel takes no smaller one for a route.
const LEAST_MTU: u32 = 576;

/// Why an overlay did not start.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The UDP address cannot be used.
    #[error("cannot listen for nodes on {address}: {cause}")]
    Bind {
        /// Address.
        address: SocketAddr,
        /// Cause.
        cause: std::io::Error,
    },
    /// The device cannot be made.
    #[error(
        "cannot create the network device {name}: {cause}; the overlay needs /dev/net/tun and root, or CAP_NET_ADMIN"
    )]
    Device {
        /// Name.
        name: String,
        /// Cause.
        cause: std::io::Error,
    },
    /// Routes cannot be changed.
    #[error(transparent)]
    Routes(#[from] RouteError),
    /// A thread or a file descriptor is not to be had.
    #[error("the system has no {what} left: {cause}")]
    System {
        /// What is missing.
        what: &'static str,
        /// Cause.
        cause: std::io::Error,
    },
}

/// A running overlay. Dropping it ends it too, without waiting.
pub struct Overlay {
    address: SocketAddr,
    payload: u16,
    lanes: Lanes,
    board: Board,
    ended: Vec<oneshot::Receiver<()>>,
    tasks: JoinSet<()>,
}

/// The ways to the threads of all lanes.
#[derive(Clone)]
struct Lanes(Vec<Control>);

// === impl Overlay ===

impl Overlay {
    /// Starts the overlay of this node in the network namespace of the calling thread. From now on the
    /// addresses of `peers` are routed to them; own ones never are.
    ///
    /// # Errors
    /// When the identity is unusable, the address is taken, or the rights for a device are missing. There
    /// is nothing left behind then.
    pub async fn start(
        config: OverlayConfig,
        peers: watch::Receiver<Vec<Peer>>,
    ) -> Result<Self, OverlayError> {
        let payload = config.max_udp_payload.max(1200);
        let tls = config.identity.tls()?;
        let bind = |cause| OverlayError::Bind { address: config.bind, cause };
        let sockets = sockets(config.bind, config.lanes).map_err(bind)?;
        let address = sockets.first().and_then(|of_first| of_first.first());
        let address = address.map_or(Ok(config.bind), Socket::local_addr).map_err(bind)?;
        let mtu = payload - OVERHEAD;
        let devices = config.device.as_ref().map(|device| {
            Device::create(&device.name, mtu, sockets.len())
                .map_err(|cause| OverlayError::Device { name: device.name.clone(), cause })
        });
        let mut devices = devices.transpose()?.unwrap_or_default().into_iter();
        let ends =
            ends(sockets.len()).map_err(|cause| OverlayError::System { what: "event descriptors", cause })?;
        let (notices, told) = unbounded_channel();
        let board = Board::new(sockets.len());
        let mut tasks = JoinSet::new();
        let routes = routes(&config, &mut tasks).await?;
        let lanes = Lanes(ends.iter().map(|end| end.control.clone()).collect());
        let sides = transport::sides(&tls, payload);
        let spawn = |(end, sockets): (End, Vec<Socket>)| {
            spawn(Parts {
                name: tls.name.clone(),
                end,
                sides: sides.clone(),
                sockets,
                device: devices.next(),
                local: config.local_ranges.clone(),
                payload,
                forward: config.forward,
                notices: notices.clone(),
                board: board.clone(),
            })
        };
        let ended = ends.into_iter().zip(sockets).map(spawn).collect::<Result<_, _>>();
        // Those that have started are not to stay.
        let ended = ended.inspect_err(|_| lanes.tell(&Command::Shutdown))?;
        let keeper = Keeper {
            lanes: lanes.clone(),
            routes,
            local: config.local_ranges,
            own: tls.name,
            ceiling: u32::from(mtu),
            sizes: HashMap::new(),
        };
        tasks.spawn(keeper.run(peers, told));
        Ok(Self { address, payload, lanes, board, ended, tasks })
    }

    /// Where peers reach this overlay; with the port that was picked.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// State of every peer, at most a second old.
    pub fn status(&self) -> Vec<PeerStatus> {
        self.board.read()
    }

    /// Uses another certificate from now on; connections that are up stay.
    ///
    /// # Errors
    /// When it is unusable; the old one stays then.
    pub fn set_identity(&self, identity: &Identity) -> Result<(), IdentityError> {
        let sides = transport::sides(&identity.tls()?, self.payload);
        self.lanes.tell(&Command::Identity(Box::new(sides)));
        Ok(())
    }

    /// Tells peers and removes device and routes. Returns when they are gone.
    pub async fn shutdown(mut self) {
        self.tasks.shutdown().await;
        self.lanes.tell(&Command::Shutdown);
        for ended in self.ended.drain(..) {
            // An error means that the thread is gone already.
            let _ = ended.await;
        }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        self.lanes.tell(&Command::Shutdown);
    }
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What each lane sends and receives with: a socket at the common address, and all but the first one another to dial
/// with.
fn sockets(bind: SocketAddr, lanes: usize) -> std::io::Result<Vec<Vec<Socket>>> {
    let shared = Socket::group(bind, lanes.clamp(1, lane::MOST))?;
    let with_own = |(lane, socket)| match lane {
        0 => Ok(vec![socket]),
        _ => Ok(vec![socket, Socket::open(SocketAddr::new(bind.ip(), 0))?]),
    };
    shared.into_iter().enumerate().map(with_own).collect()
}

fn spawn(parts: Parts) -> Result<oneshot::Receiver<()>, OverlayError> {
    let (end, ended) = oneshot::channel();
    let body = move || {
        Datapath::new(parts).run();
        // The other side may have been dropped.
        let _ = end.send(());
    };
    let thread = std::thread::Builder::new().name("overlay".into()).spawn(body);
    thread.map_err(|cause| OverlayError::System { what: "threads", cause })?;
    Ok(ended)
}

async fn routes(config: &OverlayConfig, tasks: &mut JoinSet<()>) -> Result<Option<Routes>, OverlayError> {
    let Some(device) = &config.device else { return Ok(None) };
    let (connection, handle, _) = rtnetlink::new_connection()
        .map_err(|cause| OverlayError::System { what: "netlink sockets", cause })?;
    tasks.spawn(connection);
    Ok(Some(Routes::open(handle, &device.name, device.address).await?))
}

// === impl Lanes ===

impl Lanes {
    /// Tells all; the first one last, because the others are to know of a peer before it says where they find it.
    fn tell(&self, command: &Command) {
        for control in self.0.iter().rev() {
            control.tell(command.clone());
        }
    }
}

/// Keeps routes and the datapath's list of peers as they are wanted.
struct Keeper {
    lanes: Lanes,
    routes: Option<Routes>,
    local: Vec<Cidr>,
    own: String,
    ceiling: u32,
    /// What fits, by peer.
    sizes: HashMap<Id, u32>,
}

// === impl Keeper ===

impl Keeper {
    async fn run(mut self, mut peers: watch::Receiver<Vec<Peer>>, mut told: UnboundedReceiver<Notice>) {
        let mut list = peers.borrow_and_update().clone();
        self.lanes.tell(&Command::Peers(list.clone()));
        loop {
            self.apply(&list).await;
            tokio::select! {
                changed = peers.changed() => {
                    if changed.is_err() {
                        // No more news; what is known stays.
                        return self.follow(&list, told).await;
                    }
                    list = peers.borrow_and_update().clone();
                    self.lanes.tell(&Command::Peers(list.clone()));
                }
                notice = told.recv() => match notice {
                    Some(notice) => self.note(notice),
                    None => return,
                },
            }
        }
    }

    async fn follow(mut self, list: &[Peer], mut told: UnboundedReceiver<Notice>) {
        while let Some(notice) = told.recv().await {
            self.note(notice);
            self.apply(list).await;
        }
    }

    fn note(&mut self, notice: Notice) {
        let Notice::Mtu(id, size) = notice;
        self.sizes.insert(id, u32::try_from(size).unwrap_or(u32::MAX));
    }

    async fn apply(&mut self, list: &[Peer]) {
        let Some(routes) = &mut self.routes else { return };
        let others: Vec<Peer> = list.iter().filter(|peer| peer.name != self.own).cloned().collect();
        let wanted: Vec<(Cidr, u32)> = plan(&others, &self.local)
            .into_iter()
            .map(|(range, id)| {
                let size = self.sizes.get(&id).copied().unwrap_or(FIRST_MTU);
                (range, size.min(self.ceiling).max(LEAST_MTU))
            })
            .collect();
        if let Err(error) = routes.apply(&wanted).await {
            tracing::error!(%error, "routes to other nodes are not as they should be");
        }
    }
}
