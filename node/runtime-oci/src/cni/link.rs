//! Interfaces, addresses and routes, through netlink. Nothing is remembered between calls: what there is, is
//! asked of the kernel.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd,
    path::Path,
};

use futures::TryStreamExt;
use nix::sched::{CloneFlags, setns};
use rtnetlink::{
    Handle, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        link::{LinkAttribute, LinkMessage},
        neighbour::NeighbourState,
        route::{RouteAttribute, RouteMessage, RouteScope},
    },
};
use sha2::{Digest, Sha256};

use super::protocol::{GATEWAY, Made, Problem, Request};

/// The kernel's table of local addresses. A pod's range may be local to the host as a whole, so that sockets
/// of the host can have addresses in it: only a longer prefix in the same table wins over that.
const LOCAL_TABLE: u32 = 255;
/// The network namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// Gives a pod its network. A pair left by an earlier attempt is replaced.
pub(super) async fn add(request: &Request) -> Result<Made, Problem> {
    let address = request.address()?;
    let (host, pod) = namespaces(request)?;
    let name = host_name(&request.container);
    delete(&name).await?;
    let (up, down) = (request.interface.clone(), name.clone());
    let mtu = request.config.mtu;
    let host_fd = host.as_raw_fd();
    // Made inside, so that names of the host and of other pods do not matter; then one end moves out.
    let pod_mac = inside(&pod, &host, async move |links: &Links| {
        let mut pair = LinkVeth::new(&up, &down);
        if let Some(mtu) = mtu {
            pair = pair.mtu(mtu);
        }
        links.run("make a veth pair", links.0.link().add(pair.build()).execute()).await?;
        let peer = links.index(&down).await?;
        let moved = LinkUnspec::new_with_index(peer).setns_by_fd(host_fd).build();
        links.run("move a veth", links.0.link().set(moved).execute()).await?;
        let own = links.get(&up).await?;
        Ok(mac(&own))
    })
    .await?;
    let host_mac = host_side(&name, address, &pod_mac, mtu).await?;
    let (up, gateway_mac) = (request.interface.clone(), host_mac.clone());
    inside(&pod, &host, async move |links: &Links| pod_side(links, &up, address, &gateway_mac).await).await?;
    Ok(Made { host: name, host_mac: text(&host_mac), pod_mac: text(&pod_mac), address })
}

/// Takes a pod's network away: with one end of the pair go the other end, addresses, routes, neighbours.
pub(super) async fn remove(request: &Request) -> Result<(), Problem> {
    delete(&host_name(&request.container)).await
}

/// Whether a pod's network is there.
pub(super) async fn check(request: &Request) -> Result<(), Problem> {
    let (host, pod) = namespaces(request)?;
    driven(async |links: &Links| links.index(&host_name(&request.container)).await.map(drop)).await?;
    let up = request.interface.clone();
    inside(&pod, &host, async move |links: &Links| links.index(&up).await.map(drop)).await
}

/// Brings the loopback interface up.
pub(super) async fn loopback(request: &Request) -> Result<(), Problem> {
    let (host, pod) = namespaces(request)?;
    inside(&pod, &host, async |links: &Links| links.up("lo").await).await
}

async fn host_side(
    name: &str,
    address: Ipv4Addr,
    pod_mac: &[u8],
    mtu: Option<u32>,
) -> Result<Vec<u8>, Problem> {
    driven(async |links: &Links| {
        let link = links.get(name).await?;
        let index = link.header.index;
        if let Some(mtu) = mtu {
            let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
            links.run("set the MTU", links.0.link().set(message).execute()).await?;
        }
        without_ipv6(name);
        links.up(name).await?;
        forward(name)?;
        if let Some(outside) = links.default_interface().await? {
            // Answers from outside come in there; without it they would be dropped.
            forward(&outside)?;
        }
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .output_interface(index)
            .table_id(LOCAL_TABLE)
            .scope(RouteScope::Link)
            .build();
        links.run("route to the pod", links.0.route().add(route).replace().execute()).await?;
        links.neighbour(index, address, pod_mac).await?;
        Ok(mac(&link))
    })
    .await
}

async fn pod_side(links: &Links, name: &str, address: Ipv4Addr, gateway_mac: &[u8]) -> Result<(), Problem> {
    let index = links.index(name).await?;
    let add = links.0.address().add(index, IpAddr::V4(address), 32).replace();
    links.run("give the pod its address", add.execute()).await?;
    links.up("lo").await?;
    links.up(name).await?;
    let near = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(GATEWAY, 32)
        .output_interface(index)
        .scope(RouteScope::Link)
        .build();
    links.run("route to the gateway", links.0.route().add(near).replace().execute()).await?;
    let far = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
        .gateway(GATEWAY)
        .output_interface(index)
        .build();
    links.run("route to everything", links.0.route().add(far).replace().execute()).await?;
    links.neighbour(index, GATEWAY, gateway_mac).await
}

async fn delete(name: &str) -> Result<(), Problem> {
    driven(async |links: &Links| match links.find(name).await? {
        Some(link) => {
            let deleted = links.0.link().del(link.header.index).execute();
            match links.run("delete a veth", deleted).await {
                Err(_) if links.find(name).await?.is_none() => Ok(()),
                other => other,
            }
        }
        None => Ok(()),
    })
    .await
}

/// Forwards packets that come in through `interface`, and only those.
fn forward(interface: &str) -> Result<(), Problem> {
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/forwarding");
    if std::fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1") {
        return Ok(());
    }
    std::fs::write(&path, "1").map_err(|error| Problem::io(&format!("write {path}: {error}")))
}

/// Pods have no IPv6. With it on this end, programs of the host could be reached from the pod's link-local
/// address, which no rule knows.
fn without_ipv6(interface: &str) {
    // A host without IPv6 has no such file.
    _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1");
}

/// The host's end of a sandbox's pair.
pub(super) fn host_name(container: &str) -> String {
    let sum = Sha256::digest(container);
    sum.iter().take(6).fold("kt".to_owned(), |name, byte| name + &format!("{byte:02x}"))
}

fn namespaces(request: &Request) -> Result<(File, File), Problem> {
    let open = |path: &Path| {
        File::open(path)
            .map_err(|error| Problem::io(&format!("open network namespace {}: {error}", path.display())))
    };
    let pod = request.namespace.as_deref().unwrap_or(Path::new(""));
    Ok((open(Path::new(OWN))?, open(pod)?))
}

/// Does something in another network namespace. The plugin has one thread: it goes there to open its netlink
/// socket, which stays there, and comes back.
async fn inside<T>(
    pod: &File,
    host: &File,
    work: impl AsyncFnOnce(&Links) -> Result<T, Problem>,
) -> Result<T, Problem> {
    let failed = |error: nix::Error| Problem::io(&format!("enter the pod's network namespace: {error}"));
    setns(pod, CloneFlags::CLONE_NEWNET).map_err(failed)?;
    let opened = rtnetlink::new_connection();
    setns(host, CloneFlags::CLONE_NEWNET).map_err(failed)?;
    drive(opened, work).await
}

async fn driven<T>(work: impl AsyncFnOnce(&Links) -> Result<T, Problem>) -> Result<T, Problem> {
    drive(rtnetlink::new_connection(), work).await
}

type Opened<C, M> = std::io::Result<(C, Handle, M)>;

async fn drive<T, C: Future<Output = ()>, M>(
    opened: Opened<C, M>,
    work: impl AsyncFnOnce(&Links) -> Result<T, Problem>,
) -> Result<T, Problem> {
    let opened = opened.map_err(|error| Problem::io(&format!("open a netlink socket: {error}")));
    let (connection, handle, _messages) = opened?;
    let links = Links(handle);
    // The connection is driven only as long as it is needed.
    tokio::select! {
        result = work(&links) => result,
        () = connection => Err(Problem::io("the netlink connection was closed")),
    }
}

/// Netlink of one namespace.
struct Links(Handle);

impl Links {
    async fn run(
        &self,
        what: &str,
        answer: impl Future<Output = Result<(), rtnetlink::Error>>,
    ) -> Result<(), Problem> {
        answer.await.map_err(|error| Problem::io(&format!("{what}: {error}")))
    }

    async fn find(&self, name: &str) -> Result<Option<LinkMessage>, Problem> {
        match self.0.link().get().match_name(name.to_owned()).execute().try_next().await {
            Ok(found) => Ok(found),
            Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::ENODEV => Ok(None),
            Err(error) => Err(Problem::io(&format!("look for interface {name}: {error}"))),
        }
    }

    async fn get(&self, name: &str) -> Result<LinkMessage, Problem> {
        self.find(name).await?.ok_or_else(|| Problem::io(&format!("there is no interface {name}")))
    }

    async fn index(&self, name: &str) -> Result<u32, Problem> {
        Ok(self.get(name).await?.header.index)
    }

    async fn up(&self, name: &str) -> Result<(), Problem> {
        let message = LinkUnspec::new_with_index(self.index(name).await?).up().build();
        self.run("bring an interface up", self.0.link().set(message).execute()).await
    }

    async fn neighbour(&self, index: u32, address: Ipv4Addr, mac: &[u8]) -> Result<(), Problem> {
        let add = self.0.neighbours().add(index, IpAddr::V4(address));
        let add = add.link_layer_address(mac).state(NeighbourState::Permanent).replace();
        self.run("add a neighbour", add.execute()).await
    }

    /// The interface of the default route.
    async fn default_interface(&self) -> Result<Option<String>, Problem> {
        let failed = |error: rtnetlink::Error| Problem::io(&format!("list routes: {error}"));
        let mut routes = self.0.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
        while let Some(route) = routes.try_next().await.map_err(failed)? {
            if let Some(index) = default_route(&route) {
                let mut links = self.0.link().get().match_index(index).execute();
                let link = links.try_next().await.map_err(failed)?;
                return Ok(link.and_then(|link| name(&link)));
            }
        }
        Ok(None)
    }
}

/// The interface of a route to everything in the main table.
fn default_route(route: &RouteMessage) -> Option<u32> {
    const MAIN: u8 = 254;
    if route.header.destination_prefix_length != 0 || route.header.table != MAIN {
        return None;
    }
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn name(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

fn mac(link: &LinkMessage) -> Vec<u8> {
    let found = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(address) => Some(address.clone()),
        _ => None,
    });
    found.unwrap_or_default()
}

fn text(mac: &[u8]) -> String {
    let bytes: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}
