//! Network namespaces, links between them, authorities, and nodes that run in them.

use std::{
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use ketch_net::Cidr;
use ketch_overlay::{DeviceConfig, Identity, Overlay, OverlayConfig, OverlayError, Peer, PeerStatus, Reach};
use nix::sched::{CloneFlags, setns};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, SanType,
};
use tokio::sync::{mpsc, oneshot, watch};

/// Patience with a busy machine.
pub const LONG: Duration = Duration::from_secs(20);

/// The port of every overlay; each has a namespace to itself.
pub const PORT: u16 = 6444;

/// Whether these tests can run; says why not.
pub fn able() -> bool {
    if nix::unistd::geteuid().is_root() && std::path::Path::new("/dev/net/tun").exists() {
        return true;
    }
    println!("skipped: network namespaces and TUN devices need root and /dev/net/tun");
    false
}

/// Calls `check` until it gives something.
pub fn until<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// A network namespace, removed at the end.
pub struct Ns {
    pub name: String,
}

impl Ns {
    pub fn new(role: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("kov{}-{count}-{role}", std::process::id());
        run("ip", &["netns", "add", &name]);
        let ns = Self { name };
        ns.ip("link set lo up");
        ns
    }

    /// `ip ARGS` in here.
    pub fn ip(&self, args: &str) -> String {
        let mut all = vec!["-n", &self.name];
        all.extend(args.split(' '));
        run("ip", &all)
    }

    /// Any command in here.
    pub fn exec(&self, args: &[&str]) -> String {
        let mut all = vec!["netns", "exec", &self.name];
        all.extend(args);
        run("ip", &all)
    }

    /// Runs `work` on a thread in here. Sockets that it makes stay in here.
    pub fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(work).join().unwrap()
    }

    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let path = format!("/var/run/netns/{}", self.name);
        std::thread::spawn(move || {
            setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    pub fn udp(&self, address: impl Into<String>) -> UdpSocket {
        let address = address.into();
        let socket = self.within(move || UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        socket
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Joins two namespaces by a cable: `a` has `network`.1 on `to-b`, `b` has `network`.2 on `to-a`.
pub fn cable(a: &Ns, b: &Ns, names: (&str, &str), network: &str, mtu: u32) {
    let mtu = mtu.to_string();
    let link = ["-n", &a.name, "link", "add", names.0, "mtu", &mtu, "type", "veth", "peer", "name", names.1];
    let mut args = link.to_vec();
    args.extend(["mtu", &mtu, "netns", &b.name]);
    run("ip", &args);
    for (ns, name, last) in [(a, names.0, 1), (b, names.1, 2)] {
        ns.ip(&format!("address add {network}.{last}/24 dev {name}"));
        ns.ip(&format!("link set {name} up"));
    }
}

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "test-ca");
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A node's identity, as the cluster's authority makes them.
    pub fn node(&self, name: &str, certified: &[&str]) -> Identity {
        self.identity(&format!("system:node:{name}"), certified)
    }

    /// A node's identity whose certificate ends `life` from now, give or take a second.
    pub fn brief(&self, name: &str, life: Duration) -> Identity {
        self.sign(&format!("system:node:{name}"), &[], SystemTime::now() + life)
    }

    pub fn identity(&self, common: &str, certified: &[&str]) -> Identity {
        self.sign(common, certified, SystemTime::now() + Duration::from_secs(86_400))
    }

    fn sign(&self, common: &str, certified: &[&str], end: SystemTime) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = end.into();
        for range in certified {
            let uri = format!("ketch://pod-range/{range}");
            params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Identity { certificate, key: key.serialize_pem(), authority: self.pem.clone() }
    }
}

/// Name, underlay address and pod range of a node.
pub fn peer(name: &str, underlay: &[&str], number: u8) -> Peer {
    let addresses = underlay.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), PORT)).collect();
    Peer { name: name.into(), addresses, ranges: vec![range(number)], relay: None }
}

pub fn range(number: u8) -> Cidr {
    Cidr::new(Ipv4Addr::new(10, 90, number, 0).into(), 24)
}

/// Of a node with pods in `range(number)`.
pub fn config(identity: Identity, number: u8) -> OverlayConfig {
    let device = DeviceConfig { name: "pods".into(), address: Some(pod(number).into()) };
    let bind = SocketAddr::new("0.0.0.0".parse().unwrap(), PORT);
    OverlayConfig::new(identity, bind, device, vec![range(number)])
}

/// The pod address of a node.
pub fn pod(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 90, number, 1)
}

/// What an overlay in a namespace is asked.
enum Ask {
    Status(oneshot::Sender<Vec<PeerStatus>>),
    Become(Identity),
}

/// An overlay that runs in a namespace.
pub struct Node {
    asks: mpsc::UnboundedSender<Ask>,
    pub peers: watch::Sender<Vec<Peer>>,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    /// Starts one with pods in `range(number)`.
    pub fn start(ns: &Ns, identity: Identity, number: u8, peers: Vec<Peer>) -> Self {
        Self::launch(ns, config(identity, number), peers).unwrap()
    }

    pub fn launch(ns: &Ns, config: OverlayConfig, peers: Vec<Peer>) -> Result<Self, OverlayError> {
        let (sender, receiver) = watch::channel(peers);
        let (asks, inbox) = mpsc::unbounded_channel();
        let (started, outcome) = std::sync::mpsc::channel();
        let thread = ns.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(config, receiver, inbox, started));
        });
        outcome.recv().unwrap()?;
        Ok(Self { asks, peers: sender, thread: Some(thread) })
    }

    pub fn status(&self, name: &str) -> Option<PeerStatus> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::Status(reply)).unwrap_or_else(|_| panic!("the overlay has ended"));
        answer.blocking_recv().unwrap().into_iter().find(|status| status.name == name)
    }

    /// Uses another certificate from now on.
    pub fn becomes(&self, identity: Identity) {
        self.asks.send(Ask::Become(identity)).unwrap_or_else(|_| panic!("the overlay has ended"));
    }

    /// Waits until `name` is reached in a way that `good` accepts.
    pub fn reaches(&self, name: &str, good: impl Fn(&Reach) -> bool) {
        until(&format!("{name} is reached"), LONG, || self.status(name).filter(|s| good(&s.reach)));
    }

    pub fn connected(&self, name: &str) {
        self.reaches(name, |reach| *reach != Reach::Nothing);
    }

    /// Ends it and waits for the end.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let (asks, _) = mpsc::unbounded_channel();
        self.asks = asks;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
    }
}

async fn serve(
    config: OverlayConfig,
    peers: watch::Receiver<Vec<Peer>>,
    mut asks: mpsc::UnboundedReceiver<Ask>,
    started: std::sync::mpsc::Sender<Result<(), OverlayError>>,
) {
    match Overlay::start(config, peers).await {
        Ok(overlay) => {
            started.send(Ok(())).unwrap();
            while let Some(ask) = asks.recv().await {
                match ask {
                    Ask::Status(reply) => drop(reply.send(overlay.status())),
                    Ask::Become(identity) => overlay.set_identity(&identity).unwrap(),
                }
            }
            overlay.shutdown().await;
        }
        Err(error) => started.send(Err(error)).unwrap(),
    }
}

/// Two nodes, `alpha` and `beta`, on one cable.
pub struct Pair {
    pub a: Ns,
    pub b: Ns,
    pub authority: Authority,
}

impl Pair {
    pub fn new(mtu: u32) -> Self {
        let (a, b) = (Ns::new("a"), Ns::new("b"));
        cable(&a, &b, ("eth0", "eth0"), "192.0.2", mtu);
        Self { a, b, authority: Authority::new() }
    }

    /// Both overlays.
    pub fn start(&self) -> (Node, Node) {
        let alpha = self.alpha(self.authority.node("alpha", &[]));
        let beta = self.beta(self.authority.node("beta", &[]));
        (alpha, beta)
    }

    /// Both overlays, with so many lanes.
    pub fn start_with(&self, lanes: [usize; 2]) -> (Node, Node) {
        let [mut alpha, mut beta] =
            [("alpha", 1), ("beta", 2)].map(|(name, number)| config(self.authority.node(name, &[]), number));
        [alpha.lanes, beta.lanes] = lanes;
        let alpha = Node::launch(&self.a, alpha, vec![peer("beta", &["192.0.2.2"], 2)]).unwrap();
        let beta = Node::launch(&self.b, beta, vec![peer("alpha", &["192.0.2.1"], 1)]).unwrap();
        (alpha, beta)
    }

    pub fn alpha(&self, identity: Identity) -> Node {
        Node::start(&self.a, identity, 1, vec![peer("beta", &["192.0.2.2"], 2)])
    }

    pub fn beta(&self, identity: Identity) -> Node {
        Node::start(&self.b, identity, 2, vec![peer("alpha", &["192.0.2.1"], 1)])
    }
}

/// Sends `text` from one socket to the other until it comes through; how long that took.
pub fn ping(from: &UdpSocket, to: &UdpSocket, limit: Duration) -> Duration {
    let (start, target) = (Instant::now(), to.local_addr().unwrap());
    let mut buffer = [0; 2048];
    until("a packet comes through", limit, || {
        let _ = from.send_to(b"ping", target);
        let (_, sender) = to.recv_from(&mut buffer).ok()?;
        assert_eq!(sender, from.local_addr().unwrap(), "the source is kept");
        Some(start.elapsed())
    })
}

/// Sends `size` bytes over TCP from one namespace to the address `to` in another, and checks them.
pub fn transfer(from: &Ns, to: (&Ns, Ipv4Addr), size: usize) {
    let address = SocketAddr::new(to.1.into(), 0);
    let listener = to.0.within(move || TcpListener::bind(address).unwrap());
    let target = listener.local_addr().unwrap();
    let data: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
    let expected = data.clone();
    let sender = from.spawn(move || {
        let mut stream = TcpStream::connect_timeout(&target, LONG).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        stream.write_all(&data).unwrap();
        // Closing here proves that the other side has read all.
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let _ = stream.read(&mut [0]);
    });
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    assert!(received == expected, "{} of {size} bytes, or others", received.len());
    drop(stream);
    sender.join().unwrap();
}
