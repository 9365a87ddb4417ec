//! What a restart of Ketch and of containerd costs: nothing that runs.

use std::sync::Arc;

use ketch_runtime::{ContainerState, Runtime};
use ketch_runtime_oci::{Choice, connect};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::rig::{PATIENCE, Rig};

fn running(state: &ContainerState) -> bool {
    matches!(state, ContainerState::Running { .. })
}

fn containerd(rig: &Rig) -> i32 {
    let file = rig.dir.path().join("node/containerd/containerd.pid");
    std::fs::read_to_string(file).unwrap().trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_ketch_finds_the_containers_of_the_old_one() {
    let Some(mut rig) = Rig::new().await else { return };
    let pod = rig.made("kept", 2).await;
    let spec = rig.script(&pod, "main", "exec sleep 100000").await;
    let handle = rig.runtime.start(&pod.id, spec.clone()).await.unwrap();
    assert!(handle.is_some());
    let before = rig.until(&spec.id, running).await;
    let process = containerd(&rig);
    rig.runtime.shutdown().await;
    rig.runtime = Arc::new(connect(&Choice::Managed, &rig.options).await.expect("it connects again"));
    assert_eq!(containerd(&rig), process, "containerd goes on, and so do containers");
    let all = rig.runtime.list().await.unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!((&all[0].id, &all[0].pod, all[0].name.as_str()), (&spec.id, &pod.id, "main"));
    assert_eq!((&all[0].state, &all[0].handle), (&before, &handle));
    // The pod is the same one, too: further containers start in it.
    assert!(rig.runtime.create_pod(pod.clone()).await.unwrap().network_namespace.is_some());
    assert_eq!(rig.run(&pod, "second", "echo here").await.2, "here");
    rig.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_is_started_again_and_its_containers_go_on() {
    let Some(rig) = Rig::new().await else { return };
    let pod = rig.made("killed", 2).await;
    let spec = rig.script(&pod, "main", "exec sleep 100000").await;
    let handle = rig.runtime.start(&pod.id, spec.clone()).await.unwrap();
    let before = rig.until(&spec.id, running).await;
    let process = containerd(&rig);
    kill(Pid::from_raw(process), Signal::SIGKILL).unwrap();
    let back = async {
        loop {
            // Errors meanwhile come at once and say why.
            match rig.runtime.list().await {
                Ok(all) if containerd(&rig) != process => return all,
                Ok(_) => {}
                Err(error) => assert!(error.to_string().contains("containerd"), "{error}"),
            }
            tokio::task::yield_now().await;
        }
    };
    let all = tokio::time::timeout(PATIENCE, back).await.expect("containerd is back");
    let all: Vec<_> = all.iter().map(|one| (&one.id, &one.state, &one.handle)).collect();
    assert_eq!(all, [(&spec.id, &before, &handle)]);
    // Events arrive again.
    let (code, _, text) = rig.run(&pod, "after", "echo still here").await;
    assert_eq!((code, text.as_str()), (0, "still here"));
    rig.done().await;
}
