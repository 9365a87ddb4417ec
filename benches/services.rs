//! The first packet to a Service: a connection through the kernel's rules to a container behind a cluster
//! address, with few and with many other Services, beside a connection to the container itself.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use ketch_api::k8s::api::core::v1::{Pod, Service};
use kube::{Api, api::PostParams};
use serde_json::json;

use crate::{
    Row,
    cluster::{Cluster, until},
    pods,
    statistics::percentile,
};

/// Services besides the one that is called.
const FEW: usize = 10;
const MANY: usize = 5_000;
/// Connections that are made.
const CONNECTIONS: usize = 1_000;

/// Measures connections with few Services, then with many, and how soon a new Service works among those.
pub(crate) fn run() -> Result<Vec<Row>> {
    let cluster = Cluster::with_containers()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let client = runtime.block_on(cluster.client())?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let services: Api<Service> = Api::namespaced(client, "default");
    let web = json!({"metadata": {"name": "web", "labels": {"app": "web"}}, "spec": {"containers": [
        {"name": "c", "image": "ketch.local/default/nginx:latest", "ports": [{"containerPort": 80}]}]}});
    let (_, pod) = runtime.block_on(pods::create(&pods, &serde_json::from_value(web)?))?;
    until("nginx", || TcpStream::connect((pod.as_str(), 80)).ok())?;
    let address = runtime.block_on(create(&services, "web"))?;
    let mut rows = Vec::new();
    for (from, to) in [(0, FEW), (FEW, MANY)] {
        let made = stream::iter(from..to).map(|n| {
            let services = &services;
            async move { create(services, &format!("other-{n}")).await }
        });
        runtime.block_on(made.buffer_unordered(32).try_collect::<Vec<_>>())?;
        let works = |name: String| {
            let start = Instant::now();
            let made = runtime.block_on(create(&services, &name))?;
            until("the new Service", || connect(&made).ok())?;
            anyhow::Ok(format!("{:.0} ms", start.elapsed().as_secs_f64() * 1e3))
        };
        // One that is made last works when all the others do.
        let (last, new) = (works(format!("last-of-{to}"))?, works(format!("new-among-{to}"))?);
        rows.push(row(to, connections(&address)?, connections(&pod)?));
        rows.push(Row::alone(format!("the last of {to} Services made at once answers, from create"), last));
        rows.push(Row::alone(format!("a new Service among {to} answers, from create"), new));
    }
    Ok(rows)
}

fn row(others: usize, mut ours: Vec<f64>, mut direct: Vec<f64>) -> Row {
    let (p50, p99) = (percentile(&mut ours, 500), percentile(&mut ours, 990));
    let (d50, d99) = (percentile(&mut direct, 500), percentile(&mut direct, 990));
    Row {
        what: format!("connection to a Service among {others}, p50 / p99"),
        ours: format!("{p50:.0} / {p99:.0} µs"),
        peer: format!("the pod itself {d50:.0} / {d99:.0} µs"),
        ratio: format!("{:.2} × the time", p50 / d50),
    }
}

/// Creates a Service in front of the pod; its address.
async fn create(api: &Api<Service>, name: &str) -> Result<String> {
    let service = json!({"metadata": {"name": name},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    let made = api.create(&PostParams::default(), &serde_json::from_value(service)?).await?;
    made.spec.and_then(|spec| spec.cluster_ip).context("no cluster address")
}

fn connect(address: &str) -> Result<TcpStream> {
    Ok(TcpStream::connect_timeout(&format!("{address}:80").parse()?, Duration::from_secs(1))?)
}

/// Microseconds that connections take.
fn connections(address: &str) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let start = Instant::now();
        let mut connection = connect(address)?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
        // Its answer paces the calls: else more would wait to be accepted than nginx lets wait.
        connection.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        connection.read_to_end(&mut Vec::new())?;
    }
    Ok(times)
}
