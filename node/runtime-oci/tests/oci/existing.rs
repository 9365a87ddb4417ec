//! A containerd that is not ours.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use ketch_runtime::{ContainerId, ContainerSpec, ContainerState, PodId, PodSandbox, Runtime};
use ketch_runtime_oci::{Choice, Options, connect};

use crate::rig::{BUSYBOX, PATIENCE, Rig, images, nothing_left};

/// Ends with the test, however that ends.
struct Existing(Child);

impl Existing {
    fn start(dir: &Path) -> Option<Self> {
        let shown = dir.display();
        let config = format!(
            r#"version = 2
root = "{shown}/root"
state = "{shown}/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{shown}/containerd.sock"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "127.0.0.1:1/nowhere/pause:1"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{shown}/bin"
    conf_dir = "{shown}/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    # Without a runtime containerd 2 forgets the line above when it reads version 2.
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"#
        );
        let path = dir.join("containerd.toml");
        std::fs::write(&path, config).unwrap();
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let mut command = Command::new("containerd");
        command.arg("--config").arg(path).stdout(Stdio::null()).stderr(log);
        command.spawn().ok().map(Self)
    }
}

impl Drop for Existing {
    fn drop(&mut self) {
        let id = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        _ = nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM);
        _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_containerd_of_the_host_is_joined_unless_it_has_a_network() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: containers need root");
        return;
    }
    let dir = tempfile::Builder::new().prefix("ketch-oci-").tempdir().unwrap();
    let Some(existing) = Existing::start(dir.path()) else {
        eprintln!("skipped: containerd is not installed");
        return;
    };
    let socket = dir.path().join("containerd.sock");
    let there = async {
        while !socket.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, there).await.expect("containerd starts");
    let options =
        Options { data_dir: dir.path().join("data"), plugin: env!("CARGO_BIN_EXE_ketch-cni").into() };
    let choice = Choice::Socket(socket);
    let other = dir.path().join("net.d/05-other.conflist");
    std::fs::create_dir_all(dir.path().join("net.d")).unwrap();
    std::fs::write(&other, "{}").unwrap();
    let why = connect(&choice, &options).await.unwrap_err();
    assert!(why.cause.contains("05-other") && why.fix.contains("managed"), "{why}");
    std::fs::remove_file(&other).unwrap();
    let runtime = connect(&choice, &options).await.expect("it is joined");
    assert!(dir.path().join("net.d/10-ketch.conflist").exists());
    let address = [198, 19, 255, 77];
    let pod = PodSandbox::new(PodId("uid-existing".into()), "default", "existing", address.into());
    runtime.create_pod(pod.clone()).await.expect("the pod is made");
    let image = runtime.pull(BUSYBOX, Arc::new(images())).await.unwrap();
    let log = dir.path().join("logs/0.log");
    let spec = ContainerSpec {
        command: vec!["sh".into(), "-c".into(), "ip addr show eth0".into()],
        ..ContainerSpec::new(ContainerId("existing-0".into()), "main", image, log.clone())
    };
    let mut changes = runtime.changes();
    runtime.start(&pod.id, spec).await.expect("it starts");
    let over = async {
        loop {
            changes.borrow_and_update();
            let all = runtime.list().await.unwrap();
            if all.iter().any(|one| matches!(one.state, ContainerState::Exited { code: 0, .. })) {
                return;
            }
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, over).await.expect("it ends");
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("198.19.255.77/32"), "{text}");
    let unpacked = |snapshotter: &str| {
        let path = format!("root/io.containerd.snapshotter.v1.{snapshotter}/snapshots");
        std::fs::read_dir(dir.path().join(path)).map_or(0, |entries| entries.flatten().count())
    };
    assert_eq!((unpacked("native") > 1, unpacked("overlayfs")), (true, 0), "its own snapshotter is used");
    runtime.remove_pod(&pod.id).await.unwrap();
    runtime.shutdown().await;
    drop(existing);
    nothing_left(dir.path()).await;
}

/// What containerd makes outside its own directories, unless it is told otherwise.
fn outside() -> Vec<Option<(u64, std::time::SystemTime)>> {
    use std::os::unix::fs::MetadataExt;
    let look = |path: &str| {
        let data = std::fs::symlink_metadata(path).ok()?;
        Some((data.ino(), data.modified().unwrap()))
    };
    ["/run/nri/nri.sock", "/opt/containerd", "/opt/nri"].into_iter().map(look).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_our_own_takes_nothing_from_the_hosts() {
    let before = outside();
    let Some(rig) = Rig::new().await else { return };
    assert_eq!(outside(), before);
    rig.done().await;
}
