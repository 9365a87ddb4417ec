//! A well-behaved function's answers while others loop, allocate, panic, flood their logs and open sockets
//! without end, beside its answers alone.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{
    ROUNDS, Row,
    cluster::{Cluster, guest, until},
    statistics::{median, percentile},
};

/// Calls per round and side.
const CALLS: usize = 500;
/// What the others do, all at once.
const ATTACKS: [&str; 5] = ["/loop", "/alloc", "/panic", "/flood?n=10000", "/sockets?n=10000"];
/// How long they pause after each time. Without it this would measure a machine that is full of calls.
const PAUSE: Duration = Duration::from_millis(10);

/// Measures both, in turns.
pub(crate) fn run() -> Result<Vec<Row>> {
    let cluster = Cluster::start()?;
    for name in ["hello", "misbehave"] {
        cluster.deploy(&guest(name))?;
    }
    // Else every round waits for calls that never end.
    let patch = r#"{"spec":{"timeoutSeconds":2}}"#;
    cluster.kubectl(&["patch", "function", "misbehave", "--type=merge", "-p", patch])?;
    let serving = ["get", "function", "misbehave", "-o", "jsonpath={.status.traffic[0].revisionName}"];
    until("the shorter time-out", || {
        cluster.kubectl(&serving).ok().filter(|name| name == "misbehave-00002")
    })?;
    let gateway = cluster.address("http-addr")?;
    let good = || call(&gateway, "hello", "/");
    until("hello", || good().ok().filter(|answer| answer.starts_with("HTTP/1.1 200")))?;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let quiet = p99(good)?;
        let stop = AtomicBool::new(false);
        let busy = std::thread::scope(|scope| {
            for path in ATTACKS {
                let (stop, gateway) = (&stop, &gateway);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        // However it ends, it is tried again.
                        let _ = call(gateway, "misbehave", path);
                        std::thread::sleep(PAUSE);
                    }
                });
            }
            let busy = p99(good);
            stop.store(true, Ordering::Relaxed);
            busy
        })?;
        // The first round warms up.
        if round > 0 {
            alone.push(quiet);
            beside.push(busy);
        }
    }
    let (alone, beside) = (median(&mut alone), median(&mut beside));
    Ok(vec![Row {
        what: "a function's p99 beside five that misbehave".into(),
        ours: format!("{beside:.2} ms"),
        peer: format!("alone {alone:.2} ms"),
        ratio: format!("{:.1} × the time", beside / alone),
    }])
}

/// Milliseconds that all calls but one in a hundred stay below.
fn p99(call: impl Fn() -> Result<String>) -> Result<f64> {
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let start = Instant::now();
        let answer = call()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(answer.starts_with("HTTP/1.1 200"), "not a good answer: {answer}");
    }
    Ok(percentile(&mut times, 990))
}

fn call(gateway: &str, function: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(gateway)?;
    let port = gateway.rsplit(':').next().unwrap_or_default();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {function}.default.localhost:{port}\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
