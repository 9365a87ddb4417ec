//! Pods of both kinds: Wasm only, containers only, mixed, not known yet; and after a restart.

use std::{path::PathBuf, sync::Arc};

use ketch_node::{RuntimeEntry, Unavailable};
use serde_json::{Value, json};

use crate::{
    api::Api,
    runtime::Fake,
    setup::{Setup, is_ready, path, pod, start, start_node},
};

/// A node with both runtimes, on a range that has two halves.
fn both(api: Api, wasm: Fake, containers: &Fake, dir: tempfile::TempDir) -> Setup {
    start_node(api, wasm, dir, |options| {
        let runtime = Arc::new(containers.clone());
        options.runtimes.push(RuntimeEntry { handlers: vec!["runc".into()], runtime });
        options.pod_cidr = "10.42.0.0/24".parse().unwrap();
        options.dns = Some(vec!["10.43.0.10".parse().unwrap()]);
    })
}

fn start_both() -> (Setup, Fake) {
    let wasm = Fake::new();
    let containers = wasm.containers();
    (both(Api::new(), wasm, &containers, tempfile::tempdir().unwrap()), containers)
}

fn containers(images: &[&str]) -> Value {
    let one = |(n, image): (usize, &&str)| json!({"name": format!("c{n}"), "image": image});
    json!({"containers": images.iter().enumerate().map(one).collect::<Vec<_>>()})
}

fn namespace(fake: &Fake, uid: &str) -> Option<PathBuf> {
    fake.state.lock().unwrap().sandboxes[uid].network_namespace.clone()
}

#[tokio::test]
async fn a_wasm_pod_has_no_sandbox_and_its_manifest_is_read_once() {
    let (setup, containers) = start_both();
    setup.api.put(&path("web"), pod("web", "web", json!({})));
    let seen = setup.wait("web", "ready", is_ready).await;
    assert_eq!(seen["status"]["podIP"], "10.42.0.2");
    assert_eq!(seen["status"]["containerStatuses"][0]["containerID"], "wasm://uid-web.main.0");
    assert!(containers.state.lock().unwrap().sandboxes.is_empty());
    assert_eq!(namespace(&setup.fake, "uid-web"), None);
    let always = json!({"containers": [{"name": "main", "image": "web:2", "imagePullPolicy": "Always"},
        {"name": "other", "image": "web:2", "imagePullPolicy": "Always"}]});
    setup.api.put(&path("two"), pod("two", "web", always));
    setup.wait("two", "ready", is_ready).await;
    assert_eq!(*setup.images.asked.lock().unwrap(), ["web", "web:2"]);
    setup.node.shutdown().await;
}

#[tokio::test]
async fn a_pod_of_containers_gets_a_sandbox_first() {
    let (setup, oci) = start_both();
    let spec = json!({"hostname": "db", "subdomain": "pg", "shareProcessNamespace": true,
        "securityContext": {"runAsUser": 1000},
        "containers": [{"name": "main", "image": "oci", "securityContext": {"runAsUser": 7}}]});
    setup.api.put(&path("db"), pod("db", "oci", spec));
    let seen = setup.wait("db", "ready", is_ready).await;
    assert_eq!(seen["status"]["podIP"], "10.42.0.130", "the second half");
    assert_eq!(seen["status"]["containerStatuses"][0]["containerID"], "oci://native-uid-db.main.0");
    assert_eq!(setup.fake.order(), ["oci create_pod uid-db", "oci start uid-db.main.0"]);
    let sandbox = oci.state.lock().unwrap().sandboxes["uid-db"].clone();
    assert_eq!(sandbox.hostname, "db");
    assert!(sandbox.namespaces.shared_pid && !sandbox.namespaces.host_network);
    let dns = sandbox.dns.unwrap();
    assert_eq!(
        (dns.servers, &dns.searches[0]),
        (vec!["10.43.0.10".to_owned()], &"default.svc.cluster.local".to_owned())
    );
    assert!(sandbox.logs.ends_with("node/logs/default_db_uid-db"));
    setup.api.delete(&path("db"), 5);
    setup.api.wait(&path("db"), "deleted", |pod| pod.is_none()).await;
    assert!(oci.state.lock().unwrap().pods.is_empty());
    setup.node.shutdown().await;
}

#[tokio::test]
async fn a_mixed_pod_shares_the_sandboxs_namespace() {
    let (setup, _) = start_both();
    setup.api.put(&path("mix"), pod("mix", "", containers(&["web", "oci"])));
    setup.wait("mix", "ready", is_ready).await;
    let order = setup.fake.order();
    assert_eq!(order[0], "oci create_pod uid-mix");
    let at =
        |call: &str| order.iter().position(|one| one == call).unwrap_or_else(|| panic!("{call}: {order:?}"));
    assert!(at("fake create_pod uid-mix") < at("fake start uid-mix.c0.0"));
    assert!(at("oci create_pod uid-mix") < at("oci start uid-mix.c1.0"));
    assert_eq!(namespace(&setup.fake, "uid-mix"), Some("/var/run/netns/fake".into()));
    setup.api.delete(&path("mix"), 5);
    setup.api.wait(&path("mix"), "deleted", |pod| pod.is_none()).await;
    let order = setup.fake.order();
    let removed: Vec<&String> = order.iter().filter(|call| call.contains("remove_pod")).collect();
    assert_eq!(
        removed,
        ["fake remove_pod uid-mix", "oci remove_pod uid-mix"],
        "the namespace's owner is last"
    );
    setup.node.shutdown().await;
}

#[tokio::test]
async fn guests_follow_a_sandbox_that_was_made_again() {
    let (setup, oci) = start_both();
    setup.api.put(&path("mix"), pod("mix", "", containers(&["web", "oci"])));
    setup.wait("mix", "ready", is_ready).await;
    // The sandbox is gone, and its container with it.
    oci.state.lock().unwrap().namespace = Some("/var/run/netns/second".into());
    oci.exit("uid-mix.c1.0", 137);
    let both = |pod: &Value| {
        let restarts = |n: usize| pod["status"]["containerStatuses"][n]["restartCount"].clone();
        restarts(0) == 1 && restarts(1) == 1 && is_ready(pod)
    };
    setup.wait("mix", "both run again", both).await;
    assert_eq!(namespace(&setup.fake, "uid-mix"), Some("/var/run/netns/second".into()));
    setup.node.shutdown().await;
}

#[tokio::test]
async fn an_image_that_cannot_be_looked_at_gets_a_sandbox_and_may_be_anything() {
    let (setup, _) = start_both();
    setup.api.put(&path("late"), pod("late", "", containers(&["missing"])));
    let reason = "/status/containerStatuses/0/state/waiting/reason";
    setup.wait("late", "fails", |pod| pod.pointer(reason).is_some_and(|r| r == "ErrImagePull")).await;
    *setup.images.found.lock().unwrap() = true;
    let seen = setup.wait("late", "ready", is_ready).await;
    assert_eq!(seen["status"]["podIP"], "10.42.0.130");
    assert_eq!(seen["status"]["containerStatuses"][0]["containerID"], "wasm://uid-late.c0.0");
    assert_eq!(namespace(&setup.fake, "uid-late"), Some("/var/run/netns/fake".into()));
    setup.node.shutdown().await;
}

#[tokio::test]
async fn a_restarted_agent_finds_kinds_and_containers_again() {
    let (setup, oci) = start_both();
    setup.api.put(&path("web"), pod("web", "web", json!({})));
    setup.api.put(&path("mix"), pod("mix", "", containers(&["web", "oci"])));
    setup.wait("web", "ready", is_ready).await;
    let before = setup.wait("mix", "ready", is_ready).await;
    setup.node.shutdown().await;
    // Wasm containers end with their process; the others do not.
    let wasm = Fake::new();
    let mut oci = oci;
    oci.order = Arc::clone(&wasm.order);
    // And their runtime takes a moment to answer.
    oci.state.lock().unwrap().unlisted = 2;
    let setup = both(setup.api, wasm, &oci, setup.dir);
    let restarted = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"] == 1 && is_ready(pod);
    let after = setup.wait("mix", "its Wasm container runs again", restarted).await;
    assert_eq!(after["status"]["podIP"], before["status"]["podIP"]);
    let (old, new) = (&before["status"]["containerStatuses"][1], &after["status"]["containerStatuses"][1]);
    assert_eq!(
        (&new["containerID"], &new["state"], &new["restartCount"]),
        (&old["containerID"], &old["state"], &json!(0))
    );
    assert_eq!(namespace(&setup.fake, "uid-mix"), Some("/var/run/netns/fake".into()));
    let web = setup.wait("web", "runs again", restarted).await;
    assert_eq!(web["status"]["podIP"], "10.42.0.2");
    assert_eq!(namespace(&setup.fake, "uid-web"), None);
    assert!(!setup.fake.order().contains(&"oci start uid-mix.c1.0".to_owned()), "{:?}", setup.fake.order());
    assert!(oci.state.lock().unwrap().stopped.is_empty());
    setup.node.shutdown().await;
}

#[tokio::test]
async fn a_runtime_that_hangs_holds_up_its_own_pods_only() {
    let (setup, oci) = start_both();
    setup.api.put(&path("old"), pod("old", "oci", json!({})));
    setup.api.put(&path("web"), pod("web", "web", json!({})));
    for name in ["old", "web"] {
        setup.wait(name, "ready", is_ready).await;
    }
    oci.hangs.send_replace(true);
    // It has something to tell, which cannot be had; and there is something to do.
    oci.exit("uid-old.main.0", 1);
    setup.api.put(&path("new"), pod("new", "oci", json!({})));
    setup.api.put(&path("other"), pod("other", "web", json!({})));
    setup.wait("other", "ready", is_ready).await;
    let restarted = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"] == 1 && is_ready(pod);
    setup.fake.exit("uid-web.main.0", 1);
    setup.wait("web", "runs again", restarted).await;
    for name in ["web", "other"] {
        setup.api.delete(&path(name), 5);
        setup.api.wait(&path(name), "deleted", |pod| pod.is_none()).await;
    }
    oci.hangs.send_replace(false);
    setup.wait("old", "runs again", restarted).await;
    setup.wait("new", "ready", is_ready).await;
    setup.node.shutdown().await;
}

#[tokio::test]
async fn without_a_runtime_for_containers_the_reason_names_the_fix() {
    let setup = start_node(Api::new(), Fake::new(), tempfile::tempdir().unwrap(), |options| {
        let text = "containerd is not running: apt-get install containerd".to_owned();
        options.unavailable.push(Unavailable { handlers: vec!["runc".into()], text });
    });
    setup.api.put(&path("mix"), pod("mix", "", containers(&["web", "oci"])));
    let waiting = "/status/containerStatuses/1/state/waiting";
    let seen = setup
        .wait("mix", "fails", |pod| {
            pod.pointer(waiting).is_some_and(|w| w["reason"] == "ErrImageNotRunnable")
        })
        .await;
    let fix =
        "containers are not available on this node: containerd is not running: apt-get install containerd";
    assert_eq!(seen.pointer(waiting).unwrap()["message"], fix);
    assert!(setup.api.wait_event("mix", "Failed").await.ends_with(fix));
    setup.api.put(&path("forced"), pod("forced", "web", json!({"runtimeClassName": "runc"})));
    let message = setup.api.wait_event("forced", "FailedCreatePodSandBox").await;
    assert_eq!(message, format!("RuntimeClass \"runc\": {fix}"));
    let node = setup.api.wait("/api/v1/nodes/n1", "says so", |node| {
        let conditions = node.and_then(|node| node["status"]["conditions"].as_array());
        conditions.is_some_and(|all| {
            all.iter().any(|one| one["message"].as_str().is_some_and(|text| text.contains(fix)))
        })
    });
    node.await;
    setup.node.shutdown().await;
}

#[tokio::test]
async fn a_class_that_does_not_fit_the_image_says_so() {
    let (setup, _) = start_both();
    for (name, class, image, words) in [
        (
            "a",
            "ketch-wasm",
            "oci",
            "oci is a container image, but runtimeClassName \"ketch-wasm\" runs WebAssembly",
        ),
        ("b", "runc", "web", "web is a WebAssembly image, but runtimeClassName \"runc\" runs containers"),
    ] {
        setup.api.put(&path(name), pod(name, image, json!({"runtimeClassName": class})));
        let waiting = "/status/containerStatuses/0/state/waiting";
        let seen = setup
            .wait(name, "fails", |pod| {
                pod.pointer(waiting).is_some_and(|w| w["reason"] == "ErrImageNotRunnable")
            })
            .await;
        let message = seen.pointer(waiting).unwrap()["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with(words), "{message}");
    }
    setup.node.shutdown().await;
}

#[tokio::test]
async fn a_pod_on_the_hosts_network_has_its_address() {
    let setup = start();
    setup.api.put(&path("host"), pod("host", "web", json!({"hostNetwork": true})));
    let seen = setup.wait("host", "ready", is_ready).await;
    assert_eq!(seen["status"]["podIP"], "192.0.2.1");
    setup.api.put(&path("web"), pod("web", "web", json!({})));
    let seen = setup.wait("web", "ready", is_ready).await;
    assert_eq!(seen["status"]["podIP"], "127.42.0.2", "none of the pods' addresses was taken");
    setup.node.shutdown().await;
}

#[tokio::test]
async fn exec_probes_and_hooks_run_in_containers() {
    let (setup, oci) = start_both();
    oci.state.lock().unwrap().exec = Some((1, "no database yet"));
    let probe = json!({"containers": [{"name": "main", "image": "oci",
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/drain", "now"]}}},
        "readinessProbe": {"exec": {"command": ["/bin/check"]}, "periodSeconds": 1, "failureThreshold": 1}}]});
    setup.api.put(&path("db"), pod("db", "oci", probe));
    assert_eq!(setup.api.wait_event("db", "Unhealthy").await, "Readiness probe failed: no database yet");
    oci.state.lock().unwrap().exec = Some((0, ""));
    setup.wait("db", "ready", is_ready).await;
    setup.api.delete(&path("db"), 5);
    setup.api.wait(&path("db"), "deleted", |pod| pod.is_none()).await;
    let commands = oci.state.lock().unwrap().commands.clone();
    assert_eq!(commands.first().unwrap(), "uid-db.main.0 /bin/check");
    assert!(commands.contains(&"uid-db.main.0 /bin/drain now".to_owned()), "{commands:?}");
    setup.node.shutdown().await;
}

#[tokio::test]
async fn exec_in_wasm_containers_is_skipped_with_a_word() {
    let setup = start();
    let hook = json!({"containers": [{"name": "main", "image": "web",
        "lifecycle": {"postStart": {"exec": {"command": ["/bin/warm"]}}},
        "livenessProbe": {"exec": {"command": ["/bin/check"]}}}]});
    setup.api.put(&path("web"), pod("web", "web", hook));
    setup.wait("web", "ready", is_ready).await;
    let text = setup.api.wait_event("web", "Unsupported").await;
    assert!(text.contains("not supported in Wasm containers"), "{text}");
    setup.node.shutdown().await;
}

#[tokio::test]
async fn a_failing_post_start_program_fails_the_start() {
    let (setup, oci) = start_both();
    oci.state.lock().unwrap().exec = Some((3, "cold"));
    let hook = json!({"containers": [{"name": "main", "image": "oci",
        "lifecycle": {"postStart": {"exec": {"command": ["/bin/warm"]}}}}]});
    setup.api.put(&path("db"), pod("db", "oci", hook));
    let text = setup.api.wait_event("db", "FailedPostStartHook").await;
    assert_eq!(text, "PostStartHook failed: exec [\"/bin/warm\"]: cold");
    setup.node.shutdown().await;
}
