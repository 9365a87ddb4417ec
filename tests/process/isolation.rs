//! A component that misbehaves harms itself only.

use std::time::{Duration, Instant};

use ketch_tests::{Ketch, until};

/// Time of the slowest of `n` calls but one in a hundred.
fn p99(ketch: &Ketch, n: usize) -> Duration {
    let mut times: Vec<Duration> = (0..n)
        .map(|_| {
            let start = Instant::now();
            let (status, body) = ketch.call("hello", "/").unwrap();
            assert_eq!(status, 200, "{body}");
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[n * 99 / 100]
}

#[test]
fn neighbours_of_a_misbehaving_component_stay_well() {
    let ketch = Ketch::start();
    ketch.deploy("hello", &[]);
    ketch.kubectl_ok(&["version"]);
    ketch.deploy("misbehave", &[]);
    ketch.kubectl_ok(&[
        "patch",
        "function",
        "misbehave",
        "--type=merge",
        "-p",
        r#"{"spec":{"timeoutSeconds":2}}"#,
    ]);
    until("the shorter time-out", || {
        let traffic = ketch.kubectl_ok(&[
            "get",
            "function",
            "misbehave",
            "-o",
            "jsonpath={.status.traffic[0].revisionName}",
        ]);
        if traffic == "misbehave-00002" { Ok(()) } else { Err(traffic) }
    });
    let quiet = p99(&ketch, 200);
    std::thread::scope(|scope| {
        let attacks: Vec<_> = ["/loop", "/alloc", "/panic", "/flood?n=1000", "/sockets?n=100000"]
            .map(|path| {
                (
                    path,
                    scope.spawn({
                        let ketch = &ketch;
                        move || ketch.call("misbehave", path)
                    }),
                )
            })
            .into();
        let busy = p99(&ketch, 200);
        eprintln!("p99 of the neighbour: quiet {quiet:?}, under attack {busy:?}");
        for (path, attack) in attacks {
            let (status, body) = attack.join().unwrap().unwrap();
            match path {
                "/loop" => assert_eq!(status, 504, "{body}"),
                "/alloc" | "/panic" => assert_eq!(status, 502, "{path}: {body}"),
                "/flood?n=1000" => assert_eq!((status, body.as_str()), (200, "flooded\n")),
                // As many as it may have.
                _ => {
                    assert_eq!(status, 200, "{path}: {body}");
                    let opened: usize = body.trim().parse().unwrap();
                    assert!((1..100_000).contains(&opened), "{opened} sockets");
                }
            }
        }
    });
    assert_eq!(ketch.call("hello", "/").unwrap().0, 200);
    assert_eq!(ketch.ui("/readyz").unwrap().0, 200);
    let restarts = ketch.kubectl_ok(&[
        "get",
        "pods",
        "-l",
        "ketch.dev/function=hello",
        "-o",
        "jsonpath={.items[*].status.containerStatuses[0].restartCount}",
    ]);
    assert_eq!(restarts, "0");
}

#[test]
fn a_job_that_fails_says_why() {
    let ketch = Ketch::start();
    ketch_tests::succeeded(
        "deploy",
        ketch.ketch(&["deploy", ketch_tests::guest("job").to_str().unwrap(), "--env", "EXIT_CODE=0"]),
    );
    let phase = until("the end of the job", || {
        let phase = ketch.kubectl_ok(&[
            "get",
            "pods",
            "-l",
            "app.kubernetes.io/name=job",
            "-o",
            "jsonpath={.items[0].status.phase}",
        ]);
        if phase == "Succeeded" || phase == "Failed" { Ok(phase) } else { Err(phase) }
    });
    assert_eq!(phase, "Succeeded");
}
