//! Two machines made of network namespaces: the node's lets nothing in that it did not ask for, as behind NAT.

use std::{
    path::Path,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use ketch_tests::{binary, guest, succeeded, until};

/// Two namespaces and the cable between them; gone when dropped.
struct Machines {
    server: String,
    node: String,
}

fn ip(arguments: &str) -> Output {
    Command::new("ip").args(arguments.split(' ')).output().unwrap()
}

impl Machines {
    const SERVER: &str = "192.168.217.1";

    /// `None`: this user may not make namespaces.
    fn new(wall: bool) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let (server, node) = (format!("kj-s{id}"), format!("kj-n{id}"));
        if !ip(&format!("netns add {server}")).status.success() {
            eprintln!("skipped: network namespaces need root");
            return None;
        }
        let machines = Self { server, node };
        let Self { server, node } = &machines;
        for step in [
            format!("netns add {node}"),
            format!("-n {server} link add wire type veth peer name wire netns {node}"),
            format!("-n {server} address add {}/24 dev wire", Self::SERVER),
            format!("-n {node} address add 192.168.217.2/24 dev wire"),
            format!("-n {server} link set lo up"),
            format!("-n {node} link set lo up"),
            format!("-n {server} link set wire up"),
            format!("-n {node} link set wire up"),
        ] {
            succeeded(&step, ip(&step));
        }
        if !wall {
            return Some(machines);
        }
        let rules = "table inet wall { chain input { type filter hook input priority 0; policy drop; \
                     ct state established,related accept; iifname \"lo\" accept; \
                     iifname \"ketch-*\" accept; }; }";
        let mut nft = machines.run(node, "nft");
        succeeded("nft", nft.arg(rules).output().unwrap());
        Some(machines)
    }

    /// A command in a namespace.
    fn run(&self, namespace: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", namespace, program])
            .env_remove("KUBECONFIG")
            .env("KETCH_CONTAINERD", "off");
        command
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for namespace in [&self.server, &self.node] {
            let _ = ip(&format!("netns delete {namespace}"));
        }
    }
}

/// A process that is killed when the test is over.
struct Daemon(std::process::Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server on one machine and node `far` on the other.
struct Joined {
    // Dropped in this order: processes end before their machines go.
    daemons: Vec<Daemon>,
    machines: Machines,
    dir: tempfile::TempDir,
}

impl Joined {
    /// `server`: how the first one is started, but for its data directory.
    fn start(machines: Machines, server: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut joined = Self { daemons: Vec::new(), machines, dir };
        let data = joined.dir.path().join("server");
        joined.spawn(
            &joined.machines.server.clone(),
            "server.log",
            &[server, &["--data-dir", text(&data)]].concat(),
        );
        until("the server", || std::fs::metadata(data.join("run.json")).map(drop).map_err(|e| e.to_string()));
        let address = format!("https://{}:6443", Machines::SERVER);
        let made = joined.client(text(&binary()), &["token", "create", "--server", &address]);
        let token = succeeded("ketch token create", made).trim().to_owned();
        let data = joined.dir.path().join("node");
        let node = [
            "node",
            "--node-name",
            "far",
            "--server",
            &address,
            "--token",
            &token,
            "--data-dir",
            text(&data),
        ];
        joined.spawn(&joined.machines.node.clone(), "node.log", &node);
        until("node far", || {
            is_ready(&joined.kubectl(&["get", "node", "far", "--ignore-not-found", "-o", READY]), "True")
        });
        joined
    }

    fn spawn(&mut self, namespace: &str, log: &str, arguments: &[&str]) {
        let mut command = self.machines.run(namespace, text(&binary()));
        command.args(arguments);
        self.daemons.push(Daemon(quiet(&mut command, self.dir.path(), log).spawn().unwrap()));
    }

    /// A client program at the server, as its administrator.
    fn client(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = self.machines.run(&self.machines.server, program);
        command.args(arguments).env("KUBECONFIG", self.dir.path().join("server/admin.kubeconfig"));
        command.output().unwrap()
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        succeeded("kubectl", self.client("kubectl", arguments))
    }

    /// A pod on each of the nodes; their addresses.
    fn run_hello(&self, nodes: &[&str]) -> Vec<String> {
        let image = guest("hello");
        let deploy = ["deploy", image.to_str().unwrap(), "--timeout", "120"];
        succeeded("deploy", self.client(binary().to_str().unwrap(), &deploy));
        let run = |name: &&str| {
            let spec = format!(
                r#"{{"spec": {{"nodeSelector": {{"kubernetes.io/hostname": "{name}"}}, "runtimeClassName": "ketch-wasm"}}}}"#
            );
            let image = "--image=ketch.local/default/hello:latest";
            self.kubectl(&["run", name, image, "--port=8080", "--overrides", &spec]);
            self.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
            self.kubectl(&["get", "pod", name, "-o", "jsonpath={.status.podIP}"])
        };
        nodes.iter().map(run).collect()
    }

    /// A machine reaches a pod.
    fn reaches(&self, namespace: &str, pod: &str) {
        let url = format!("http://{pod}:8080/");
        until(&format!("{pod} from {namespace}"), || {
            let mut curl = self.machines.run(namespace, "curl");
            let output = curl.args(["-s", "--max-time", "2", &url]).output().unwrap();
            if output.status.success() { Ok(()) } else { Err(output.status.to_string()) }
        });
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_node_behind_a_wall_is_reached_through_what_it_opened() {
    let Some(machines) = Machines::new(true) else { return };
    // The defaults: every address, 6443 and 6444.
    let joined = Joined::start(machines, &["server"]);
    let client = |program: &str, arguments: &[&str]| joined.client(program, arguments);
    let (kubectl, machines) = (|arguments: &[&str]| joined.kubectl(arguments), &joined.machines);

    // A job that writes something and waits: its log is at the node.
    let image = guest("job");
    let deploy = ["deploy", image.to_str().unwrap(), "--name", "job", "--timeout", "120"];
    let deployed = client(binary().to_str().unwrap(), &deploy);
    eprintln!("{}", String::from_utf8_lossy(&deployed.stderr));
    let log = until("a log through the wall", || {
        match client("kubectl", &["logs", "-l", "app.kubernetes.io/name=job"]) {
            output if output.status.success() && !output.stdout.is_empty() => Ok(output.stdout),
            output => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    });
    eprintln!("{}", String::from_utf8_lossy(&log));

    // The cable is pulled and put back.
    let start = Instant::now();
    succeeded("cut", ip(&format!("-n {} link set wire down", machines.server)));
    until("the loss to be noticed", || is_ready(&kubectl(&["get", "node", "far", "-o", READY]), "Unknown"));
    assert!(start.elapsed() <= Duration::from_secs(10), "noticed after {:?}", start.elapsed());
    succeeded("mend", ip(&format!("-n {} link set wire up", machines.server)));
    until("the node to be back", || is_ready(&kubectl(&["get", "node", "far", "-o", READY]), "True"));
    until("its logs to be back", || match client("kubectl", &["logs", "-l", "app.kubernetes.io/name=job"]) {
        output if output.stdout == log => Ok(()),
        output => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    });
}

/// Node `near` in the server's process, which others reach at this address.
fn up(quic: &'static str) -> Vec<&'static str> {
    let up = ["up", "--node-name", "near", "--api-addr", "0.0.0.0:6443", "--quic-addr", quic];
    [&up[..], &["--http-addr", "127.0.0.1:0", "--https-addr", "127.0.0.1:0"]].concat()
}

#[test]
fn a_server_that_moves_to_another_port_is_found_by_nodes_that_run() {
    let Some(machines) = Machines::new(true) else { return };
    let mut joined = Joined::start(machines, &up("0.0.0.0:6444"));
    let near = joined.run_hello(&["near"]).remove(0);
    let node = joined.machines.node.clone();
    joined.reaches(&node, &near);
    joined.daemons.remove(0);
    let (server, data) = (joined.machines.server.clone(), joined.dir.path().join("server"));
    joined.spawn(&server, "again.log", &[&up("0.0.0.0:7444")[..], &["--data-dir", text(&data)]].concat());
    // Only the node can dial: the wall lets nothing in.
    joined.reaches(&node, &near);
}

#[test]
fn pods_of_two_machines_reach_each_other() {
    let Some(machines) = Machines::new(false) else { return };
    let joined = Joined::start(machines, &up("0.0.0.0:6444"));
    let [near, far] = joined.run_hello(&["near", "far"]).try_into().unwrap();
    let machines = &joined.machines;
    // From the machine itself, and from pod to pod, both ways.
    for (namespace, target) in [(&machines.server, &far), (&machines.node, &near)] {
        joined.reaches(namespace, target);
    }
    // The API, by the address that pods are told. Programs of a machine need a route to be asked for its rules.
    let authority = joined.dir.path().join("server/server/pki/ca.crt");
    for namespace in [&machines.server, &machines.node] {
        let route = format!("-n {namespace} route add 10.43.0.0/16 dev wire");
        succeeded(&route, self::ip(&route));
        until(&format!("the API from {namespace}"), || {
            let options =
                ["-s", "--max-time", "2", "--cacert", text(&authority), "https://10.43.0.1/version"];
            let output = machines.run(namespace, "curl").args(options).output().unwrap();
            if output.status.success() { Ok(()) } else { Err(output.status.to_string()) }
        });
    }
    for (namespace, from, to) in [(&machines.server, &near, &far), (&machines.node, &far, &near)] {
        let url = format!("http://{from}:8080/fetch?url=http://{to}:8080/");
        let output = machines.run(namespace, "curl").args(["-s", "--max-time", "10", &url]).output().unwrap();
        assert_eq!(succeeded("fetch", output), "Hello from WebAssembly!\n", "{from} to {to}");
    }
}

const READY: &str = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";

fn is_ready(seen: &str, wanted: &str) -> Result<(), String> {
    if seen == wanted { Ok(()) } else { Err(seen.to_owned()) }
}

fn quiet<'c>(command: &'c mut Command, dir: &Path, log: &str) -> &'c mut Command {
    let log = std::fs::File::create(dir.join(log)).unwrap();
    command.stdin(std::process::Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log)
}
