//! HTTP components.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::future::join_all;
use ketch_runtime::{ContainerState, HttpError, Reuse, Runtime, log::LogLimits};
use ketch_runtime_wasm::{InProcessCompiler, Options, WasmRuntime};

use crate::rig::{Loopback, PATIENCE, Pod, fetch, run};

#[test]
fn hello_answers_in_process_and_over_its_socket() {
    run(async {
        let pod = Pod::of("hello")
            .await
            .with(|spec| spec.env = vec![("GREETING".into(), "Ahoy".into())])
            .start()
            .await;
        assert_eq!(pod.get("/").await.unwrap(), (200, "Ahoy\n".into()));
        let address = SocketAddr::new(pod.ip, 18080);
        assert_eq!(fetch(address, "/").await, (200, "Ahoy\n".into()));
        let env = format!("HOSTNAME={}\nGREETING=Ahoy\n", pod.id.0.replace("pod-", "test-"));
        assert_eq!(fetch(address, "/env").await, (200, env));
        assert_eq!(pod.send("POST", "/echo", "there and back").await.unwrap().1, "there and back");
        assert_eq!(pod.get("/big?n=300000").await.unwrap().1.len(), 300_000);
        assert_eq!(pod.get("/slow?ms=20").await.unwrap().1, "slow\n");
        let usage = pod.runtime.usage(&pod.spec.id).await.unwrap();
        assert_eq!((usage.requests, usage.instances), (6, 6), "one instance per request");
        assert!(usage.cpu > Duration::ZERO);
        pod.logged("stdout F POST /echo").await;
        pod.remove().await;
    });
}

#[test]
fn a_stopped_service_is_gone() {
    run(async {
        let pod = Pod::of("hello").await.start().await;
        let service = pod.http();
        let address = SocketAddr::new(pod.ip, 18080);
        pod.runtime.stop(&pod.spec.id, PATIENCE).await.unwrap();
        assert_eq!(pod.end().await, (0, "Completed".into(), String::new()));
        assert!(tokio::net::TcpStream::connect(address).await.is_err(), "the socket is closed");
        assert!(matches!(crate::rig::call(&*service, "GET", "/", "").await, Err(HttpError::NotRunning)));
        pod.remove().await;
    });
}

#[test]
fn stop_waits_for_requests_in_flight_but_not_longer_than_the_grace_period() {
    run(async {
        let pod = Pod::of("hello").await.start().await;
        let address = SocketAddr::new(pod.ip, 18080);
        let (answer, ()) = tokio::join!(fetch(address, "/slow?ms=300"), async {
            pod.logged("/slow").await;
            pod.runtime.stop(&pod.spec.id, PATIENCE).await.unwrap();
        });
        assert_eq!(answer, (200, "slow\n".into()));
        assert_eq!(pod.end().await.0, 0);
        pod.remove().await;

        let pod = Pod::of("hello").await.start().await;
        let (answer, ()) = tokio::join!(pod.get("/slow?ms=100000"), async {
            pod.logged("/slow").await;
            pod.runtime.stop(&pod.spec.id, Duration::from_millis(20)).await.unwrap();
        });
        assert!(answer.is_err());
        assert_eq!(pod.end().await.0, 137);
        pod.remove().await;
    });
}

#[test]
fn a_port_that_is_taken_fails_the_start() {
    run(async {
        let first = Pod::of("hello").await.start().await;
        let mut second = Pod::of("hello").await;
        second.spec.id.0.push_str("-second");
        let error = first.runtime.start(&first.id, second.spec.clone()).await.unwrap_err();
        assert!(error.to_string().starts_with(&format!("cannot listen on {}:18080", first.ip)), "{error}");
        let all = first.runtime.list().await.unwrap();
        assert!(all.iter().all(|status| status.id != second.spec.id), "a failed start leaves nothing");
        first.remove().await;
        second.remove().await;
    });
}

#[test]
fn a_request_out_of_time_is_ended_and_neighbours_go_on() {
    run(async {
        let limit = Duration::from_secs(1);
        let bad = Pod::of("misbehave").await.with(|spec| spec.request_timeout = limit).start().await;
        let good = Pod::of("hello").await.start().await;
        let loops = join_all((0..4).map(|_| bad.get("/loop")));
        let served = async {
            for _ in 0..20 {
                assert_eq!(good.get("/").await.unwrap().0, 200);
            }
        };
        let (ends, ()) = tokio::join!(loops, served);
        for end in ends {
            assert!(matches!(end, Err(HttpError::Timeout(time)) if time == limit), "{end:?}");
        }
        assert_eq!(bad.get("/ok").await.unwrap().1, "ok\n");
        bad.idle().await;
        bad.remove().await;
        good.remove().await;
    });
}

#[test]
fn guests_that_fail_give_502_texts_and_traces() {
    run(async {
        let pod = Pod::of("misbehave").await.with(|spec| spec.memory = Some(16 << 20)).start().await;
        let failed = async |path: &str| match pod.get(path).await {
            Err(error @ HttpError::Failed(_)) => error.to_string(),
            other => panic!("{path}: {other:?}"),
        };
        assert_eq!(
            failed("/alloc").await,
            "the component failed: it needs more memory than its limit of 16 MiB"
        );
        let panicked = failed("/panic").await;
        assert!(
            panicked.contains("it trapped: wasm trap: wasm `unreachable` instruction executed"),
            "{panicked}"
        );
        assert_eq!(failed("/silent").await, "the component failed: it returned without a response");
        assert!(failed("/random?n=100000000").await.contains("it"), "too much at once traps");
        assert_eq!(pod.get("/headers?n=20").await.unwrap().1, "20\n");
        assert!(failed("/headers?n=100").await.contains("size of fields exceeds limit"));
        assert_eq!(pod.get("/ok").await.unwrap().1, "ok\n");
        pod.logged("asked to panic").await;
        pod.logged("wasm backtrace").await;
        pod.idle().await;
        let address = SocketAddr::new(pod.ip, 18080);
        let (status, text) = fetch(address, "/panic").await;
        assert_eq!(status, 502);
        assert!(text.starts_with("the component failed: it trapped"), "{text}");
        assert!(matches!(pod.state().await, ContainerState::Running { .. }), "the service goes on");
        pod.remove().await;
    });
}

#[test]
fn only_so_many_requests_at_a_time() {
    run(async {
        let pod = Pod::of("hello").await.with(|spec| spec.concurrency = Some(1)).start().await;
        let (slow, refused) = tokio::join!(pod.get("/slow?ms=200"), async {
            pod.logged("/slow").await;
            pod.get("/").await
        });
        assert_eq!(slow.unwrap().0, 200);
        assert!(matches!(refused, Err(HttpError::Overloaded)), "{refused:?}");
        assert_eq!(pod.get("/").await.unwrap().0, 200);
        pod.remove().await;
    });
}

#[test]
fn processor_time_is_limited() {
    run(async {
        let pod = Pod::of("misbehave").await.with(|spec| spec.cpu_millis = Some(100)).start().await;
        let start = std::time::Instant::now();
        assert_eq!(pod.get("/burn?ms=400").await.unwrap().0, 200);
        assert_eq!(pod.get("/burn?ms=1").await.unwrap().0, 200);
        let wall = start.elapsed();
        let cpu = pod.runtime.usage(&pod.spec.id).await.unwrap().cpu;
        // A tenth of a core, a burst of 10 ms, and a tick's slack at each end.
        assert!(cpu <= wall / 10 + Duration::from_millis(60), "{cpu:?} in {wall:?}");
        pod.remove().await;
    });
}

#[test]
fn a_flood_of_lines_is_cut_and_said_so() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let mut options =
            Options::new(dir.path().to_owned(), Arc::new(Loopback), Arc::new(InProcessCompiler));
        options.logs = LogLimits { rate: 1 << 10, burst: 1 << 16, ..LogLimits::default() };
        let runtime = Arc::new(WasmRuntime::new(options).unwrap());
        let pod = Pod::on(Arc::clone(&runtime), "test.local/misbehave:1", Arc::default()).await.start().await;
        assert_eq!(pod.get("/flood?n=20000").await.unwrap().0, 200);
        pod.logged("log lines dropped").await;
        let kept = pod.log().len();
        assert!((100..5000).contains(&kept), "{kept} lines kept");
        pod.remove().await;
        runtime.shutdown().await;
    });
}

#[test]
fn reuse_of_0_2_instances_is_one_request_after_the_other() {
    run(async {
        let reuse = Reuse { requests: Some(3), ..Reuse::default() };
        let pod = Pod::of("hello").await.with(|spec| spec.reuse = reuse).start().await;
        for _ in 0..6 {
            assert_eq!(pod.get("/").await.unwrap().0, 200);
        }
        let instances = pod.runtime.usage(&pod.spec.id).await.unwrap().instances;
        assert!((2..=4).contains(&instances), "{instances} for 6 requests");
        let at_once = join_all((0..3).map(|_| pod.get("/slow?ms=50"))).await;
        assert!(at_once.iter().all(|answer| answer.as_ref().unwrap().0 == 200));
        pod.remove().await;
    });
}

#[test]
fn a_0_3_component_serves_many_requests_with_one_instance() {
    run(async {
        let pod = Pod::of("hello-p3").await.start().await;
        assert_eq!(pod.get("/").await.unwrap(), (200, "Hello from WASI 0.3!\n".into()));
        let answers = join_all((0..10).map(|_| pod.get("/slow?ms=300"))).await;
        assert!(answers.iter().all(|answer| answer.as_ref().unwrap().1 == "slow\n"));
        let usage = pod.runtime.usage(&pod.spec.id).await.unwrap();
        assert_eq!(usage.requests, 11);
        assert!(usage.instances <= 6, "{} instances for 11 requests", usage.instances);
        assert_eq!(pod.get("/big?n=300000").await.unwrap().1.len(), 300_000);
        let address = SocketAddr::new(pod.ip, 18080);
        assert_eq!(fetch(address, "/").await.1, "Hello from WASI 0.3!\n");
        pod.idle().await;
        pod.remove().await;
    });
}

#[test]
fn a_0_3_instance_serves_as_many_requests_as_it_may() {
    run(async {
        let reuse = Reuse { requests: Some(2), concurrent: Some(1), idle: Some(PATIENCE) };
        let pod = Pod::of("hello-p3").await.with(|spec| spec.reuse = reuse).start().await;
        let mut counts = Vec::new();
        for _ in 0..4 {
            counts.push(pod.get("/count").await.unwrap().1);
        }
        assert_eq!(counts, ["1\n", "2\n", "1\n", "2\n"]);
        pod.remove().await;

        let reuse = Reuse { requests: Some(1), ..Reuse::default() };
        let pod = Pod::of("hello-p3").await.with(|spec| spec.reuse = reuse).start().await;
        for _ in 0..2 {
            assert_eq!(pod.get("/count").await.unwrap().1, "1\n");
        }
        pod.remove().await;
    });
}

#[test]
fn a_0_3_instance_that_fails_or_hangs_is_replaced() {
    run(async {
        let limit = Duration::from_secs(1);
        let pod = Pod::of("hello-p3").await.with(|spec| spec.request_timeout = limit).start().await;
        assert!(matches!(pod.get("/loop").await, Err(HttpError::Timeout(_))));
        assert_eq!(pod.get("/").await.unwrap().0, 200);
        assert!(matches!(pod.get("/slow?ms=100000").await, Err(HttpError::Timeout(_))));
        let error = pod.get("/panic").await.unwrap_err().to_string();
        assert!(error.contains("it trapped"), "{error}");
        assert_eq!(pod.get("/").await.unwrap().0, 200);
        pod.idle().await;
        pod.remove().await;
    });
}

#[test]
fn key_values_outlive_instances_but_not_pods() {
    run(async {
        let pod = Pod::of("counter")
            .await
            .with(|spec| spec.env = vec![("bucket".into(), "b".into())])
            .start()
            .await;
        for expected in ["1\n", "2\n", "3\n"] {
            assert_eq!(pod.get("/hits").await.unwrap(), (200, expected.into()));
        }
        assert_eq!(pod.get("/other").await.unwrap().1, "1\n");
        pod.remove().await;
        let pod = Pod::of("counter").await.start().await;
        assert_eq!(pod.get("/hits").await.unwrap().1, "1\n");
        pod.remove().await;
    });
}
