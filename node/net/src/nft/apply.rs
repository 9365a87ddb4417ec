//! Running `nft`.

use std::{path::PathBuf, process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt, process::Command};

use super::{
    batch::{Commands, change, make, remove, replace},
    model::Rules,
};

/// Longest a transaction may take: 5,000 Services take a fraction of a second.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of `nft`'s complaint that are passed on.
const COMPLAINT: usize = 400;

/// Why a transaction failed; then nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The program cannot be run.
    #[error("cannot run nft: {0}; install the package nftables")]
    Run(#[from] std::io::Error),
    /// It does not come to an end.
    #[error("nft did not end within {} s", PATIENCE.as_secs())]
    Time,
    /// The commands cannot be written down.
    #[error("cannot write commands for nft: {0}")]
    Write(#[from] serde_json::Error),
    /// It refuses.
    #[error("nft refused the rules: {0}")]
    Refused(String),
}

/// A table of the kernel that this value alone writes.
#[derive(Debug)]
pub struct Nft {
    table: String,
    namespace: Option<PathBuf>,
    /// What the kernel has, if that is known.
    held: Option<Rules>,
}

impl Nft {
    /// A table of this name, in the network namespace of this process.
    pub fn new(table: impl Into<String>) -> Self {
        Self { table: table.into(), namespace: None, held: None }
    }

    /// The same in another network namespace, for tests and tools.
    pub fn within(mut self, namespace: impl Into<PathBuf>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Name of the table.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// Whether tables can be made here: makes an empty one.
    ///
    /// # Errors
    /// When `nft` is missing, or this process may not use it.
    pub async fn probe(&mut self) -> Result<(), ApplyError> {
        self.held = None;
        self.run(&replace(&self.table, &Rules::default())).await
    }

    /// Whether tables can be made here: makes an empty one unless it is there.
    ///
    /// # Errors
    /// When `nft` is missing, or this process may not use it.
    pub async fn check(&self) -> Result<(), ApplyError> {
        self.run(&make(&self.table)).await
    }

    /// Makes the table hold `rules`: the first time, and after a failure, by replacing it, else by the
    /// difference. One transaction: packets see the old rules or the new ones. `false`: nothing to do.
    ///
    /// # Errors
    /// When `nft` fails; the rules that were there are left, and the next call replaces them.
    pub async fn apply(&mut self, rules: Rules) -> Result<bool, ApplyError> {
        let commands = match &self.held {
            None => replace(&self.table, &rules),
            Some(held) => match change(&self.table, held, &rules) {
                None => return Ok(false),
                Some(commands) => commands,
            },
        };
        let incremental = self.held.take().is_some();
        let mut result = self.run(&commands).await;
        if let (Err(error), true) = (&result, incremental) {
            // Somebody else changed the table.
            tracing::warn!(%error, table = %self.table, "a change of the rules failed; they are replaced");
            result = self.run(&replace(&self.table, &rules)).await;
        }
        result?;
        self.held = Some(rules);
        Ok(true)
    }

    /// Removes the table.
    ///
    /// # Errors
    /// When `nft` fails.
    pub async fn remove(&mut self) -> Result<(), ApplyError> {
        self.held = None;
        self.run(&remove(&self.table)).await
    }

    async fn run(&self, commands: &Commands) -> Result<(), ApplyError> {
        let mut nft = match &self.namespace {
            None => Command::new("nft"),
            Some(namespace) => {
                let mut enter = Command::new("nsenter");
                enter.arg(format!("--net={}", namespace.display())).arg("nft");
                enter
            }
        };
        nft.args(["-j", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = nft.kill_on_drop(true).spawn()?;
        let text = serde_json::to_vec(commands)?;
        let stdin = child.stdin.take();
        let work = async {
            if let Some(mut stdin) = stdin {
                // A program that has ended already says more with its status.
                let _ = stdin.write_all(&text).await;
            }
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(PATIENCE, work).await.map_err(|_| ApplyError::Time)??;
        if output.status.success() {
            return Ok(());
        }
        let complaint = [output.stderr, output.stdout].concat();
        let complaint = String::from_utf8_lossy(&complaint).trim().chars().take(COMPLAINT).collect();
        Err(ApplyError::Refused(complaint))
    }
}
