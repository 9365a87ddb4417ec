//! The three ways from one node to another.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use ketch_overlay::{DeviceConfig, Identity, Overlay, OverlayConfig, Peer};
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tokio::sync::{oneshot, watch};

use super::namespace::{Namespace, Place, ip};

/// Two ends of a path and what runs between them.
pub(crate) struct Setup {
    // Ends before the namespaces do.
    _running: Vec<Running>,
    pub(crate) a: Namespace,
    pub(crate) b: Namespace,
    pub(crate) path: Path,
}

/// Where two sides are, and their addresses.
pub(crate) struct Path {
    pub(crate) a: Place,
    pub(crate) b: Place,
    pub(crate) a_address: IpAddr,
    pub(crate) b_address: IpAddr,
}

/// What ends when it is dropped.
enum Running {
    Overlay(Option<oneshot::Sender<()>>, Option<std::thread::JoinHandle<Result<()>>>),
    Process(Child),
}

impl Drop for Running {
    fn drop(&mut self) {
        match self {
            Self::Overlay(stop, thread) => {
                drop(stop.take());
                let _ = thread.take().map(std::thread::JoinHandle::join);
            }
            Self::Process(child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// Two namespaces and a cable of Ethernet's size.
pub(crate) fn cable() -> Result<Setup> {
    let (a, b) = (Namespace::new("a")?, Namespace::new("b")?);
    let link = ["link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns"];
    let mut args = vec!["-n", &a.name];
    args.extend(link);
    args.push(&b.name);
    ip(&args)?;
    for (ns, number) in [(&a, 1), (&b, 2)] {
        ns.ip(&format!("address add 192.0.2.{number}/24 dev eth0"))?;
        ns.ip("link set eth0 up")?;
    }
    let address = |number| Ipv4Addr::new(192, 0, 2, number).into();
    let path = Path { a: a.place.clone(), b: b.place.clone(), a_address: address(1), b_address: address(2) };
    Ok(Setup { _running: Vec::new(), a, b, path })
}

/// A cable and Ketch's overlay over it.
pub(super) fn overlay() -> Result<Setup> {
    let mut setup = cable()?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = (params.self_signed(&key)?.pem(), Issuer::new(params, key));
    setup._running = vec![node(&setup.a, &authority, (1, 2))?, node(&setup.b, &authority, (2, 1))?];
    (setup.path.a_address, setup.path.b_address) = (pod(1), pod(2));
    settle(&setup.path)?;
    Ok(setup)
}

fn pod(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 90, number, 1).into()
}

fn node(
    ns: &Namespace,
    (authority, issuer): &(String, Issuer<'static, KeyPair>),
    (own, other): (u8, u8),
) -> Result<Running> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("system:node:node-{own}"));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, issuer)?.pem();
    let identity = Identity { certificate, key: key.serialize_pem(), authority: authority.clone() };
    let device = DeviceConfig { name: "pods".into(), address: Some(pod(own)) };
    let range = |number| format!("10.90.{number}.0/24").parse();
    let config = OverlayConfig::new(identity, "0.0.0.0:6444".parse()?, device, vec![range(own)?]);
    let peer = Peer {
        name: format!("node-{other}"),
        addresses: vec![SocketAddr::new(Ipv4Addr::new(192, 0, 2, other).into(), 6444)],
        ranges: vec![range(other)?],
        relay: None,
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = ns.place.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (_peers, peers) = watch::channel(vec![peer]);
            let overlay = Overlay::start(config, peers).await?;
            let _ = stopped.await;
            overlay.shutdown().await;
            Ok(())
        })
    });
    Ok(Running::Overlay(Some(stop), Some(thread)))
}

/// A cable and WireGuard in user space over it.
pub(super) fn wireguard() -> Result<Setup> {
    let mut setup = cable()?;
    let (a, b) = (keys()?, keys()?);
    // Control sockets are named after interfaces, in one folder for all namespaces.
    let id = std::process::id() % 100_000;
    let sides = [(&setup.a, 1, 2, &a, &b.1), (&setup.b, 2, 1, &b, &a.1)];
    let mut running = Vec::new();
    for (ns, own, other, (private, _), public) in sides {
        let interface = format!("wg{own}-{id}");
        let child = Command::new("ip")
            .args(["netns", "exec", &ns.name, "wireguard-go", "--foreground", &interface])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start wireguard-go")?;
        running.push(Running::Process(child));
        configure(ns, &interface, (own, other), private, public)?;
    }
    setup._running = running;
    let address = |number| IpAddr::from(Ipv4Addr::new(10, 91, 0, number));
    (setup.path.a_address, setup.path.b_address) = (address(1), address(2));
    settle(&setup.path)?;
    Ok(setup)
}

/// A private and a public key.
fn keys() -> Result<(String, String)> {
    let private = Command::new("wg").arg("genkey").output().context("start wg")?.stdout;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), &private)?;
    let public = Command::new("wg").arg("pubkey").stdin(std::fs::File::open(file.path())?).output()?.stdout;
    Ok((String::from_utf8(private)?, String::from_utf8(public)?.trim().to_owned()))
}

fn configure(
    ns: &Namespace,
    interface: &str,
    (own, other): (u8, u8),
    private: &str,
    public: &str,
) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), private)?;
    let (port, endpoint) = ("51820", format!("192.0.2.{other}:51820"));
    let start = Instant::now();
    loop {
        let status = Command::new("ip")
            .args(["netns", "exec", &ns.name, "wg", "set", interface, "listen-port", port, "private-key"])
            .arg(file.path())
            .args(["peer", public, "allowed-ips", "10.91.0.0/24", "endpoint", &endpoint])
            .stderr(Stdio::null())
            .status()?;
        if status.success() {
            break;
        }
        ensure!(start.elapsed() < Duration::from_secs(10), "wireguard-go does not take its configuration");
        std::thread::sleep(Duration::from_millis(50));
    }
    ns.ip(&format!("address add 10.91.0.{own}/24 dev {interface}"))?;
    // WireGuard's usual size on Ethernet.
    ns.ip(&format!("link set {interface} mtu 1420 up"))
}

/// Waits until packets come through and the path's size is known.
fn settle(path: &Path) -> Result<()> {
    let (near, far) = (SocketAddr::new(path.a_address, 0), SocketAddr::new(path.b_address, 0));
    let near = path.a.within(move || Ok(UdpSocket::bind(bound(near)?)?))?;
    let far = path.b.within(move || Ok(UdpSocket::bind(bound(far)?)?))?;
    far.set_read_timeout(Some(Duration::from_millis(100)))?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        let _ = near.send_to(b"hello", far.local_addr()?);
        if far.recv(&mut [0; 64]).is_ok() {
            std::thread::sleep(Duration::from_secs(3));
            return Ok(());
        }
    }
    bail!("nothing comes through")
}

/// `address`, once it is there.
fn bound(address: SocketAddr) -> Result<SocketAddr> {
    let start = Instant::now();
    while UdpSocket::bind(address).is_err() {
        ensure!(start.elapsed() < Duration::from_secs(10), "{address} does not appear");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(address)
}
