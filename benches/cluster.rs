//! A release build of `ketch up` with a directory and ports of its own, and programs beside it.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Longest anything is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// A process that ends with this value.
pub(crate) struct Process(Child);

impl Process {
    /// Starts `command` quietly.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Ok(Self(child.with_context(|| format!("start {}", command.get_program().to_string_lossy()))?))
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Resident memory, in bytes.
    pub(crate) fn memory(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024.0)
    }

    /// CPU time used, in seconds.
    pub(crate) fn cpu(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        Ok(ticks / 100.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running cluster of one machine.
pub(crate) struct Cluster {
    pub(crate) process: Process,
    directory: tempfile::TempDir,
    run: Value,
}

impl Cluster {
    /// Starts one and waits until it is ready.
    pub(crate) fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut command = Command::new(binary());
        command.arg("up").arg("--data-dir").arg(directory.path()).args(["--node-name", "bench"]);
        for flag in ["--api-addr", "--ui-addr", "--http-addr", "--https-addr", "--quic-addr", "--dns-addr"] {
            command.args([flag, "127.0.0.1:0"]);
        }
        // A containerd would outlive it.
        command.env("KETCH_CONTAINERD", "off");
        let process = Process::start(&mut command)?;
        let file = directory.path().join("run.json");
        let run = until("ketch up", || serde_json::from_str(&fs::read_to_string(&file).ok()?).ok())?;
        let cluster = Self { process, directory, run };
        let address = cluster.address("ui-addr")?;
        until("the API", || TcpStream::connect(&address).ok())?;
        Ok(cluster)
    }

    /// An address of `run.json`.
    pub(crate) fn address(&self, key: &str) -> Result<String> {
        Ok(self.run[key].as_str().with_context(|| format!("run.json has no {key}"))?.to_owned())
    }

    /// Deploys a guest and waits until its URL answers.
    pub(crate) fn deploy(&self, guest: &Path) -> Result<()> {
        let status = Command::new(binary())
            .arg("deploy")
            .arg(guest)
            .env("KUBECONFIG", self.kubeconfig())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        if !status.success() {
            bail!("ketch deploy {} failed", guest.display());
        }
        Ok(())
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("admin.kubeconfig")
    }

    /// A client with the administrator's rights.
    pub(crate) async fn client(&self) -> Result<kube::Client> {
        Ok(ketch_client::from_kubeconfig(&self.kubeconfig(), None).await?)
    }
}

/// Polls until there is something.
pub(crate) fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("{what}: not within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The binary under test.
fn binary() -> PathBuf {
    std::env::var_os("KETCH").map_or_else(|| "target/release/ketch".into(), PathBuf::from)
}

/// A built sample workload.
pub(crate) fn guest(name: &str) -> PathBuf {
    Path::new("workloads/dist").join(format!("{name}.wasm"))
}
