//! Which containerd is used, and what to do when there is none.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use k8s_cri::v1::{ImageFsInfoRequest, StatusRequest, VersionRequest};
use ketch_runtime::Error;
use nix::unistd::Uid;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{
    client::{Client, QUICK},
    cni,
    image::Images,
    managed::Managed,
    runtime::{OciRuntime, Parts},
};

/// Where a containerd of the host listens.
const SYSTEM: &str = "/run/containerd/containerd.sock";
/// How long containerd may take to start.
const START: Duration = Duration::from_secs(30);
const INSTALL: &str = "install containerd and runc (Debian, Ubuntu: apt-get install containerd runc)";

/// Value of `--containerd`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// One of our own when it can be started; else the host's, when nobody else gives its pods a network.
    #[default]
    Auto,
    /// One of our own.
    Managed,
    /// None.
    Off,
    /// The one at this socket.
    Socket(PathBuf),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("unix://").unwrap_or(text);
        match text {
            "auto" => Ok(Self::Auto),
            "managed" => Ok(Self::Managed),
            "off" => Ok(Self::Off),
            _ if path.starts_with('/') => Ok(Self::Socket(PathBuf::from(path))),
            _ => Err(format!("{text:?} is neither auto, managed, off nor the path of a socket")),
        }
    }
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Managed => f.write_str("managed"),
            Self::Off => f.write_str("off"),
            Self::Socket(path) => write!(f, "{}", path.display()),
        }
    }
}

/// What [`connect`] needs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Ketch's data directory; what is written is under `node/containerd` in it.
    pub data_dir: PathBuf,
    /// The program that acts as CNI plugin when it is started as one: see [`cni::invoked`].
    pub plugin: PathBuf,
}

/// Why this node has no containers, and the way to have them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}; {fix}")]
pub struct Unavailable {
    /// What is missing.
    pub cause: String,
    /// What to do.
    pub fix: String,
}

impl Unavailable {
    fn new(cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { cause: cause.into(), fix: fix.into() }
    }
}

/// What would be used on this host, without starting or changing anything.
///
/// # Errors
/// What is missing.
pub fn probe(choice: &Choice, options: &Options) -> Result<String, Unavailable> {
    match select(choice, options)? {
        Selected::Managed(_) => Ok("a containerd of Ketch's own, under its data directory".to_owned()),
        Selected::Socket(path) => Ok(format!("containerd at {}", path.display())),
    }
}

/// Connects to the containerd that `choice` means; starts it when it is ours.
///
/// # Errors
/// What is missing, and what to do.
pub async fn connect(choice: &Choice, options: &Options) -> Result<OciRuntime, Unavailable> {
    let selected = select(choice, options)?;
    // Blobs on their way and pipes of a process that is gone.
    _ = std::fs::remove_dir_all(work(options));
    match selected {
        Selected::Managed(managed) => start(managed, options).await,
        Selected::Socket(path) => join(&path, options).await,
    }
}

enum Selected {
    Managed(Managed),
    Socket(PathBuf),
}

fn select(choice: &Choice, options: &Options) -> Result<Selected, Unavailable> {
    if *choice == Choice::Off {
        return Err(Unavailable::new("containers are switched off", "start with --containerd auto"));
    }
    if !Uid::effective().is_root() {
        return Err(Unavailable::new("containers need root", "start Ketch as root, for instance with sudo"));
    }
    let dir = options.data_dir.join("node/containerd");
    let missing = |program: &str| {
        Unavailable::new(format!("{program} is not installed"), format!("{INSTALL}, then start again"))
    };
    match choice {
        Choice::Socket(path) if path.exists() => Ok(Selected::Socket(path.clone())),
        Choice::Socket(path) => Err(Unavailable::new(
            format!("there is no containerd at {}", path.display()),
            "start it, or use --containerd managed",
        )),
        Choice::Managed => Managed::new(dir).map(Selected::Managed).map_err(missing),
        Choice::Auto | Choice::Off => match Managed::new(dir) {
            Ok(managed) => Ok(Selected::Managed(managed)),
            Err(_) if Path::new(SYSTEM).exists() => Ok(Selected::Socket(PathBuf::from(SYSTEM))),
            Err(program) => Err(missing(program)),
        },
    }
}

async fn start(managed: Managed, options: &Options) -> Result<OciRuntime, Unavailable> {
    let broken = |cause: String| Unavailable::new(cause, "look into node/containerd/containerd.log");
    cni::install(&managed.configurations(), &managed.plugins(), &options.plugin)
        .map_err(|error| broken(format!("the network plugin cannot be installed: {error}")))?;
    let child = managed.start().await.map_err(|error| broken(format!("containerd cannot start: {error}")))?;
    let client = Client::new(&managed.socket());
    let snapshotter = managed.snapshotter().to_owned();
    let version = match wait(&client).await {
        Ok(version) => version,
        Err(error) => {
            if child.is_some() {
                managed.stop().await;
            }
            return Err(broken(error.to_string()));
        }
    };
    let owner = owner(&options.data_dir);
    let root = Some(managed.root());
    let parts = Parts {
        images: Arc::new(Images::new(client.clone(), owner.clone(), work(options), root, snapshotter)),
        client,
        version,
        owner,
        work: work(options),
        limits_pods: true,
        managed: Some((managed, child)),
    };
    finish(parts, None).await
}

async fn join(socket: &Path, options: &Options) -> Result<OciRuntime, Unavailable> {
    let client = Client::new(socket);
    let shown = socket.display();
    let version = wait(&client).await.map_err(|error| {
        Unavailable::new(
            format!("containerd at {shown} offers no CRI: {error}"),
            "remove \"cri\" from disabled_plugins in /etc/containerd/config.toml and restart it, or use --containerd managed",
        )
    })?;
    let config = settings(&client).await.map_err(|error| {
        Unavailable::new(format!("containerd at {shown}: {error}"), "use --containerd managed")
    })?;
    if let Some(other) = other_network(&config.cni.conf_dir) {
        return Err(Unavailable::new(
            format!("containerd at {shown} has the network {}", other.display()),
            "use --containerd managed, which touches nothing of it",
        ));
    }
    cni::install(&config.cni.conf_dir, &config.plugins(), &options.plugin).map_err(|error| {
        Unavailable::new(
            format!("the network plugin cannot be installed for containerd at {shown}: {error}"),
            "use --containerd managed",
        )
    })?;
    let owner = owner(&options.data_dir);
    let (root, snapshotter) = (image_root(&client).await, config.containerd.snapshotter.clone());
    let parts = Parts {
        images: Arc::new(Images::new(client.clone(), owner.clone(), work(options), root, snapshotter)),
        client,
        version,
        owner,
        work: work(options),
        // systemd names control groups in its own way.
        limits_pods: !config.systemd_cgroup(),
        managed: None,
    };
    finish(parts, Some(config.sandbox_image)).await
}

async fn finish(parts: Parts, sandbox_image: Option<String>) -> Result<OciRuntime, Unavailable> {
    let broken = |error: Error| {
        Unavailable::new(format!("the pause image cannot be imported: {error}"), "run `ketch doctor`")
    };
    parts.images.recover().await;
    parts.images.pull_pause(sandbox_image.as_deref()).await.map_err(broken)?;
    Ok(OciRuntime::new(parts))
}

/// Waits until CRI answers; says what does.
async fn wait(client: &Client) -> Result<String, Error> {
    let deadline = tokio::time::Instant::now() + START;
    loop {
        let mut runtime = client.runtime();
        let request = VersionRequest { version: "0.1.0".to_owned() };
        match client.call("connect", QUICK, runtime.version(request)).await {
            Ok(found) => {
                let version = found.runtime_version.trim_start_matches('v');
                return Ok(format!("{}://{version}", found.runtime_name));
            }
            Err(error)
                if tokio::time::Instant::now() > deadline
                    || error.to_string().contains("unknown service") =>
            {
                return Err(error);
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(25)).await,
        }
    }
}

/// What a containerd that is not ours is configured with: CRI's own description.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Settings {
    cni: Cni,
    containerd: Containerd,
    sandbox_image: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Cni {
    conf_dir: PathBuf,
    bin_dir: PathBuf,
    bin_dirs: Vec<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Containerd {
    snapshotter: String,
    default_runtime_name: String,
    runtimes: std::collections::HashMap<String, serde_json::Value>,
}

impl Default for Containerd {
    fn default() -> Self {
        Self {
            snapshotter: "overlayfs".to_owned(),
            default_runtime_name: "runc".to_owned(),
            runtimes: std::collections::HashMap::new(),
        }
    }
}

impl Settings {
    fn plugins(&self) -> PathBuf {
        // containerd 2 has a list.
        self.cni.bin_dirs.first().unwrap_or(&self.cni.bin_dir).clone()
    }

    fn systemd_cgroup(&self) -> bool {
        let runtime = self.containerd.runtimes.get(&self.containerd.default_runtime_name);
        let option = runtime.and_then(|runtime| runtime.get("options")?.get("SystemdCgroup")?.as_bool());
        option.unwrap_or(false)
    }
}

async fn settings(client: &Client) -> Result<Settings, Error> {
    let mut runtime = client.runtime();
    let status =
        client.call("ask for settings", QUICK, runtime.status(StatusRequest { verbose: true })).await?;
    let text = status.info.get("config").map(String::as_str).unwrap_or_default();
    let settings: Settings = serde_json::from_str(text)
        .map_err(|error| Error::Internal(format!("its settings are not understood: {error}")))?;
    match settings.cni.conf_dir.is_absolute() && settings.plugins().is_absolute() {
        true => Ok(settings),
        false => Err(Error::Internal("it does not say where it looks for network plugins".to_owned())),
    }
}

/// Where a containerd that is not ours unpacks images. `None`: nobody watches how full that gets.
async fn image_root(client: &Client) -> Option<PathBuf> {
    let mut images = client.cri_images();
    let asked = client.call("ask where images are", QUICK, images.image_fs_info(ImageFsInfoRequest {})).await;
    let found = asked.ok().and_then(|answer| answer.image_filesystems.into_iter().next()?.fs_id);
    let root = found.map(|place| PathBuf::from(place.mountpoint)).filter(|path| path.is_absolute());
    if root.is_none() {
        tracing::warn!("containerd does not say where its images are: an image may fill that disk");
    }
    root
}

/// Where a containerd that is not ours looks for network configurations and plugins.
pub(crate) async fn plugin_directories(runtime: &OciRuntime) -> Option<(PathBuf, PathBuf)> {
    if runtime.is_managed() {
        return None;
    }
    let settings = settings(runtime.client()).await.ok()?;
    Some((settings.cni.conf_dir.clone(), settings.plugins()))
}

/// A network configuration that is not ours.
fn other_network(dir: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let network = |path: &PathBuf| {
        let kind = path.extension().and_then(|kind| kind.to_str());
        matches!(kind, Some("conf" | "conflist" | "json"))
            && path.file_name().is_none_or(|name| name != cni::CONFIGURATION)
    };
    entries.filter(network).min()
}

fn work(options: &Options) -> PathBuf {
    options.data_dir.join("node/containerd/work")
}

/// A short name for a data directory.
pub(crate) fn owner(data_dir: &Path) -> String {
    let full = std::fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_path_buf());
    let sum = Sha256::digest(full.as_os_str().as_encoded_bytes());
    sum.iter().take(5).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_words_or_sockets() {
        for (text, choice) in [
            ("auto", Choice::Auto),
            ("managed", Choice::Managed),
            ("off", Choice::Off),
            ("/run/x.sock", Choice::Socket("/run/x.sock".into())),
            ("unix:///run/x.sock", Choice::Socket("/run/x.sock".into())),
        ] {
            assert_eq!(text.parse::<Choice>().unwrap(), choice);
        }
        assert!("on".parse::<Choice>().is_err());
    }

    #[test]
    fn settings_of_old_and_new_versions_are_read() {
        let old = r#"{"containerd":{"snapshotter":"native","defaultRuntimeName":"runc",
            "runtimes":{"runc":{"options":{"SystemdCgroup":true}}}},
            "cni":{"binDir":"/opt/cni/bin","confDir":"/etc/cni/net.d"},"sandboxImage":"pause:3.6"}"#;
        let settings: Settings = serde_json::from_str(old).unwrap();
        assert!(settings.systemd_cgroup());
        assert_eq!(settings.plugins(), Path::new("/opt/cni/bin"));
        let new = r#"{"cni":{"binDir":"","binDirs":["/a"],"confDir":"/etc/cni/net.d"}}"#;
        let settings: Settings = serde_json::from_str(new).unwrap();
        assert_eq!(settings.plugins(), Path::new("/a"));
        assert_eq!(settings.containerd.snapshotter, "overlayfs");
    }

    #[test]
    fn another_network_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(other_network(dir.path()), None);
        std::fs::write(dir.path().join(cni::CONFIGURATION), "").unwrap();
        std::fs::write(dir.path().join("README"), "").unwrap();
        assert_eq!(other_network(dir.path()), None);
        std::fs::write(dir.path().join("05-cilium.conflist"), "").unwrap();
        assert_eq!(other_network(dir.path()), Some(dir.path().join("05-cilium.conflist")));
    }

    #[test]
    fn what_is_missing_comes_with_a_fix() {
        let options = Options { data_dir: "/nowhere".into(), plugin: "/nowhere/ketch".into() };
        for choice in [Choice::Off, Choice::Socket("/nowhere/x.sock".into())] {
            let why = probe(&choice, &options).unwrap_err();
            assert!(!why.cause.is_empty() && !why.fix.is_empty());
        }
    }
}
