//! Owners, namespaces, nodes: what goes, and what goes with it.

use std::time::Duration;

use ketch_api::{
    function::{Function, FunctionRevision},
    k8s::api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::{ConfigMap, Namespace, Node, Pod, Secret, ServiceAccount},
    },
};
use ketch_client::kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use ketch_controllers::Options;
use serde_json::{Value, json};

use super::{Cluster, check, eventually};

fn web(replicas: i32) -> Value {
    json!({"metadata": {"name": "web"}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}}}})
}

async fn running(cluster: &Cluster, wanted: usize) {
    cluster
        .until_all(|pods: &[Pod]| {
            let running =
                pods.iter().filter(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running"));
            check(pods.len() == wanted && running.count() == wanted, "not all running")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_owned_goes_with_its_owner() {
    let cluster = Cluster::start(&["n1"]).await;
    cluster.create::<Deployment>(web(2)).await;
    cluster
        .create::<Function>(
            json!({"metadata": {"name": "hello"}, "spec": {"image": "ketch.local/default/hello@sha256:1"}}),
        )
        .await;
    running(&cluster, 3).await;
    cluster.api::<Deployment>().delete("web", &DeleteParams::background()).await.unwrap();
    cluster.api::<Function>().delete("hello", &DeleteParams::default()).await.unwrap();
    cluster.until_all(|pods: &[Pod]| check(pods.is_empty(), "pods are left")).await;
    cluster.until_all(|sets: &[ReplicaSet]| check(sets.is_empty(), "sets are left")).await;
    cluster
        .until_all(|revisions: &[FunctionRevision]| check(revisions.is_empty(), "revisions are left"))
        .await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreground_goes_bottom_up_and_orphans_stay() {
    let cluster = Cluster::start(&["n1"]).await;
    cluster.create::<Deployment>(web(2)).await;
    running(&cluster, 2).await;
    cluster.api::<Deployment>().delete("web", &DeleteParams::orphan()).await.unwrap();
    cluster
        .until_all(|deployments: &[Deployment]| check(deployments.is_empty(), "the deployment is left"))
        .await;
    let set = cluster
        .until_all(|sets: &[ReplicaSet]| match sets {
            [set] if set.metadata.owner_references.as_ref().is_none_or(Vec::is_empty) => {
                Ok(set.metadata.name.clone().unwrap())
            }
            other => Err(format!("no orphaned set: {other:?}")),
        })
        .await;
    running(&cluster, 2).await;
    // A new Deployment of the same template adopts it.
    cluster.create::<Deployment>(web(2)).await;
    cluster
        .until(&set, |set: &ReplicaSet| {
            check(set.metadata.owner_references.as_ref().is_some_and(|o| o.len() == 1), "not adopted")
        })
        .await;
    cluster.api::<Deployment>().delete("web", &DeleteParams::foreground()).await.unwrap();
    cluster
        .until_all(|deployments: &[Deployment]| check(deployments.is_empty(), "the deployment is left"))
        .await;
    assert!(
        cluster.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap().items.is_empty(),
        "it went last"
    );
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_are_filled_and_emptied() {
    let cluster = Cluster::with(&["n1"], Options { ca: "CERT".into(), ..Options::default() }).await;
    let namespaces = Api::<Namespace>::all(cluster.client.clone());
    let shop: Namespace = serde_json::from_value(json!({"metadata": {"name": "shop"}})).unwrap();
    namespaces.create(&PostParams::default(), &shop).await.unwrap();
    let accounts = Api::<ServiceAccount>::namespaced(cluster.client.clone(), "shop");
    let maps = Api::<ConfigMap>::namespaced(cluster.client.clone(), "shop");
    eventually(async || accounts.get_opt("default").await.unwrap().ok_or_else(|| "no account".into())).await;
    let ca =
        eventually(async || maps.get_opt("kube-root-ca.crt").await.unwrap().ok_or_else(|| "no CA".into()))
            .await;
    assert_eq!(ca.data.unwrap()["ca.crt"], "CERT");

    let deployment: Deployment = serde_json::from_value(web(2)).unwrap();
    let deployments = Api::<Deployment>::namespaced(cluster.client.clone(), "shop");
    deployments.create(&PostParams::default(), &deployment).await.unwrap();
    let secret: Secret = serde_json::from_value(json!({"metadata": {"name": "s"}})).unwrap();
    Api::<Secret>::namespaced(cluster.client.clone(), "shop")
        .create(&PostParams::default(), &secret)
        .await
        .unwrap();
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), "shop");
    eventually(async || check(pods.list(&ListParams::default()).await.unwrap().items.len() == 2, "no pods"))
        .await;

    namespaces.delete("shop", &DeleteParams::default()).await.unwrap();
    eventually(async || match namespaces.get_opt("shop").await.unwrap() {
        None => Ok(()),
        Some(left) => Err(format!("{:?}", left.status)),
    })
    .await;
    assert!(pods.list(&ListParams::default()).await.unwrap().items.is_empty());
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_loses_its_pods_once_they_have_somewhere_to_go() {
    let options = Options { node_grace: Duration::from_millis(1500), ..Options::default() };
    let cluster = Cluster::with(&["n1"], options).await;
    let mut impatient = web(1);
    impatient["spec"]["template"]["spec"]["tolerations"] = json!(["not-ready", "unreachable"].map(|key| {
        json!({"key": format!("node.kubernetes.io/{key}"), "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0})
    }));
    cluster.create::<Deployment>(impatient).await;
    running(&cluster, 1).await;
    let first = cluster.api::<Pod>().list(&ListParams::default()).await.unwrap().items.remove(0);
    let nodes = Api::<Node>::all(cluster.client.clone());
    eventually(async || {
        let node = nodes.get("n1").await.unwrap();
        let ready =
            node.status.unwrap().conditions.unwrap().into_iter().find(|c| c.type_ == "Ready").unwrap();
        let taints = node.spec.unwrap_or_default().taints.unwrap_or_default();
        let unreachable = taints.iter().filter(|t| t.key == "node.kubernetes.io/unreachable").count();
        check(ready.status == "Unknown" && unreachable == 1, &format!("{ready:?} {taints:?}"))
    })
    .await;
    // The only node is lost, and it keeps its pods: maybe it is the server that was away.
    let kept = cluster.api::<Pod>().list(&ListParams::default()).await.unwrap().items;
    assert!(kept.len() == 1 && kept[0].metadata.uid == first.metadata.uid, "{kept:?}");
    assert!(kept[0].metadata.deletion_timestamp.is_none());
    cluster.add_node("n2").await;
    cluster
        .until_all(|pods: &[Pod]| {
            check(pods.iter().all(|p| p.metadata.uid != first.metadata.uid), "it is still there")
        })
        .await;
    running(&cluster, 1).await;
    cluster.shutdown().await;
}
