//! exec, attach and port-forward with real clients: kubectl over WebSockets and over SPDY, the Python client,
//! kube-rs, and our own commands.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdout, Command, Stdio},
};

use ketch_tests::{Containers, Ketch, failed, get, root, succeeded, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A pod that serves HTTP, and one that runs a program and says something all the time.
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers: [{name: main, image: "ketch.local/default/hello:latest", ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: cli}
spec:
  containers: [{name: main, image: "ketch.local/default/job:latest", args: ARGUMENTS}]
"#;

fn with_pods() -> Ketch {
    let ketch = Ketch::start();
    // Brings the images into the registry.
    ketch.deploy("hello", &[]);
    ketch.deploy("job", &[]);
    let ticks = ["\"sleep\",\"100\",\"print\",\"tick\""; 600].join(",");
    ketch.apply(&PODS.replace("ARGUMENTS", &format!("[{ticks}]")));
    ketch.kubectl_ok(&["wait", "--for=condition=Ready", "pod/web", "pod/cli", "--timeout=60s"]);
    ketch
}

/// `kubectl` over WebSockets or over SPDY.
fn kubectl(ketch: &Ketch, websockets: bool, arguments: &[&str]) -> Command {
    let mut command = Command::new("kubectl");
    let value = websockets.to_string();
    command.args(arguments).env("KUBECONFIG", ketch.kubeconfig()).stdin(Stdio::null());
    command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", &value).env("KUBECTL_PORT_FORWARD_WEBSOCKETS", &value);
    command
}

/// A command that runs on, killed at the end. Its output stays open: kubectl dies of writing to a closed one.
struct Running {
    child: Child,
    _output: Option<BufReader<ChildStdout>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a port-forward and waits for its address.
fn forwarded(mut command: Command) -> (Running, String) {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let (mut output, mut line) = (BufReader::new(child.stdout.take().unwrap()), String::new());
    output.read_line(&mut line).unwrap();
    let child = Running { child, _output: Some(output) };
    let address = line.strip_prefix("Forwarding from ").and_then(|rest| rest.split(' ').next());
    let address = address.unwrap_or_else(|| panic!("not forwarding: {line}")).to_owned();
    (child, address)
}

#[test]
fn kubectl_execs_attaches_and_forwards() {
    let ketch = with_pods();
    for websockets in [true, false] {
        let run = |arguments: &[&str]| kubectl(&ketch, websockets, arguments).output().unwrap();
        let out = succeeded("exec", run(&["exec", "cli", "--", "job", "print", "one", "print", "two"]));
        assert_eq!(out, "job starts\none\ntwo\n", "{websockets}");
        let ended = run(&["exec", "cli", "--", "job", "exit", "7"]);
        assert_eq!(ended.status.code(), Some(7), "{ended:?}");
        let lost = run(&["exec", "cli", "--", "job", "nonsense"]);
        assert!(failed("exec", lost).contains("unknown action \"nonsense\""));
        let trapped = failed("exec", run(&["exec", "cli", "--", "job", "panic"]));
        assert!(trapped.contains("it trapped: wasm trap"), "{trapped}");
        let web = failed("exec", run(&["exec", "web", "--", "sh"]));
        assert!(web.contains("BadRequest") && web.contains("serves HTTP has no programs to run"), "{web}");
        let wrong = failed("exec", run(&["exec", "cli", "-c", "none", "--", "x"]));
        assert!(wrong.contains("container none is not valid for pod cli"), "{wrong}");

        let mut attach = kubectl(&ketch, websockets, &["attach", "cli"]);
        let mut attach = Running { child: attach.stdout(Stdio::piped()).spawn().unwrap(), _output: None };
        let lines = BufReader::new(attach.child.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).take(5).any(|line| line == "tick"), "{websockets}");

        let (_forward, address) =
            forwarded(kubectl(&ketch, websockets, &["port-forward", "pod/web", "0:8080"]));
        for _ in 0..3 {
            assert_eq!(get(&address, "web", "/").unwrap(), (200, "Hello from WebAssembly!\n".to_owned()));
        }
    }
}

/// `kubectl run -i --rm`: the end of the client's input is the end of the container's, and output is not lost.
#[test]
fn input_of_a_container_ends_with_its_client() {
    let Some(containers) = Containers::start(170, 171) else { return };
    containers.push(&["busybox"]);
    let ketch = containers.ketch();
    let image = "--image=ketch.local/default/busybox:latest";
    let pipe = |mut command: Command, input: &[u8]| {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    };
    for websockets in [true, false] {
        let run = |name: &str, program: &[&str], input: &[u8]| {
            let start = ["run", name, "-i", "--rm", "--quiet", image, "--restart=Never", "--"];
            succeeded(name, pipe(kubectl(ketch, websockets, &[&start[..], program].concat()), input))
        };
        let name = |what: &str| format!("{what}-{websockets}");
        assert_eq!(run(&name("cat"), &["cat"], b"hi\n"), "hi\n", "{websockets}");
        // What comes after the end of input, and more of it than is on its way at a time.
        let later = ["sh", "-c", "wc -c; sleep 1; echo later; echo last >&2"];
        assert_eq!(run(&name("later"), &later, &vec![b'x'; 3 << 20]), "3145728\nlater\n", "{websockets}");
    }
    stays_open(ketch, &pipe);
    for websockets in [true, false] {
        a_terminal_stays_one(ketch, websockets);
    }
}

/// A client without a terminal, as in a script, joins a container that has one: nothing of it is lost.
fn a_terminal_stays_one(ketch: &Ketch, websockets: bool) {
    let name = format!("terminal-{websockets}");
    let script = "for i in 1 2 3 4; do echo t$i; sleep 1; done; exit 3";
    let pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "restartPolicy": "Never", "containers": [{"name": "main", "stdin": true, "tty": true,
            "image": "ketch.local/default/busybox:latest", "command": ["sh", "-c", script]}]}});
    ketch.apply(&pod.to_string());
    ketch.kubectl_ok(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
    let mut attach = kubectl(ketch, websockets, &["attach", &name, "-it"]);
    attach.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut attached = Running { child: attach.spawn().unwrap(), _output: None };
    until("attach to end", || match attached.child.try_wait().unwrap() {
        Some(_) => Ok(()),
        None => Err(ketch.kubectl_ok(&["logs", &name])),
    });
    let said = std::io::read_to_string(attached.child.stdout.take().unwrap()).unwrap();
    assert!(said.contains("t4"), "{websockets}: {said}");
    assert_eq!(ketch.kubectl_ok(&["logs", &name]).replace('\r', ""), "t1\nt2\nt3\nt4\n", "{websockets}");
}

/// Without `stdinOnce` the end of one client's input is not the container's: there may be another client.
fn stays_open(ketch: &Ketch, pipe: &dyn Fn(Command, &[u8]) -> std::process::Output) {
    ketch.apply(
        r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "open"}, "spec": {"restartPolicy": "Never",
            "containers": [{"name": "main", "image": "ketch.local/default/busybox:latest", "stdin": true,
                "command": ["sh", "-c", "while read line; do echo got $line; [ $line = two ] && exit; done"]}]}}"#,
    );
    ketch.kubectl_ok(&["wait", "--for=condition=Ready", "pod/open", "--timeout=60s"]);
    let mut first = kubectl(ketch, true, &["attach", "open", "-i"]);
    first.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut first = Running { child: first.spawn().unwrap(), _output: None };
    first.child.stdin.take().unwrap().write_all(b"one\n").unwrap();
    let mut line = String::new();
    BufReader::new(first.child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "got one\n");
    drop(first);
    let said = succeeded("attach", pipe(kubectl(ketch, true, &["attach", "open", "-i"]), b"two\n"));
    assert_eq!(said, "got two\n");
    until("the end", || match ketch.kubectl_ok(&["get", "pod", "open", "-o", "jsonpath={.status.phase}"]) {
        phase if phase == "Succeeded" => Ok(()),
        phase => Err(phase),
    });
}

#[test]
fn our_own_commands_do_the_same() {
    let ketch = with_pods();
    let out = succeeded("exec", ketch.ketch(&["exec", "cli", "--", "job", "print", "one"]));
    assert_eq!(out, "job starts\none\n");
    assert_eq!(ketch.ketch(&["exec", "cli", "--", "job", "exit", "7"]).status.code(), Some(7));
    let mut command = Command::new(ketch_tests::binary());
    command.args(["port-forward", "pod/web", ":8080"]).env("KUBECONFIG", ketch.kubeconfig());
    let (_forward, address) = forwarded(command);
    assert_eq!(get(&address, "web", "/").unwrap().0, 200);
}

#[test]
fn kube_rs_execs_and_forwards() {
    ketch_tests::install_crypto();
    let ketch = with_pods();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let api: kube::Api<ketch_api::k8s::api::core::v1::Pod> =
            kube::Api::namespaced(ketch.client().await, "default");
        let parameters = kube::api::AttachParams::default();
        let mut process = api.exec("cli", ["job", "print", "one", "exit", "3"], &parameters).await.unwrap();
        let (status, mut out) = (process.take_status().unwrap(), String::new());
        process.stdout().unwrap().read_to_string(&mut out).await.unwrap();
        assert_eq!(out, "job starts\none\n");
        assert_eq!(status.await.unwrap().reason.as_deref(), Some("NonZeroExitCode"));
        let mut forwarder = api.portforward("web", &[8080]).await.unwrap();
        let mut stream = forwarder.take_stream(8080).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("Hello from WebAssembly!"), "{answer}");
    });
}

const SCRIPT: &str = r#"
from kubernetes import client, config
from kubernetes.stream import stream, portforward
config.load_kube_config()
core = client.CoreV1Api()
print(stream(core.connect_get_namespaced_pod_exec, "cli", "default", command=["job", "print", "one"],
    stdin=False, stdout=True, stderr=True, tty=False).strip())
process = stream(core.connect_get_namespaced_pod_exec, "cli", "default", command=["job", "exit", "4"],
    stdin=False, stdout=True, stderr=True, tty=False, _preload_content=False)
process.run_forever(timeout=30)
print(process.returncode)
forward = portforward(core.connect_get_namespaced_pod_portforward, "web", "default", ports="8080")
socket = forward.socket(8080)
socket.setblocking(True)
socket.sendall(b"GET / HTTP/1.0\r\nhost: web\r\n\r\n")
answer = b""
while True:
    piece = socket.recv(4096)
    if not piece:
        break
    answer += piece
print(answer.split(b"\r\n\r\n")[1].decode().strip())
"#;

#[test]
fn the_python_client_execs_and_forwards() {
    let python = root().join("target/tools/python/bin");
    super::python::install(&python);
    let ketch = with_pods();
    let output = Command::new(python.join("python"))
        .args(["-c", SCRIPT])
        .env("KUBECONFIG", ketch.kubeconfig())
        .output();
    let text = succeeded("python", output.unwrap());
    assert_eq!(text, "job starts\none\n4\nHello from WebAssembly!\n");
}
