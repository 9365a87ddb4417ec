//! Requests per second of the same component: through the gateway, on the pod's address, and under
//! `wasmtime serve`. The load is `wrk`'s, one thread, 32 connections.

use std::{
    net::{TcpListener, TcpStream},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    ROUNDS, Row,
    cluster::{Cluster, Process, guest, until},
    statistics::median,
};

/// Measures all three, interleaved.
pub(crate) fn run() -> Result<Vec<Row>> {
    let cluster = Cluster::start()?;
    cluster.deploy(&guest("hello"))?;
    let gateway = cluster.address("http-addr")?;
    let host = format!("hello.default.localhost:{}", gateway.rsplit(':').next().unwrap_or_default());
    let pod = format!("{}:8080", pod_address(&cluster)?);
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let peer = format!("127.0.0.1:{port}");
    let mut serve = Command::new("wasmtime");
    serve.args(["serve", "--addr", &peer, "-Scli"]).arg(guest("hello"));
    let _peer = Process::start(&mut serve)?;
    until("wasmtime serve", || TcpStream::connect(&peer).ok())?;
    let (mut ours, mut direct, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let figures = (load(&gateway, &host)?, load(&pod, &pod)?, load(&peer, &peer)?);
        // The first round warms up.
        if round > 0 {
            ours.push(figures.0);
            direct.push(figures.1);
            theirs.push(figures.2);
        }
    }
    let peer = median(&mut theirs);
    let row = |what: &str, figure: f64| Row {
        what: what.into(),
        ours: format!("{figure:.0} req/s"),
        peer: format!("wasmtime serve {peer:.0} req/s"),
        ratio: format!("{:.2} ×", figure / peer),
    };
    Ok(vec![
        row("`wasi:http` hello through the gateway", median(&mut ours)),
        row("`wasi:http` hello on the pod's address", median(&mut direct)),
    ])
}

fn pod_address(cluster: &Cluster) -> Result<String> {
    let output = Command::new("kubectl")
        .args(["get", "pods", "-l", "ketch.dev/function=hello", "-o", "json"])
        .env("KUBECONFIG", cluster.kubeconfig())
        .output()?;
    let list: Value = serde_json::from_slice(&output.stdout)?;
    Ok(list["items"][0]["status"]["podIP"].as_str().context("the pod has no address")?.to_owned())
}

/// Requests per second over five seconds.
fn load(address: &str, host: &str) -> Result<f64> {
    let output = Command::new("wrk")
        .args(["-t1", "-c32", "-d5s", "-H", &format!("Host: {host}"), &format!("http://{address}/")])
        .output()
        .context("start wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    anyhow::ensure!(!text.contains("Non-2xx"), "not every answer was good:\n{text}");
    let figure =
        text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:")).context("wrk's figure")?;
    Ok(figure.trim().parse()?)
}
