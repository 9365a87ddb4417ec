//! Cluster names over UDP, beside an authoritative server with the same names.
//!
//! The usual server for this, CoreDNS, is in no Debian release; NSD, which answers from prepared packets
//! and does nothing else, is the harder one. Both servers have one core, `dnsperf` has another.

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
    let (peer, theirs) = nsd(directory.path(), &names)?;
    for pid in [cluster.process.id(), peer.id()] {
        pin(pid)?;
    }
    let (mut us, mut them) = (Vec::new(), Vec::new());
    let last = names.last().context("no Services")?;
    until("cluster names", || dnsperf(&ours, &queries, "1").ok().filter(|rate| *rate > 0.0))?;
    for _ in 0..ROUNDS {
        us.push(dnsperf(&ours, &queries, SECONDS)?);
        them.push(dnsperf(&theirs, &queries, SECONDS)?);
    }
    let (us, them) = (median(&mut us), median(&mut them));
    Ok(vec![Row {
        what: format!("DNS: {SERVICES} cluster names such as {}, one core", last.0),
        ours: format!("{us:.0} queries/s"),
        peer: format!("NSD {them:.0} queries/s"),
        ratio: format!("{:.2}", us / them),
    }])
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
fn nsd(directory: &Path, names: &[(String, String)]) -> Result<(Process, String)> {
    let mut zone = String::from(
        "$ORIGIN cluster.local.\n$TTL 5\n@ IN SOA ns hostmaster 1 7200 1800 86400 5\n@ IN NS ns\nns IN A 127.0.0.1\n",
    );
    for (name, address) in names {
        writeln!(zone, "{name}. IN A {address}")?;
    }
    fs::write(directory.join("zone"), zone)?;
    let port = std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
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
    Ok((process, address))
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
