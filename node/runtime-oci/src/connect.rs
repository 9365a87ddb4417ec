//! Which containerd is used, and what to do when there is none.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use k8s_cri::v1::VersionRequest;
use ketch_runtime::Error;
use nix::unistd::Uid;
use sha2::{Digest, Sha256};

use crate::{
    client::{Client, QUICK},
    cni, existing,
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
    let found = existing::Found::ask(&client).await.map_err(|error| {
        Unavailable::new(format!("containerd at {shown}: {error}"), "use --containerd managed")
    })?;
    if let Some(other) = existing::other_network(&found.configurations) {
        return Err(Unavailable::new(
            format!("containerd at {shown} has the network {}", other.display()),
            "use --containerd managed, which touches nothing of it",
        ));
    }
    cni::install(&found.configurations, &found.plugins, &options.plugin).map_err(|error| {
        Unavailable::new(
            format!("the network plugin cannot be installed for containerd at {shown}: {error}"),
            "use --containerd managed",
        )
    })?;
    let owner = owner(&options.data_dir);
    let (root, snapshotter) = (found.image_root, found.snapshotter);
    let parts = Parts {
        images: Arc::new(Images::new(client.clone(), owner.clone(), work(options), root, snapshotter)),
        client,
        version,
        owner,
        work: work(options),
        // systemd names control groups in its own way.
        limits_pods: !found.systemd_cgroup,
        managed: None,
    };
    finish(parts, found.sandbox_image).await
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
    fn what_is_missing_comes_with_a_fix() {
        let options = Options { data_dir: "/nowhere".into(), plugin: "/nowhere/ketch".into() };
        for choice in [Choice::Off, Choice::Socket("/nowhere/x.sock".into())] {
            let why = probe(&choice, &options).unwrap_err();
            assert!(!why.cause.is_empty() && !why.fix.is_empty());
        }
    }
}
