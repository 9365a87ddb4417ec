//! Two nodes of one cluster in two network namespaces, with pods of both kinds.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path as File,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    cluster::{Process, binary, ctr, end_containers, guest, until},
    overlay::{
        namespace::{Namespace, Place},
        tunnels::{Path, Setup, cable},
    },
};

/// Where the first machine is, and the API on it.
const SERVER: &str = "192.0.2.1";

/// The nodes `near` and `far`, and paths between their pods.
pub(super) struct Machines {
    /// Between two containers on `near`.
    pub(super) near: Path,
    /// Between a container on `near` and one on `far`.
    pub(super) far: Path,
    /// Components that echo, on `near` and on `far`.
    pub(super) components: [SocketAddr; 2],
    _nodes: Nodes,
}

/// The processes. Dropped in this order: they end before their machines go.
struct Nodes {
    processes: Vec<Process>,
    directory: tempfile::TempDir,
    cable: Setup,
}

impl Machines {
    /// Starts both nodes and waits until all pods are ready.
    pub(super) fn start() -> Result<Self> {
        let mut nodes = Nodes { processes: Vec::new(), directory: tempfile::tempdir()?, cable: cable()? };
        nodes.start_server()?;
        nodes.join()?;
        nodes.push_images()?;
        for (name, node) in [("first", "near"), ("second", "near"), ("third", "far")] {
            nodes.run(
                name,
                node,
                json!({"image": "ketch.local/default/busybox:latest", "command": ["sleep", "36000"]}),
            )?;
        }
        let echo =
            json!({"image": "ketch.local/default/tcp-echo:latest", "ports": [{"containerPort": 7000}]});
        for (name, node) in [("echo-near", "near"), ("echo-far", "far")] {
            nodes.run(name, node, echo.clone())?;
        }
        let [first, second, third] = [("first", "near"), ("second", "near"), ("third", "far")]
            .map(|(pod, node)| anyhow::Ok((nodes.place(pod, node)?, nodes.address(pod)?)));
        let (first, second, third) = (first?, second?, third?);
        let path =
            |to: (Place, IpAddr)| Path { a: first.0.clone(), b: to.0, a_address: first.1, b_address: to.1 };
        let components =
            ["echo-near", "echo-far"].map(|pod| anyhow::Ok(SocketAddr::new(nodes.address(pod)?, 7000)));
        let [one, other] = components;
        Ok(Self { near: path(second), far: path(third), components: [one?, other?], _nodes: nodes })
    }
}

impl Nodes {
    fn data(&self, node: &str) -> std::path::PathBuf {
        self.directory.path().join(node)
    }

    fn kubeconfig(&self) -> std::path::PathBuf {
        self.data("near").join("admin.kubeconfig")
    }

    /// A program on one of the machines.
    fn command(&self, machine: &Namespace, program: impl AsRef<std::ffi::OsStr>) -> Command {
        // `ip netns exec` would hide the cgroups from it.
        let mut command = Command::new("nsenter");
        let network = format!("--net=/run/netns/{}", machine.name);
        command.arg(network).arg(program).env("KUBECONFIG", self.kubeconfig());
        command
    }

    fn start_server(&mut self) -> Result<()> {
        let mut up = self.command(&self.cable.a, fs::canonicalize(binary())?);
        up.args(["up", "--node-name", "near", "--api-addr", "0.0.0.0:6443", "--quic-addr", "0.0.0.0:6444"]);
        up.args(["--containerd", "managed", "--data-dir"]).arg(self.data("near"));
        self.processes.push(Process::start(&mut up)?);
        let run = self.data("near").join("run.json");
        until("the server", || fs::metadata(&run).ok())?;
        Ok(())
    }

    fn join(&mut self) -> Result<()> {
        let address = format!("https://{SERVER}:6443");
        let token = self.client(binary(), &["token", "create", "--server", &address])?;
        let mut node = self.command(&self.cable.b, fs::canonicalize(binary())?);
        node.args(["node", "--node-name", "far", "--server", &address, "--token", token.trim()]);
        node.args(["--containerd", "managed", "--data-dir"]).arg(self.data("far"));
        self.processes.push(Process::start(&mut node)?);
        until("node far", || {
            self.kubectl(&["wait", "--for=condition=Ready", "node/far", "--timeout=60s"]).ok()
        })?;
        Ok(())
    }

    fn push_images(&self) -> Result<()> {
        self.client("examples/push-images", &[&format!("{SERVER}:6443")])?;
        let echo = guest("tcp-echo");
        self.client(binary(), &["deploy", echo.to_str().context("a path")?, "--port", "7000"])?;
        Ok(())
    }

    /// A client's output, as the administrator on the first machine.
    fn client(&self, program: impl AsRef<File>, args: &[&str]) -> Result<String> {
        let output = self.command(&self.cable.a, program.as_ref()).args(args).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} {args:?}: {said}", program.as_ref().display());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.client("kubectl", args)
    }

    /// Makes a pod of one container and waits until it is ready.
    fn run(&self, name: &str, node: &str, mut container: Value) -> Result<()> {
        container["name"] = "c".into();
        let file = self.directory.path().join(format!("{name}.json"));
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"nodeSelector": {"kubernetes.io/hostname": node}, "containers": [container]}});
        fs::write(&file, serde_json::to_vec(&pod)?)?;
        self.kubectl(&["apply", "-f", file.to_str().context("a path")?])?;
        let ready = self.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
        ready.with_context(|| self.kubectl(&["describe", "pod", name]).unwrap_or_default())?;
        Ok(())
    }

    fn status(&self, pod: &str, field: &str) -> Result<String> {
        self.kubectl(&["get", "pod", pod, "-o", &format!("jsonpath={{.status.{field}}}")])
    }

    fn address(&self, pod: &str) -> Result<IpAddr> {
        Ok(self.status(pod, "podIP")?.parse()?)
    }

    /// The network of a pod's container.
    fn place(&self, pod: &str, node: &str) -> Result<Place> {
        let of_pod =
            format!("labels.\"io.kubernetes.pod.name\"=={pod},labels.\"io.cri-containerd.kind\"==container");
        let id = ctr(&self.data(node), &["--namespace", "k8s.io", "containers", "list", "--quiet", &of_pod])?;
        let tasks = ctr(&self.data(node), &["--namespace", "k8s.io", "tasks", "list"])?;
        let pid = tasks.lines().find_map(|line| line.strip_prefix(id.trim())?.split_whitespace().next());
        let pid = pid.with_context(|| format!("containerd has no task of {pod}: {tasks}"))?;
        Ok(Place::of_process(pid.parse()?))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for node in ["near", "far"] {
            let mut kubectl = self.command(&self.cable.a, "kubectl");
            end_containers(&self.data(node), &self.kubeconfig(), &mut kubectl);
        }
    }
}
