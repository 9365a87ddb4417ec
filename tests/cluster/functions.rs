//! Functions: an upload is served, a broken one is not, a rollback goes back.

use ketch_api::{
    function::{Function, FunctionRevision},
    k8s::api::{apps::v1::Deployment, core::v1::Pod},
};
use serde_json::json;

use super::{Cluster, check};

fn traffic(function: &Function) -> Vec<(String, i32)> {
    let traffic = function.status.as_ref().map(|s| s.traffic.clone()).unwrap_or_default();
    traffic.into_iter().map(|t| (t.revision_name, t.percent)).collect()
}

fn ready(function: &Function) -> (String, String) {
    let conditions = function.status.as_ref().map(|s| s.conditions.clone()).unwrap_or_default();
    conditions.first().map(|c| (c.status.clone(), c.message.clone())).unwrap_or_default()
}

fn all(name: &str) -> Vec<(String, i32)> {
    vec![(name.to_owned(), 100)]
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_goes_only_where_it_works() {
    let cluster = Cluster::start(&["n1"]).await;
    cluster.broken.lock().unwrap().insert("ketch.local/default/hello@sha256:bad".into());
    cluster
        .create::<Function>(
            json!({"metadata": {"name": "hello"}, "spec": {"image": "ketch.local/default/hello@sha256:1"}}),
        )
        .await;
    let url = cluster
        .until("hello", |f: &Function| {
            check(traffic(f) == all("hello-00001") && ready(f).0 == "True", "not served")?;
            Ok(f.status.as_ref().unwrap().url.clone().unwrap())
        })
        .await;
    assert_eq!(url, "http://hello.default.localhost:8080");
    let revision = cluster.api::<FunctionRevision>().get("hello-00001").await.unwrap();
    assert_eq!(revision.spec.revision, 1);
    let pods = cluster.api::<Pod>().list(&Default::default()).await.unwrap().items;
    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0].metadata.labels.as_ref().unwrap()["ketch.dev/revision"], "hello-00001");
    assert_eq!(pods[0].spec.as_ref().unwrap().runtime_class_name.as_deref(), Some("ketch-wasm"));

    cluster
        .patch::<Function>("hello", json!({"spec": {"image": "ketch.local/default/hello@sha256:bad"}}))
        .await;
    let message = cluster
        .until("hello", |f: &Function| {
            let (status, message) = ready(f);
            check(status == "False" && message.contains("hello-00002"), "the failure is not told")?;
            check(traffic(f) == all("hello-00001"), "the traffic moved")?;
            Ok(message)
        })
        .await;
    assert!(
        message.contains("it panics at once") && message.contains("hello-00001 still answers"),
        "{message}"
    );

    cluster
        .patch::<Function>("hello", json!({"spec": {"image": "ketch.local/default/hello@sha256:3"}}))
        .await;
    cluster
        .until("hello", |f: &Function| check(traffic(f) == all("hello-00003"), "not moved to the third"))
        .await;
    let first = cluster.api::<Deployment>().get("hello-00001").await.unwrap();
    assert_eq!(first.spec.unwrap().replicas, Some(1), "it lingers");

    cluster
        .patch::<Function>(
            "hello",
            json!({"spec": {"traffic": [{"revisionName": "hello-00001", "percent": 100}]}}),
        )
        .await;
    cluster
        .until("hello", |f: &Function| {
            check(traffic(f) == all("hello-00001") && ready(f).0 == "True", "not back")
        })
        .await;
    cluster.shutdown().await;
}
