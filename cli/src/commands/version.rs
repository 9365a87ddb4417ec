//! `ketch version`.

use anyhow::Result;
use clap::Args;

use super::Connection;
use crate::output;

/// Which versions.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Only this program's.
    #[arg(long)]
    client: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Runs the command.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    output::line(format!(
        "Client: ketch {} (Kubernetes {})",
        env!("CARGO_PKG_VERSION"),
        ketch_api::names::KUBERNETES_VERSION
    ));
    if arguments.client {
        return Ok(());
    }
    let Ok(cluster) = arguments.connection.open().await else { return Ok(()) };
    match cluster.get("/version").await {
        Ok(Some(version)) => {
            output::line(format!("Server: {}", version["gitVersion"].as_str().unwrap_or("unknown")))
        }
        _ => output::note("Server: not reachable"),
    }
    Ok(())
}
