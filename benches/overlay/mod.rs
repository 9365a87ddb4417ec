//! Pod to pod between two nodes: one TCP stream and round trips over a bare cable (veth), through the
//! overlay, and through WireGuard in user space (wireguard-go; the kernel's may be missing). Both nodes are
//! network namespaces of this machine, so sender, receiver and both ends of the tunnel share its cores.
//! Needs root.

pub(crate) mod load;
pub(crate) mod namespace;
pub(crate) mod tunnels;

use anyhow::{Result, ensure};

use crate::{ROUNDS, Row, statistics::median};
use load::Figures;
use tunnels::{Setup, cable, overlay, wireguard};

/// Measures all three, interleaved.
pub(crate) fn run() -> Result<Vec<Row>> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root");
    let setups: [fn() -> Result<Setup>; 3] = [cable, overlay, wireguard];
    let mut figures: [Vec<Figures>; 3] = Default::default();
    let running: Vec<Setup> = setups.iter().map(|start| start()).collect::<Result<_>>()?;
    for round in 0..=ROUNDS {
        for (setup, figures) in running.iter().zip(&mut figures) {
            let measured = load::measure(&setup.path)?;
            // The first round warms up.
            if round > 0 {
                figures.push(measured);
            }
        }
    }
    let figure = |index: usize, what: fn(&Figures) -> f64| {
        median(&mut figures[index].iter().map(what).collect::<Vec<f64>>())
    };
    let mut rows = Vec::new();
    for (peer, name) in [(0, "veth, not encrypted"), (2, "wireguard-go")] {
        rows.push(faster("one TCP stream", name, figure(1, |f| f.gigabits), figure(peer, |f| f.gigabits)));
        rows.push(quicker("round trip p50", name, figure(1, |f| f.p50), figure(peer, |f| f.p50)));
        rows.push(quicker("round trip p99", name, figure(1, |f| f.p99), figure(peer, |f| f.p99)));
    }
    Ok(rows)
}

fn faster(what: &str, peer: &str, ours: f64, theirs: f64) -> Row {
    Row {
        what: format!("pod to pod, {what}"),
        ours: format!("{ours:.2} Gbit/s"),
        peer: format!("{peer} {theirs:.2} Gbit/s"),
        ratio: format!("{:.2} ×", ours / theirs),
    }
}

fn quicker(what: &str, peer: &str, ours: f64, theirs: f64) -> Row {
    Row {
        what: format!("pod to pod, {what}"),
        ours: format!("{ours:.0} µs"),
        peer: format!("{peer} {theirs:.0} µs"),
        ratio: format!("{:.2} × the time", ours / theirs),
    }
}
