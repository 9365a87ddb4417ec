//! Pods of both kinds on one node and on two: containers as they reach each other, and components that echo
//! beside native programs that do. The peer is a bare cable (veth) between two namespaces of this machine, on
//! which both nodes are as well, so that all of it shares the same cores. Needs root.

mod echo;
mod machines;

use anyhow::{Result, ensure};

use crate::{
    ROUNDS, Row,
    overlay::{
        load::{self, Figures},
        tunnels::cable,
    },
    statistics::median,
};
use machines::Machines;

/// Measures all paths, in turns.
pub(crate) fn run() -> Result<Vec<Row>> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root");
    let (machines, cable) = (Machines::start()?, cable()?);
    let paths = [
        ("veth", &cable.path),
        ("container to container, one node", &machines.near),
        ("container to container, two nodes", &machines.far),
    ];
    let mut packets: [Vec<Figures>; 3] = Default::default();
    let mut echoes: [Vec<Figures>; 5] = Default::default();
    for round in 0..=ROUNDS {
        for ((_, path), figures) in paths.iter().zip(&mut packets) {
            keep(round, figures, load::measure(path)?);
        }
        for ((_, path), figures) in paths.iter().zip(&mut echoes) {
            keep(round, figures, echo::measure_native(path)?);
        }
        for (address, figures) in machines.components.iter().zip(&mut echoes[paths.len()..]) {
            keep(round, figures, echo::measure(&machines.near.a, *address)?);
        }
    }
    let mut rows = rows("", &paths.map(|(name, _)| name), &packets);
    let names = [
        "veth",
        "container to container, one node",
        "container to container, two nodes",
        "container to component, one node",
        "container to component, two nodes",
    ];
    rows.extend(self::rows("echo, ", &names, &echoes));
    Ok(rows)
}

/// The first round warms up.
fn keep(round: usize, all: &mut Vec<Figures>, figures: Figures) {
    if round > 0 {
        all.push(figures);
    }
}

/// Every path beside the first.
fn rows(what: &str, names: &[&str], figures: &[Vec<Figures>]) -> Vec<Row> {
    let middle = |index: usize, figure: fn(&Figures) -> f64| {
        median(&mut figures[index].iter().map(figure).collect::<Vec<f64>>())
    };
    let mut rows = Vec::new();
    for (index, name) in names.iter().enumerate().skip(1) {
        let [ours, theirs] = [index, 0].map(|index| middle(index, |f| f.gigabits));
        rows.push(Row {
            what: format!("{what}{name}, one TCP stream"),
            ours: format!("{ours:.2} Gbit/s"),
            peer: format!("{} {theirs:.2} Gbit/s", names[0]),
            ratio: format!("{:.2} ×", ours / theirs),
        });
        let [p50, p99] = [middle(index, |f| f.p50), middle(index, |f| f.p99)];
        let [peer50, peer99] = [middle(0, |f| f.p50), middle(0, |f| f.p99)];
        rows.push(Row {
            what: format!("{what}{name}, round trip p50 / p99"),
            ours: format!("{p50:.0} / {p99:.0} µs"),
            peer: format!("{} {peer50:.0} / {peer99:.0} µs", names[0]),
            ratio: format!("{:.2} / {:.2} × the time", p50 / peer50, p99 / peer99),
        });
    }
    rows
}
