//! A containerd of our own, under the data directory: nothing of the host's configuration is touched.
//!
//! It is not this process's child in spirit: containers go on while Ketch restarts, and so does containerd.
//! The next Ketch finds it by its process id and configuration. While Ketch runs it starts containerd again
//! whenever it is gone; containers do not notice.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::image::PAUSE;

/// How often a containerd that is not our child is looked at, and the first wait after it died.
const LOOK: Duration = Duration::from_millis(500);
/// Longest wait between attempts to start it.
const BACK_OFF: Duration = Duration::from_secs(30);
/// How long it may take to end.
const END: Duration = Duration::from_secs(20);
/// Size at which containerd's own log starts anew.
const MAX_LOG: u64 = 16 << 20;
/// Where programs are besides the `PATH`, which a service may have cut short.
const PROGRAMS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The kernel's limit for the path of a socket, with containerd's own `.ttrpc` after it.
const MAX_SOCKET: usize = 100;

/// Files and programs of a managed containerd.
#[derive(Clone, Debug)]
pub(crate) struct Managed {
    dir: PathBuf,
    containerd: PathBuf,
    oci: PathBuf,
}

impl Managed {
    /// In `dir`, with the programs of this host.
    ///
    /// # Errors
    /// The programs that are missing.
    pub(crate) fn new(dir: PathBuf) -> Result<Self, &'static str> {
        Self::of(dir, program)
    }

    /// With the programs that `find` finds.
    fn of(dir: PathBuf, find: impl Fn(&'static str) -> Option<PathBuf>) -> Result<Self, &'static str> {
        let containerd = find("containerd").ok_or("containerd")?;
        find("containerd-shim-runc-v2").ok_or("containerd-shim-runc-v2")?;
        // crun up to 1.8 refuses hosts that mount cgroup v1 and v2 side by side: runc comes first.
        let oci = find("runc").or_else(|| find("crun")).ok_or("runc")?;
        Ok(Self { dir, containerd, oci })
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        let socket = self.dir.join("containerd.sock");
        match socket.as_os_str().len() > MAX_SOCKET {
            false => socket,
            true => PathBuf::from("/run/ketch").join(crate::connect::owner(&self.dir)).join("c.sock"),
        }
    }

    /// Where it looks for network configurations.
    pub(crate) fn configurations(&self) -> PathBuf {
        self.dir.join("cni/net.d")
    }

    /// Where it looks for network plugins.
    pub(crate) fn plugins(&self) -> PathBuf {
        self.dir.join("cni/bin")
    }

    /// How layers are stacked: overlays do not stack on an overlay.
    pub(crate) fn snapshotter(&self) -> &'static str {
        let on_overlay = nix::sys::statfs::statfs(&self.dir)
            .is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::OVERLAYFS_SUPER_MAGIC);
        if on_overlay { "native" } else { "overlayfs" }
    }

    /// Where it keeps images.
    pub(crate) fn root(&self) -> PathBuf {
        self.path("root")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes the configuration and starts containerd unless it runs with this very configuration.
    pub(crate) async fn start(&self) -> io::Result<Option<Child>> {
        fs::create_dir_all(&self.dir)?;
        if let Some(parent) = self.socket().parent() {
            fs::create_dir_all(parent)?;
        }
        let text = self.configuration();
        let path = self.path("config.toml");
        let unchanged = fs::read_to_string(&path).is_ok_and(|old| old == text);
        if self.running().is_some() {
            if unchanged {
                return Ok(None);
            }
            self.stop().await;
        }
        fs::write(&path, text)?;
        self.spawn().map(Some)
    }

    fn spawn(&self) -> io::Result<Child> {
        let log = self.path("containerd.log");
        let full = fs::metadata(&log).is_ok_and(|data| data.len() > MAX_LOG);
        let log = fs::OpenOptions::new().create(true).append(!full).write(true).truncate(full).open(log)?;
        let path = std::env::var("PATH").unwrap_or_default();
        let child = Command::new(&self.containerd)
            .arg("--config")
            .arg(self.path("config.toml"))
            .env("PATH", format!("{path}:{PROGRAMS}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Signals of a terminal are for us.
            .process_group(0)
            .spawn()?;
        if let Some(id) = child.id() {
            let mut file = fs::File::create(self.path("containerd.pid"))?;
            write!(file, "{id}")?;
        }
        Ok(child)
    }

    /// The process that runs with our configuration.
    pub(crate) fn running(&self) -> Option<Pid> {
        let id: i32 = fs::read_to_string(self.path("containerd.pid")).ok()?.trim().parse().ok()?;
        let line = fs::read(format!("/proc/{id}/cmdline")).ok()?;
        let config = self.path("config.toml");
        let ours = line.split(|byte| *byte == 0).any(|word| word == config.as_os_str().as_encoded_bytes());
        ours.then_some(Pid::from_raw(id))
    }

    /// Ends containerd, not its containers.
    pub(crate) async fn stop(&self) {
        let Some(process) = self.running() else { return };
        _ = kill(process, Signal::SIGTERM);
        let gone = async {
            while self.running().is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(END, gone).await.is_err() {
            tracing::warn!("containerd does not end; it is killed");
            _ = kill(process, Signal::SIGKILL);
        }
    }

    /// Starts containerd again whenever it is gone, until `end`.
    pub(crate) async fn supervise(self, mut child: Option<Child>, end: CancellationToken) {
        let mut wait = LOOK;
        loop {
            let begun = tokio::time::Instant::now();
            tokio::select! {
                () = end.cancelled() => break,
                () = self.gone(&mut child) => {}
            }
            if begun.elapsed() > BACK_OFF {
                wait = LOOK;
            }
            tracing::warn!(
                "containerd ended; it is started again (its log: {})",
                self.path("containerd.log").display()
            );
            tokio::select! {
                () = end.cancelled() => break,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(BACK_OFF);
            child = match self.start().await {
                Ok(child) => child,
                Err(error) => {
                    tracing::error!(%error, "containerd cannot be started");
                    None
                }
            };
        }
    }

    async fn gone(&self, child: &mut Option<Child>) {
        if let Some(child) = child {
            _ = child.wait().await;
            return;
        }
        while self.running().is_some() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Version 2 is read by containerd 1.6 and 1.7, and by 2.x, which turns it into its own. What a version does not
    /// know it passes over.
    fn configuration(&self) -> String {
        let quote = |path: &Path| toml_string(&path.to_string_lossy());
        let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
        format!(
            r#"# Written by Ketch at every start; changes are lost.
version = 2
root = {root}
state = {state}
oom_score = -999
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.restart", "io.containerd.monitor.container.v1.restart"]

[grpc]
  address = {socket}

# From 2.0 on it is on, and takes the socket of the host's containerd away from it.
[plugins."io.containerd.nri.v1.nri"]
  disable = true

[{cri}]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = {restricted}
  netns_mounts_under_state_dir = true
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"

  [{cri}.cni]
    bin_dir = {plugins}
    conf_dir = {configurations}
    max_conf_num = 1

  [{cri}.containerd]
    snapshotter = "{snapshotter}"
    default_runtime_name = "runc"

    [{cri}.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [{cri}.containerd.runtimes.runc.options]
        BinaryName = {oci}
        SystemdCgroup = false
"#,
            restricted = !may_protect_from_oom(),
            root = quote(&self.root()),
            state = quote(&self.path("state")),
            socket = quote(&self.socket()),
            plugins = quote(&self.plugins()),
            configurations = quote(&self.configurations()),
            snapshotter = self.snapshotter(),
            oci = quote(&self.oci),
        )
    }
}

/// Whether processes may be made less likely to be killed for memory: without `CAP_SYS_RESOURCE`, as in some
/// virtual machines, no pod would start if containerd tried.
fn may_protect_from_oom() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_none_or(|mask| mask >> CAP_SYS_RESOURCE & 1 == 1)
}

/// A TOML string.
fn toml_string(text: &str) -> String {
    let escaped: String = text
        .chars()
        .flat_map(|c| match c {
            '"' | '\\' => vec!['\\', c],
            c if c.is_control() => format!("\\u{:04X}", u32::from(c)).chars().collect(),
            c => vec![c],
        })
        .collect();
    format!("\"{escaped}\"")
}

/// A program of this host.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut directories = path.split(':').chain(PROGRAMS.split(':')).filter(|dir| !dir.is_empty());
    directories.find_map(|dir| Some(Path::new(dir).join(name)).filter(|path| path.is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crun_does_where_there_is_no_runc() {
        let find = |there: &'static [&str]| {
            let find = |name: &str| there.contains(&name).then(|| Path::new("/bin").join(name));
            Managed::of("/data".into(), find).map(|managed| managed.configuration())
        };
        let both = find(&["containerd", "containerd-shim-runc-v2", "crun", "runc"]).unwrap();
        assert!(both.contains("BinaryName = \"/bin/runc\""), "{both}");
        let crun = find(&["containerd", "containerd-shim-runc-v2", "crun"]).unwrap();
        assert!(crun.contains("BinaryName = \"/bin/crun\""), "{crun}");
        for (there, missing) in [
            (&["containerd", "containerd-shim-runc-v2"][..], "runc"),
            (&["containerd", "runc"], "containerd-shim-runc-v2"),
            (&["crun"], "containerd"),
        ] {
            assert_eq!(find(there).unwrap_err(), missing);
        }
    }

    #[test]
    fn the_configuration_quotes_paths() {
        assert_eq!(toml_string("/a \"b\"\\c\n"), r#""/a \"b\"\\c\u000A""#);
        let dir = PathBuf::from("/data/node/containerd");
        let managed = Managed { dir, containerd: "/bin/containerd".into(), oci: "/bin/runc".into() };
        let text = managed.configuration();
        assert!(text.contains("address = \"/data/node/containerd/containerd.sock\""), "{text}");
        assert!(text.contains("[plugins.\"io.containerd.nri.v1.nri\"]\n  disable = true\n"), "{text}");
        let long = Managed { dir: format!("/{}", "x".repeat(120)).into(), ..managed };
        assert!(long.socket().starts_with("/run/ketch"), "a socket's path has a limit");
    }
}
