//! Containers and components in one cluster and in one pod, with real containerd, runc, Redis and nginx.

use std::collections::BTreeMap;

use ketch_tests::{Containers, Ketch, get, root, succeeded, until};
use serde_json::Value;

fn answers(ketch: &Ketch, service: &str, port: u16, part: &str) -> String {
    let ip = ketch.kubectl_ok(&["get", "service", service, "-o", "jsonpath={.spec.clusterIP}"]);
    until(&format!("{service} to answer"), || match get(&format!("{ip}:{port}"), service, "/") {
        Ok((200, body)) if body.contains(part) => Ok(body),
        other => Err(format!("{other:?}")),
    })
}

fn example(ketch: &Ketch, name: &str) {
    let file = root().join("examples").join(name);
    ketch.kubectl_ok(&["apply", "-f", file.to_str().unwrap()]);
}

#[test]
fn components_and_containers_work_together() {
    let Some(mut containers) = Containers::start(152, 153) else { return };
    containers.push(&[]);
    let ketch = containers.ketch();
    ketch.deploy("visits", &[]);
    example(ketch, "mixed.yaml");
    for deployment in ["deployment/redis", "deployment/front"] {
        succeeded("rollout", ketch.kubectl(&["rollout", "status", deployment, "--timeout=60s"]));
    }
    assert_eq!(answers(ketch, "front", 80, "visit"), "visit 1\n");
    let wide = ketch.kubectl_ok(&["get", "pods", "-o", "wide", "--no-headers"]);
    for line in wide.lines() {
        assert!(line.contains("10.152.") && line.contains("Running"), "every pod has an address:\n{wide}");
    }
    let asked = ["exec", "deployment/redis", "--", "redis-cli", "get", "visits"];
    assert_eq!(ketch.kubectl_ok(&asked).trim(), "1");
    assert!(ketch.kubectl_ok(&["logs", "deployment/redis"]).contains("Ready to accept connections"));

    example(ketch, "sidecar.yaml");
    ketch.kubectl_ok(&["wait", "--for=condition=Ready", "pod/sidecar", "--timeout=60s"]);
    ketch.kubectl_ok(&["expose", "pod", "sidecar", "--port=80", "--target-port=8080"]);
    assert_eq!(answers(ketch, "sidecar", 80, "visit"), "visit 1\n", "a Redis of its own, at localhost");

    files_are_copied(ketch);
    clients_in_containers_work(ketch);
    both_kinds_are_measured(ketch);
    let ids = ids_are_those_of_containerd(&containers);
    let before = containers.processes();
    containers.crash();
    containers.restart();
    assert_eq!(shown_ids(containers.ketch()), ids, "ids outlive the daemon");
    // The container has not stopped: the count goes on.
    answers(containers.ketch(), "front", 80, "visit 2");
    assert_eq!(containers.processes(), before, "containers outlive the daemon");
    answers(containers.ketch(), "sidecar", 80, "visit 2");
    until("a status of after the restart", || {
        let front = [
            "get",
            "pods",
            "-l",
            "app=front",
            "-o",
            "jsonpath={.items[0].status.containerStatuses[0].restartCount}",
        ];
        let count = containers.ketch().kubectl_ok(&front);
        if count == "1" { Ok(()) } else { Err(count) }
    });
    assert_eq!(shown_ids(containers.ketch()), ids, "and its first statuses");
}

/// Ids of the current and the last instance of each container of containerd, by the labels that it must have.
type Ids = BTreeMap<(String, String), (String, Option<String>)>;

fn shown_ids(ketch: &Ketch) -> Ids {
    let pods: Value = serde_json::from_str(&ketch.kubectl_ok(&["get", "pods", "-o", "json"])).unwrap();
    let mut ids = Ids::new();
    for pod in pods["items"].as_array().unwrap() {
        let (uid, status) = (pod["metadata"]["uid"].as_str().unwrap(), &pod["status"]);
        let lists = [&status["initContainerStatuses"], &status["containerStatuses"]];
        for container in lists.into_iter().filter_map(Value::as_array).flatten() {
            let (name, id) =
                (container["name"].as_str().unwrap(), container["containerID"].as_str().unwrap());
            if id.starts_with("wasm://") {
                assert_eq!(id, format!("wasm://{uid}.{name}.{}", container["restartCount"]));
                continue;
            }
            let native =
                |id: &str| id.strip_prefix("containerd://").unwrap_or_else(|| panic!("{id}")).to_owned();
            let last = container["lastState"]["terminated"]["containerID"].as_str().map(native);
            ids.insert((uid.to_owned(), name.to_owned()), (native(id), last));
        }
    }
    ids
}

/// What the API shows is what `ctr` and `crictl` show, for a container that was restarted, too.
fn ids_are_those_of_containerd(containers: &Containers) -> Ids {
    let ketch = containers.ketch();
    let status = || {
        let text = ketch.kubectl_ok(&["get", "pod", "box", "-o", "json"]);
        let mut pod: Value = serde_json::from_str(&text).unwrap();
        pod["status"]["containerStatuses"][0].take()
    };
    let first = status()["containerID"].clone();
    // It has to be there under that id; what follows takes its place.
    containers.kill(first.as_str().unwrap().trim_start_matches("containerd://"));
    let second = until("the restart", || match status() {
        now if now["restartCount"] == 1 && now["state"]["running"].is_object() => Ok(now),
        now => Err(now.to_string()),
    });
    assert_eq!(second["lastState"]["terminated"]["containerID"], first);
    assert_ne!(second["containerID"], first);
    let ids = shown_ids(ketch);
    assert!(ids.len() >= 4, "Redis, its sidecar, and the clients: {ids:?}");
    let running = containers.processes();
    for ((uid, name), (id, last)) in &ids {
        assert!(running.contains(id), "{id} is not in {running:?}");
        for id in [Some(id), last.as_ref()].into_iter().flatten() {
            assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        }
        let labels = &containers.described(id)["Labels"];
        assert_eq!(labels["io.kubernetes.pod.uid"], uid.as_str(), "{labels}");
        assert_eq!(labels["io.kubernetes.container.name"], name.as_str(), "{labels}");
    }
    ids
}

/// A client with what its pod gives it: the address by the environment and by name, the authority, the token.
fn clients_in_containers_work(ketch: &Ketch) {
    ketch.apply(
        r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client"}, "spec": {
            "securityContext": {"runAsUser": 1234}, "containers": [{"name": "main",
                "image": "ketch.local/default/curl:latest", "command": ["sleep", "3600"]}]}}"#,
    );
    ketch.kubectl_ok(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"]);
    let ask = |host: &str| {
        let script = format!(
            "cd /var/run/secrets/kubernetes.io/serviceaccount; curl -sS -m 20 --cacert ca.crt -w '\\n%{{http_code}}' \
             -H \"Authorization: Bearer $(cat token)\" https://{host}/api/v1/namespaces/$(cat namespace)/pods"
        );
        let out = ketch.kubectl(&["exec", "client", "--", "sh", "-c", &script]);
        format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
    };
    let hosts =
        ["$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT", "kubernetes.default", "kubernetes.default.svc"];
    for host in hosts {
        until(host, || match ask(host) {
            answer if answer.ends_with("403") => Ok(()),
            other => Err(other),
        });
    }
    let bind = ["create", "rolebinding", "client", "--clusterrole=view", "--serviceaccount=default:default"];
    ketch.kubectl_ok(&bind);
    until("the right to list", || match ask(hosts[0]) {
        answer if answer.ends_with("200") && answer.contains("\"client\"") => Ok(()),
        other => Err(other),
    });
    let files = [
        "exec",
        "client",
        "--",
        "stat",
        "-Lc",
        "%u %a",
        "/var/run/secrets/kubernetes.io/serviceaccount/token",
    ];
    assert_eq!(ketch.kubectl_ok(&files).trim(), "1234 600");
}

fn both_kinds_are_measured(ketch: &Ketch) {
    let all = until("every pod to be measured", || {
        let out = ketch.kubectl(&["top", "pods", "--containers", "--no-headers"]);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let all = ["client", "front-", "redis-", "sidecar"].iter().all(|pod| text.contains(pod));
        if all { Ok(text) } else { Err(format!("{text}{}", String::from_utf8_lossy(&out.stderr))) }
    });
    let redis = all.lines().find(|line| line.starts_with("redis-")).unwrap();
    assert!(!redis.ends_with(" 0Mi"), "{redis}");
}

fn files_are_copied(ketch: &Ketch) {
    let busybox =
        ["run", "box", "--image=ketch.local/default/busybox:latest", "--command", "--", "sleep", "3600"];
    ketch.kubectl_ok(&busybox);
    ketch.kubectl_ok(&["wait", "--for=condition=Ready", "pod/box", "--timeout=60s"]);
    let file = ketch.dir.join("copied");
    std::fs::write(&file, "there and back\n").unwrap();
    ketch.kubectl_ok(&["cp", file.to_str().unwrap(), "box:/tmp/copied"]);
    let back = ketch.dir.join("back");
    ketch.kubectl_ok(&["cp", "box:/tmp/copied", back.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(back).unwrap(), "there and back\n");
    let code = ketch.kubectl(&["exec", "box", "--", "sh", "-c", "exit 7"]).status.code();
    assert_eq!(code, Some(7));
    let name = ketch.kubectl_ok(&["exec", "box", "--", "nslookup", "redis.default.svc.cluster.local"]);
    assert!(name.contains("10.153."), "{name}");
}
