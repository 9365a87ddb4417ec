//! Containers: environment, mounts, users, limits, ends.

use std::time::Duration;

use ketch_runtime::{ContainerState, Mount, Runtime};

use crate::rig::Rig;

#[tokio::test(flavor = "multi_thread")]
async fn containers_get_what_their_spec_says() {
    let Some(rig) = Rig::new().await else { return };
    let mut pod = rig.pod("spec", 2);
    pod.security.fs_group = Some(4242);
    pod.hostname = "named".into();
    rig.runtime.create_pod(pod.clone()).await.unwrap();
    let shared = rig.dir.path().join("shared");
    std::fs::create_dir_all(&shared).unwrap();
    std::fs::write(shared.join("file"), "from the host").unwrap();
    let script = "echo $GREETING $FROM_IMAGE; cat /shared/file; echo; touch /shared/new 2>/dev/null || echo refused; \
                  touch /new 2>/dev/null || echo sealed; id -u; id -G; cat /etc/hostname; pwd; \
                  cat /proc/self/status | while read k v; do [ $k = NoNewPrivs: -o $k = Seccomp: ] && echo $k$v; done";
    let mut spec = rig.script(&pod, "spec", script).await;
    spec.env = vec![("GREETING".into(), "hello".into())];
    spec.mounts =
        vec![Mount { source: shared, target: "/shared".into(), read_only: true, ..Mount::default() }];
    spec.security.read_only_root_filesystem = Some(true);
    spec.security.allow_privilege_escalation = Some(false);
    spec.security.run_as_user = Some(33);
    spec.oom_score = 500;
    let (code, _, text) = rig.run_spec(&pod, spec).await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "hello yes",
            "from the host",
            "refused",
            "sealed",
            "33",
            "33 4242",
            "named",
            "/tmp",
            "NoNewPrivs:1",
            "Seccomp:2"
        ]
    );
    assert_eq!(code, 1, "the last test of the last line fails");
    rig.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_told_as_it_was() {
    let Some(rig) = Rig::new().await else { return };
    let pod = rig.made("ends", 2).await;
    // Memory.
    let mut spec = rig.script(&pod, "oom", "x=a; while :; do x=$x$x$x$x; done").await;
    spec.memory = Some(32 << 20);
    let (code, reason, _) = rig.run_spec(&pod, spec).await;
    assert_eq!((code, reason.as_str()), (137, "OOMKilled"));
    // A program that is not there.
    let mut spec = rig.script(&pod, "missing", "").await;
    spec.command = vec!["/bin/none".into()];
    let error = rig.runtime.start(&pod.id, spec.clone()).await.unwrap_err();
    assert!(error.to_string().contains("no such file or directory"), "{error}");
    let ended = rig.until(&spec.id, |state| matches!(state, ContainerState::Exited { .. })).await;
    let ContainerState::Exited { code, reason, .. } = ended else { panic!("not over") };
    assert_eq!((code, reason.as_str()), (128, "StartError"));
    // SIGTERM that is ignored, and one that is obeyed.
    let running = |state: &ContainerState| matches!(state, ContainerState::Running { .. });
    let deaf = rig.script(&pod, "deaf", "trap '' TERM; echo up; while :; do sleep 1; done").await;
    let kind = rig.script(&pod, "kind", "trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done").await;
    for (spec, wanted) in [(&deaf, 137), (&kind, 7)] {
        rig.runtime.start(&pod.id, spec.clone()).await.unwrap();
        rig.until(&spec.id, running).await;
        while !std::fs::read_to_string(&spec.log).is_ok_and(|text| text.contains("up")) {
            tokio::task::yield_now().await;
        }
        rig.runtime.stop(&spec.id, Duration::from_secs(2)).await.unwrap();
        let Some(ContainerState::Exited { code, .. }) = rig.state(&spec.id).await else { panic!("not over") };
        assert_eq!(code, wanted, "{}", spec.name);
    }
    rig.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_are_limited_and_memory_and_time_are_measured() {
    let Some(rig) = Rig::new().await else { return };
    let pod = rig.made("limits", 2).await;
    let script = "i=0; while [ $i -lt 5000 ]; do sleep 100 & i=$((i+1)); done; echo $i";
    let (code, _, text) = rig.run(&pod, "bomb", script).await;
    assert!(code != 0 && text.contains("can't fork"), "{code} {text}");
    let spec = rig.script(&pod, "busy", "while :; do :; done").await;
    rig.runtime.start(&pod.id, spec.clone()).await.unwrap();
    let measured = async {
        loop {
            let usage = rig.runtime.usage(&spec.id).await.expect("usage works");
            if usage.cpu > Duration::from_millis(50) && usage.memory > 0 {
                return;
            }
        }
    };
    tokio::time::timeout(crate::rig::PATIENCE, measured).await.expect("it uses something");
    rig.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_rotated() {
    let Some(rig) = Rig::new().await else { return };
    let pod = rig.made("logs", 2).await;
    let line = "x".repeat(1000);
    let script = format!(
        "i=0; while [ $i -lt 12000 ]; do echo {line}; i=$((i+1)); done; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo last"
    );
    let spec = rig.script(&pod, "main", &script).await;
    rig.runtime.start(&pod.id, spec.clone()).await.unwrap();
    let old = spec.log.with_extension("log.1");
    let rotated = async {
        while !(old.exists() && spec.log.exists()) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(crate::rig::PATIENCE, rotated).await.expect("the log is rotated");
    let streams = ketch_runtime::Streams { stdout: true, ..ketch_runtime::Streams::default() };
    let command = vec!["touch".to_owned(), "/tmp/go".to_owned()];
    assert_eq!(rig.runtime.exec(&spec.id, command, streams).await.unwrap().exit.await.unwrap(), 0);
    rig.until(&spec.id, |state| matches!(state, ContainerState::Exited { .. })).await;
    let text = std::fs::read_to_string(&spec.log).unwrap();
    assert!(text.ends_with("stdout F last\n"), "what comes later is in the new file");
    rig.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_is_refused_where_it_must_be() {
    let Some(rig) = Rig::new().await else { return };
    let pod = rig.made("nonroot", 2).await;
    let mut spec = rig.script(&pod, "main", "true").await;
    spec.security.run_as_non_root = Some(true);
    let error = rig.runtime.start(&pod.id, spec.clone()).await.unwrap_err();
    assert!(matches!(error, ketch_runtime::Error::Config(_)), "{error:?}");
    spec.security.run_as_user = Some(33);
    assert_eq!(rig.run_spec(&pod, spec).await.0, 0);
    rig.done().await;
}
