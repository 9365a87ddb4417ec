//! A pod's life, as the API sees it.

use serde_json::json;

use crate::{
    runtime::Fake,
    setup::{condition, is_ready, path, pod, start, start_with},
};

#[tokio::test]
async fn a_bound_pod_runs_and_its_status_has_upstreams_shape() {
    let setup = start();
    setup.api.put(&path("web"), pod("web", "web", json!({})));
    let seen = setup.wait("web", "ready", is_ready).await;
    let status = &seen["status"];
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["hostIP"], "192.0.2.1");
    assert_eq!(status["hostIPs"][0]["ip"], "192.0.2.1");
    assert_eq!(status["podIP"], "127.42.0.2");
    assert_eq!(status["podIPs"][0]["ip"], "127.42.0.2");
    assert_eq!(status["observedGeneration"], 1);
    assert_eq!(status["qosClass"], "BestEffort");
    for kind in ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready", "PodScheduled"] {
        assert_eq!(condition(&seen, kind), "True", "{kind}");
    }
    let container = &status["containerStatuses"][0];
    assert_eq!(container["name"], "main");
    assert_eq!(container["ready"], true);
    assert_eq!(container["started"], true);
    assert_eq!(container["restartCount"], 0);
    assert_eq!(container["imageID"], "web@sha256:00");
    assert_eq!(container["containerID"], "wasm://uid-web.main.0");
    assert!(container["state"]["running"]["startedAt"].is_string());
    // A quick start is one write.
    let writes = setup
        .api
        .requests()
        .iter()
        .filter(|r| r.starts_with("PATCH") && r.ends_with("/pods/web/status"))
        .count();
    assert_eq!(writes, 1);
    for reason in ["Pulled", "Created", "Started"] {
        setup.api.wait_event("web", reason).await;
    }
    let address = "127.42.0.2:8080".parse().unwrap();
    assert!(setup.node.services().by_address(address).is_some());
    setup.node.shutdown().await;
}

#[tokio::test]
async fn deletion_ends_the_container_then_the_object() {
    let setup = start();
    setup.api.put(&path("web"), pod("web", "web", json!({})));
    setup.wait("web", "ready", is_ready).await;
    setup.api.delete(&path("web"), 5);
    setup.api.wait(&path("web"), "deleted", |pod| pod.is_none()).await;
    let history = setup.api.history(&path("web"));
    let last = &history[history.len() - 1];
    assert_eq!(last["status"]["phase"], "Failed");
    assert_eq!(last["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 143);
    assert!(
        history.iter().any(|pod| condition(pod, "Ready") == "False" && pod["status"]["phase"] == "Running"),
        "readiness goes before the container does"
    );
    assert!(setup.fake.state.lock().unwrap().pods.is_empty());
    assert!(setup.node.services().by_address("127.42.0.2:8080".parse().unwrap()).is_none());
    setup.api.wait_event("web", "Killing").await;
    setup.node.shutdown().await;
}

#[tokio::test]
async fn a_pod_deleted_by_force_leaves_nothing_behind() {
    let setup = start();
    setup.api.put(&path("web"), pod("web", "web", json!({})));
    setup.wait("web", "ready", is_ready).await;
    setup.api.delete(&path("web"), 0);
    // Its name can be used again at once.
    let mut again = pod("web", "web", json!({}));
    again["metadata"]["uid"] = json!("uid-again");
    setup.api.put(&path("web"), again);
    setup
        .wait("web", "the new pod is ready", |pod| is_ready(pod) && pod["metadata"]["uid"] == "uid-again")
        .await;
    setup
        .api
        .wait("/none", "the old container is gone", |_| setup.fake.running() == ["uid-again.main.0"])
        .await;
    setup.node.shutdown().await;
}

#[tokio::test]
async fn a_job_succeeds_and_keeps_its_object() {
    let setup = start();
    setup.api.put(&path("job"), pod("job", "job", json!({"restartPolicy": "Never"})));
    let seen = setup.wait("job", "done", |pod| pod["status"]["phase"] == "Succeeded").await;
    let terminated = &seen["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(terminated["exitCode"], 0);
    assert_eq!(terminated["reason"], "Completed");
    assert_eq!(condition(&seen, "Ready"), "False");
    assert_eq!(condition(&seen, "Initialized"), "True");
    setup.node.shutdown().await;
}

#[tokio::test]
async fn a_crashing_container_backs_off() {
    let setup = start();
    setup.api.put(&path("crash"), pod("crash", "crash", json!({})));
    let waiting = "/status/containerStatuses/0/state/waiting/reason";
    let seen = setup
        .wait("crash", "backs off", |pod| pod.pointer(waiting).is_some_and(|r| r == "CrashLoopBackOff"))
        .await;
    let container = &seen["status"]["containerStatuses"][0];
    assert_eq!(container["restartCount"], 1);
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(
        container["state"]["waiting"]["message"],
        "back-off 10s restarting failed container=main pod=crash_default(uid-crash)"
    );
    assert_eq!(seen["status"]["phase"], "Running");
    setup.node.shutdown().await;
}

#[tokio::test]
async fn init_containers_run_in_order_before_the_others() {
    let setup = start();
    let init = json!({"initContainers": [{"name": "a", "image": "job"}, {"name": "b", "image": "job"}]});
    setup.api.put(&path("web"), pod("web", "web", init));
    let seen = setup.wait("web", "ready", is_ready).await;
    let init = seen["status"]["initContainerStatuses"].as_array().unwrap();
    assert!(init.iter().all(|one| one["state"]["terminated"]["exitCode"] == 0 && one["ready"] == true));
    let started = |id: &str| match setup.fake.state.lock().unwrap().containers[id].state {
        ketch_runtime::ContainerState::Exited { started, .. }
        | ketch_runtime::ContainerState::Running { started } => started,
        ketch_runtime::ContainerState::Created => panic!("not started"),
    };
    assert!(started("uid-web.a.0") <= started("uid-web.b.0"));
    assert!(started("uid-web.b.0") <= started("uid-web.main.0"));
    setup.node.shutdown().await;
}

#[tokio::test]
async fn a_failing_readiness_probe_keeps_the_pod_unready() {
    let setup = start();
    setup.fake.state.lock().unwrap().http = 500;
    let probe = json!({"containers": [{"name": "main", "image": "web", "ports": [{"containerPort": 8080, "name": "http"}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 1, "failureThreshold": 1}}]});
    setup.api.put(&path("web"), pod("web", "web", probe));
    setup.wait("web", "runs", |pod| pod["status"]["phase"] == "Running").await;
    let message = setup.api.wait_event("web", "Unhealthy").await;
    assert_eq!(message, "Readiness probe failed: HTTP probe failed with statuscode: 500");
    assert_eq!(condition(&setup.api.get(&path("web")).unwrap(), "Ready"), "False");
    setup.fake.state.lock().unwrap().http = 204;
    setup.wait("web", "ready", is_ready).await;
    assert!(setup.fake.state.lock().unwrap().calls.iter().all(|path| path == "/ready"));
    setup.node.shutdown().await;
}

#[tokio::test]
async fn a_failing_liveness_probe_restarts_the_container() {
    let setup = start();
    setup.fake.state.lock().unwrap().http = 503;
    let probe = json!({"containers": [{"name": "main", "image": "web", "ports": [{"containerPort": 8080}],
        "livenessProbe": {"httpGet": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 1}}]});
    setup.api.put(&path("web"), pod("web", "web", probe));
    setup.wait("web", "restarted", |pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1).await;
    assert_eq!(
        setup.api.wait_event("web", "Killing").await,
        "Container main failed liveness probe, will be restarted"
    );
    setup.node.shutdown().await;
}

#[tokio::test]
async fn an_image_that_is_missing_or_not_wasm_says_so() {
    let setup = start();
    setup.api.put(&path("lost"), pod("lost", "missing", json!({})));
    let reason = "/status/containerStatuses/0/state/waiting/reason";
    setup.wait("lost", "fails", |pod| pod.pointer(reason).is_some_and(|r| r == "ErrImagePull")).await;
    let seen = setup
        .wait("lost", "backs off", |pod| pod.pointer(reason).is_some_and(|r| r == "ImagePullBackOff"))
        .await;
    assert_eq!(
        seen["status"]["containerStatuses"][0]["state"]["waiting"]["message"],
        "Back-off pulling image \"missing\": ErrImagePull: manifest unknown: missing"
    );
    assert_eq!(seen["status"]["phase"], "Pending");
    setup.api.put(&path("oci"), pod("oci", "oci", json!({})));
    let seen = setup
        .wait("oci", "fails", |pod| pod.pointer(reason).is_some_and(|r| r == "ErrImageNotRunnable"))
        .await;
    let message =
        seen["status"]["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("containers are not available on this node"), "{message}");
    setup.api.delete(&path("lost"), 5);
    setup.api.wait(&path("lost"), "deleted", |pod| pod.is_none()).await;
    setup.node.shutdown().await;
}

#[tokio::test]
async fn a_deadline_fails_the_pod() {
    let setup = start();
    setup.api.put(&path("web"), pod("web", "web", json!({"activeDeadlineSeconds": 1})));
    let seen = setup.wait("web", "fails", |pod| pod["status"]["reason"] == "DeadlineExceeded").await;
    assert_eq!(seen["status"]["phase"], "Failed");
    setup.api.wait("/none", "nothing runs", |_| setup.fake.running().is_empty()).await;
    setup.node.shutdown().await;
}

#[tokio::test]
async fn a_restarted_agent_adopts_what_runs_and_restarts_what_was_lost() {
    let setup = start();
    setup.api.put(&path("web"), pod("web", "web", json!({})));
    setup.api.put(&path("lost"), pod("lost", "web", json!({})));
    setup.api.put(&path("job"), pod("job", "job", json!({"restartPolicy": "Never"})));
    let before = setup.wait("web", "ready", is_ready).await;
    setup.wait("lost", "ready", is_ready).await;
    setup.wait("job", "done", |pod| pod["status"]["phase"] == "Succeeded").await;
    setup.node.shutdown().await;
    let runs_before = setup.fake.state.lock().unwrap().specs.len();
    setup.fake.state.lock().unwrap().containers.remove("uid-lost.main.0");
    let mut orphan = setup.fake.state.lock().unwrap().containers["uid-web.main.0"].clone();
    orphan.id = ketch_runtime::ContainerId("uid-gone.main.0".into());
    orphan.pod = ketch_runtime::PodId("uid-gone".into());
    setup.fake.state.lock().unwrap().containers.insert(orphan.id.0.clone(), orphan);

    let setup = start_with(setup.api, setup.fake, setup.dir);
    let lost =
        |pod: &serde_json::Value| pod["status"]["containerStatuses"][0]["restartCount"] == 1 && is_ready(pod);
    let seen = setup.wait("lost", "restarted", lost).await;
    let last = &seen["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(last["reason"], "ContainerStatusUnknown");
    let after = setup.api.get(&path("web")).unwrap();
    assert_eq!(after["status"]["podIP"], before["status"]["podIP"]);
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(setup.fake.running(), ["uid-lost.main.1", "uid-web.main.0"]);
    // Neither the job nor what runs was started again.
    assert_eq!(setup.fake.state.lock().unwrap().specs.len(), runs_before + 1);
    setup.node.shutdown().await;
}

#[tokio::test]
async fn the_node_registers_and_renews_its_lease() {
    let setup = start();
    let node = setup.api.wait("/api/v1/nodes/n1", "registered", |node| {
        node.is_some_and(|node| {
            node["status"]["conditions"]
                .as_array()
                .is_some_and(|c| c.iter().any(|c| c["lastHeartbeatTime"].is_string()))
        })
    });
    let node = node.await.unwrap();
    assert_eq!(condition(&node, "Ready"), "True");
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "n1");
    assert_eq!(node["status"]["nodeInfo"]["containerRuntimeVersion"], "fake://1");
    assert!(node["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap().starts_with("v1.35.0+ketch."));
    assert_eq!(node["status"]["capacity"]["pods"], "110");
    assert_eq!(node["spec"]["podCIDR"], "127.42.0.0/16");
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";
    let lease = setup.api.wait(lease, "renewed", |lease| lease.is_some()).await.unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "n1");
    setup.node.shutdown().await;
}

#[tokio::test]
async fn an_idle_fake_pod_is_left_alone() {
    let setup = start_with(crate::api::Api::new(), Fake::new(), tempfile::tempdir().unwrap());
    setup.api.put(&path("web"), pod("web", "run", json!({})));
    setup.wait("web", "ready", is_ready).await;
    setup.api.wait_event("web", "Started").await;
    let writes = |requests: Vec<String>| requests.iter().filter(|r| r.contains("/pods/web/status")).count();
    assert_eq!(writes(setup.api.requests()), 1);
    setup.node.shutdown().await;
}
