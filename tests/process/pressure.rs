//! Pods that fill the disk of their node, which nobody has limited.

use ketch_tests::{Containers, Ketch, SmallDisk, until};
use serde_json::json;

fn create(ketch: &Ketch, name: &str, script: &str) {
    let image = "ketch.local/default/busybox:latest";
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "volumes": [{"name": "scratch", "emptyDir": {}}],
        "containers": [{"name": "main", "image": image, "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}]}});
    ketch.apply(&pod.to_string());
}

fn field(ketch: &Ketch, pod: &str, path: &str) -> String {
    ketch.kubectl_ok(&["get", "pod", pod, "-o", &format!("jsonpath={{{path}}}")])
}

/// The pod is ended because of this resource, and the disk is as it was.
fn is_evicted(containers: &Containers, pod: &str, resource: &str) {
    let ketch = containers.ketch();
    until(&format!("{pod} to be evicted"), || {
        let output = ketch.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.phase} {.status.reason}"]);
        match String::from_utf8_lossy(&output.stdout).as_ref() {
            "Failed Evicted" => Ok(()),
            other => Err(format!("{other} {}", String::from_utf8_lossy(&output.stderr))),
        }
    });
    let message = field(ketch, pod, ".status.message");
    assert!(message.starts_with(&format!("The node was low on resource: {resource}. ")), "{message}");
    until("the pressure to go", || {
        let path = "jsonpath={.status.conditions[?(@.type=='DiskPressure')].status}";
        match ketch.kubectl_ok(&["get", "node", "test-node", "-o", path]) {
            now if now == "False" => Ok(()),
            now => Err(now),
        }
    });
    let events =
        ketch.kubectl_ok(&["get", "events", "-o", "custom-columns=R:.reason,O:.involvedObject.name"]);
    assert!(events.lines().any(|line| line.starts_with("Evicted") && line.ends_with(pod)), "{events}");
}

#[test]
fn who_fills_the_disk_of_its_node_ends_and_nobody_else() {
    let Some(disk) = SmallDisk::ext4(640) else { return };
    let Some(containers) = Containers::start_in(disk.path(), 210, 211) else { return };
    containers.push(&["busybox"]);
    let ketch = containers.ketch();
    create(ketch, "neighbour", "dd if=/dev/zero of=/scratch/some bs=64k count=8; exec sleep 3600");
    ketch.kubectl_ok(&["wait", "--for=condition=Ready", "pod/neighbour", "--timeout=60s"]);
    let neighbour = field(ketch, "neighbour", ".status.containerStatuses[0].containerID");

    create(ketch, "own", "dd if=/dev/zero of=/fill bs=1M; exec sleep 3600");
    is_evicted(&containers, "own", "ephemeral-storage");
    create(ketch, "volume", "dd if=/dev/zero of=/scratch/fill bs=1M; exec sleep 3600");
    is_evicted(&containers, "volume", "ephemeral-storage");
    // A fifth of the disk at most, but every file there can be.
    create(ketch, "files", "seq 1000000 | xargs -n 1000 touch; exec sleep 3600");
    is_evicted(&containers, "files", "inodes");

    let now = field(ketch, "neighbour", ".status.phase} {.status.containerStatuses[0].containerID");
    assert_eq!(now, format!("Running {neighbour}"));
}
