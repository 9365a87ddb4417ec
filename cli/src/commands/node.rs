//! `ketch node`: a node on a machine of its own. Joins once, with a token; comes back without one.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV4, TcpListener},
    path::Path,
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, Result};
use ketch_api::join::{Cluster, Token};
use ketch_node::{
    Cidr, IdentitySource, OverlayIdentity,
    membership::{self, Identity, JoinError, Member, ServerAddress},
};
use ketch_server::DataDir;
use serde_json::json;

use super::{
    machine::{self, FrontDoor, Machine, Membership},
    pod_range::PodRange,
    process,
};
use crate::{
    options::{Flags, Options, Role, unusable},
    output,
};

/// Runs until it is told to end.
pub(crate) fn run(flags: Flags) -> Result<ExitCode> {
    process::daemon(flags, Role::Node, |options, _| serve(options))
}

async fn serve(options: Options) -> Result<()> {
    let wanted = wanted(&options)?;
    let data_dir = DataDir::open(&options.data_dir)?;
    let front = FrontDoor::bind(&options)?;
    let path = Identity::path(&options.data_dir);
    let (identity, joined) = identity(&path, wanted, &options).await?;
    let (server, range) = (identity.server.clone(), identity.pod_range.clone());
    let name = identity.node_name.clone();
    let member = Member::start(identity, &path)?;
    let cluster = member.cluster().await?;
    let machine = start(&member, &cluster, &name, &range, &options, front).await?;
    let _tunnel = member.open_tunnel(machine.node.router());
    let run = json!({
        "pid": std::process::id(), "version": env!("CARGO_PKG_VERSION"), "node-name": name, "server": server,
        "pod-range": range, "http-addr": machine.gateway.http_addr(), "https-addr": machine.gateway.https_addr(),
        "dns-addr": machine.dns.address(),
    });
    data_dir.write("run.json", &format!("{run:#}\n")).context("write run.json")?;
    output::line(format!(
        "Node {name} {} {server}; its pods have addresses in {range}",
        if joined { "has joined" } else { "belongs to" }
    ));
    process::wait_for_the_end().await?;
    output::note("stopping");
    machine.shutdown().await;
    member.shutdown().await;
    Ok(())
}

/// What the command line asks for, looked at before anything is opened.
fn wanted(options: &Options) -> Result<(Option<ServerAddress>, Option<Token>)> {
    let server = options.server.as_deref().map(str::parse).transpose();
    let server = server.map_err(|error: JoinError| unusable("server", error))?;
    let token = options.token.as_deref().map(str::parse).transpose();
    Ok((server, token.map_err(|error: ketch_api::join::ParseTokenError| unusable("token", error))?))
}

/// The identity on disk, or a new one for the token. The second: whether it is new.
async fn identity(
    path: &Path,
    (server, token): (Option<ServerAddress>, Option<Token>),
    options: &Options,
) -> Result<(Identity, bool)> {
    if let Some(mut identity) = Identity::load(path)? {
        if let Some(moved) = server.filter(|server| server.to_string() != identity.server) {
            identity.server = moved.to_string();
            identity.save(path)?;
        }
        if identity.node_name != options.node_name {
            output::note(format!("this node joined as {} and keeps that name", identity.node_name));
        }
        return Ok((identity, false));
    }
    let missing =
        |key: &str, what: &str| unusable(key, format!("a node that has not joined yet needs {what}"));
    let server = server.ok_or_else(|| missing("server", "--server https://HOST:6443"))?;
    let token = token.ok_or_else(|| missing("token", "--token, from `ketch token create` at the server"))?;
    let identity = membership::join(&server, &token, &options.node_name).await?;
    identity.save(path)?;
    Ok((identity, true))
}

/// What is on disk, where renewed certificates arrive.
fn overlay_identity(data_dir: &Path) -> IdentitySource {
    let path = Identity::path(data_dir);
    Arc::new(move || {
        let found = Identity::load(&path).ok().flatten()?;
        Some(OverlayIdentity { certificate: found.certificate, key: found.key, authority: found.authority })
    })
}

async fn start(
    member: &Member,
    cluster: &Cluster,
    name: &str,
    range: &str,
    options: &Options,
    front: FrontDoor,
) -> Result<Machine> {
    let parse = |text: &str| text.parse::<Cidr>().context("the server gave a range that cannot be read");
    let own = parse(range)?;
    let claim = PodRange::exactly(own)?.with_context(|| {
        format!(
            "pod range {own} of this node is in use by another Ketch on this machine; stop that one first"
        )
    })?;
    let (pods, services) = (parse(&cluster.pod_cidr)?, parse(&cluster.service_cidr)?);
    machine::prepare(options, pods, own).await?;
    let server = member.server();
    let found = tokio::net::lookup_host((server.host(), server.port())).await;
    // When the name cannot be looked up now, it can be later: nothing but the policy depends on it.
    let addresses: Vec<SocketAddr> = found.map(Iterator::collect).unwrap_or_default();
    let tunnel = addresses.iter().map(|address| SocketAddr::new(address.ip(), cluster.quic_port));
    let membership = Membership {
        name: name.to_owned(),
        data_dir: options.data_dir.clone(),
        client: member.client().clone(),
        wide: member.gateway_client().clone(),
        pods,
        services,
        range: claim,
        address: machine::address_towards(addresses.first().map_or(machine::OUTSIDE, SocketAddr::ip)),
        control_plane: addresses.iter().copied().chain(tunnel).collect(),
        containerd: options.containerd.clone(),
        registries: options.registries.clone(),
        overlay: Some((overlay_identity(&options.data_dir), options.quic_addr)),
        forward: false,
        relay: member.relay(),
        dns: options.dns_addr,
        door: open_door(member, own, services, &addresses)?,
        authority: member.authority().to_owned(),
    };
    Machine::start(membership, front).await
}

/// Lets pods of this node reach the API where the node itself does: at the first address of their range, which is
/// never a pod's, and the server's port when it is free. `None`: the server is known by an address of a Service,
/// which would lead back to here.
fn open_door(
    member: &Member,
    pods: Cidr,
    services: Cidr,
    server: &[SocketAddr],
) -> Result<Option<SocketAddrV4>> {
    let Some(IpAddr::V4(ip)) = pods.nth(1) else { return Ok(None) };
    if server.iter().any(|address| services.contains(address.ip())) {
        return Ok(None);
    }
    let same_port = TcpListener::bind((ip, member.server().port()));
    let opened = same_port.or_else(|_| TcpListener::bind((ip, 0))).and_then(|listener| {
        let port = listener.local_addr()?.port();
        member.open_door(listener, pods)?;
        Ok(SocketAddrV4::new(ip, port))
    });
    opened.map(Some).context("listen for pods that use the API")
}
