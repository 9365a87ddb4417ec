//! What containers of a pod share of the network, and what they are called.

use ketch_api::k8s::api::core::v1::Service;
use ketch_tests::get;
use serde_json::json;

use super::rig::{Do::*, Kind, Pod, with};

pub(super) async fn containers_share_localhost(pod: Pod) {
    let (server, client) = match pod.kind {
        Kind::Wasm => {
            let image = json!({"name": "server", "image": "ketch.local/default/tcp-echo:latest"});
            let client =
                json!({"name": "client", "command": ["tcp-echo", "connect", "localhost", "7000", "hello"]});
            (image.clone(), with(image, client))
        }
        Kind::Container => (
            with(pod.container("server", &[]), json!({"command": ["nc", "-ll", "-p", "7000", "-e", "cat"]})),
            with(
                pod.container("client", &[]),
                json!({"command": ["sh", "-c", "echo hello | nc -w 5 localhost 7000"]}),
            ),
        ),
    };
    let server = with(
        server,
        json!({"ports": [{"containerPort": 7000}], "restartPolicy": "Always",
        "startupProbe": {"tcpSocket": {"port": 7000}, "periodSeconds": 1}}),
    );
    pod.create(json!({"initContainers": [server], "containers": [client]})).await;
    pod.becomes(&["phase=Succeeded", "client=terminated Completed 0"]).await;
    assert!(pod.logs("client", false).await.contains("hello\n"));
    if pod.kind == Kind::Container {
        // One of each kind: a component serves, a container asks.
        let mixed = pod.named("mixed");
        let web = mixed.of_kind(Kind::Wasm).server("web");
        let web = with(
            web,
            json!({"restartPolicy": "Always", "startupProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}),
        );
        let ask =
            with(pod.container("ask", &[]), json!({"command": ["wget", "-qO-", "http://localhost:8080/"]}));
        mixed.create(json!({"initContainers": [web], "containers": [ask]})).await;
        mixed.becomes(&["phase=Succeeded", "web.containerID~wasm://", "ask.containerID~containerd://"]).await;
        assert_eq!(mixed.logs("ask", false).await, "Hello from WebAssembly!\n");
    }
}

pub(super) async fn names_of_the_pod_are_known(pod: Pod) {
    let service = format!("s-{}", if pod.kind == Kind::Wasm { "wasm" } else { "box" });
    pod.make::<Service>(
        &service,
        json!({"spec": {"clusterIP": "None", "selector": {"app": pod.name}, "publishNotReadyAddresses": true,
            "ports": [{"port": 80}]}}),
    )
    .await;
    let full = format!("first.{service}.default.svc.cluster.local");
    let acts = [
        Lookup("aliased"),
        Lookup("second.alias"),
        Lookup("first"),
        Lookup(&full),
        Lookup("localhost"),
        Env("HOSTNAME"),
    ];
    let aliases = json!([{"ip": "192.0.2.7", "hostnames": ["aliased"]}, {"ip": "192.0.2.8", "hostnames": ["x", "second.alias"]}]);
    let main = pod.container("main", &acts);
    pod.create(
        json!({"hostname": "first", "subdomain": service, "hostAliases": aliases, "containers": [main]}),
    )
    .await;
    pod.becomes(&["phase=Succeeded"]).await;
    let own = pod.fact("podIP");
    let lines = pod.logs("main", false).await;
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines[..4], ["192.0.2.7", "192.0.2.8", &own, &own]);
    let here = if pod.kind == Kind::Wasm { &own } else { "127.0.0.1" };
    assert_eq!(lines[4..], [here, "first"], "the pod's loopback is its own");
}

pub(super) async fn the_nodes_network_can_be_used(pod: Pod) {
    // Below the ports that the system gives to whoever asks for any.
    let first = if pod.kind == Kind::Wasm { 21_000 } else { 22_000 };
    let free = |port: &u16| std::net::TcpListener::bind(("0.0.0.0", *port)).is_ok();
    let port = (first..first + 1_000).find(free).unwrap();
    let web = with(
        pod.server_at("web", port),
        json!({"ports": [{"containerPort": port, "hostPort": port}],
            "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1}}),
    );
    pod.create(json!({"hostNetwork": true, "containers": [web]})).await;
    pod.becomes(&["phase=Running", "Ready=True"]).await;
    let host = pod.fact("hostIP");
    assert_eq!(pod.fact("podIP"), host);
    let (address, path) = (format!("{host}:{port}"), pod.kind.file("none"));
    let answer = tokio::task::spawn_blocking(move || get(&address, "node", &path)).await.unwrap();
    assert_eq!(answer.unwrap().0, 404);
}
