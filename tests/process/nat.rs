//! A server behind address translation, with forwarded ports, and a node outside: what the node's pods reach of the
//! API, whose Service has an endpoint that nobody outside can dial.

use std::{
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use ketch_tests::{binary, end_containers, guest, is_root, root, succeeded, until};

/// Where the server is, and where the node finds it.
const INSIDE: &str = "192.168.218.1";
const OUTSIDE: &str = "198.18.32.1";
const PORT: &str = "16443";
/// How pods ask for themselves.
const OWN: &str = "https://kubernetes.default.svc/api/v1/namespaces/default/pods/NAME";
const SECRETS: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The server with node `near`, and node `far` on the other side of the translation.
struct Lan {
    name: String,
    daemons: Vec<Child>,
    dir: tempfile::TempDir,
}

impl Lan {
    fn up() -> Option<Self> {
        if !is_root() {
            return None;
        }
        let name = format!("kq{}", std::process::id());
        let mut lan = Self { name, daemons: Vec::new(), dir: tempfile::tempdir().unwrap() };
        lan.wire();
        let up = ["up", "--node-name", "near", "--api-addr", "0.0.0.0:6443", "--quic-addr", "0.0.0.0:6444"];
        let front = ["--http-addr", "127.0.0.1:0", "--https-addr", "127.0.0.1:0", "--tls-san", OUTSIDE];
        let ranges = ["--pod-cidr", "10.198.0.0/16", "--service-cidr", "10.199.0.0/16"];
        lan.start("server", &[&up[..], &front, &ranges, &["--containerd", "off"]].concat());
        let run = lan.data("server").join("run.json");
        until("the server", || std::fs::metadata(&run).map(drop).map_err(|error| error.to_string()));
        let url = format!("https://{OUTSIDE}:{PORT}");
        let made = lan.client(text(&binary()), &["token", "create", "--server", &url]);
        let token = succeeded("ketch token create", made).trim().to_owned();
        let node = ["node", "--node-name", "far", "--server", &url, "--token", &token];
        lan.start("node", &[&node[..], &["--containerd", "managed"]].concat());
        for node in ["near", "far"] {
            until(&format!("node {node}"), || {
                let ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
                match lan.kubectl(&["get", "node", node, "--ignore-not-found", "-o", ready]) {
                    ready if ready == "True" => Ok(()),
                    other => Err(other),
                }
            });
        }
        Some(lan)
    }

    /// Three machines; the one in the middle lets nothing in but what is for the server's forwarded ports.
    fn wire(&self) {
        let machine = |part: &str| format!("{}-{part}", self.name);
        let (server, nat, node) = (machine("server"), machine("nat"), machine("node"));
        for step in [
            format!("netns add {server}"),
            format!("netns add {nat}"),
            format!("netns add {node}"),
            format!("-n {nat} link add inner type veth peer name wire netns {server}"),
            format!("-n {nat} link add outer type veth peer name wire netns {node}"),
            format!("-n {server} address add {INSIDE}/24 dev wire"),
            format!("-n {nat} address add 192.168.218.254/24 dev inner"),
            format!("-n {nat} address add {OUTSIDE}/24 dev outer"),
            format!("-n {node} address add 198.18.32.2/24 dev wire"),
            format!("-n {server} link set lo up"),
            format!("-n {nat} link set lo up"),
            format!("-n {node} link set lo up"),
            format!("-n {server} link set wire up"),
            format!("-n {nat} link set inner up"),
            format!("-n {nat} link set outer up"),
            format!("-n {node} link set wire up"),
            format!("-n {server} route add default via 192.168.218.254"),
            format!("-n {node} route add default via {OUTSIDE}"),
        ] {
            let arguments: Vec<&str> = step.split(' ').collect();
            succeeded(&step, Command::new("ip").args(arguments).output().unwrap());
        }
        let rules = format!(
            "table ip nat {{
                chain pre {{ type nat hook prerouting priority -100;
                    iifname outer tcp dport {PORT} dnat to {INSIDE}:6443
                    iifname outer udp dport {{ 6444, 6445 }} dnat to {INSIDE}; }}
                chain post {{ type nat hook postrouting priority 100; oifname outer masquerade; }}
                chain through {{ type filter hook forward priority 0;
                    ct status dnat accept
                    iifname outer ct state new reject; }}
            }}"
        );
        succeeded("nft", self.on("nat", "nft", &[&rules]));
        let forward = "echo 1 >/proc/sys/net/ipv4/ip_forward";
        succeeded("forwarding", self.on("nat", "sh", &["-c", forward]));
    }

    fn data(&self, machine: &str) -> std::path::PathBuf {
        self.dir.path().join(machine)
    }

    /// A command in the network of a machine. Not `ip netns exec`: that mounts another /sys, without the control
    /// groups that containers need.
    fn command(&self, machine: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}-{machine}", self.name)).arg(program);
        command.env("KUBECONFIG", self.data("server").join("admin.kubeconfig"));
        command
    }

    fn on(&self, machine: &str, program: &str, arguments: &[&str]) -> Output {
        self.command(machine, program).args(arguments).output().unwrap()
    }

    fn start(&mut self, machine: &str, arguments: &[&str]) {
        let log = std::fs::File::create(self.dir.path().join(format!("{machine}.log"))).unwrap();
        let mut command = self.command(machine, text(&binary()));
        command.args(arguments).arg("--data-dir").arg(self.data(machine)).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.daemons.push(command.spawn().unwrap());
    }

    fn client(&self, program: &str, arguments: &[&str]) -> Output {
        self.on("server", program, arguments)
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        succeeded(&format!("kubectl {}", arguments.join(" ")), self.client("kubectl", arguments))
    }

    fn apply(&self, object: &str) {
        let file = self.dir.path().join("object.json");
        std::fs::write(&file, object).unwrap();
        self.kubectl(&["apply", "-f", text(&file)]);
    }

    /// Images, a pod of each kind on the node outside, a component on the other one, and the right to look at pods.
    fn deploy(&self) {
        let pushed = self.client(text(&root().join("examples/push-images")), &["127.0.0.1:6443", "curl"]);
        succeeded("push-images", pushed);
        let hello = guest("hello");
        let deploy = ["deploy", text(&hello), "--timeout", "120"];
        succeeded("ketch deploy", self.client(text(&binary()), &deploy));
        let look = ["--clusterrole=view", "--serviceaccount=default:default"];
        self.kubectl(&[&["create", "rolebinding", "look"][..], &look].concat());
        let pod = |name: &str, node: &str, annotations: &str, spec: &str| {
            self.apply(&format!(
                r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "{name}", "labels": {{"app": "{name}"}},
                    "annotations": {{{annotations}}}}}, "spec": {{{spec},
                    "nodeSelector": {{"kubernetes.io/hostname": "{node}"}}, "terminationGracePeriodSeconds": 0}}}}"#
            ));
        };
        let named = r#""ketch.dev/outbound": "kubernetes.default.svc:443""#;
        let component = r#""runtimeClassName": "ketch-wasm", "containers": [{"name": "main",
            "image": "ketch.local/default/hello:latest", "ports": [{"containerPort": 8080}]}]"#;
        pod("guest", "far", named, component);
        pod("native", "near", named, component);
        pod("unnamed", "far", "", component);
        let container = r#""containers": [{"name": "main", "image": "ketch.local/default/curl:latest",
            "command": ["sleep", "3600"]}]"#;
        pod("box", "far", "", container);
        let all = ["pod/guest", "pod/native", "pod/unnamed", "pod/box"];
        self.kubectl(&[&["wait", "--for=condition=Ready", "--timeout=100s"][..], &all].concat());
    }

    fn field(&self, kind: &str, name: &str, path: &str) -> String {
        self.kubectl(&["get", kind, name, "-o", &format!("jsonpath={{{path}}}")])
    }

    /// What a container says when it asks for `url` with its token and its authority.
    fn container(&self, url: &str) -> String {
        let script = format!(
            "cd {SECRETS}; curl -sS -m 5 --cacert ca.crt -w '\\n%{{http_code}}' \
             -H \"Authorization: Bearer $(cat token)\" {url}"
        );
        both(&self.client("kubectl", &["exec", "box", "--", "sh", "-c", &script]))
    }

    /// What a component says that does the same.
    fn component(&self, machine: &str, pod: &str, url: &str) -> String {
        let ip = self.field("pod", pod, ".status.podIP");
        let url = format!("http://{ip}:8080/api?url={url}");
        both(&self.on(machine, "curl", &["-sS", "-m", "10", "-w", "\\n%{http_code}", &url]))
    }

    /// A policy for what goes out of the pods of the node outside; `None`: none.
    fn policy(&self, egress: Option<&str>) {
        let Some(egress) = egress else {
            self.kubectl(&["delete", "networkpolicy", "out"]);
            return;
        };
        self.apply(&format!(
            r#"{{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {{"name": "out"}},
                "spec": {{"podSelector": {{}}, "policyTypes": ["Egress"], "egress": [{egress}]}}}}"#
        ));
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        end_containers(&self.data("node"));
        if std::thread::panicking() {
            for machine in ["server", "node"] {
                let log = std::fs::read_to_string(self.dir.path().join(format!("{machine}.log")));
                let log = log.unwrap_or_default();
                eprintln!("--- {machine} ---\n{}", log.get(log.len().saturating_sub(3000)..).unwrap_or(&log));
            }
        }
        for machine in ["server", "nat", "node"] {
            let _ =
                Command::new("ip").args(["netns", "delete", &format!("{}-{machine}", self.name)]).output();
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn both(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Waits until the answer is the pod itself.
fn finds_itself(what: &str, name: &str, mut ask: impl FnMut() -> String) {
    until(what, || match ask() {
        said if said.trim().ends_with("200") && said.contains(&format!("\"name\":\"{name}\"")) => Ok(()),
        other => Err(other),
    });
}

#[test]
fn pods_reach_the_api_where_their_node_does() {
    let Some(lan) = Lan::up() else { return };
    lan.deploy();
    // Nobody outside reaches the endpoint as it is.
    assert_eq!(lan.field("endpointslice", "kubernetes", ".endpoints[0].addresses[0]"), INSIDE);
    let straight = format!("https://{INSIDE}:6443/version");
    assert!(!lan.on("node", "curl", &["-sk", "-m", "2", &straight]).status.success());

    let by_address = OWN.replace("kubernetes.default.svc", "10.199.0.1");
    for url in [OWN, &by_address] {
        finds_itself(&format!("a container by {url}"), "box", || lan.container(&url.replace("NAME", "box")));
        for (machine, pod) in [("node", "guest"), ("server", "native")] {
            let ask = || lan.component(machine, pod, &url.replace("NAME", pod));
            finds_itself(&format!("{pod} by {url}"), pod, ask);
        }
    }
    // Names are for who asks for them.
    let unnamed = lan.component("node", "unnamed", OWN);
    assert!(unnamed.contains("HttpRequestDenied"), "{unnamed}");
    nobody_else_uses_the_door(&lan);
    policies_mean_what_they_meant(&lan, &by_address);
}

/// The node's way to the API is for its own pods.
fn nobody_else_uses_the_door(lan: &Lan) {
    let range = lan.field("node", "far", ".spec.podCIDR");
    let door = range.replace(".0/24", ".1");
    let url = format!("https://{door}:{PORT}/version");
    let ask = |machine: &str| lan.on(machine, "curl", &["-sk", "-m", "3", &url]);
    until("the node itself", || match ask("node") {
        output if output.status.success() => Ok(()),
        other => Err(other.status.to_string()),
    });
    let route = format!("-n {}-nat route add {range} via 198.18.32.2", lan.name);
    let arguments: Vec<&str> = route.split(' ').collect();
    succeeded(&route, Command::new("ip").args(arguments).output().unwrap());
    // The connection is reset (7: before curl has seen it stand, 35: in the handshake, 56: later).
    for machine in ["nat", "server"] {
        let code = ask(machine).status.code();
        assert!(matches!(code, Some(7 | 28 | 35 | 56)), "{machine}: {code:?}");
    }
    // A component that may not reach the API does not by this address.
    let unnamed = lan.component("node", "unnamed", &url);
    assert!(unnamed.contains("HttpRequestDenied"), "{unnamed}");
}

/// Policies go by the endpoint, as on every node.
fn policies_mean_what_they_meant(lan: &Lan, url: &str) {
    let block = |range: &str| format!(r#"{{"to": [{{"ipBlock": {{"cidr": "{range}"}}}}]}}"#);
    let endpoint =
        format!(r#"{{"to": [{{"ipBlock": {{"cidr": "{INSIDE}/32"}}}}], "ports": [{{"port": 6443}}]}}"#);
    let other_port = endpoint.replace("6443", PORT);
    for (what, egress, expected) in [
        ("nothing may go out", String::new(), false),
        ("to the endpoint", endpoint, true),
        ("to another port of it", other_port, false),
        ("to everywhere", "{}".to_owned(), true),
        // The door is in this range.
        ("to pods", block("10.198.0.0/16"), false),
    ] {
        lan.policy(Some(&egress));
        until(what, || {
            let found = [
                lan.container(&url.replace("NAME", "box")),
                lan.component("node", "guest", &url.replace("NAME", "guest")),
            ];
            let passed = found.each_ref().map(|said| said.trim().ends_with("200"));
            if passed == [expected; 2] { Ok(()) } else { Err(format!("{found:?}")) }
        });
    }
    lan.policy(None);
}
