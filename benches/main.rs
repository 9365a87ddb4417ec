//! Side-by-side measurements against peers, as a table in Markdown.
//!
//! `ketch-bench [NAME…]` runs all measurements or the named ones: `containers`, `density`,
//! `dns`, `http`, `idle`, `neighbours`, `overlay`, `pods`, `schedule`, `services`, `store`, `traffic`. Rounds are
//! interleaved with the peer's and medians are printed, so that a busy
//! machine hurts both sides alike.
//! Every number is from a real process of a release build, reached the way users reach it.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::indexing_slicing,
    reason = "a measuring program prints, and indexes what it has sorted"
)]

mod cluster;
mod containers;
mod density;
mod dns;
mod http;
mod idle;
mod neighbours;
mod overlay;
mod pods;
mod schedule;
mod services;
mod statistics;
mod store;
mod traffic;

use anyhow::{Result, bail};

/// Rounds of each side; medians are taken over them.
pub(crate) const ROUNDS: usize = 5;

type Measurement = (&'static str, fn() -> Result<Vec<Row>>);

const MEASUREMENTS: &[Measurement] = &[
    ("http", http::run),
    ("pods", pods::run),
    ("density", density::run),
    ("dns", dns::run),
    ("idle", idle::run),
    ("neighbours", neighbours::run),
    ("schedule", schedule::run),
    ("store", store::run),
    ("overlay", overlay::run),
    ("containers", containers::run),
    ("services", services::run),
    ("traffic", traffic::run),
];

/// One line of the table.
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) ours: String,
    pub(crate) peer: String,
    pub(crate) ratio: String,
}

impl Row {
    /// A figure without a peer.
    pub(crate) fn alone(what: impl Into<String>, ours: impl Into<String>) -> Self {
        Row { what: what.into(), ours: ours.into(), peer: "–".into(), ratio: "–".into() }
    }
}

fn main() -> Result<()> {
    let _ = rustls_provider();
    let names: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = names.iter().find(|name| !MEASUREMENTS.iter().any(|(known, _)| known == name)) {
        bail!("there is no measurement \"{unknown}\"");
    }
    println!("| what | ketch | peer | ratio |\n| --- | --- | --- | --- |");
    for (name, measure) in
        MEASUREMENTS.iter().filter(|(name, _)| names.is_empty() || names.iter().any(|n| n == name))
    {
        eprintln!("measuring {name}");
        for row in measure()? {
            println!("| {} | {} | {} | {} |", row.what, row.ours, row.peer, row.ratio);
        }
    }
    Ok(())
}

fn rustls_provider() -> Result<(), std::sync::Arc<rustls::crypto::CryptoProvider>> {
    rustls::crypto::aws_lc_rs::default_provider().install_default()
}
