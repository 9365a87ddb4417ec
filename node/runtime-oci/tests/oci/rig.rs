//! A runtime in a directory of its own, with an image made of Debian's static busybox.

use std::{
    collections::HashMap,
    io::Write,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use ketch_runtime::{
    ContainerId, ContainerSpec, ContainerState, Error, ImageSource, Manifest, PodId, PodSandbox, Runtime,
};
use ketch_runtime_oci::{Choice, OciRuntime, Options, connect};
use serde_json::json;
use sha2::{Digest, Sha256};

pub const PATIENCE: Duration = Duration::from_secs(60);
pub const BUSYBOX: &str = "registry.test/busybox:1";

/// Images in memory.
#[derive(Default)]
pub struct Images {
    pub manifests: HashMap<String, Bytes>,
    pub blobs: HashMap<String, Bytes>,
    pub always: bool,
}

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

/// A file of a layer: path, contents (or link target), mode; mode 0 is a symbolic link.
pub type Entry<'a> = (&'a str, &'a [u8], u32);

pub fn layer(entries: &[Entry<'_>]) -> (Vec<u8>, String) {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, bytes, mode) in entries {
        let mut header = tar::Header::new_gnu();
        if *mode == 0 {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            archive.append_link(&mut header, path, std::str::from_utf8(bytes).unwrap()).unwrap();
            continue;
        }
        if path.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
        }
        header.set_mode(*mode);
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, path, *bytes).unwrap();
    }
    let plain = archive.into_inner().unwrap();
    let id = digest(&plain);
    let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zip.write_all(&plain).unwrap();
    (zip.finish().unwrap(), id)
}

pub fn host() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

impl Images {
    pub fn add(&mut self, bytes: Vec<u8>) -> serde_json::Value {
        let name = digest(&bytes);
        let size = bytes.len();
        self.blobs.insert(name.clone(), bytes.into());
        json!({"digest": name, "size": size})
    }

    /// Adds an image; returns its manifest's descriptor.
    pub fn image(
        &mut self,
        reference: &str,
        architecture: &str,
        layers: Vec<(Vec<u8>, String)>,
        config: serde_json::Value,
    ) -> serde_json::Value {
        let ids: Vec<_> = layers.iter().map(|(_, id)| id.clone()).collect();
        let config = json!({"os": "linux", "architecture": architecture, "config": config,
            "rootfs": {"type": "layers", "diff_ids": ids}});
        let mut config = self.add(config.to_string().into_bytes());
        config["mediaType"] = json!("application/vnd.oci.image.config.v1+json");
        let layers: Vec<_> = layers
            .into_iter()
            .map(|(bytes, _)| {
                let mut layer = self.add(bytes);
                layer["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip");
                layer
            })
            .collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": layers});
        self.document(reference, &manifest)
    }

    pub fn document(&mut self, reference: &str, manifest: &serde_json::Value) -> serde_json::Value {
        let bytes = Bytes::from(manifest.to_string());
        let name = digest(&bytes);
        let repository = reference.rsplit_once(':').unwrap().0;
        self.manifests.insert(format!("{repository}@{name}"), bytes.clone());
        self.manifests.insert(reference.to_owned(), bytes.clone());
        json!({"digest": name, "size": bytes.len(), "mediaType": manifest["mediaType"]})
    }

    /// Replaces the bytes of a blob, as a disk or a proxy might.
    pub fn corrupt(&mut self, digest: &str, bytes: &[u8]) {
        self.blobs.insert(digest.to_owned(), Bytes::copy_from_slice(bytes));
    }
}

#[async_trait]
impl ImageSource for Images {
    async fn manifest(&self, reference: &str) -> Result<Manifest, Error> {
        let bytes = self.manifests.get(reference);
        let bytes = bytes.ok_or_else(|| Error::Pull(format!("{reference}: not found")))?.clone();
        Ok(Manifest { digest: digest(&bytes), bytes })
    }

    async fn blob(&self, reference: &str, name: &str, _size: u64, path: &Path) -> Result<(), Error> {
        let bytes =
            self.blobs.get(name).ok_or_else(|| Error::Pull(format!("{reference}: no blob {name}")))?;
        std::fs::write(path, bytes).map_err(|error| Error::Internal(error.to_string()))
    }

    fn prefers_present(&self) -> bool {
        !self.always
    }
}

/// Busybox with the links that the tests use.
pub fn busybox_layer() -> (Vec<u8>, String) {
    let program = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut entries: Vec<Entry<'_>> = vec![
        ("bin/busybox", &program, 0o755),
        ("etc/passwd", b"root:x:0:0::/root:/bin/sh\nwww:x:33:33::/:/bin/sh\n", 0o644),
        ("etc/group", b"root:x:0:\nwww:x:33:\n", 0o644),
        ("tmp/", b"", 0o1777),
    ];
    let links = [
        "sh", "cat", "echo", "sleep", "id", "httpd", "wget", "ip", "stty", "ping", "touch", "nc", "ls",
        "tail", "head",
    ];
    let paths: Vec<String> = links.iter().map(|name| format!("bin/{name}")).collect();
    entries.extend(paths.iter().map(|path| (path.as_str(), &b"/bin/busybox"[..], 0)));
    layer(&entries)
}

pub fn images() -> Images {
    let mut images = Images::default();
    let config = json!({"Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["sh"], "WorkingDir": "/tmp"});
    images.image(BUSYBOX, host(), vec![busybox_layer()], config);
    images
}

/// Which hosts the addresses of a rig are on: tests run beside each other in one process at most.
static NEXT: AtomicU8 = AtomicU8::new(1);

pub struct Rig {
    pub runtime: Arc<OciRuntime>,
    pub options: Options,
    pub images: Arc<Images>,
    pub dir: tempfile::TempDir,
    net: (u8, u8),
}

impl Rig {
    /// `None`, with the reason printed, where containers cannot run at all.
    pub async fn new() -> Option<Self> {
        _ = tracing_subscriber::fmt().with_test_writer().with_env_filter("ketch=debug").try_init();
        let dir = tempfile::Builder::new().prefix("ketch-oci-").tempdir().unwrap();
        let plugin = PathBuf::from(env!("CARGO_BIN_EXE_ketch-cni"));
        let options = Options { data_dir: dir.path().to_path_buf(), plugin };
        match connect(&Choice::Managed, &options).await {
            Ok(runtime) => Some(Self {
                runtime: Arc::new(runtime),
                options,
                images: Arc::new(images()),
                dir,
                net: (u8::try_from(std::process::id() % 250).unwrap(), NEXT.fetch_add(1, Ordering::Relaxed)),
            }),
            Err(why) if why.cause.contains("root") || why.cause.contains("not installed") => {
                eprintln!("skipped: {why}");
                None
            }
            Err(why) => panic!("{why}; {}", log(dir.path())),
        }
    }

    /// An address in a range that nothing else uses (RFC 2544).
    pub fn ip(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18 + (self.net.0 & 1), (self.net.0 >> 1) ^ self.net.1, host)
    }

    pub fn pod(&self, name: &str, host: u8) -> PodSandbox {
        let mut pod = PodSandbox::new(PodId(format!("uid-{name}")), "default", name, self.ip(host).into());
        pod.logs = self.dir.path().join("logs").join(name);
        pod
    }

    /// A pod that exists.
    pub async fn made(&self, name: &str, host: u8) -> PodSandbox {
        let pod = self.pod(name, host);
        self.runtime.create_pod(pod.clone()).await.expect("the pod is made");
        pod
    }

    /// A shell script in a pod.
    pub async fn script(&self, pod: &PodSandbox, name: &str, script: &str) -> ContainerSpec {
        let image = self.runtime.pull(BUSYBOX, self.images.clone()).await.expect("the image is there");
        let id = ContainerId(format!("{}-{name}-0", pod.id.0));
        let log = pod.logs.join(name).join("0.log");
        ContainerSpec {
            command: vec!["sh".into(), "-c".into(), script.into()],
            ..ContainerSpec::new(id, name, image, log)
        }
    }

    pub async fn state(&self, id: &ContainerId) -> Option<ContainerState> {
        let all = self.runtime.list().await.ok()?;
        all.into_iter().find(|one| one.id == *id).map(|one| one.state)
    }

    pub async fn until(&self, id: &ContainerId, wanted: impl Fn(&ContainerState) -> bool) -> ContainerState {
        let mut changes = self.runtime.changes();
        let wait = async {
            loop {
                changes.borrow_and_update();
                if let Some(state) = self.state(id).await
                    && wanted(&state)
                {
                    return state;
                }
                changes.changed().await.expect("the runtime lives");
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(state) => state,
            Err(_) => panic!("{id:?} is {:?}; {}", self.state(id).await, log(self.dir.path())),
        }
    }

    /// Runs a script to its end: exit code, reason, and what it wrote.
    pub async fn run(&self, pod: &PodSandbox, name: &str, script: &str) -> (i32, String, String) {
        let spec = self.script(pod, name, script).await;
        self.run_spec(pod, spec).await
    }

    pub async fn run_spec(&self, pod: &PodSandbox, spec: ContainerSpec) -> (i32, String, String) {
        self.runtime.start(&pod.id, spec.clone()).await.expect("it starts");
        let state = self.until(&spec.id, |state| matches!(state, ContainerState::Exited { .. })).await;
        let ContainerState::Exited { code, reason, .. } = state else { unreachable!() };
        let text = std::fs::read_to_string(&spec.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
        (code, reason, lines.join("\n"))
    }

    /// Ends everything and checks that nothing is left of it.
    pub async fn done(self) {
        for one in self.runtime.list().await.expect("list works") {
            self.runtime.remove_pod(&one.pod).await.expect("remove_pod works");
        }
        self.runtime.shutdown().await;
        nothing_left(self.dir.path()).await;
    }
}

/// Mounts, processes and interfaces' routes that belong to a directory's containerd.
pub fn leftovers(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut left: Vec<String> =
        mounts.lines().filter(|line| line.contains(dir)).map(|line| format!("mount {line}")).collect();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let path = entry.path().join("cmdline");
        let line = std::fs::read(&path).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(dir) && line.contains("containerd") {
            left.push(format!("process {line}"));
        }
    }
    left
}

/// Waits until there are no [`leftovers`]: processes end some time after they were told to.
pub async fn nothing_left(dir: &Path) {
    let gone = async {
        while !leftovers(dir).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let late = tokio::time::timeout(PATIENCE, gone).await.is_err();
    assert!(!late, "left behind: {:#?}", leftovers(dir));
}

pub fn log(dir: &Path) -> String {
    let text = std::fs::read_to_string(dir.join("node/containerd/containerd.log")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().filter(|line| !line.contains("level=info")).take(15).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

impl Drop for Rig {
    fn drop(&mut self) {
        // A test that failed half-way: what it started is ended by its own means, found by its directory.
        let socket = self.dir.path().join("node/containerd/containerd.sock");
        if !std::thread::panicking() || !socket.exists() {
            return;
        }
        let ctr = |arguments: &[&str]| {
            let mut command = std::process::Command::new("ctr");
            let output = command.arg("-a").arg(&socket).args(["-n", "k8s.io"]).args(arguments).output();
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
        };
        for id in ctr(&["task", "ls", "-q"]).lines() {
            ctr(&["task", "rm", "-f", id]);
        }
        let file = self.dir.path().join("node/containerd/containerd.pid");
        if let Ok(id) = std::fs::read_to_string(file).unwrap_or_default().trim().parse::<i32>() {
            _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGKILL);
        }
    }
}
