//! Releases of containerd besides this machine's, where `cargo xtask test` has put them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use ketch_tests::{Containers, Ketch, root, succeeded, until};

use super::{OF_THE_RUNTIME, live, rig::Kind};

#[test]
fn pods_live_alike_with_containerd_1_7() {
    lives_with("containerd-1.7", 200, 201);
}

#[test]
fn pods_live_alike_with_containerd_2() {
    lives_with("containerd-2", 202, 203);
}

/// An upgrade of the host: what runs goes on, and what is begun with an older one can be ended with a newer.
#[test]
fn containers_outlive_their_containerd() {
    let Some(mut containers) = Containers::start(208, 209) else { return };
    containers.push(&["busybox"]);
    let run = |ketch: &Ketch, pod: &str| {
        let image = "--image=ketch.local/default/busybox:latest";
        ketch.kubectl_ok(&["run", pod, image, "--command", "--", "sleep", "3600"]);
        ketch.kubectl_ok(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"]);
    };
    let status = |ketch: &Ketch, pod: &str| {
        let path = "jsonpath={.status.containerStatuses[0]['containerID','restartCount']}";
        ketch.kubectl_ok(&["get", "pod", pod, "-o", path])
    };
    run(containers.ketch(), "machine");
    let mut pods = vec![("machine", status(containers.ketch(), "machine"))];
    for (name, pod) in [("containerd-1.7", "newer"), ("containerd-2", "newest")] {
        let Some(programs) = programs(name) else { return };
        containers.renew_containerd(&programs);
        let ketch = containers.ketch();
        until("the node to tell its new runtime", || match runtime_of(ketch) {
            now if now == format!("containerd://{}", version(&programs)) => Ok(()),
            now => Err(now),
        });
        for (pod, before) in &pods {
            assert_eq!(ketch.kubectl_ok(&["exec", pod, "--", "cat", "/etc/hostname"]).trim(), *pod);
            assert_eq!(status(ketch, pod), *before, "{pod}");
        }
        run(ketch, pod);
        pods.push((pod, status(ketch, pod)));
    }
    let all: Vec<&str> = pods.iter().map(|(pod, _)| *pod).collect();
    let running = containers.processes();
    assert_eq!(running.len(), 2 * all.len(), "of each its own program and the pod's: {running:?}");
    containers.ketch().kubectl_ok(&[&["delete", "pod", "--grace-period=1"], &all[..]].concat());
    until("nothing to run", || match containers.processes() {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    });
}

/// The directory `name` of the tools, if it is there.
fn programs(name: &str) -> Option<PathBuf> {
    let programs = root().join("target/tools").join(name).join("usr/bin");
    let there = programs.join("containerd").is_file();
    if !there {
        eprintln!("skipped: there is no {}: run `cargo xtask test containerds`", programs.display());
    }
    there.then_some(programs)
}

fn lives_with(name: &str, pods: u8, services: u8) {
    let Some(programs) = programs(name) else { return };
    let Some(containers) = Containers::start_with_containerd(&programs, pods, services) else { return };
    let ketch = containers.ketch();
    assert_eq!(runtime_of(ketch), format!("containerd://{}", version(&programs)));
    containers.push(&["busybox"]);
    // It is measured while the others live.
    ketch.kubectl_ok(&[
        "run",
        "box",
        "--image=ketch.local/default/busybox:latest",
        "--command",
        "--",
        "sh",
        "-c",
        "echo it begins; exec sleep 3600",
    ]);
    live(&containers, &[Kind::Container], |name| OF_THE_RUNTIME.contains(&name));
    a_container_is_looked_into(ketch);
}

/// Of a line like `containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6`.
fn version(programs: &Path) -> String {
    let output = Command::new(programs.join("containerd")).arg("--version").output().unwrap();
    let text = succeeded("containerd --version", output);
    text.split(' ').nth(2).unwrap().trim_start_matches('v').to_owned()
}

fn runtime_of(ketch: &Ketch) -> String {
    until("the node to tell its runtime", || {
        let path = "jsonpath={.items[*].status.nodeInfo.containerRuntimeVersion}";
        let output = ketch.kubectl(&["get", "nodes", "-o", path]);
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let found = text.split(',').find(|word| word.starts_with("containerd://")).map(str::to_owned);
        found.ok_or_else(|| format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
    })
}

/// Logs, programs beside the container's own with input and an exit code, and what it uses.
fn a_container_is_looked_into(ketch: &Ketch) {
    assert_eq!(ketch.kubectl_ok(&["logs", "box"]), "it begins\n");
    let output =
        ketch.kubectl_with(&["exec", "-i", "box", "--", "sh", "-c", "cat; exit 7"], "there and back");
    assert_eq!((output.status.code(), &*output.stdout), (Some(7), &b"there and back"[..]));
    until("the container to be measured", || {
        let output = ketch.kubectl(&["top", "pod", "box", "--no-headers"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let memory = text.split_whitespace().last().and_then(|word| word.strip_suffix("Mi"));
        match memory.and_then(|word| word.parse::<u32>().ok()) {
            Some(_) => Ok(()),
            None => Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr))),
        }
    });
}
