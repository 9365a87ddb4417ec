//! Cluster names over UDP, beside servers with the same names: NSD, which answers from prepared packets and does
//! nothing else, and CoreDNS where `coredns` is on the path (it is in no Debian release). CoreDNS gets the Services
//! from the same API. Each server has one core, `dnsperf` has another.

use std::{fmt::Write as _, fs, path::Path, process::Command};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use ketch_api::k8s::api::core::v1::{Namespace, Service};
use kube::{Api, api::PostParams};
use serde_json::json;

use crate::{
    ROUNDS, Row,
    cluster::{Cluster, Process, until},
    statistics::median,
};

/// Services asked for.
const SERVICES: usize = 1_000;
/// Seconds per round and side.
const SECONDS: &str = "4";

/// Measures queries per second of one core.
pub(crate) fn run() -> Result<Vec<Row>> {
    let directory = tempfile::tempdir()?;
    let cluster = Cluster::start()?;
    let names = tokio::runtime::Runtime::new()?.block_on(services(&cluster))?;
    let queries = directory.path().join("queries");
    fs::write(&queries, names.iter().map(|(name, _)| format!("{name} A\n")).collect::<String>())?;
    let ours = cluster.address("dns-addr")?;
    let mut peers = vec![nsd(directory.path(), &names)?];
    if Command::new("coredns").arg("-version").output().is_ok() {
        for (name, plugins) in [("CoreDNS", ""), ("CoreDNS with its cache", "cache 30")] {
            peers.push(coredns(directory.path(), &cluster, name, plugins)?);
        }
    } else {
        println!("no coredns on the path: measured beside NSD only");
    }
    for pid in peers.iter().map(|peer| peer.process.id()).chain([cluster.process.id()]) {
        pin(pid)?;
    }
    let last = names.last().context("no Services")?;
    for address in peers.iter().map(|peer| &peer.address).chain([&ours]) {
        until("cluster names", || dnsperf(address, &queries, "1").ok().filter(|rate| *rate > 0.0))?;
    }
    let (mut us, mut them) = (Vec::new(), vec![Vec::new(); peers.len()]);
    for _ in 0..ROUNDS {
        us.push(dnsperf(&ours, &queries, SECONDS)?);
        for (peer, rates) in peers.iter().zip(&mut them) {
            rates.push(dnsperf(&peer.address, &queries, SECONDS)?);
        }
    }
    let us = median(&mut us);
    let row = |(peer, rates): (&Peer, &mut Vec<f64>)| {
        let them = median(rates);
        Row {
            what: format!("DNS: {SERVICES} cluster names such as {}, one core", last.0),
            ours: format!("{us:.0} queries/s"),
            peer: format!("{} {them:.0} queries/s", peer.name),
            ratio: format!("{:.2}", us / them),
        }
    };
    Ok(peers.iter().zip(&mut them).map(row).collect())
}

/// Another server.
struct Peer {
    name: &'static str,
    process: Process,
    address: String,
}

/// Makes the Services; names with their addresses.
async fn services(cluster: &Cluster) -> Result<Vec<(String, String)>> {
    let client = cluster.client().await?;
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "bench"}}))?;
    Api::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    let api: Api<Service> = Api::namespaced(client, "bench");
    let made = stream::iter(0..SERVICES).map(|n| {
        let api = api.clone();
        async move {
            let service =
                json!({"metadata": {"name": format!("service-{n}")}, "spec": {"ports": [{"port": 80}]}});
            let made = api.create(&PostParams::default(), &serde_json::from_value(service)?).await?;
            let address = made.spec.and_then(|spec| spec.cluster_ip).context("no cluster address")?;
            anyhow::Ok((format!("service-{n}.bench.svc.cluster.local"), address))
        }
    });
    made.buffered(32).try_collect().await
}

/// NSD with the names, on a port of its own.
fn nsd(directory: &Path, names: &[(String, String)]) -> Result<Peer> {
    let mut zone = String::from(
        "$ORIGIN cluster.local.\n$TTL 5\n@ IN SOA ns hostmaster 1 7200 1800 86400 5\n@ IN NS ns\nns IN A 127.0.0.1\n",
    );
    for (name, address) in names {
        writeln!(zone, "{name}. IN A {address}")?;
    }
    fs::write(directory.join("zone"), zone)?;
    let port = free_port()?;
    let at = directory.display();
    let config = format!(
        "server:\n  ip-address: 127.0.0.1@{port}\n  server-count: 1\n  username: \"\"\n  pidfile: \"\"\n  \
         database: \"\"\n  zonesdir: \"{at}\"\n  xfrdfile: \"{at}/xfrd\"\n  zonelistfile: \"{at}/zones\"\n  \
         rrl-ratelimit: 0\n  verbosity: 0\nremote-control:\n  control-enable: no\n\
         zone:\n  name: cluster.local\n  zonefile: \"{at}/zone\"\n"
    );
    let file = directory.join("nsd.conf");
    fs::write(&file, config)?;
    let process = Process::start(Command::new("nsd").args(["-d", "-c"]).arg(&file))?;
    let address = format!("127.0.0.1:{port}");
    until("nsd", || std::net::TcpStream::connect(&address).ok())?;
    Ok(Peer { name: "NSD", process, address })
}

/// CoreDNS with what the API of `cluster` has, and more `plugins`.
fn coredns(directory: &Path, cluster: &Cluster, name: &'static str, plugins: &str) -> Result<Peer> {
    let port = free_port()?;
    let config = format!(
        "cluster.local:{port} {{\n bind 127.0.0.1\n errors\n {plugins}\n \
         kubernetes cluster.local {{\n  kubeconfig {}\n  ttl 5\n }}\n}}\n",
        cluster.kubeconfig().display()
    );
    let file = directory.join(format!("Corefile-{port}"));
    fs::write(&file, config)?;
    let process = Process::start(Command::new("coredns").env("GOMAXPROCS", "1").arg("-conf").arg(&file))?;
    let address = format!("127.0.0.1:{port}");
    until("coredns", || std::net::TcpStream::connect(&address).ok())?;
    Ok(Peer { name, process, address })
}

fn free_port() -> Result<u16> {
    Ok(std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Queries answered per second, with more in flight than a core can keep up with.
fn dnsperf(server: &str, queries: &Path, seconds: &str) -> Result<f64> {
    let (host, port) = server.rsplit_once(':').context("an address")?;
    let output = Command::new("taskset")
        .args(["-c", "1", "dnsperf", "-s", host, "-p", port, "-l", seconds, "-c", "16", "-q", "200", "-d"])
        .arg(queries)
        .output()
        .context("start dnsperf")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.trim().strip_prefix("Queries per second:"));
    Ok(line.with_context(|| format!("dnsperf says nothing: {text}"))?.trim().parse()?)
}

/// Keeps a process and its threads to the first core; NSD's children were there before, so
/// they are pinned as well.
fn pin(pid: u32) -> Result<()> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    for pid in children.split_whitespace().chain([pid.to_string().as_str()]) {
        let status = Command::new("taskset").args(["-acp", "0", pid]).output()?.status;
        anyhow::ensure!(status.success(), "taskset {pid}");
    }
    Ok(())
}
