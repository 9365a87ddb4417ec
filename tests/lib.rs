//! What the tests share: the real binary in a directory of its own, and ways to wait for conditions.
//!
//! Nothing here sleeps for a time that has to be right: [`until`] polls a condition and fails with the
//! last thing it saw.

#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test fails by panicking and says what it sees"
)]

mod containers;
mod disk;
pub mod image;
mod registry;

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

pub use containers::{Containers, end_containers};
pub use disk::SmallDisk;
pub use registry::{Authority, PASSWORD, Registry, Secured};
use serde_json::Value;

/// Longest any condition is waited for. Generous: the machine may be busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The workspace's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// A built sample workload.
pub fn guest(name: &str) -> PathBuf {
    let path = root().join("workloads/dist").join(format!("{name}.wasm"));
    assert!(path.is_file(), "{} is missing: run `cargo xtask workloads`", path.display());
    path
}

/// The binary under test, built beside the tests.
pub fn binary() -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    let path = deps.parent().and_then(Path::parent).unwrap().join("ketch");
    assert!(path.is_file(), "{} is missing: run `cargo build`", path.display());
    path
}

/// The `kubectl` under test: the machine's, or the one that `KUBECTL` names.
pub fn kubectl() -> PathBuf {
    std::env::var_os("KUBECTL").map_or_else(|| "kubectl".into(), PathBuf::from)
}

/// Minor version of [`kubectl`].
pub fn kubectl_minor() -> u32 {
    let output = Command::new(kubectl()).args(["version", "--client", "-o", "json"]).output().unwrap();
    let version: Value = serde_json::from_slice(&output.stdout).unwrap();
    version["clientVersion"]["minor"].as_str().unwrap().trim_end_matches('+').parse().unwrap()
}

/// Whether the tests run as root; says so when a test is skipped because they do not.
pub fn is_root() -> bool {
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// Polls `condition` until it is `Ok`; panics with its last `Err`.
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(seen) if Instant::now() > deadline => {
                panic!("{what}: not within {PATIENCE:?}; last seen: {seen}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(25)),
        }
    }
}

/// A `ketch up` with a data directory and ports of its own. Killed when dropped.
pub struct Ketch {
    child: Child,
    /// Data directory.
    pub dir: PathBuf,
    run: Value,
    temporary: Option<tempfile::TempDir>,
}

impl Ketch {
    /// Starts one in a new directory and waits until it is ready.
    pub fn start() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let mut ketch = Self::start_in(temporary.path(), &[]);
        ketch.temporary = Some(temporary);
        ketch
    }

    /// Starts one in `dir` with further flags and waits until it is ready.
    pub fn start_in(dir: &Path, flags: &[&str]) -> Self {
        Self::start_as(Command::new(binary()), "up", dir, flags)
    }

    /// Starts `ketch up` or `ketch server`.
    pub fn start_role(role: &str, dir: &Path, flags: &[&str]) -> Self {
        Self::start_as(Command::new(binary()), role, dir, flags)
    }

    /// [`Ketch::start_role`] by another program that runs the binary: `setpriv`, say.
    pub fn start_as(mut command: Command, role: &str, dir: &Path, flags: &[&str]) -> Self {
        fs::create_dir_all(dir).unwrap();
        let run_file = dir.join("run.json");
        let _ = fs::remove_file(&run_file);
        let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("test-output.log")).unwrap();
        command.arg(role).arg("--data-dir").arg(dir).args(["--node-name", "test-node"]);
        for flag in ["--api-addr", "--ui-addr", "--http-addr", "--https-addr", "--quic-addr", "--dns-addr"] {
            if !flags.contains(&flag) {
                command.args([flag, "127.0.0.1:0"]);
            }
        }
        // Tests of containers say so: a containerd outlives a Ketch that is killed.
        if !flags.contains(&"--containerd") {
            command.env("KETCH_CONTAINERD", "off");
        }
        command.args(flags).env_remove("KUBECONFIG").stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().unwrap();
        let run = until("ketch up", || {
            if let Some(status) = child.try_wait().unwrap() {
                let output = fs::read_to_string(dir.join("test-output.log")).unwrap_or_default();
                panic!("ketch up ended with {status}:\n{output}");
            }
            let text = fs::read_to_string(&run_file).map_err(|e| e.to_string())?;
            serde_json::from_str::<Value>(&text).map_err(|e| e.to_string())
        });
        let ketch = Self { child, dir: dir.to_path_buf(), run, temporary: None };
        until("readiness", || match ketch.ui("/readyz") {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        ketch
    }

    /// An address of `run.json`, for instance `http-addr`.
    pub fn address(&self, key: &str) -> String {
        self.run[key].as_str().unwrap_or_else(|| panic!("run.json has no {key}: {}", self.run)).to_owned()
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// What the process has printed.
    pub fn output(&self) -> String {
        fs::read_to_string(self.dir.join("test-output.log")).unwrap_or_default()
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it as a power cut would, and starts it again in the same directory.
    pub fn crash_and_restart(mut self) -> Self {
        self.kill();
        let (dir, temporary) = (self.dir.clone(), self.temporary.take());
        drop(self);
        let mut next = Self::start_in(&dir, &[]);
        next.temporary = temporary;
        next
    }

    /// A new token of an administrator's service account, for clients that take one.
    pub fn token(&self) -> String {
        let name = "test-robot";
        if !self.kubectl(&["get", "serviceaccount", name]).status.success() {
            let account = format!("--serviceaccount=default:{name}");
            self.kubectl_ok(&["create", "serviceaccount", name]);
            self.kubectl_ok(&["create", "clusterrolebinding", name, "--clusterrole=cluster-admin", &account]);
        }
        // As `kubectl create token` does, which the oldest kubectl does not know.
        let path = format!("/api/v1/namespaces/default/serviceaccounts/{name}/token");
        let request = r#"{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}"#;
        let made = succeeded("a token", self.kubectl_with(&["create", "--raw", &path, "-f", "-"], request));
        let made: Value = serde_json::from_str(&made).unwrap();
        made["status"]["token"].as_str().unwrap().to_owned()
    }

    /// `SIGKILL`, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// `SIGTERM`, and waits for the end; one that does not end is killed.
    pub fn end(mut self) {
        let pid = self.pid().to_string();
        let _ = Command::new("kill").args(["-s", "TERM", &pid]).output();
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A client command of the binary against this cluster.
    pub fn ketch(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(arguments).env("KUBECONFIG", self.kubeconfig()).stdin(Stdio::null()).output().unwrap()
    }

    /// Real `kubectl` against this cluster.
    pub fn kubectl(&self, arguments: &[&str]) -> Output {
        self.kubectl_with(arguments, "")
    }

    /// Real `kubectl` with standard input.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Output {
        use std::io::Write;
        let mut command = Command::new(kubectl());
        command.args(arguments).env("KUBECONFIG", self.kubeconfig()).env("HOME", &self.dir);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl is missing");
        // A command that does not read its input closes it early.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Standard output of a `kubectl` that must succeed.
    pub fn kubectl_ok(&self, arguments: &[&str]) -> String {
        succeeded(&format!("kubectl {}", arguments.join(" ")), self.kubectl(arguments))
    }

    /// Applies a manifest with `kubectl`; it must succeed.
    pub fn apply(&self, manifest: &str) -> String {
        succeeded("kubectl apply", self.kubectl_with(&["apply", "-f", "-"], manifest))
    }

    /// Deploys a guest with the binary's own command and returns its URL.
    pub fn deploy(&self, guest_name: &str, flags: &[&str]) -> String {
        let path = guest(guest_name);
        // A component of another language takes its time to compile on a busy machine.
        let arguments = [&["deploy", path.to_str().unwrap(), "--timeout", "180"], flags].concat();
        succeeded("ketch deploy", self.ketch(&arguments)).trim().to_owned()
    }

    /// A kube-rs client with the administrator's kubeconfig. [`install_crypto`] must have been called.
    pub async fn client(&self) -> kube::Client {
        ketch_client::from_kubeconfig(&self.kubeconfig(), None).await.unwrap()
    }

    /// `GET` on the plain console address: status and body.
    pub fn ui(&self, path: &str) -> Result<(u16, String), String> {
        get(&self.address("ui-addr"), "localhost", path)
    }

    /// `GET` of a Function through the gateway: status and body.
    pub fn call(&self, function: &str, path: &str) -> Result<(u16, String), String> {
        let address = self.address("http-addr");
        let port = address.rsplit(':').next().unwrap_or_default();
        get(&address, &format!("{function}.default.localhost:{port}"), path)
    }
}

/// A `ketch node` with a data directory of its own. Killed when dropped.
pub struct Node {
    child: Child,
    /// What it wrote about itself.
    pub run: Value,
    log: PathBuf,
}

impl Node {
    /// The command, with everything but `flags` decided.
    pub fn command(dir: &Path, name: &str, flags: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .arg("node")
            .arg("--data-dir")
            .arg(dir)
            .args(["--node-name", name])
            .env("KETCH_CONTAINERD", "off");
        for flag in ["--http-addr", "--https-addr"] {
            if !flags.contains(&flag) {
                command.args([flag, "127.0.0.1:0"]);
            }
        }
        command.args(flags).env_remove("KUBECONFIG").env_remove("KETCH_TOKEN").stdin(Stdio::null());
        command
    }

    /// Starts one and waits until it runs.
    pub fn start(dir: &Path, name: &str, flags: &[&str]) -> Self {
        fs::create_dir_all(dir).unwrap();
        let run_file = dir.join("run.json");
        let _ = fs::remove_file(&run_file);
        let log = dir.join("test-output.log");
        let out = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut command = Self::command(dir, name, flags);
        command.stdout(out.try_clone().unwrap()).stderr(out);
        let mut child = command.spawn().unwrap();
        let run = until("ketch node", || {
            if let Some(status) = child.try_wait().unwrap() {
                let output = fs::read_to_string(&log).unwrap_or_default();
                panic!("ketch node ended with {status}:\n{output}");
            }
            let text = fs::read_to_string(&run_file).map_err(|e| e.to_string())?;
            serde_json::from_str::<Value>(&text).map_err(|e| e.to_string())
        });
        Self { child, run, log }
    }

    /// Sends a signal by name, for instance `STOP`.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        succeeded("kill", Command::new("kill").args(["-s", name, &pid]).output().unwrap());
    }

    /// `SIGKILL`, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let output = fs::read_to_string(&self.log).unwrap_or_default();
            let tail = output.lines().rev().take(30).collect::<Vec<_>>();
            eprintln!("--- last output of ketch node {} ---", self.run["node-name"]);
            tail.into_iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

impl Drop for Ketch {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let output = self.output();
            let tail = output.lines().rev().take(60).collect::<Vec<_>>();
            eprintln!("--- last output of ketch up ---");
            tail.into_iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// The process's TLS provider.
pub fn install_crypto() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Standard output of a command that must succeed.
pub fn succeeded(what: &str, output: Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what} failed ({}):\n{out}{err}", output.status);
    out.into_owned()
}

/// Standard error of a command that must fail.
pub fn failed(what: &str, output: Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success(), "{what} should have failed:\n{out}{err}");
    err.into_owned()
}

/// One HTTP/1.1 request on a connection of its own: status and body.
pub fn get(address: &str, host: &str, path: &str) -> Result<(u16, String), String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).map_err(|e| format!("connect {address}: {e}"))?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
    write!(stream, "GET {path} HTTP/1.0\r\nhost: {host}\r\nconnection: close\r\n\r\n")
        .map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| format!("no HTTP answer: {text}"))?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((status.ok_or_else(|| format!("no status: {head}"))?, body.to_owned()))
}
