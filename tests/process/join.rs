//! A server and nodes as processes of their own: joining, being reached, being lost, coming back.

use std::{
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use ketch_tests::{Ketch, Node, get, succeeded, until};

/// A server without a node, with addresses for pods that no other test has.
fn server(dir: &Path, pods: u8, flags: &[&str]) -> Ketch {
    let (pods, services) = (format!("127.{pods}.0.0/16"), format!("127.{}.0.0/16", pods + 1));
    let own = ["--pod-cidr", &pods, "--service-cidr", &services];
    Ketch::start_role("server", &dir.join("server"), &[&own, flags].concat())
}

fn url(ketch: &Ketch) -> String {
    format!("https://{}", ketch.address("api-addr"))
}

fn token(ketch: &Ketch) -> String {
    let made = ketch.ketch(&["token", "create", "--ttl", "1h"]);
    let hint = String::from_utf8_lossy(&made.stderr).into_owned();
    let token = succeeded("ketch token create", made).trim().to_owned();
    assert!(hint.contains(&format!("ketch node --server {} --token {token}", url(ketch))), "{hint}");
    token
}

fn join(ketch: &Ketch, dir: &Path, name: &str, flags: &[&str]) -> Node {
    let (url, token) = (url(ketch), token(ketch));
    let own = ["--server", &url, "--token", &token];
    Node::start(&dir.join(name), name, &[&own, flags].concat())
}

fn until_ready(ketch: &Ketch, name: &str) {
    until(&format!("node {name}"), || match ready(ketch, name).as_str() {
        "True" => Ok(()),
        other => Err(other.to_owned()),
    });
}

fn ready(ketch: &Ketch, name: &str) -> String {
    let path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
    ketch.kubectl_ok(&["get", "node", name, "-o", path])
}

/// Waits for a condition that must come true within `limit` of `start`; says how long it took.
fn within(what: &str, start: Instant, limit: Duration, condition: impl FnMut() -> Result<(), String>) {
    until(what, condition);
    let took = start.elapsed();
    eprintln!("{what}: {:.1} s", took.as_secs_f32());
    assert!(took <= limit, "{what} took {took:?}, at most {limit:?} are allowed");
}

fn refused(output: Output, code: i32, word: &str) {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(error.contains(word), "{word}: {error}");
    assert_eq!(error.lines().filter(|line| line.starts_with("error:")).count(), 1, "one message: {error}");
}

fn web(name: &str, node: Option<&str>) -> String {
    let selector =
        node.map_or(String::new(), |node| format!("nodeSelector: {{kubernetes.io/hostname: {node}}}"));
    format!(
        r"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      runtimeClassName: ketch-wasm
      {selector}
      containers: [{{name: web, image: 'ketch.local/default/hello:latest'}}]
"
    )
}

/// Node and address of the one ready pod of an app; the error says what there is.
fn pod(ketch: &Ketch, app: &str) -> Result<(String, String), String> {
    let path = "jsonpath={range .items[*]}{.spec.nodeName} {.status.podIP} \
                {.status.conditions[?(@.type=='Ready')].status} {.metadata.deletionTimestamp};{end}";
    let text = ketch.kubectl_ok(&["get", "pods", "-l", &format!("app={app}"), "-o", path]);
    let pods = text.split_terminator(';').map(|pod| pod.split(' ').collect::<Vec<_>>());
    let ready: Vec<_> = pods.filter(|pod| pod.get(2) == Some(&"True") && pod.get(3) == Some(&"")).collect();
    match ready.as_slice() {
        [pod] => Ok((pod[0].to_owned(), pod[1].to_owned())),
        _ => Err(text),
    }
}

/// A free port of this machine.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The server listens where nobody else is told to look: on loopback, as at the near end of a tunnel.
#[test]
fn a_component_uses_the_api_where_its_node_does() {
    let dir = tempfile::tempdir().unwrap();
    let front = format!("127.0.0.1:{}", free_port());
    let ketch = server(dir.path(), 98, &["--http-addr", &front]);
    let _node = join(&ketch, dir.path(), "one", &["--http-addr", &front]);
    until_ready(&ketch, "one");
    ketch.deploy("hello", &[]);
    let account = "--serviceaccount=default:default";
    ketch.kubectl_ok(&["create", "rolebinding", "look", "--clusterrole=view", account]);
    ketch.apply(
        r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "guest",
            "annotations": {"ketch.dev/outbound": "kubernetes.default.svc:443"}}, "spec": {
            "runtimeClassName": "ketch-wasm", "containers": [{"name": "main",
                "image": "ketch.local/default/hello:latest", "ports": [{"containerPort": 8080}]}]}}"#,
    );
    ketch.kubectl_ok(&["wait", "--for=condition=Ready", "pod/guest", "--timeout=60s"]);
    let address = ketch.kubectl_ok(&["get", "pod", "guest", "-o", "jsonpath={.status.podIP}"]);
    for host in ["kubernetes.default.svc", "kubernetes", "127.99.0.1"] {
        let path = format!("/api?url=https://{host}/api/v1/namespaces/default/pods/guest");
        until(host, || match get(&format!("{address}:8080"), "guest", &path) {
            Ok((200, text)) if text.contains("\"name\":\"guest\"") => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
}

#[test]
fn two_machines_join_and_one_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let front = format!("127.0.0.1:{}", free_port());
    let ketch = server(dir.path(), 90, &["--http-addr", &front]);
    let one = join(&ketch, dir.path(), "one", &["--http-addr", &front]);
    let mut two = join(&ketch, dir.path(), "two", &[]);
    until_ready(&ketch, "one");
    until_ready(&ketch, "two");
    assert_ne!(one.run["pod-range"], two.run["pod-range"]);
    assert_eq!(
        ketch.kubectl_ok(&["get", "node", "two", "-o", "jsonpath={.spec.podCIDR}"]),
        two.run["pod-range"].as_str().unwrap()
    );

    // The whole way: push to the server, run on a node, answer through the gateway of a node.
    let port = front.rsplit(':').next().unwrap();
    assert_eq!(ketch.deploy("hello", &[]), format!("http://hello.default.localhost:{port}"));
    assert_eq!(get(&front, &format!("hello.default.localhost:{port}"), "/").unwrap().0, 200);

    // A pod on the other node answers, and its logs come through the tunnel.
    ketch.apply(&web("pinned", Some("two")));
    succeeded("rollout", ketch.kubectl(&["rollout", "status", "deployment/pinned", "--timeout=60s"]));
    let (node, address) = pod(&ketch, "pinned").unwrap();
    assert_eq!(node, "two");
    let range = two.run["pod-range"].as_str().unwrap().trim_end_matches("0/24").to_owned();
    assert!(address.starts_with(&range), "{address} is in {range}");
    assert_eq!(get(&format!("{address}:8080"), "pinned", "/over-there").unwrap().0, 200);
    let logs = ketch.kubectl_ok(&["logs", "deployment/pinned"]);
    assert!(logs.contains("/over-there"), "{logs}");
    logs_are_followed(&ketch, &address);

    // A pod that may run anywhere goes to the other node, which dies.
    ketch.kubectl_ok(&["cordon", "one"]);
    ketch.apply(&web("movable", None));
    succeeded("rollout", ketch.kubectl(&["rollout", "status", "deployment/movable", "--timeout=60s"]));
    ketch.kubectl_ok(&["uncordon", "one"]);
    assert_eq!(pod(&ketch, "movable").unwrap().0, "two");
    let start = Instant::now();
    two.kill();
    moves(&ketch, start);
    let gone = ketch.kubectl(&["logs", "deployment/pinned"]);
    assert!(!gone.status.success(), "nobody answers for a lost node");

    // It comes back without a token, and what was given away stays given away.
    drop(two);
    let two = Node::start(&dir.path().join("two"), "two", &[]);
    until_ready(&ketch, "two");
    until_settled(&ketch);
    assert_eq!(pod(&ketch, "movable").unwrap().0, "one");
    until("logs of the pod that waited", || match ketch.kubectl(&["logs", "deployment/pinned"]) {
        output if output.status.success() => Ok(()),
        output => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    });
    cut_off_and_back(&ketch, &two);
}

/// `kubectl logs -f` shows a line that is written while it runs.
fn logs_are_followed(ketch: &Ketch, address: &str) {
    let mut follow = Command::new("kubectl");
    follow.args(["logs", "-f", "deployment/pinned"]).env("KUBECONFIG", ketch.kubeconfig());
    let mut follow = follow.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(follow.stdout.take().unwrap()));
    get(&format!("{address}:8080"), "pinned", "/needle-in-the-log").unwrap();
    let found = lines.by_ref().map_while(Result::ok).any(|line| line.contains("needle-in-the-log"));
    follow.kill().unwrap();
    follow.wait().unwrap();
    assert!(found, "the request's line is followed");
}

/// The promise: a lost node is noticed within 10 s, and its pods are ready elsewhere within 15 s.
fn moves(ketch: &Ketch, start: Instant) {
    within("node two is not ready", start, Duration::from_secs(10), || match ready(ketch, "two").as_str() {
        "Unknown" => Ok(()),
        other => Err(other.to_owned()),
    });
    within("the pod is ready elsewhere", start, Duration::from_secs(15), || match pod(ketch, "movable")? {
        (node, _) if node == "one" => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// No pod is on its way out.
fn until_settled(ketch: &Ketch) {
    until("pods to be gone", || {
        let path = "jsonpath={.items[?(@.metadata.deletionTimestamp)].metadata.name}";
        match ketch.kubectl_ok(&["get", "pods", "-o", path]) {
            names if names.trim().is_empty() => Ok(()),
            names => Err(names),
        }
    });
}

/// A node that was only silent ends what it lost, when it is heard of again.
fn cut_off_and_back(ketch: &Ketch, two: &Node) {
    ketch.kubectl_ok(&["cordon", "one"]);
    ketch.kubectl_ok(&["delete", "pods", "-l", "app=movable", "--wait=false"]);
    let address = until("the pod on node two", || match pod(ketch, "movable")? {
        (node, address) if node == "two" => Ok(address),
        other => Err(format!("{other:?}")),
    });
    ketch.kubectl_ok(&["uncordon", "one"]);
    let start = Instant::now();
    two.signal("STOP");
    moves(ketch, start);
    two.signal("CONT");
    until_ready(ketch, "two");
    until_settled(ketch);
    until("the old pod to be gone", || match get(&format!("{address}:8080"), "movable", "/") {
        Err(_) => Ok(()),
        Ok(answer) => Err(format!("{answer:?}")),
    });
    assert_eq!(pod(ketch, "movable").unwrap().0, "one");
}

#[test]
fn a_second_machine_joins_ketch_up() {
    let dir = tempfile::tempdir().unwrap();
    let own = ["--pod-cidr", "127.100.0.0/16", "--service-cidr", "127.101.0.0/16"];
    let ketch = Ketch::start_in(&dir.path().join("up"), &own);
    let second = join(&ketch, dir.path(), "second", &[]);
    until_ready(&ketch, "second");
    // The first machine has 127.100.0.0/19.
    assert_eq!(second.run["pod-range"], "127.100.32.0/24");
    ketch.deploy("hello", &[]);
    ketch.apply(&web("pinned", Some("second")));
    succeeded("rollout", ketch.kubectl(&["rollout", "status", "deployment/pinned", "--timeout=60s"]));
    let (_, address) = pod(&ketch, "pinned").unwrap();
    assert_eq!(get(&format!("{address}:8080"), "pinned", "/").unwrap().0, 200);
    assert!(ketch.kubectl_ok(&["logs", "deployment/pinned"]).contains("GET /"));
}

#[test]
fn a_node_that_was_deleted_stays_out() {
    let dir = tempfile::tempdir().unwrap();
    let ketch = server(dir.path(), 102, &[]);
    let one = join(&ketch, dir.path(), "one", &[]);
    until_ready(&ketch, "one");
    ketch.kubectl_ok(&["delete", "node", "one"]);
    let log = dir.path().join("one/test-output.log");
    until("the node to be told", || match std::fs::read_to_string(&log).unwrap() {
        text if text.contains("not part of this cluster any more") => Ok(()),
        text => Err(text),
    });
    assert_eq!(ketch.kubectl_ok(&["get", "nodes", "-o", "name"]), "");
    // With a new token the machine is welcome again.
    drop(one);
    std::fs::remove_file(dir.path().join("one/node/identity")).unwrap();
    let _one = join(&ketch, dir.path(), "one", &[]);
    until_ready(&ketch, "one");
}

#[test]
fn whoever_may_not_join_is_told_why() {
    let dir = tempfile::tempdir().unwrap();
    let ketch = server(dir.path(), 92, &[]);
    let _one = join(&ketch, dir.path(), "one", &[]);
    until_ready(&ketch, "one");
    let (url, good) = (url(&ketch), token(&ketch));
    let attempt = |name: &str, server: &str, token: &str| {
        Node::command(&dir.path().join(name), name, &["--server", server, "--token", token]).output().unwrap()
    };
    let id = good.split('.').nth(2).unwrap();
    let listed = succeeded("ketch token list", ketch.ketch(&["token", "list"]));
    assert!(listed.contains(id) && !listed.contains(good.rsplit('.').next().unwrap()), "{listed}");

    // Nothing was started, and the token is as good as before.
    refused(attempt("two", &url, "ketch1.nonsense"), 64, "not a join token");
    refused(attempt("two", "127.0.0.1:1", &good), 64, "https://HOST:6443");
    let fingerprint = good.split('.').nth(1).unwrap();
    let other = good.replace(fingerprint, &"ab".repeat(32));
    refused(attempt("two", &url, &other), 1, "comes from another authority");
    refused(
        attempt("two", &format!("https://127.0.0.1:{}", free_port()), &good),
        1,
        "cannot reach the server",
    );
    let wrong = format!("{}{}", &good[..good.len() - 1], if good.ends_with('a') { "b" } else { "a" });
    refused(attempt("two", &url, &wrong), 1, "does not accept this token");
    let clash = Node::command(&dir.path().join("clash"), "one", &["--server", &url, "--token", &good]);
    refused({ clash }.output().unwrap(), 1, "is part of this cluster and alive");

    // Once, and never again.
    let _two = Node::start(&dir.path().join("two"), "two", &["--server", &url, "--token", &good]);
    refused(attempt("three", &url, &good), 1, "it has been used");
    let deleted = token(&ketch);
    succeeded("ketch token delete", ketch.ketch(&["token", "delete", &deleted]));
    refused(attempt("three", &url, &deleted), 1, "was deleted");
    let expired = token(&ketch);
    let secret = format!("bootstrap-token-{}", expired.split('.').nth(2).unwrap());
    // 2020-01-01T00:00:00Z
    let past = r#"{"data":{"expiration":"MjAyMC0wMS0wMVQwMDowMDowMFo="}}"#;
    ketch.kubectl_ok(&["-n", "kube-system", "patch", "secret", &secret, "-p", past]);
    refused(attempt("three", &url, &expired), 1, "has expired");
    let names = ketch.kubectl_ok(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"]);
    assert_eq!(names, "one two", "nobody else got in");
}

#[test]
fn of_many_with_one_token_one_joins() {
    let dir = tempfile::tempdir().unwrap();
    let ketch = server(dir.path(), 96, &[]);
    let (url, token) = (url(&ketch), token(&ketch));
    let mut racers: Vec<_> = (0..4)
        .map(|index| {
            let name = format!("racer-{index}");
            let mut command =
                Node::command(&dir.path().join(&name), &name, &["--server", &url, "--token", &token]);
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
        })
        .collect();
    let winners = until("all but one to give up", || {
        let running: Vec<usize> =
            (0..4).filter(|index| racers[*index].try_wait().unwrap().is_none()).collect();
        if running.len() == 1 { Ok(running) } else { Err(format!("{running:?} run")) }
    });
    until_ready(&ketch, &format!("racer-{}", winners[0]));
    let names = ketch.kubectl_ok(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"]);
    assert_eq!(names, format!("racer-{}", winners[0]));
    racers[winners[0]].kill().unwrap();
    racers[winners[0]].wait().unwrap();
}

#[test]
fn certificates_are_renewed_while_the_node_runs() {
    let dir = tempfile::tempdir().unwrap();
    // 26 seconds: the first renewal comes after 17.
    let ketch = server(dir.path(), 94, &["--node-cert-days", "0.0003"]);
    let node = join(&ketch, dir.path(), "one", &[]);
    until_ready(&ketch, "one");
    let certificate = || {
        let text = std::fs::read_to_string(dir.path().join("one/node/identity")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["certificate"].as_str().unwrap().to_owned()
    };
    let first = certificate();
    let second = until("a renewal", || match certificate() {
        same if same == first => Err("the first certificate".to_owned()),
        next => Ok(next),
    });
    until("another renewal, with the new certificate", || match certificate() {
        same if same == second => Err("the second certificate".to_owned()),
        _ => Ok(()),
    });
    assert_eq!(ready(&ketch, "one"), "True");
    // By now the first certificate is over: it is the new one that opens new connections.
    drop(node);
    let _node = Node::start(&dir.path().join("one"), "one", &[]);
    until_ready(&ketch, "one");
}
