//! Programs that run to their end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ketch_runtime::{Mount, Runtime};

use crate::rig::{Guests, Pod, run};

fn args(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn a_job_sees_its_arguments_environment_and_directories() {
    run(async {
        let pod = Pod::of("job").await;
        let (open, shut) = (pod.dir().join("open"), pod.dir().join("shut"));
        for dir in [&open, &shut] {
            std::fs::create_dir(dir).unwrap();
            std::fs::write(dir.join("in"), "from outside\n").unwrap();
        }
        let mount = |source, target: &str, read_only| Mount {
            source,
            target: target.into(),
            read_only,
            ..Mount::default()
        };
        let pod = pod.with(|spec| {
            spec.env = vec![("EXIT_CODE".into(), "7".into())];
            spec.mounts = vec![mount(open.clone(), "/open", false), mount(shut.clone(), "/shut", true)];
            spec.args = args(&["print", "hi", "cat", "/shut/in", "write", "/open/out", "from inside"]);
        });
        let pod = pod.start().await;
        assert_eq!(pod.end().await, (7, "Error".into(), String::new()));
        assert_eq!(pod.log(), ["stdout F job.wasm starts", "stdout F hi", "stdout F from outside"]);
        assert_eq!(std::fs::read_to_string(open.join("out")).unwrap(), "from inside");
        pod.remove().await;

        let pod = Pod::of("job").await;
        let shut = pod.dir().to_owned();
        let pod = pod.with(|spec| {
            spec.mounts = vec![mount(shut, "/shut", true)];
            spec.args = args(&["write", "/shut/in", "changed"]);
        });
        let pod = pod.start().await;
        assert_eq!(pod.end().await.0, 1);
        pod.logged("stderr F /shut/in").await;
        pod.remove().await;
    });
}

#[test]
fn a_command_replaces_the_programs_name() {
    run(async {
        let pod =
            Pod::of("job").await.with(|spec| spec.command = args(&["renamed", "print", "x"])).start().await;
        assert_eq!(pod.end().await.0, 0);
        assert_eq!(pod.log(), ["stdout F renamed starts", "stdout F x"]);
        pod.remove().await;
    });
}

#[test]
fn a_directory_that_is_not_there_fails_the_start() {
    run(async {
        let pod = Pod::of("job").await.with(|spec| {
            spec.mounts = vec![Mount {
                source: "/no/such".into(),
                target: "/data".into(),
                read_only: true,
                ..Mount::default()
            }];
        });
        let error = pod.runtime.start(&pod.id, pod.spec.clone()).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot mount /no/such at /data"), "{error}");
        pod.remove().await;
    });
}

#[test]
fn a_job_without_end_is_stopped() {
    run(async {
        for action in [args(&["spin"]), args(&["sleep", "0"])] {
            let pod = Pod::of("job").await.with(|spec| spec.args = action).start().await;
            pod.logged("job.wasm starts").await;
            let start = Instant::now();
            pod.runtime.stop(&pod.spec.id, Duration::from_secs(30)).await.unwrap();
            assert!(start.elapsed() < Duration::from_secs(10), "it cannot be asked, so it is not waited for");
            assert_eq!(pod.end().await.0, 143);
            pod.remove().await;
        }
    });
}

#[test]
fn a_job_over_its_memory_is_killed() {
    run(async {
        let pod = Pod::of("job").await.with(|spec| {
            spec.memory = Some(32 << 20);
            spec.args = args(&["grow"]);
        });
        let pod = pod.start().await;
        let (code, reason, message) = pod.end().await;
        assert_eq!((code, reason.as_str()), (137, "OOMKilled"));
        assert!(message.starts_with("needs more memory than its limit of 32 MiB"), "{message}");
        pod.remove().await;
    });
}

#[test]
fn a_panic_is_a_trap_with_a_trace() {
    run(async {
        let pod = Pod::of("job").await.with(|spec| spec.args = args(&["panic"])).start().await;
        let (code, reason, message) = pod.end().await;
        assert_eq!((code, reason.as_str()), (1, "Trapped"));
        assert!(message.contains("wasm backtrace"), "{message}");
        assert!(pod.log().iter().any(|line| line.contains("asked to")), "{:?}", pod.log());
        pod.remove().await;
    });
}

#[test]
fn a_core_module_runs_as_wasi_preview_1() {
    let module = wat::parse_str(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1)
            (data (i32.const 8) "\10\00\00\00\06\00\00\00hello\n")
            (func (export "_start")
                (drop (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 0)))
                (call $exit (i32.const 5))))"#,
    );
    run(async {
        let pod = Pod::from("module:1", Guests::with("module:1", module.unwrap())).await.start().await;
        assert_eq!(pod.end().await, (5, "Error".into(), String::new()));
        assert_eq!(pod.log(), ["stdout F hello"]);
        pod.remove().await;
    });
}

#[test]
fn many_starts_of_one_container_are_one() {
    run(async {
        let pod = Pod::of("job").await.with(|spec| spec.args = args(&["sleep", "0"]));
        let starts = (0..8).map(|_| {
            let (runtime, id, spec) = (Arc::clone(&pod.runtime), pod.id.clone(), pod.spec.clone());
            async move { runtime.start(&id, spec).await }
        });
        for start in futures::future::join_all(starts).await {
            start.unwrap();
        }
        pod.logged("job.wasm starts").await;
        pod.runtime.stop(&pod.spec.id, Duration::ZERO).await.unwrap();
        assert_eq!(pod.log().len(), 1);
        pod.remove().await;
    });
}
