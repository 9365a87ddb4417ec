//! What befalls a node: its daemon killed, containerd killed, pods that take all they can get.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use ketch_tests::{Containers, Ketch, get, until};
use serde_json::{Value, json};

use super::rig::{Cluster, Do::*, Kind, Pod, with};

/// A fact of a pod, asked for directly.
fn status(ketch: &Ketch, pod: &str) -> Value {
    let text = ketch.kubectl_ok(&["get", "pod", pod, "-o", "json"]);
    serde_json::from_str(&text).unwrap()
}

fn has(ketch: &Ketch, pod: &str, expected: &[&str]) -> Result<(), String> {
    let facts = super::facts::of(&status(ketch, pod));
    let all = expected.iter().all(|one| super::facts::hold(&facts, one));
    if all { Ok(()) } else { Err(format!("{pod}: not {expected:?}: {facts:#?}")) }
}

/// Which instance of a container runs, and since when.
fn instance(pod: &Value) -> (Value, Value) {
    let status = &pod["status"]["containerStatuses"][0];
    (status["containerID"].clone(), status["state"]["running"]["startedAt"].clone())
}

/// A server that stays, of a kind.
async fn server(pod: &Pod) {
    pod.create(json!({"restartPolicy": "Always", "containers": [pod.server("main")]})).await;
    pod.becomes(&["phase=Running", "Ready=True"]).await;
}

pub(super) fn a_daemon_that_is_killed(containers: &mut Containers) {
    super::runtime().block_on(async {
        let cluster = Cluster::watch(containers).await;
        for kind in Kind::ALL {
            server(&cluster.pod("stays", kind)).await;
            let done = cluster.pod("done", kind);
            done.run(&[Exit(0)]).await;
            done.becomes(&["phase=Succeeded"]).await;
            let crashes = cluster.pod("crashes", kind);
            let main = crashes.container("main", &[Exit(1)]);
            crashes.create(json!({"restartPolicy": "Always", "containers": [main]})).await;
            crashes.becomes(&["main=waiting CrashLoopBackOff", "main.restartCount=1"]).await;
            let job = cluster.pod("job", kind);
            job.run(&[OnTerm(143), Forever]).await;
            job.becomes(&["main=running"]).await;
        }
    });
    let address = |pod: &str| status(containers.ketch(), pod)["status"]["podIP"].as_str().unwrap().to_owned();
    let (wasm, container) = (address("stays-wasm"), address("stays-box"));
    let before = status(containers.ketch(), "stays-box");
    containers.crash_and_restart();
    let ready = Instant::now();
    let ketch = containers.ketch();
    until("the Wasm server", || get(&format!("{wasm}:8080"), "x", "/file?path=/x").map(drop));
    assert!(ready.elapsed() < Duration::from_secs(2), "it is back after {:?}", ready.elapsed());
    get(&format!("{container}:8080"), "x", "/x").unwrap();
    let lost = "main.last=terminated ContainerStatusUnknown 137";
    until("Wasm", || has(ketch, "stays-wasm", &["main=running", "main.restartCount=1", lost, "Ready=True"]));
    until("container", || has(ketch, "stays-box", &["main=running", "main.restartCount=0", "Ready=True"]));
    assert_eq!(instance(&status(ketch, "stays-box")), instance(&before), "it went on");
    for kind in ["wasm", "box"] {
        until("ended", || {
            has(ketch, &format!("done-{kind}"), &["phase=Succeeded", "main=terminated Completed 0"])
        });
        // The count goes on where it was.
        let pod = format!("crashes-{kind}");
        let path = "jsonpath={.status.containerStatuses[0].restartCount}";
        until("count", || match ketch.kubectl_ok(&["get", "pod", &pod, "-o", path]).parse::<u32>() {
            Ok(2..) => Ok(()),
            Ok(1) => Err("1".to_owned()),
            other => panic!("{pod}: the count went back: {other:?}"),
        });
    }
    // A program that was under way is over with the process that ran it; a container is not.
    until("job", || has(ketch, "job-wasm", &["phase=Failed", "main=terminated ContainerStatusUnknown 137"]));
    until("job", || has(ketch, "job-box", &["phase=Running", "main=running"]));
}

/// Continues with the pods of [`a_daemon_that_is_killed`].
pub(super) fn a_containerd_that_is_killed(containers: &Containers) {
    let ketch = containers.ketch();
    let before = status(ketch, "stays-box");
    let address = format!("{}:8080", before["status"]["podIP"].as_str().unwrap());
    let condition = || {
        let node: Value =
            serde_json::from_str(&ketch.kubectl_ok(&["get", "node", "test-node", "-o", "json"])).unwrap();
        let all = node["status"]["conditions"].as_array().unwrap();
        let found = all.iter().find(|one| one["type"] == "ketch.dev/Containers").unwrap();
        format!(
            "{} {} {}",
            found["status"].as_str().unwrap(),
            found["reason"].as_str().unwrap(),
            found["message"]
        )
    };
    assert!(condition().starts_with("True"), "{}", condition());
    // Each time it waits longer before it is started again.
    let mut last = None;
    until("the node to say so", || {
        if let Some(process) = containers.containerd().filter(|process| Some(*process) != last) {
            let killed = Command::new("kill").args(["-9", &process.to_string()]).output().unwrap();
            last = killed.status.success().then_some(process).or(last);
        }
        get(&address, "x", "/x").map_err(|error| format!("the container does not answer: {error}")).unwrap();
        let now = condition();
        if now.starts_with("False RuntimeNotAnswering") { Ok(()) } else { Err(now) }
    });
    until("the node to be well again", || {
        let now = condition();
        if now.starts_with("True") { Ok(()) } else { Err(now) }
    });
    until("the pod", || has(ketch, "stays-box", &["main=running", "main.restartCount=0", "Ready=True"]));
    assert_eq!(instance(&status(ketch, "stays-box")), instance(&before), "it went on");
    // And it works: a new pod, and a program in an old one.
    let said = ketch.kubectl_ok(&["exec", "stays-box", "--", "echo", "still here"]);
    assert_eq!(said, "still here\n");
    let run = [
        "run",
        "after",
        "--image=ketch.local/default/busybox:latest",
        "--restart=Never",
        "--command",
        "--",
        "true",
    ];
    ketch.kubectl_ok(&run);
    until("a new pod", || has(ketch, "after", &["phase=Succeeded"]));
}

/// A process that stands still, until this is dropped.
struct Stopped(u32);

impl Stopped {
    fn new(process: u32) -> Self {
        let stopped = Self(process);
        stopped.signal("-STOP");
        stopped
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.0.to_string()]).output().unwrap();
        assert!(sent.status.success(), "{sent:?}");
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.signal("-CONT");
    }
}

/// Continues with the servers of [`a_daemon_that_is_killed`]: one that hangs takes calls and does not answer them.
pub(super) fn a_containerd_that_hangs(containers: &Containers) {
    let before = status(containers.ketch(), "stays-box");
    super::runtime().block_on(async {
        let cluster = Cluster::watch(containers).await;
        let leaves = cluster.pod("leaves", Kind::Container);
        leaves.run(&[OnTerm(143), Forever]).await;
        leaves.becomes(&["main=running"]).await;
        let stopped = Stopped::new(containers.containerd().unwrap());
        let waits = cluster.pod("waits", Kind::Container);
        waits.run(&[OnTerm(143), Forever]).await;
        leaves.delete().await;
        // More than one: each that changes makes the node look.
        for round in 0..3 {
            let (stays, ends) = (
                cluster.pod(&format!("serves-{round}"), Kind::Wasm),
                cluster.pod(&format!("ends-{round}"), Kind::Wasm),
            );
            server(&stays).await;
            ends.run(&[Exit(0)]).await;
            ends.becomes(&["phase=Succeeded"]).await;
            for pod in [stays, ends] {
                pod.delete().await;
                pod.gone().await;
            }
        }
        assert!(!leaves.object().is_null(), "nobody was there to end it");
        waits.becomes(&["phase=Pending"]).await;
        drop(stopped);
        waits.becomes(&["main=running"]).await;
        leaves.gone().await;
        waits.delete().await;
        waits.gone().await;
    });
    let ketch = containers.ketch();
    until("the pod", || has(ketch, "stays-box", &["main=running", "main.restartCount=0", "Ready=True"]));
    assert_eq!(instance(&status(ketch, "stays-box")), instance(&before), "it went on");
}

/// Continues with the servers of [`a_daemon_that_is_killed`] as neighbours.
pub(super) fn neighbours_that_take_all(containers: &Containers) {
    let ketch = containers.ketch();
    super::runtime().block_on(async {
        let cluster = Cluster::watch(containers).await;
        let bomb = cluster.pod("bomb", Kind::Container);
        let script = "sh -c 'while :; do sleep 1000 & done' 2>/tmp/error; read line </tmp/error; echo $line; exec sleep 100000";
        let main = with(bomb.container("main", &[]), json!({"command": ["sh", "-c", script]}));
        bomb.create(json!({"containers": [main]})).await;
        let mut fillers = Vec::new();
        for kind in Kind::ALL {
            let filler = cluster.pod("filler", kind);
            let main = filler.container("main", &[OnTerm(143), Fill("/scratch/large", 64), Forever]);
            let main = with(main, json!({"volumeMounts": [{"name": "work", "mountPath": "/scratch"}]}));
            let volumes = json!([{"name": "work", "emptyDir": {"sizeLimit": "8Mi"}}]);
            filler.create(json!({"restartPolicy": "Always", "volumes": volumes, "containers": [main]})).await;
            fillers.push(filler);
        }
        bomb.becomes(&["main=running"]).await;
        bomb.says("main", "can't fork").await;
        for filler in fillers {
            filler.becomes(&["phase=Failed", "reason=Evicted"]).await;
            // Its files go with it.
            while filler.directory().exists() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        // Meanwhile there was room for others.
        let other = cluster.pod("other", Kind::Container);
        other.run(&[Print("fine")]).await;
        other.becomes(&["phase=Succeeded"]).await;
        bomb.delete().await;
        bomb.gone().await;
    });
    for (pod, restarts) in [("stays-box", 0), ("stays-wasm", 1)] {
        until(pod, || {
            has(ketch, pod, &["main=running", "Ready=True", &format!("main.restartCount={restarts}")])
        });
        let address = format!("{}:8080", status(ketch, pod)["status"]["podIP"].as_str().unwrap());
        get(&address, "x", "/x").unwrap();
    }
}
