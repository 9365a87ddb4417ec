//! The node's own API.

use axum::{body::Body, http::Request};
use http_body_util::BodyExt;
use serde_json::json;
use tower::ServiceExt;

use crate::setup::{Setup, is_ready, path, pod, start};

async fn get(setup: &Setup, uri: &str) -> (u16, String) {
    let response = setup.node.router().oneshot(Request::get(uri).body(Body::empty()).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn logs_are_served_by_instance() {
    let setup = start();
    setup.api.put(&path("web"), pod("web", "web", json!({})));
    setup.wait("web", "ready", is_ready).await;
    let log = setup.spec("uid-web.main.0").log;
    assert!(log.ends_with("node/logs/default_web_uid-web/main/0.log"), "{}", log.display());
    std::fs::write(&log, "2026-01-01T00:00:01Z stdout F one\n2026-01-01T00:00:02Z stdout F two\n").unwrap();
    assert_eq!(get(&setup, "/containerLogs/default/web/main").await, (200, "one\ntwo\n".to_owned()));
    assert_eq!(
        get(&setup, "/containerLogs/default/web/main?tailLines=1&timestamps=true").await.1,
        "2026-01-01T00:00:02Z two\n"
    );
    assert_eq!(
        get(&setup, "/containerLogs/default/web/main?sinceTime=2026-01-01T00:00:02Z").await.1,
        "two\n"
    );
    assert_eq!(get(&setup, "/containerLogs/default/web/main?limitBytes=2").await.1, "on");
    let (status, text) = get(&setup, "/containerLogs/default/web/main?previous=true").await;
    assert_eq!(
        (status, text.as_str()),
        (400, "previous terminated container \"main\" in pod \"web\" not found")
    );
    assert_eq!(get(&setup, "/containerLogs/default/web/none").await.0, 400);
    assert_eq!(get(&setup, "/containerLogs/default/none/main").await.0, 404);
    assert_eq!(get(&setup, "/healthz").await, (200, "ok".to_owned()));

    setup.fake.exit("uid-web.main.0", 1);
    setup
        .wait("web", "restarted", |pod| {
            pod["status"]["containerStatuses"][0]["restartCount"] == 1 && is_ready(pod)
        })
        .await;
    assert_eq!(get(&setup, "/containerLogs/default/web/main").await, (200, String::new()));
    assert_eq!(get(&setup, "/containerLogs/default/web/main?previous=true").await.1, "one\ntwo\n");
    setup.node.shutdown().await;
}

#[tokio::test]
async fn a_container_that_has_not_started_has_no_log_yet() {
    let setup = start();
    setup.api.put(&path("lost"), pod("lost", "missing", json!({})));
    let reason = "/status/containerStatuses/0/state/waiting/reason";
    setup.wait("lost", "fails", |pod| pod.pointer(reason).is_some_and(|r| r == "ImagePullBackOff")).await;
    // The agent sees its own write a moment later.
    let (status, text) = get(&setup, "/containerLogs/default/lost/main").await;
    assert_eq!(status, 400);
    assert!(text.starts_with("container \"main\" in pod \"lost\" is waiting to start: "), "{text}");
    setup.node.shutdown().await;
}

#[tokio::test]
async fn statistics_name_pods_and_containers() {
    let setup = start();
    setup.api.put(&path("web"), pod("web", "web", json!({})));
    setup.wait("web", "ready", is_ready).await;
    let (status, text) = get(&setup, "/stats/summary").await;
    assert_eq!(status, 200);
    let summary: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(summary["node"]["nodeName"], "n1");
    let pod = &summary["pods"][0];
    assert_eq!(pod["podRef"]["name"], "web");
    assert_eq!(pod["containers"][0]["name"], "main");
    assert_eq!(pod["containers"][0]["memory"]["workingSetBytes"], 65_536);
    assert_eq!(pod["containers"][0]["cpu"]["usageCoreNanoSeconds"], 5_000_000);
    setup.node.shutdown().await;
}
