//! A Ketch that runs containers, and the end of everything it started, whatever became of the test.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use crate::{Ketch, binary, is_root, root, succeeded, until};

/// A Ketch with a containerd of its own and sample images in its registry. Nothing of it is left when this is
/// dropped: containers and containerd would outlive a Ketch that is killed.
pub struct Containers {
    ketch: Option<Ketch>,
    /// Data directory.
    pub dir: PathBuf,
    _temporary: Option<tempfile::TempDir>,
    launch: Launch,
    flags: Vec<String>,
    socket: PathBuf,
    /// A containerd that is not Ketch's.
    host: Option<Child>,
}

/// Makes the command of a Ketch.
type Launch = Box<dyn Fn() -> Command>;

impl Containers {
    /// With ranges of its own, because one Ketch of a machine has a Service range: `pods` and `services` are
    /// the second bytes of `10.x.0.0/16`. `None`: there can be none here.
    pub fn start(pods: u8, services: u8) -> Option<Self> {
        let temporary = tempfile::tempdir().unwrap();
        Self::start_with(temporary.path().to_path_buf(), Some(temporary), Box::new(launch), pods, services)
    }

    /// [`Containers::start`] where there is no runc but crun, and no cgroup v2 beside v1, which crun refuses.
    pub fn start_with_crun(pods: u8, services: u8) -> Option<Self> {
        let temporary = tempfile::tempdir().unwrap();
        Self::start_with(
            temporary.path().to_path_buf(),
            Some(temporary),
            Box::new(launch_with_crun),
            pods,
            services,
        )
    }

    /// [`Containers::start`] with the containerd in a directory of programs.
    pub fn start_with_containerd(programs: &Path, pods: u8, services: u8) -> Option<Self> {
        let temporary = tempfile::tempdir().unwrap();
        let launch = launch_with_containerd(programs);
        Self::start_with(temporary.path().to_path_buf(), Some(temporary), launch, pods, services)
    }

    /// [`Containers::start`] in `dir`, which must outlive it.
    pub fn start_in(dir: &Path, pods: u8, services: u8) -> Option<Self> {
        Self::start_with(dir.to_path_buf(), None, Box::new(launch), pods, services)
    }

    /// [`Containers::start`] with a containerd of the host that keeps its images under `images`.
    pub fn start_on_host(images: &Path, pods: u8, services: u8) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().to_path_buf();
        let (host, socket) = host(&dir.join("host"), images);
        let mut containers = Self {
            ketch: None,
            _temporary: Some(temporary),
            launch: Box::new(launch),
            flags: flags(socket.to_str().unwrap(), pods, services),
            dir,
            socket,
            host: Some(host),
        };
        containers.restart();
        Some(containers)
    }

    fn start_with(
        dir: PathBuf,
        temporary: Option<tempfile::TempDir>,
        launch: Launch,
        pods: u8,
        services: u8,
    ) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let mut containers = Self {
            ketch: None,
            socket: dir.join("node/containerd/containerd.sock"),
            dir,
            _temporary: temporary,
            launch,
            flags: flags("managed", pods, services),
            host: None,
        };
        containers.restart();
        Some(containers)
    }

    /// Brings sample images into the registry, as `ketch.local/default/NAME:latest`; all of them without names.
    pub fn push(&self, images: &[&str]) {
        let push = Command::new(root().join("examples/push-images"))
            .arg(self.ketch().address("api-addr"))
            .args(images)
            .env("KUBECONFIG", self.ketch().kubeconfig())
            .output();
        succeeded("push-images", push.unwrap());
    }

    /// The Ketch.
    pub fn ketch(&self) -> &Ketch {
        self.ketch.as_ref().unwrap()
    }

    /// Kills Ketch as a power cut would, not its containers.
    pub fn crash(&mut self) {
        drop(self.ketch.take());
    }

    /// Starts it in the same directory.
    pub fn restart(&mut self) {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        self.ketch = Some(Ketch::start_as((self.launch)(), "up", &self.dir, &flags));
    }

    /// [`Containers::crash`], then [`Containers::restart`].
    pub fn crash_and_restart(&mut self) {
        self.crash();
        self.restart();
    }

    /// Starts it again with the containerd in a directory of programs, as when the host's packages are newer.
    pub fn renew_containerd(&mut self, programs: &Path) {
        self.crash();
        let old = self.containerd().unwrap();
        let process = PathBuf::from(format!("/proc/{old}"));
        succeeded("kill", Command::new("kill").arg(old.to_string()).output().unwrap());
        until("the old containerd to end", || match process.exists() {
            false => Ok(()),
            true => Err(fs::read_to_string(process.join("stat")).unwrap_or_default()),
        });
        self.launch = launch_with_containerd(programs);
        self.restart();
    }

    /// The process id of its containerd.
    pub fn containerd(&self) -> Option<u32> {
        let file = self.dir.join("node/containerd/containerd.pid");
        fs::read_to_string(file).ok()?.trim().parse().ok()
    }

    /// Names of the containers that the kernel runs for this Ketch.
    pub fn processes(&self) -> Vec<String> {
        self.list("tasks")
    }

    /// Names of the images that its containerd has.
    pub fn images(&self) -> Vec<String> {
        self.list("images")
    }

    /// What containerd knows of a container, by its own id.
    ///
    /// # Panics
    /// When there is none.
    pub fn described(&self, id: &str) -> serde_json::Value {
        let described = succeeded("ctr containers info", self.ctr(&["containers", "info", id]));
        serde_json::from_str(&described).unwrap()
    }

    /// Kills a container behind the back of its Ketch, by containerd's id.
    ///
    /// # Panics
    /// When there is no such container.
    pub fn kill(&self, id: &str) {
        succeeded("ctr tasks kill", self.ctr(&["tasks", "kill", "-s", "SIGKILL", id]));
    }

    fn list(&self, what: &str) -> Vec<String> {
        let list = self.ctr(&[what, "list", "-q"]);
        let mut names: Vec<String> =
            String::from_utf8_lossy(&list.stdout).lines().map(str::to_owned).collect();
        names.sort();
        names
    }

    fn ctr(&self, arguments: &[&str]) -> Output {
        Command::new("ctr")
            .arg("-a")
            .arg(&self.socket)
            .args(["-n", "k8s.io"])
            .args(arguments)
            .output()
            .unwrap()
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        if let Some(ketch) = self.ketch.take() {
            // Gracefully: what it set up on the machine goes with it.
            ketch.end();
        }
        end_containers(&self.dir);
        if let Some(mut host) = self.host.take() {
            let _ = host.wait();
        }
    }
}

fn flags(containerd: &str, pods: u8, services: u8) -> Vec<String> {
    let (pods, dns) = (format!("10.{pods}.0.0/16"), format!("10.{services}.0.10:53"));
    let services = format!("10.{services}.0.0/16");
    let pairs = [
        ("--containerd", containerd),
        ("--pod-cidr", &pods),
        ("--service-cidr", &services),
        ("--dns-addr", &dns),
    ];
    pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value.to_owned()]).collect()
}

/// A containerd with everything but its images under `dir`, and its socket.
fn host(dir: &Path, images: &Path) -> (Child, PathBuf) {
    fs::create_dir_all(dir).unwrap();
    let (shown, root, socket) = (dir.display(), images.display(), dir.join("containerd.sock"));
    let config = format!(
        r#"version = 2
root = "{root}"
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
"#
    );
    let path = dir.join("config.toml");
    fs::write(&path, config).unwrap();
    let log = fs::File::create(dir.join("log")).unwrap();
    let mut command = Command::new("containerd");
    let child = command.arg("--config").arg(path).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    until("the host's containerd", || match socket.exists() {
        true => Ok(()),
        false => Err(fs::read_to_string(dir.join("log")).unwrap_or_default()),
    });
    (child, socket)
}

fn launch() -> Command {
    Command::new(binary())
}

fn launch_with_containerd(programs: &Path) -> Launch {
    let rest = std::env::var_os("PATH").unwrap_or_default();
    let path = std::iter::once(programs.to_path_buf()).chain(std::env::split_paths(&rest));
    let path = std::env::join_paths(path).unwrap();
    Box::new(move || {
        let mut command = launch();
        command.env("PATH", &path);
        command
    })
}

/// In a mount namespace of its own.
fn launch_with_crun() -> Command {
    let script = "mount --make-rprivate /
        umount -l /sys/fs/cgroup/unified 2>/dev/null
        for runc in $(which -a runc); do mount --bind /dev/null $runc; done
        exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(binary());
    command
}

/// Ends the containerd of a directory, its shims and their containers, and takes away what they mounted.
///
/// # Panics
/// When they do not end.
pub fn end_containers(dir: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let (mut shims, mut groups) = (BTreeSet::new(), BTreeSet::new());
    // Again, because a container may be on its way while containerd ends.
    loop {
        let (own, others): (Vec<_>, Vec<_>) = processes().into_iter().partition(|one| one.names(dir));
        shims.extend(own.iter().map(|one| one.id));
        let contained: Vec<_> = others.iter().filter(|one| shims.contains(&one.parent)).collect();
        if own.is_empty() && contained.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "containers of {} do not end", dir.display());
        for process in &contained {
            groups.extend(process.group());
        }
        for process in own.iter().chain(contained) {
            let _ = Command::new("kill").args(["-9", &process.id.to_string()]).output();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    unmount(dir);
    for group in groups {
        remove_group(&group);
    }
}

struct Process {
    id: u32,
    parent: u32,
    line: Vec<u8>,
}

/// Everything that runs, the dead that wait for their parent left out.
fn processes() -> Vec<Process> {
    let ids = fs::read_dir("/proc").unwrap().flatten();
    let read = |id: u32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let is_dead = fields.next()? == "Z";
        let parent = fields.next()?.parse().ok()?;
        (!is_dead).then(|| Process {
            id,
            parent,
            line: fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default(),
        })
    };
    ids.filter_map(|entry| read(entry.file_name().to_str()?.parse().ok()?)).collect()
}

impl Process {
    /// Whether it is containerd or a shim of the directory `dir`.
    fn names(&self, dir: &Path) -> bool {
        let line = String::from_utf8_lossy(&self.line);
        let is_containerd = line.split('\0').next().is_some_and(|program| program.contains("containerd"));
        is_containerd && line.contains(&format!("{}/", dir.display()))
    }

    /// The control group of everything that its Ketch runs: `/ketch/OWNER`.
    fn group(&self) -> Option<String> {
        let text = fs::read_to_string(format!("/proc/{}/cgroup", self.id)).ok()?;
        let path =
            text.lines().find_map(|line| line.split(':').nth(2).filter(|path| path.starts_with("/ketch/")));
        Some(path?.split('/').take(3).collect::<Vec<_>>().join("/"))
    }
}

/// Unmounts what is mounted under `dir`, the innermost first.
fn unmount(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points =
        mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|p| Path::new(p).starts_with(dir));
    for point in points.collect::<Vec<_>>().into_iter().rev() {
        let _ = Command::new("umount").args(["-l", point]).output();
    }
}

/// Removes a control group and those in it from every hierarchy.
fn remove_group(group: &str) {
    let remove = |root: &Path| {
        let mut left = vec![root.join(group.trim_start_matches('/'))];
        let mut found: Vec<PathBuf> = Vec::new();
        while let Some(directory) = left.pop() {
            let inside = fs::read_dir(&directory).into_iter().flatten().flatten().map(|entry| entry.path());
            left.extend(inside.filter(|path| path.is_dir()));
            found.push(directory);
        }
        for directory in found.into_iter().rev() {
            let _ = fs::remove_dir(directory);
        }
    };
    remove(Path::new("/sys/fs/cgroup"));
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        remove(&hierarchy.path());
    }
}
