//! What pods cost that nobody calls.

use std::{
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use ketch_runtime::{PodId, Runtime};
use ketch_runtime_wasm::{InProcessCompiler, Options, WasmRuntime};

use crate::rig::{Guests, Loopback, PATIENCE, Pod, guest, run};

const PODS: u32 = 1000;

/// Bytes per idle pod; the aim is 64 KiB.
const PER_POD: u64 = 48 << 10;

fn lean(dir: &std::path::Path) -> Arc<WasmRuntime> {
    let mut options = Options::new(dir.to_owned(), Arc::new(Loopback), Arc::new(InProcessCompiler));
    options.warm = Duration::from_millis(100);
    Arc::new(WasmRuntime::new(options).unwrap())
}

/// Whether code of the runtime in `dir` is mapped.
fn mapped(dir: &std::path::Path) -> bool {
    std::fs::read_to_string("/proc/self/maps").unwrap().contains(dir.to_str().unwrap())
}

async fn until_unmapped(dir: &std::path::Path) {
    let wait = async {
        while mapped(dir) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the code is let go");
}

#[test]
fn an_idle_service_has_no_code_mapped_and_serves_again() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let runtime = lean(dir.path());
        let pod = Pod::on(Arc::clone(&runtime), "test.local/hello:1", Arc::new(Guests::default()))
            .await
            .start()
            .await;
        assert!(mapped(dir.path()));
        until_unmapped(dir.path()).await;
        for _ in 0..2 {
            assert_eq!(pod.get("/").await.unwrap().0, 200);
            assert!(mapped(dir.path()));
            until_unmapped(dir.path()).await;
        }
        pod.remove().await;
        runtime.shutdown().await;
    });
}

fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

/// Not a test: measures in a process of its own.
#[test]
#[ignore = "called by another test"]
fn measure() {
    let (soft, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    let wanted = hard.min(soft.max(20_000));
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, wanted, hard).unwrap();
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let runtime = lean(dir.path());
        let first = Pod::on(Arc::clone(&runtime), "test.local/hello:1", Arc::new(Guests::default()))
            .await
            .start()
            .await;
        assert_eq!(first.get("/").await.unwrap().0, 200);
        let before = resident();
        let start = Instant::now();
        let mut services = Vec::new();
        for number in 0..PODS {
            let [.., high, low] = number.to_be_bytes();
            let id = PodId(format!("idle-{number}"));
            let ip = [127, 42, 50 + high, low].into();
            let sandbox = ketch_runtime::PodSandbox::new(id.clone(), "default", id.0.clone(), ip);
            runtime.create_pod(sandbox).await.unwrap();
            let mut spec = first.spec.clone();
            spec.id.0 = format!("idle-{number}");
            runtime.start(&id, spec.clone()).await.unwrap();
            services.push(runtime.http(&spec.id).unwrap());
        }
        let started = start.elapsed();
        until_unmapped(dir.path()).await;
        let per_pod = resident().saturating_sub(before) / u64::from(PODS);
        let start = Instant::now();
        assert_eq!(crate::rig::call(&*services[7], "GET", "/", "").await.unwrap().0, 200);
        let cold = start.elapsed();
        println!("per pod: {per_pod}");
        eprintln!("{PODS} pods started in {started:?}; {per_pod} bytes each; first answer after {cold:?}");
        drop(services);
        runtime.shutdown().await;
    });
}

/// Not a test: measures what guests that compute do to others.
#[test]
#[ignore = "a measurement"]
fn neighbours() {
    run(async {
        let limit = Duration::from_secs(3);
        let bad = Pod::of("misbehave").await.with(|spec| spec.request_timeout = limit).start().await;
        let good = Pod::of("hello").await.start().await;
        for spinners in [0, 4, 16] {
            let loops = futures::future::join_all((0..spinners).map(|_| bad.get("/loop")));
            let calls = async {
                let mut times = Vec::new();
                let start = Instant::now();
                while start.elapsed() < Duration::from_secs(2) {
                    let start = Instant::now();
                    assert_eq!(good.get("/").await.unwrap().0, 200);
                    times.push(start.elapsed());
                }
                times.sort();
                eprintln!(
                    "{spinners} spinners: p50 {:?} p99 {:?}",
                    times[times.len() / 2],
                    times[times.len() * 99 / 100]
                );
            };
            futures::future::join(loops, calls).await;
        }
    });
}

#[test]
fn a_thousand_idle_pods_cost_little() {
    guest("hello");
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "density::measure", "--ignored", "--nocapture"]);
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let per_pod = text.lines().find_map(|line| line.strip_prefix("per pod: ")).unwrap();
    let per_pod: u64 = per_pod.parse().unwrap();
    assert!(per_pod <= PER_POD, "{per_pod} bytes per idle pod");
}
