//! `ketch uninstall`: takes back everything that Ketch has made on this machine.

use std::{
    collections::BTreeSet,
    io::{BufRead, IsTerminal},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use ketch_node::{Cidr, PodRanges, RuleTable};
use ketch_runtime_oci::Choice;
use ketch_server::DataDir;

use super::{machine, pod_range::PodRange, service_proxy, traces::Traces};
use crate::{options::default_data_dir, output};

/// Which Ketch.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Its data directory [default: /var/lib/ketch as root, else $XDG_DATA_HOME/ketch].
    #[arg(long, env = "KETCH_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

/// Runs the command.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let root = nix::unistd::Uid::effective().is_root();
    let dir = match arguments.data_dir {
        Some(dir) => std::path::absolute(dir)?,
        None => default_data_dir(root)?,
    };
    if !dir.exists() {
        output::line(format!("There is nothing of Ketch at {}.", dir.display()));
        return Ok(());
    }
    if !is_ours(&dir) {
        bail!("{} is not a data directory of Ketch; name the one to remove with --data-dir", dir.display());
    }
    let lock = DataDir::open(&dir)?;
    let traces = Traces::load(&dir);
    if !root && !traces.pods.is_empty() {
        bail!("this Ketch ran as root; run `ketch uninstall` as root too");
    }
    if !arguments.yes && !confirmed(&dir)? {
        bail!("nothing was removed");
    }
    remove(&dir, &traces).await?;
    ketch_node::discard_inside(&dir).with_context(|| format!("remove {}", dir.display()))?;
    drop(lock);
    output::line(format!(
        "Ketch at {} is gone. This program is left: delete it when you like.",
        dir.display()
    ));
    Ok(())
}

/// Whether a Ketch has made the directory: nothing else is ever removed.
fn is_ours(dir: &Path) -> bool {
    dir.join("lock").is_file() && (dir.join("server").is_dir() || dir.join("node").is_dir())
}

fn confirmed(dir: &Path) -> Result<bool> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        bail!("this removes {} and all that runs there; confirm with --yes", dir.display());
    }
    output::note(format!(
        "This ends all pods of the Ketch at {} and removes its cluster, images and logs. Type yes to go on:",
        dir.display()
    ));
    let mut answer = String::new();
    input.lock().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}

/// What is outside of the directory, containers first: they use the rest. What another Ketch of this machine has
/// by now is left alone.
async fn remove(dir: &Path, traces: &Traces) -> Result<()> {
    let options = ketch_runtime_oci::Options {
        data_dir: dir.to_path_buf(),
        plugin: std::env::current_exe().context("find this program")?,
    };
    for choice in &traces.containerd {
        let choice: Choice = choice.parse().map_err(|why| anyhow!("node/traces.json: {why}"))?;
        ketch_runtime_oci::remove(&choice, &options).await?;
    }
    for range in ranges(&traces.services) {
        if let Some(_claim) = service_proxy::claim(range)? {
            forget_table(&service_proxy::table(range)).await?;
        }
    }
    for range in ranges(&traces.pods) {
        if let Some(_claim) = PodRange::exactly(range)? {
            forget_table(&machine::policy_table(range)).await?;
            ketch_node::forget_local(PodRanges::of(range)).await;
        }
    }
    for address in &traces.dns {
        if std::net::UdpSocket::bind(address).is_ok() {
            ketch_node::forget_local_address(address.ip()).await;
        }
    }
    Ok(())
}

fn ranges(texts: &BTreeSet<String>) -> impl Iterator<Item = Cidr> {
    texts.iter().filter_map(|text| text.parse().ok())
}

async fn forget_table(table: &str) -> Result<()> {
    RuleTable::new(table).remove().await.with_context(|| format!("remove the table {table}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ketch_has_made_is_ketchs() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_ours(dir.path()) && !is_ours(Path::new("/")));
        std::fs::write(dir.path().join("lock"), "").unwrap();
        assert!(!is_ours(dir.path()));
        std::fs::create_dir(dir.path().join("node")).unwrap();
        assert!(is_ours(dir.path()));
    }

    #[tokio::test]
    async fn a_directory_in_use_and_none_at_all() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("data");
        let arguments = || Arguments { data_dir: Some(dir.clone()), yes: true };
        run(arguments()).await.unwrap();
        let used = DataDir::open(&dir).unwrap();
        std::fs::create_dir(dir.join("node")).unwrap();
        let refused = run(arguments()).await.unwrap_err().to_string();
        assert!(refused.contains("in use by another Ketch"), "{refused}");
        drop(used);
        run(arguments()).await.unwrap();
        assert!(!dir.exists());
    }
}
