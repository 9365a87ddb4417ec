//! Three nodes and a server without one, as `examples/three-nodes` sets them up: one node open, one behind a
//! firewall, one behind address translation, on cables of 1,280 bytes.

mod policies;

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use ketch_tests::{binary, guest, is_root, root, succeeded, until};
use nix::sched::{CloneFlags, setns};

const NODES: [&str; 3] = ["one", "two", "three"];

/// In every answer of a pod: what may be on no cable.
const SECRET: &str = "what-nobody-may-read";

/// Names of Services begin with it: a container has its own name in its `/etc/hosts`.
const SERVICE: &str = "at-";

/// How soon pods reach each other after a cable is whole again.
const HEALED: Duration = Duration::from_secs(3);

/// How long a cable is out: longer than an overlay connection waits for its peer, shorter than what makes the
/// cluster give up a node.
const CUT: Duration = Duration::from_secs(5);

/// A running `examples/three-nodes`.
struct Fleet {
    name: String,
    dir: tempfile::TempDir,
}

impl Fleet {
    const NET: &str = "198.18.29";

    fn up() -> Option<Self> {
        if !is_root() {
            return None;
        }
        let fleet = Self { name: format!("kf{}", std::process::id()), dir: tempfile::tempdir().unwrap() };
        let start = Instant::now();
        succeeded("three-nodes up", fleet.script(&["up"]));
        eprintln!("three nodes are ready after {:.1} s", start.elapsed().as_secs_f32());
        Some(fleet)
    }

    fn script(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(root().join("examples/three-nodes"));
        command.args(arguments).env("KETCH", binary()).env("FLEET", &self.name);
        command.env("FLEET_DIR", self.dir.path().join("fleet")).env("FLEET_NET", Self::NET);
        command.env("FLEET_MTU", "1280").env("KETCH_UI_ADDR", "127.0.0.1:0");
        // A minute: certificates are renewed while the test runs.
        command.env("KETCH_NODE_CERT_DAYS", "0.0007");
        command.env("KETCH_POD_CIDR", "10.166.0.0/16").env("KETCH_SERVICE_CIDR", "10.167.0.0/16");
        command.output().unwrap()
    }

    fn client(&self, program: &str, arguments: &[&str]) -> Output {
        let kubeconfig = self.dir.path().join("fleet/server/admin.kubeconfig");
        Command::new(program).args(arguments).env("KUBECONFIG", kubeconfig).output().unwrap()
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        succeeded(&format!("kubectl {}", arguments.join(" ")), self.client("kubectl", arguments))
    }

    /// Runs a command in the network of a machine.
    fn on(&self, machine: &str, command: &[&str]) -> Output {
        let namespace = format!("--net={}", self.namespace(machine));
        self.client("nsenter", &[&[namespace.as_str()], command].concat())
    }

    fn namespace(&self, machine: &str) -> String {
        format!("/run/netns/{}-{machine}", self.name)
    }

    /// Answers to requests made on a machine, one line each; what cannot be reached has an empty one.
    fn curl(&self, machine: &str, urls: &[String]) -> Vec<String> {
        let options = ["curl", "-s", "--max-time", "5", "-w", "\\n"];
        let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
        let output = self.on(machine, &[&options[..], &urls].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split("\n\n").map(|answer| answer.trim().to_owned()).filter(|a| !a.is_empty()).collect()
    }

    /// Images, a pod of each kind on each node, and a Service for each.
    fn deploy(&self) {
        let api = format!("{}.1:6443", Self::NET);
        succeeded("push-images", self.client(root().join("examples/push-images").to_str().unwrap(), &[&api]));
        // Where there is a gateway: the server has none.
        let (ketch, hello) = (binary(), guest("hello"));
        let deploy = [ketch.to_str().unwrap(), "deploy", hello.to_str().unwrap(), "--timeout", "60"];
        succeeded("ketch deploy", self.on("one", &deploy));
        let file = self.dir.path().join("pods.yaml");
        let objects: String =
            NODES.iter().flat_map(|node| [wasm(node), container(node)]).chain(services()).collect();
        std::fs::write(&file, objects).unwrap();
        self.kubectl(&["apply", "-f", file.to_str().unwrap()]);
        self.kubectl(&["wait", "--for=condition=Ready", "pods", "-l", "part=fleet", "--timeout=60s"]);
    }

    fn field(&self, kind: &str, path: &str) -> BTreeMap<String, String> {
        let path = format!("jsonpath={{range .items[*]}}{{.metadata.name}} {{{path}}};{{end}}");
        let text = self.kubectl(&["get", kind, "-l", "part=fleet", "-o", &path]);
        let lines = text.split_terminator(';').filter_map(|line| line.split_once(' '));
        lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["server", "one", "two", "three"] {
                let log = self.dir.path().join(format!("fleet/{name}.log"));
                let text = std::fs::read_to_string(log).unwrap_or_default();
                let from = text.len().saturating_sub(3000);
                eprintln!("--- {name} ---\n{}", text.get(from..).unwrap_or_default());
            }
        }
        self.script(&["down"]);
    }
}

/// A pod that stays while its node is out of reach: on a busy machine a cut is long enough to be noticed.
fn pod(name: &str, node: &str, rest: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{part: fleet, app: {name}}}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  tolerations: [{{operator: Exists, effect: NoExecute}}]
  {rest}
"
    )
}

fn wasm(node: &str) -> String {
    let name = format!("wasm-{node}");
    let rest = format!(
        "runtimeClassName: ketch-wasm
  containers:
  - name: main
    image: ketch.local/default/hello:latest
    ports: [{{containerPort: 8080}}]
    env: [{{name: GREETING, value: {SECRET} {name}}}]"
    );
    pod(&name, node, &rest)
}

fn container(node: &str) -> String {
    let name = format!("box-{node}");
    let rest = format!(
        "terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: ketch.local/default/busybox:latest
    command: [sh, -c, 'mkdir /www; echo {SECRET} {name} >/www/index.html; exec httpd -f -p 8080 -h /www']
    ports: [{{containerPort: 8080}}]
    readinessProbe: {{httpGet: {{port: 8080}}, periodSeconds: 1}}"
    );
    pod(&name, node, &rest)
}

fn names() -> impl Iterator<Item = String> {
    NODES.iter().flat_map(|node| [format!("box-{node}"), format!("wasm-{node}")])
}

fn services() -> impl Iterator<Item = String> {
    names().map(|name| {
        format!(
            "---
apiVersion: v1
kind: Service
metadata: {{name: {SERVICE}{name}, labels: {{part: fleet}}}}
spec: {{type: NodePort, selector: {{app: {name}}}, ports: [{{port: 80, targetPort: 8080}}]}}
"
        )
    })
}

/// Ways to every pod, with what it answers: its address, its Service's address, its Service's names.
fn ways(fleet: &Fleet) -> Vec<(String, String)> {
    let (pods, clusters) = (fleet.field("pods", ".status.podIP"), fleet.field("services", ".spec.clusterIP"));
    let of = |name: String| {
        let service = format!("{SERVICE}{name}");
        let full = format!("{service}.default.svc.cluster.local");
        let urls = [format!("{}:8080", pods[&name]), clusters[&service].clone(), service, full];
        urls.map(|authority| (format!("http://{authority}/"), format!("{SECRET} {name}")))
    };
    names().flat_map(of).collect()
}

fn compare(ways: &[(String, String)], answers: &[String]) -> Result<(), String> {
    let wrong = |((_, wanted), answer): &(&(String, String), &String)| wanted != *answer;
    let wrong: Vec<_> = ways.iter().zip(answers).filter(wrong).collect();
    let all = ways.len() == answers.len();
    if all && wrong.is_empty() { Ok(()) } else { Err(format!("{} answers; {wrong:#?}", answers.len())) }
}

/// From every pod to every pod, in every way.
fn everyone_reaches_everyone(fleet: &Fleet) {
    let (ways, pods) = (ways(fleet), fleet.field("pods", ".status.podIP"));
    for node in NODES {
        let from = &pods[&format!("wasm-{node}")];
        let urls: Vec<String> =
            ways.iter().map(|(url, _)| format!("http://{from}:8080/fetch?url={url}")).collect();
        until(&format!("wasm-{node} to reach everyone"), || compare(&ways, &fleet.curl(node, &urls)));
        let urls: Vec<&str> = ways.iter().map(|(url, _)| url.as_str()).collect();
        let ask =
            format!("for url in {}; do timeout 5 wget -q -O - $url || echo no $url; done", urls.join(" "));
        let name = format!("box-{node}");
        until(&format!("{name} to reach everyone"), || {
            let answers = fleet.kubectl(&["exec", &name, "--", "sh", "-c", &ask]);
            compare(&ways, &answers.lines().map(str::to_owned).collect::<Vec<_>>())
        });
    }
}

/// Each Service by its port on each node, from another machine; on the one that nobody reaches, from itself.
fn any_node_port_leads_everywhere(fleet: &Fleet) {
    let ports = fleet.field("services", ".spec.ports[0].nodePort");
    for (from, address) in [("nat", "198.18.29.11"), ("nat", "198.18.29.12"), ("nat", "192.168.77.2")] {
        let urls: Vec<(String, String)> = ports
            .iter()
            .map(|(service, port)| {
                let name = service.strip_prefix(SERVICE).unwrap();
                (format!("http://{address}:{port}/"), format!("{SECRET} {name}"))
            })
            .collect();
        let all: Vec<String> = urls.iter().map(|(url, _)| url.clone()).collect();
        until(&format!("node ports of {address}"), || compare(&urls, &fleet.curl(from, &all)));
    }
}

/// More than fits one packet, from the far end of every path.
fn large_answers_arrive(fleet: &Fleet) {
    for node in NODES {
        let other = if node == "three" { "two" } else { "three" };
        let ask = format!("timeout 20 wget -q -O - http://{SERVICE}wasm-{other}/big?n=2000000 | wc -c");
        let got = fleet.kubectl(&["exec", &format!("box-{node}"), "--", "sh", "-c", &ask]);
        assert_eq!(got.trim(), "2000000", "{node} from {other}");
    }
}

/// Everything on the cables between the machines.
struct Tap {
    stop: Arc<AtomicBool>,
    /// Frames, and whether one of them could be read.
    thread: JoinHandle<(usize, bool)>,
}

impl Tap {
    fn open(fleet: &Fleet) -> Self {
        let (stop, namespace) = (Arc::new(AtomicBool::new(false)), fleet.namespace("switch"));
        let ended = Arc::clone(&stop);
        let (opened, ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            setns(File::open(namespace).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            // ETH_P_ALL
            let all = Some(socket2::Protocol::from(i32::from(0x0003_u16.to_be())));
            let mut tap = socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::RAW, all).unwrap();
            tap.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            tap.set_recv_buffer_size(64 << 20).unwrap();
            opened.send(()).unwrap();
            let (mut frame, mut seen) = (vec![0; 65_536], (0, false));
            loop {
                match tap.read(&mut frame) {
                    Ok(length) => {
                        seen.0 += 1;
                        seen.1 |= String::from_utf8_lossy(&frame[..length]).contains(SECRET);
                    }
                    Err(_) if ended.load(Ordering::Relaxed) => return seen,
                    Err(_) => {}
                }
            }
        });
        ready.recv().unwrap();
        Self { stop, thread }
    }

    fn close(self) -> (usize, bool) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Pulls a cable, puts it back, and measures until the pods of the nodes reach each other.
fn heals(fleet: &Fleet, cable: &str, pairs: &[(&str, &str)]) {
    let pods = fleet.field("pods", ".status.podIP");
    succeeded("cut", fleet.script(&["cut", cable]));
    let cut = Instant::now();
    until("the cut to last", || (cut.elapsed() > CUT).then_some(()).ok_or_else(String::new));
    succeeded("mend", fleet.script(&["mend", cable]));
    let mended = Instant::now();
    std::thread::scope(|scope| {
        for (from, to) in pairs {
            let url = format!("http://{}:8080/", pods[&format!("box-{to}")]);
            scope.spawn(move || {
                let took = until(&format!("{from} to reach {to}"), || {
                    let curl = ["curl", "-s", "--max-time", "0.3", &url];
                    let reached = fleet.on(from, &curl).status.success();
                    reached.then(|| mended.elapsed()).ok_or_else(|| "nothing".to_owned())
                });
                eprintln!("cable of {cable} mended: {from} reaches {to} after {took:.1?}");
                assert!(took <= HEALED, "{from} to {to} took {took:?}, at most {HEALED:?} are allowed");
            });
        }
    });
}

/// Kills a machine's Ketch, starts it again at once, and waits until pods reach each other.
fn comes_back(fleet: &Fleet, machine: &str, pairs: &[(&str, &str)]) {
    let pods = fleet.field("pods", ".status.podIP");
    succeeded("restart", fleet.script(&["restart", machine]));
    for (from, to) in pairs {
        let url = format!("http://{}:8080/", pods[&format!("box-{to}")]);
        until(&format!("{from} to reach {to} after the restart of {machine}"), || {
            let reached = fleet.on(from, &["curl", "-s", "--max-time", "0.3", &url]).status.success();
            if reached { Ok(()) } else { Err("nothing".to_owned()) }
        });
    }
    for node in NODES {
        let exec = ["exec", &format!("box-{node}"), "--", "true"];
        until(&format!("the server to reach {node}"), || match fleet.client("kubectl", &exec) {
            output if output.status.success() => Ok(()),
            output => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        });
    }
}

#[test]
fn three_nodes_are_one_network() {
    let Some(fleet) = Fleet::up() else { return };
    let start = Instant::now();
    fleet.deploy();
    let tap = Tap::open(&fleet);
    everyone_reaches_everyone(&fleet);
    let (frames, readable) = tap.close();
    assert!(frames > 500 && !readable, "{frames} frames on the cables, readable: {readable}");
    let tap = Tap::open(&fleet);
    any_node_port_leads_everywhere(&fleet);
    assert!(tap.close().1, "clients outside do not encrypt, and the tap reads them");
    large_answers_arrive(&fleet);
    policies::hold_between_nodes(&fleet);
    let both = [("one", "three"), ("three", "one"), ("two", "three"), ("three", "two")];
    heals(&fleet, "three", &both);
    heals(&fleet, "two", &[("one", "two"), ("two", "one"), ("two", "three"), ("three", "two")]);
    // Nodes that see each other need no server; the others meet again when it is back.
    heals(&fleet, "server", &both);
    comes_back(&fleet, "server", &both);
    everyone_reaches_everyone(&fleet);
    eprintln!("the whole test took {:.1} s", start.elapsed().as_secs_f32());
}
