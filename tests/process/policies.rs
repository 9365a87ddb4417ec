//! NetworkPolicies and ports of the node, for containers and components alike.

use std::process::Command;

use ketch_tests::{Containers, Ketch, get, succeeded, until};

/// A client and a server of each kind: `box` and `web` are containers, `guest` and `hello` components.
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: box, labels: {role: client, app: box}}
spec: {containers: [{name: c, image: "ketch.local/default/busybox:latest", command: [sleep, "3600"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {role: server, app: web}}
spec:
  containers:
  - name: c
    image: ketch.local/default/busybox:latest
    command: [sh, -c, "mkdir -p /www && echo web > /www/index.html && (httpd -p 9090 -h /www; exec httpd -f -p 8080 -h /www)"]
    ports: [{name: http, containerPort: 8080, hostPort: 18162}]
---
apiVersion: v1
kind: Pod
metadata: {name: guest, labels: {role: client, app: guest}}
spec: {containers: [{name: c, image: "ketch.local/default/hello:latest", ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: hello, labels: {role: server, app: hello}}
spec: {containers: [{name: c, image: "ketch.local/default/hello:latest", ports: [{name: http, containerPort: 8080, hostPort: 18163}]}]}
"#;

struct Pods {
    containers: Containers,
    web: String,
    hello: String,
    guest: String,
}

impl Pods {
    fn start() -> Option<Self> {
        let containers = Containers::start(162, 163)?;
        containers.push(&["busybox"]);
        let ketch = containers.ketch();
        ketch.deploy("hello", &[]);
        ketch.apply(PODS);
        ketch.kubectl_ok(&[
            "wait",
            "--for=condition=Ready",
            "pod/box",
            "pod/web",
            "pod/guest",
            "pod/hello",
            "--timeout=90s",
        ]);
        let ip = |pod: &str| ketch.kubectl_ok(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"]);
        let (web, hello, guest) = (ip("web"), ip("hello"), ip("guest"));
        Some(Self { web, hello, guest, containers })
    }

    fn ketch(&self) -> &Ketch {
        self.containers.ketch()
    }

    fn box_reaches(&self, target: &str) -> bool {
        let (ip, port) = target.split_once(':').unwrap();
        // Not wget: Debian's static one crashes when it looks up a name.
        let dial = format!("nc -w 3 {ip} {port} < /dev/null");
        self.ketch().kubectl(&["exec", "box", "--", "sh", "-c", &dial]).status.success()
    }

    fn guest_reaches(&self, target: &str) -> bool {
        let path = format!("/fetch?url=http://{target}/");
        get(&format!("{}:8080", self.guest), "guest", &path).is_ok_and(|(status, _)| status == 200)
    }

    /// Who is reached on 8080: the container and the component, by the container and by the component.
    fn reach(&self) -> [bool; 4] {
        let (web, hello) = (format!("{}:8080", self.web), format!("{}:8080", self.hello));
        [
            self.box_reaches(&web),
            self.box_reaches(&hello),
            self.guest_reaches(&web),
            self.guest_reaches(&hello),
        ]
    }

    fn reached(&self, what: &str, expected: [bool; 4]) {
        until(what, || match self.reach() {
            found if found == expected => Ok(()),
            found => Err(format!("{found:?} instead of {expected:?}")),
        });
    }

    fn policy(&self, name: &str, spec: &str) {
        self.ketch().apply(&format!(
            "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}}}, spec: {spec}}}"
        ));
    }
}

const ALL: [bool; 4] = [true; 4];
const NONE: [bool; 4] = [false; 4];

#[test]
fn policies_hold_for_containers_and_components() {
    let Some(mut pods) = Pods::start() else { return };
    pods.reached("everything without policies", ALL);
    host_ports(&pods);
    pods.policy("deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}");
    pods.reached("nothing by default", NONE);
    for ip in [&pods.web, &pods.hello] {
        assert_eq!(
            get(&format!("{ip}:8080"), "node", "/").map(|(status, _)| status),
            Ok(200),
            "the node reaches its pods"
        );
    }
    // Names, as everybody allows them; and with them alone nobody is reached.
    let name = |found: bool| {
        let asked = ["exec", "box", "--", "timeout", "3", "nslookup", "kubernetes.default.svc.cluster.local"];
        until("names", || match pods.ketch().kubectl(&asked).status.success() {
            answered if answered == found => Ok(()),
            answered => Err(format!("answered: {answered}")),
        });
    };
    name(false);
    pods.policy(
        "names",
        "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}], to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]}]}",
    );
    name(true);
    assert_eq!(pods.reach(), NONE);
    // Out by label, in by label and port.
    pods.policy(
        "out",
        "{podSelector: {matchLabels: {role: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {role: server}}}]}]}",
    );
    assert_eq!(pods.reach(), NONE, "both ends have a say");
    pods.policy(
        "in",
        "{podSelector: {matchLabels: {role: server}}, ingress: [{from: [{podSelector: {matchLabels: {role: client}}}], ports: [{port: http}]}]}",
    );
    pods.reached("clients to servers", ALL);
    assert!(
        !pods.box_reaches(&format!("{}:9090", pods.web))
            && !pods.guest_reaches(&format!("{}:9090", pods.web))
    );
    // A label that is not there any more.
    pods.ketch().kubectl_ok(&["label", "pod", "box", "role-"]);
    pods.reached("the container that is no client", [false, false, true, true]);
    pods.ketch().kubectl_ok(&["label", "pod", "box", "role=client"]);
    pods.reached("it is one again", ALL);
    // By address.
    pods.policy(
        "in",
        &format!(
            "{{podSelector: {{matchLabels: {{role: server}}}}, ingress: [{{from: [{{ipBlock: {{cidr: 10.162.0.0/16, except: [{}/32]}}}}]}}]}}",
            pods.guest
        ),
    );
    pods.reached("a range with a hole", [true, true, false, false]);

    // While nobody is there the rules hold, and after it they do from the first moment.
    let web = format!("{}:8080", pods.web);
    pods.policy("in", "{podSelector: {matchLabels: {role: server}}, ingress: []}");
    pods.reached("nobody", NONE);
    pods.containers.crash();
    for port in [18162, 18163] {
        refuses(&format!("127.0.0.1:{port}"));
    }
    let tables = Command::new("nft").args(["list", "tables", "ip"]).output().unwrap();
    assert!(String::from_utf8_lossy(&tables.stdout).contains("ketch-pods-10.162."), "{tables:?}");
    pods.containers.restart();
    until("programs in containers to be run", || {
        match pods.ketch().kubectl(&["exec", "box", "--", "true"]).status.success() {
            true => Ok(()),
            false => Err("no".to_owned()),
        }
    });
    assert!(!pods.box_reaches(&web));
    pods.ketch().kubectl_ok(&["delete", "networkpolicy", "--all"]);
    pods.reached("everything again", ALL);
    answers("127.0.0.1:18162", "web\n");
    answers("127.0.0.1:18163", HELLO);
    pods.ketch().kubectl_ok(&["delete", "pod", "web", "hello", "--grace-period=1"]);
    for port in [18162, 18163] {
        refuses(&format!("127.0.0.1:{port}"));
    }
}

const HELLO: &str = "Hello from WebAssembly!\n";

fn answers(address: &str, expected: &str) {
    until("the port of the node", || match get(address, "node", "/") {
        Ok((200, found)) if found == expected => Ok(()),
        other => Err(format!("{address}: {other:?}")),
    });
}

fn refuses(address: &str) {
    until("the port to be closed", || match std::net::TcpStream::connect(address) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
        other => Err(format!("{address}: {other:?}")),
    });
}

/// Ports at one address of the node, and one that a program has.
fn one_address(ketch: &Ketch, node: &str) {
    let program = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = program.local_addr().unwrap().port();
    let port = |host: &str, port: u16| {
        format!("ports: [{{containerPort: 8080, hostPort: {port}, hostIP: '{host}'}}]")
    };
    let component =
        |ports: String| format!("{{name: c, image: 'ketch.local/default/hello:latest', {ports}}}");
    let container = format!(
        "{{name: c, image: 'ketch.local/default/busybox:latest', command: [nc, -ll, -p, '8080', -e, cat], {}}}",
        port("127.0.0.1", 19164)
    );
    let pods = [
        ("local", component(port("127.0.0.1", 19163))),
        ("local-box", container),
        ("other", component(port(node, 19165))),
        ("late", component(port("", taken))),
    ];
    for (name, container) in &pods {
        ketch.apply(&format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{containers: [{container}]}}}}"
        ));
    }
    let mut wait = vec!["wait", "--for=condition=Ready", "--timeout=90s"];
    let names: Vec<String> = pods.iter().map(|(name, _)| format!("pod/{name}")).collect();
    wait.extend(names.iter().map(String::as_str));
    ketch.kubectl_ok(&wait);
    answers("127.0.0.1:19163", HELLO);
    until("the container at loopback", || match echoed("127.0.0.1:19164") {
        Ok(text) if text == "hello\n" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    answers(&format!("{node}:19165"), HELLO);
    refuses("127.0.0.1:19165");
    for local in [19163, 19164] {
        refuses(&format!("{node}:{local}"));
    }
    answers(&format!("{node}:{taken}"), HELLO);
    let client = std::net::TcpStream::connect(("127.0.0.1", taken)).unwrap();
    assert_eq!(program.accept().unwrap().1, client.local_addr().unwrap(), "the program keeps its port");
    until("the event about it", || {
        match ketch.kubectl_ok(&["get", "events", "-o", "jsonpath={.items[*].message}"]) {
            text if text.contains(&format!("127.0.0.1:{taken}: a program of the node has the port")) => {
                Ok(())
            }
            text => Err(text),
        }
    });
    ketch.kubectl_ok(&["delete", "pod", "local", "local-box", "other", "late", "--grace-period=1"]);
    for port in [19163, 19164] {
        refuses(&format!("127.0.0.1:{port}"));
    }
}

/// What comes back for a line.
fn echoed(address: &str) -> std::io::Result<String> {
    use std::io::{BufRead, BufReader, Write};
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
    stream.write_all(b"hello\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}

/// `hostPort`, and two pods that want the same one.
fn host_ports(pods: &Pods) {
    let ketch = pods.ketch();
    let node =
        ketch.kubectl_ok(&["get", "node", "test-node", "-o", "jsonpath={.status.addresses[0].address}"]);
    for host in [node.as_str(), "127.0.0.1"] {
        answers(&format!("{host}:18162"), "web\n");
        answers(&format!("{host}:18163"), HELLO);
    }
    one_address(ketch, &node);
    let twin = |name: &str, more: &str| {
        let port = "ports: [{containerPort: 8080, hostPort: 18163}]";
        let spec = format!(
            "{{{more} containers: [{{name: c, image: 'ketch.local/default/hello:latest', {port}}}]}}"
        );
        ketch.apply(&format!("---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {spec}}}"));
    };
    twin("waits", "");
    until("the scheduler's refusal", || {
        match ketch.kubectl_ok(&["get", "events", "-o", "jsonpath={.items[*].message}"]) {
            text if text.contains("didn't have free ports for the requested pod ports") => Ok(()),
            text => Err(text),
        }
    });
    twin("forced", "nodeName: test-node,");
    let status =
        ["get", "pod", "forced", "-o", "jsonpath={.status.phase} {.status.reason} {.status.message}"];
    until("the node's refusal", || match ketch.kubectl_ok(&status) {
        text if text.starts_with("Failed NodePorts Pod was rejected:")
            && text.contains("pod default/hello") =>
        {
            Ok(())
        }
        text => Err(text),
    });
    ketch.kubectl_ok(&["delete", "pod", "waits", "forced", "--grace-period=1"]);
    succeeded("hello is still there", ketch.kubectl(&["get", "pod", "hello"]));
}
