//! A containerd that is not ours: what it is configured with, as far as it tells.
//!
//! CRI describes its settings. containerd 2 has moved what is about images out of that description; it is found in
//! other ways then.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use containerd_client::services::v1::PluginsRequest;
use k8s_cri::v1::{ImageFsInfoRequest, StatusRequest};
use ketch_runtime::Error;
use serde::Deserialize;

use crate::{
    client::{Client, QUICK, scoped},
    cni,
    runtime::OciRuntime,
};

/// What has to be known of it.
#[derive(Debug)]
pub(crate) struct Found {
    /// Where it looks for network configurations.
    pub(crate) configurations: PathBuf,
    /// Where it looks for network plugins.
    pub(crate) plugins: PathBuf,
    /// Where it unpacks images. `None`: nobody watches how full that gets.
    pub(crate) image_root: Option<PathBuf>,
    /// How it stacks the layers of containers.
    pub(crate) snapshotter: String,
    /// What it runs in every pod, when it says so.
    pub(crate) sandbox_image: Option<String>,
    /// Whether systemd makes its control groups.
    pub(crate) systemd_cgroup: bool,
}

impl Found {
    /// Asks it.
    ///
    /// # Errors
    /// What it does not say.
    pub(crate) async fn ask(client: &Client) -> Result<Self, Error> {
        let settings = settings(client).await?;
        let image_root = image_root(client).await;
        let snapshotter = match settings.snapshotter() {
            Some(name) => name.to_owned(),
            None => snapshotter_of(image_root.as_deref(), &snapshotters(client).await?).to_owned(),
        };
        Ok(Self {
            plugins: settings.plugins(),
            snapshotter,
            image_root,
            systemd_cgroup: settings.systemd_cgroup(),
            configurations: settings.cni.conf_dir,
            sandbox_image: Some(settings.sandbox_image).filter(|name| !name.is_empty()),
        })
    }
}

/// What CRI says of its settings.
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

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Containerd {
    snapshotter: String,
    default_runtime_name: String,
    runtimes: HashMap<String, serde_json::Value>,
}

impl Settings {
    fn plugins(&self) -> PathBuf {
        // containerd 2 has a list.
        self.cni.bin_dirs.first().unwrap_or(&self.cni.bin_dir).clone()
    }

    /// Of the runtime that pods get.
    fn runtime(&self, key: &str) -> Option<&serde_json::Value> {
        let name = Some(self.containerd.default_runtime_name.as_str()).filter(|name| !name.is_empty());
        self.containerd.runtimes.get(name.unwrap_or("runc"))?.get(key)
    }

    fn systemd_cgroup(&self) -> bool {
        let option = self.runtime("options").and_then(|options| options.get("SystemdCgroup")?.as_bool());
        option.unwrap_or(false)
    }

    /// A runtime may have its own.
    fn snapshotter(&self) -> Option<&str> {
        let own = self.runtime("snapshotter").and_then(serde_json::Value::as_str);
        [own, Some(&self.containerd.snapshotter)].into_iter().flatten().find(|name| !name.is_empty())
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

async fn image_root(client: &Client) -> Option<PathBuf> {
    let mut images = client.cri_images();
    let asked = client.call("ask where images are", QUICK, images.image_fs_info(ImageFsInfoRequest {})).await;
    // The default snapshotter is the first.
    let found = asked.ok().and_then(|answer| answer.image_filesystems.into_iter().next()?.fs_id);
    let root = found.map(|place| PathBuf::from(place.mountpoint)).filter(|path| path.is_absolute());
    if root.is_none() {
        tracing::warn!("containerd does not say where its images are: an image may fill that disk");
    }
    root
}

/// Names and directories of its snapshotters.
async fn snapshotters(client: &Client) -> Result<Vec<(String, PathBuf)>, Error> {
    let mut introspection = client.native().introspection();
    let filters = vec!["type==io.containerd.snapshotter.v1".to_owned()];
    let answer = introspection.plugins(scoped(PluginsRequest { filters }));
    let found = client.call("ask for snapshotters", QUICK, answer).await?.plugins;
    let named = found.into_iter().filter_map(|plugin| Some((plugin.id, plugin.exports.get("root")?.into())));
    Ok(named.collect())
}

/// The one of `all` whose directory is `root`, else the one that containerd uses when nothing is said.
fn snapshotter_of<'a>(root: Option<&Path>, all: &'a [(String, PathBuf)]) -> &'a str {
    let found = all.iter().find(|(_, directory)| Some(directory.as_path()) == root);
    found.map_or("overlayfs", |(name, _)| name)
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
pub(crate) fn other_network(dir: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let network = |path: &PathBuf| {
        let kind = path.extension().and_then(|kind| kind.to_str());
        matches!(kind, Some("conf" | "conflist" | "json"))
            && path.file_name().is_none_or(|name| name != cni::CONFIGURATION)
    };
    entries.filter(network).min()
}

/// The image that containerd lacks for the program of every pod, out of the error of a pod that was not made. From
/// 2.0 on this is where it tells the name.
pub(crate) fn lacking_sandbox_image(error: &str) -> Option<&str> {
    let (_, rest) = error.split_once("failed to get sandbox image \"")?;
    rest.split_once('"').map(|(name, _)| name).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_old_and_new_versions_are_read() {
        let old = r#"{"containerd":{"snapshotter":"native","defaultRuntimeName":"runc",
            "runtimes":{"runc":{"options":{"SystemdCgroup":true}}}},
            "cni":{"binDir":"/opt/cni/bin","confDir":"/etc/cni/net.d"},"sandboxImage":"pause:3.6"}"#;
        let settings: Settings = serde_json::from_str(old).unwrap();
        assert!(settings.systemd_cgroup());
        assert_eq!(settings.plugins(), Path::new("/opt/cni/bin"));
        assert_eq!(settings.snapshotter(), Some("native"));
        // Of 2.1.9, without what is of no interest.
        let new = r#"{"containerd":{"defaultRuntimeName":"runc","runtimes":{"runc":{
            "runtimeType":"io.containerd.runc.v2","options":{"BinaryName":"","SystemdCgroup":false},
            "snapshotter":"","sandboxer":"podsandbox"}}},
            "cni":{"binDir":"","binDirs":["/a"],"confDir":"/etc/cni/net.d"}}"#;
        let settings: Settings = serde_json::from_str(new).unwrap();
        assert!(!settings.systemd_cgroup());
        assert_eq!(settings.plugins(), Path::new("/a"));
        assert_eq!((settings.snapshotter(), settings.sandbox_image.as_str()), (None, ""));
        let own = r#"{"containerd":{"snapshotter":"overlayfs","runtimes":{"runc":{"snapshotter":"zfs"}}}}"#;
        assert_eq!(serde_json::from_str::<Settings>(own).unwrap().snapshotter(), Some("zfs"));
    }

    #[test]
    fn a_snapshotter_is_known_by_its_directory() {
        let all = [("native".to_owned(), "/a".into()), ("overlayfs".to_owned(), "/b".into())];
        assert_eq!(snapshotter_of(Some(Path::new("/a")), &all), "native");
        for root in [Some(Path::new("/c")), None] {
            assert_eq!(snapshotter_of(root, &all), "overlayfs");
        }
    }

    #[test]
    fn an_error_names_the_image_that_pods_lack() {
        let error = "make the pod's sandbox: failed to start sandbox \"0a\": failed to get sandbox image \
                     \"registry.k8s.io/pause:3.10\": failed to pull image \"registry.k8s.io/pause:3.10\": no such host";
        assert_eq!(lacking_sandbox_image(error), Some("registry.k8s.io/pause:3.10"));
        for other in ["failed to get sandbox image \"", "failed to get sandbox image \"\"", "no space left"] {
            assert_eq!(lacking_sandbox_image(other), None);
        }
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
}
