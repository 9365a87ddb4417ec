//! The handle of a running overlay, and the task that keeps its routes.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, mpsc},
};

use ketch_net::Cidr;
use tokio::{
    sync::{
        mpsc::{UnboundedReceiver, unbounded_channel},
        oneshot, watch,
    },
    task::JoinSet,
};

use crate::{
    config::{OverlayConfig, Peer, PeerStatus},
    datapath::{Board, Command, Datapath, Notice, Parts, Wake},
    device::Device,
    identity::{Identity, IdentityError},
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
    control: Control,
    board: Board,
    ended: Option<oneshot::Receiver<()>>,
    tasks: JoinSet<()>,
}

/// The way to the datapath.
#[derive(Clone)]
struct Control {
    commands: mpsc::Sender<Command>,
    wake: Wake,
}

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
        let socket = Socket::open(config.bind).map_err(bind)?;
        let address = socket.local_addr().map_err(bind)?;
        let mtu = payload - OVERHEAD;
        let device = config.device.as_ref().map(|device| {
            Device::create(&device.name, mtu)
                .map_err(|cause| OverlayError::Device { name: device.name.clone(), cause })
        });
        let device = device.transpose()?;
        let wake = Wake::new().map_err(|cause| OverlayError::System { what: "event descriptors", cause })?;
        let (commands, inbox) = mpsc::channel();
        let (notices, told) = unbounded_channel();
        let board: Board = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let routes = routes(&config, &mut tasks).await?;
        let datapath = Parts {
            name: tls.name.clone(),
            sides: transport::sides(&tls, payload),
            socket,
            device,
            local: config.local_ranges.clone(),
            payload,
            forward: config.forward,
            wake: wake.clone(),
            commands: inbox,
            notices,
            board: Arc::clone(&board),
        };
        let ended = Some(spawn(datapath)?);
        let control = Control { commands, wake };
        let keeper = Keeper {
            control: control.clone(),
            routes,
            local: config.local_ranges,
            own: tls.name,
            ceiling: u32::from(mtu),
            sizes: HashMap::new(),
        };
        tasks.spawn(keeper.run(peers, told));
        Ok(Self { address, payload, control, board, ended, tasks })
    }

    /// Where peers reach this overlay; with the port that was picked.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// State of every peer, at most a second old.
    pub fn status(&self) -> Vec<PeerStatus> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Uses another certificate from now on; connections that are up stay.
    ///
    /// # Errors
    /// When it is unusable; the old one stays then.
    pub fn set_identity(&self, identity: &Identity) -> Result<(), IdentityError> {
        let sides = transport::sides(&identity.tls()?, self.payload);
        self.control.tell(Command::Identity(Box::new(sides)));
        Ok(())
    }

    /// Tells peers and removes device and routes. Returns when they are gone.
    pub async fn shutdown(mut self) {
        self.tasks.shutdown().await;
        self.control.tell(Command::Shutdown);
        if let Some(ended) = self.ended.take() {
            // An error means that the thread is gone already.
            let _ = ended.await;
        }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        self.control.tell(Command::Shutdown);
    }
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay").field("address", &self.address).finish_non_exhaustive()
    }
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

// === impl Control ===

impl Control {
    fn tell(&self, command: Command) {
        // Nobody there: the overlay has ended.
        let _ = self.commands.send(command);
        self.wake.wake();
    }
}

/// Keeps routes and the datapath's list of peers as they are wanted.
struct Keeper {
    control: Control,
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
        self.control.tell(Command::Peers(list.clone()));
        loop {
            self.apply(&list).await;
            tokio::select! {
                changed = peers.changed() => {
                    if changed.is_err() {
                        // No more news; what is known stays.
                        return self.follow(&list, told).await;
                    }
                    list = peers.borrow_and_update().clone();
                    self.control.tell(Command::Peers(list.clone()));
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
