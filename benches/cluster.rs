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

/// Ranges of a cluster that programs outside of it reach; those of the tests are others.
const REACHABLE: [&str; 8] = [
    "--containerd",
    "managed",
    "--pod-cidr",
    "10.142.0.0/16",
    "--service-cidr",
    "10.143.0.0/16",
    "--dns-addr",
    "10.143.0.10:53",
];

impl Cluster {
    /// Starts one that runs WebAssembly, and waits until it is ready.
    pub(crate) fn start() -> Result<Self> {
        Self::start_with(&["--containerd", "off", "--dns-addr", "127.0.0.1:0"])
    }

    /// Starts one that runs containers too and has the sample images. Needs root.
    pub(crate) fn with_containers() -> Result<Self> {
        let cluster = Self::start_with(&REACHABLE)?;
        let address = cluster.address("api-addr")?;
        answer(Command::new("examples/push-images").arg(address).env("KUBECONFIG", cluster.kubeconfig()))?;
        Ok(cluster)
    }

    fn start_with(flags: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut command = Command::new(binary());
        // It makes every error of a guest cost milliseconds, and is not set where Ketch is used.
        command.env_remove("RUST_BACKTRACE");
        command.arg("up").arg("--data-dir").arg(directory.path()).args(["--node-name", "bench"]);
        for flag in ["--api-addr", "--ui-addr", "--http-addr", "--https-addr", "--quic-addr"] {
            command.args([flag, "127.0.0.1:0"]);
        }
        command.args(flags);
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

    /// What `kubectl` writes.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<String> {
        answer(Command::new("kubectl").args(args).env("KUBECONFIG", self.kubeconfig()))
    }

    /// `ctr` on the cluster's own containerd.
    pub(crate) fn ctr(&self, args: &[&str]) -> Result<String> {
        ctr(self.directory.path(), args)
    }

    /// A client with the administrator's rights.
    pub(crate) async fn client(&self) -> Result<kube::Client> {
        Ok(ketch_client::from_kubeconfig(&self.kubeconfig(), None).await?)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Containers would outlive it.
        end_containers(self.directory.path(), &self.kubeconfig(), &mut Command::new("kubectl"));
    }
}

/// `ctr` on the containerd that the Ketch of a data directory has started.
pub(crate) fn ctr(data: &Path, args: &[&str]) -> Result<String> {
    let socket = data.join("node/containerd/containerd.sock");
    answer(Command::new("ctr").arg("--address").arg(socket).args(args))
}

/// What a program writes; what it complains of, if it fails.
fn answer(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Deletes a cluster's pods with `kubectl`, and ends the containerd that the Ketch of `data` has started.
pub(crate) fn end_containers(data: &Path, kubeconfig: &Path, kubectl: &mut Command) {
    let Ok(pid) = fs::read_to_string(data.join("node/containerd/containerd.pid")) else { return };
    let delete = ["delete", "deployments,functions,pods", "--all", "--grace-period=1", "--timeout=60s"];
    let quiet =
        kubectl.args(delete).env("KUBECONFIG", kubeconfig).stdout(Stdio::null()).stderr(Stdio::null());
    let _ = quiet.status();
    let _ = Command::new("kill").arg(pid.trim()).status();
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
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("KETCH").map_or_else(|| "target/release/ketch".into(), PathBuf::from)
}

/// A built sample workload.
pub(crate) fn guest(name: &str) -> PathBuf {
    Path::new("workloads/dist").join(format!("{name}.wasm"))
}
