//! How programs end, and what becomes of their pods.

use std::time::{Duration, Instant};

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::rig::{Do::*, Kind, Pod, with};

/// A volume `work`, and what mounts it at `/scratch`.
fn work() -> (Value, Value) {
    (
        json!([{"name": "work", "emptyDir": {}}]),
        json!({"volumeMounts": [{"name": "work", "mountPath": "/scratch"}]}),
    )
}

pub(super) async fn programs_complete(pod: Pod) {
    for policy in ["Never", "OnFailure"] {
        let pod = pod.named(&policy.to_lowercase());
        pod.create(json!({"restartPolicy": policy, "containers": [pod.container("main", &[Print("done"), Exit(0)])]}))
            .await;
        pod.becomes(&[
            "phase=Succeeded",
            "main=terminated Completed 0",
            "main.last=none",
            "main.restartCount=0",
            "main.ready=false",
            "main.started=false",
            "PodScheduled=True",
            "PodReadyToStartContainers=False",
            "Initialized=True PodCompleted",
            "ContainersReady=False PodCompleted",
            "Ready=False PodCompleted",
            "qosClass=BestEffort",
        ])
        .await;
        for event in ["Normal Scheduled", "Normal Pulled", "Normal Created", "Normal Started"] {
            pod.event(event).await;
        }
        assert_eq!(pod.logs("main", false).await, "done\n");
    }
}

pub(super) async fn programs_fail(pod: Pod) {
    pod.run(&[Print("no"), Exit(3)]).await;
    pod.becomes(&[
        "phase=Failed",
        "main=terminated Error 3",
        "main.restartCount=0",
        "Ready=False PodFailed",
        "ContainersReady=False PodFailed",
    ])
    .await;
}

pub(super) async fn failures_are_restarted_with_back_off(pod: Pod) {
    let main = pod.container("main", &[Print("try"), Exit(3)]);
    pod.create(json!({"restartPolicy": "OnFailure", "containers": [main]})).await;
    pod.becomes(&[
        "phase=Running",
        "main=waiting CrashLoopBackOff",
        "main.message~back-off 10s restarting failed container=main pod=failures-are",
        "main.last=terminated Error 3",
        "main.restartCount=1",
        "main.ready=false",
        "Ready=False ContainersNotReady",
    ])
    .await;
    pod.event("Warning BackOff Back-off restarting failed container main in pod failures-are").await;
    assert_eq!(pod.logs("main", true).await, "try\n", "the instance before can be read");
    pod.becomes(&["main=waiting CrashLoopBackOff", "main.message~back-off 20s", "main.restartCount=2"]).await;
}

pub(super) async fn success_is_restarted_too(pod: Pod) {
    let main = pod.container("main", &[Exit(0)]);
    pod.create(json!({"restartPolicy": "Always", "containers": [main]})).await;
    pod.becomes(&[
        "phase=Running",
        "main=waiting CrashLoopBackOff",
        "main.last=terminated Completed 0",
        "main.restartCount=1",
    ])
    .await;
    pod.passes(&["main.restartCount=2"]).await;
}

pub(super) async fn init_containers_run_in_order(pod: Pod) {
    let (volumes, mount) = work();
    let init = |name: &str, acts: &[super::rig::Do<'_>]| with(pod.container(name, acts), mount.clone());
    pod.create(json!({"volumes": volumes,
        "initContainers": [init("first", &[Sleep(500), Write("/scratch/first", "one")]),
            init("second", &[Cat("/scratch/first"), Sleep(500), Write("/scratch/second", "two")])],
        "containers": [init("main", &[Cat("/scratch/first"), Cat("/scratch/second")])]}))
        .await;
    pod.passes(&[
        "phase=Pending",
        "first=running",
        "second=waiting PodInitializing",
        "main=waiting PodInitializing",
        "Initialized=False ContainersNotInitialized",
        "Ready=False ContainersNotReady",
    ])
    .await;
    pod.passes(&["first=terminated Completed 0", "first.ready=true", "second=running"]).await;
    pod.becomes(&["phase=Succeeded", "second=terminated Completed 0", "Initialized=True PodCompleted"]).await;
    assert_eq!(pod.logs("main", false).await.trim_end(), "onetwo");
}

pub(super) async fn a_failed_init_container_ends_the_pod(pod: Pod) {
    pod.create(json!({"initContainers": [pod.container("init", &[Exit(2)])],
        "containers": [pod.container("main", &[Exit(0)])]}))
        .await;
    pod.becomes(&[
        "phase=Failed",
        "init=terminated Error 2",
        "main=waiting PodInitializing",
        "Initialized=False ContainersNotInitialized",
        "Ready=False PodFailed",
    ])
    .await;
}

pub(super) async fn a_failed_init_container_is_tried_again(pod: Pod) {
    let (volumes, mount) = work();
    // Two tries fail; then there is a file with which the next one is content.
    let init = [Write("/scratch/tried", "yes"), Cat("/scratch/enough")];
    let init = with(pod.container("init", &init), mount.clone());
    let side =
        [OnTerm(143), Await("/scratch/tried", "yes"), Sleep(8000), Write("/scratch/enough", "yes"), Forever];
    let side = with(pod.container("side", &side), mount.clone());
    let side = with(side, json!({"restartPolicy": "Always"}));
    pod.create(json!({"volumes": volumes, "restartPolicy": "OnFailure", "initContainers": [side, init],
        "containers": [with(pod.container("main", &[Cat("/scratch/enough")]), mount)]}))
        .await;
    pod.passes(&[
        "phase=Pending",
        "init=waiting CrashLoopBackOff",
        "init.restartCount=1",
        "init.last=terminated Error 1",
    ])
    .await;
    pod.becomes(&["phase=Succeeded", "init=terminated Completed 0", "main=terminated Completed 0"]).await;
}

/// A sidecar that takes a while to be up and to end, and says so in `/scratch/up`.
fn sidecar(pod: &Pod, mount: &Value) -> Value {
    let side = pod.container("side", &[OnTerm(143), Sleep(500), Write("/scratch/up", "yes"), Forever]);
    with(
        with(side, mount.clone()),
        json!({"restartPolicy": "Always", "lifecycle": {"preStop": {"sleep": {"seconds": 1}}},
            "startupProbe": {"exec": {"command": pod.command(&[Cat("/scratch/up")])}, "periodSeconds": 1,
                // A busy machine takes its time; what is meant is what it says.
                "timeoutSeconds": 20, "failureThreshold": 100}}),
    )
}

pub(super) async fn sidecars_start_first_and_end_last(pod: Pod) {
    let (volumes, mount) = work();
    let main = with(pod.container("main", &[Cat("/scratch/up"), Sleep(500)]), mount.clone());
    pod.create(json!({"volumes": volumes, "terminationGracePeriodSeconds": 5,
        "initContainers": [sidecar(&pod, &mount)], "containers": [main]}))
        .await;
    pod.passes(&["phase=Pending", "side=running", "side.started=false", "main=waiting PodInitializing"])
        .await;
    pod.passes(&["phase=Running", "side=running", "side.ready=true", "main=running"]).await;
    pod.passes(&["main=terminated Completed 0", "side=running"]).await;
    let ended = format!("side={}", Kind::TERMINATED);
    pod.becomes(&["phase=Succeeded", "main=terminated Completed 0", &ended, "side.restartCount=0"]).await;
}

pub(super) async fn sidecars_end_after_deletion_too(pod: Pod) {
    let (volumes, mount) = work();
    pod.create(json!({"volumes": volumes, "terminationGracePeriodSeconds": 5,
        "initContainers": [sidecar(&pod, &mount)], "containers": [pod.container("main", &[OnTerm(143), Print("up"), Forever])]}))
    .await;
    pod.becomes(&["phase=Running", "Ready=True"]).await;
    pod.says("main", "up").await;
    pod.delete().await;
    let ended = format!("main={}", Kind::TERMINATED);
    pod.passes(&[&ended, "side=running", "Ready=False ContainersNotReady"]).await;
    pod.gone().await;
    let ended = [ended, format!("side={}", Kind::TERMINATED)];
    pod.passes(&[&ended[0], &ended[1]]).await;
}

pub(super) async fn the_deadline_ends_the_pod(pod: Pod) {
    let main = pod.container("main", &[OnTerm(143), Print("up"), Forever]);
    pod.create(json!({"restartPolicy": "Always", "containers": [main]})).await;
    pod.becomes(&["main=running"]).await;
    pod.says("main", "up").await;
    // Set when it runs: it may take longer than any deadline to begin.
    let deadline = Patch::Merge(json!({"spec": {"activeDeadlineSeconds": 1}}));
    pod.api().patch(&pod.name, &PatchParams::default(), &deadline).await.expect("a deadline may be set");
    let ended = format!("main={}", Kind::TERMINATED);
    pod.becomes(&[
        "phase=Failed",
        "reason=DeadlineExceeded",
        "message=Pod was active on the node longer than the specified deadline",
        &ended,
        "Ready=False PodFailed",
    ])
    .await;
    pod.event("Warning DeadlineExceeded Pod was active on the node longer than the specified deadline").await;
}

pub(super) async fn memory_is_limited(pod: Pod) {
    let main = with(pod.container("main", &[Grow]), json!({"resources": {"limits": {"memory": "24Mi"}}}));
    pod.create(json!({"containers": [main.clone()]})).await;
    pod.becomes(&["phase=Failed", "main=terminated OOMKilled 137", "qosClass=Burstable"]).await;
    let again = pod.named("again");
    again.create(json!({"restartPolicy": "Always", "containers": [main]})).await;
    again.passes(&["main.restartCount=1", "main.last=terminated OOMKilled 137"]).await;
}

/// What is not there to be run shows when a container is started, and when the image of a component is looked at.
pub(super) async fn what_cannot_start_says_why(pod: Pod) {
    let main = with(pod.container("main", &[]), json!({"command": ["/bin/none"]}));
    if pod.kind == Kind::Wasm {
        let main = with(main, json!({"image": "ketch.local/default/busybox:latest"}));
        pod.create(json!({"runtimeClassName": "ketch-wasm", "containers": [main]})).await;
        pod.becomes(&[
            "phase=Pending",
            "main=waiting ErrImageNotRunnable",
            "main.message~is a container image",
        ])
        .await;
        pod.event("Warning Failed Error: ErrImageNotRunnable").await;
        return;
    }
    pod.create(json!({"containers": [main.clone()]})).await;
    pod.becomes(&["phase=Failed", "main=terminated StartError 128", "main.message~/bin/none"]).await;
    pod.event("Warning Failed Error: ").await;
    let again = pod.named("again");
    again.create(json!({"restartPolicy": "Always", "containers": [main]})).await;
    again.becomes(&["main=waiting CrashLoopBackOff", "main.last=terminated StartError 128"]).await;
}

pub(super) async fn a_pod_can_be_deleted_at_any_time(pod: Pod) {
    let pulling = pod.named("pulling");
    let main = with(pod.container("main", &[]), json!({"image": "ketch.local/default/none:latest"}));
    pulling.create(json!({"containers": [main]})).await;
    let crashing = pod.named("crashing");
    crashing
        .create(json!({"restartPolicy": "Always", "containers": [pod.container("main", &[Exit(1)])]}))
        .await;
    let mounting = pod.named("mounting");
    mounting
        .create(json!({"volumes": [{"name": "v", "configMap": {"name": "never"}}],
            "containers": [pod.container("main", &[])]}))
        .await;
    pulling.becomes(&["main=waiting ImagePullBackOff"]).await;
    crashing.becomes(&["main=waiting CrashLoopBackOff"]).await;
    mounting.becomes(&["main=waiting ContainerCreating"]).await;
    for one in [pulling, crashing, mounting] {
        let begun = Instant::now();
        one.delete().await;
        one.gone().await;
        assert!(begun.elapsed() < Duration::from_secs(10), "{} took {:?}", one.name, begun.elapsed());
    }
}

pub(super) async fn deletion_is_graceful(pod: Pod) {
    let main = pod.container("main", &[OnTerm(143), Print("up"), Forever]);
    pod.create(json!({"terminationGracePeriodSeconds": 60, "containers": [main]})).await;
    pod.becomes(&["phase=Running", "main=running", "Ready=True"]).await;
    pod.says("main", "up").await;
    let begun = Instant::now();
    pod.delete().await;
    pod.event("Normal Killing Stopping container main").await;
    pod.gone().await;
    let ended = format!("main={}", Kind::TERMINATED);
    pod.passes(&[&ended, "phase=Failed", "Ready=False PodFailed"]).await;
    assert!(begun.elapsed() < Duration::from_secs(20), "the grace period was used up: {:?}", begun.elapsed());
}

/// A program that is deaf to SIGTERM; of components only those that serve are waited for.
pub(super) async fn grace_is_limited(pod: Pod) {
    let main = match pod.kind {
        Kind::Wasm => pod.server("main"),
        Kind::Container => pod.container("main", &[Forever]),
    };
    pod.create(json!({"terminationGracePeriodSeconds": 2, "containers": [main]})).await;
    pod.becomes(&["phase=Running", "main=running"]).await;
    let address = format!("{}:8080", pod.fact("podIP"));
    let slow = (pod.kind == Kind::Wasm)
        .then(|| tokio::task::spawn_blocking(move || ketch_tests::get(&address, "slow", "/slow?ms=60000")));
    if slow.is_some() {
        pod.says("main", "/slow").await;
    }
    let begun = Instant::now();
    pod.delete().await;
    pod.gone().await;
    let took = begun.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(15)).contains(&took), "it took {took:?}");
    pod.passes(&["main=terminated Error 137"]).await;
}

pub(super) async fn last_words_are_kept(pod: Pod) {
    let main = pod.container("main", &[Write("/dev/termination-log", "that was it"), Exit(0)]);
    let own = pod.container("own", &[Write("/words/mine", "elsewhere"), Exit(1)]);
    let own = with(own, json!({"terminationMessagePath": "/words/mine"}));
    let from_logs = json!({"terminationMessagePolicy": "FallbackToLogsOnError"});
    let logs = with(pod.container("logs", &[Print("last line"), Exit(2)]), from_logs.clone());
    let quiet = with(pod.container("quiet", &[Print("all is well"), Exit(0)]), from_logs);
    pod.create(json!({"containers": [main, own, logs, quiet]})).await;
    pod.becomes(&[
        "phase=Failed",
        "main.message=that was it",
        "own.message=elsewhere",
        "logs.message~last line",
    ])
    .await;
    assert_eq!(pod.fact("quiet.message"), "");
}

pub(super) async fn most_of_a_pod_is_fixed(pod: Pod) {
    pod.run(&[OnTerm(143), Forever]).await;
    pod.becomes(&["phase=Running"]).await;
    let patch = |patch: Value| {
        let (api, name) = (pod.api(), pod.name.clone());
        async move { api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await }
    };
    for spec in [
        json!({"containers": [{"name": "main", "command": ["other"]}]}),
        json!({"restartPolicy": "Always"}),
        json!({"hostNetwork": true}),
        json!({"nodeName": "elsewhere"}),
    ] {
        let Err(kube::Error::Api(status)) = patch(json!({"spec": spec})).await else {
            panic!("{spec} is taken")
        };
        assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"), "{spec}: {status:?}");
        assert!(status.message.contains("pod updates may not change fields other than"), "{status:?}");
    }
    patch(json!({"metadata": {"labels": {"new": "label"}}, "spec": {"activeDeadlineSeconds": 3600}}))
        .await
        .unwrap();
}
