//! Deployments from apply to running pods, and what happens to them later.

use ketch_api::k8s::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{Event, Pod},
};
use serde_json::{Value, json};

use super::{Cluster, check};

fn web(replicas: i32, image: &str) -> Value {
    json!({"metadata": {"name": "web"}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}}}})
}

fn image_of(pod: &Pod) -> String {
    pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap()
}

fn is_complete(deployment: &Deployment, replicas: i32) -> Result<(), String> {
    let status = deployment.status.clone().unwrap_or_default();
    let all = [status.replicas, status.updated_replicas, status.ready_replicas, status.available_replicas];
    check(
        all == [Some(replicas); 4] && status.observed_generation == deployment.metadata.generation,
        "not complete",
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_runs_rolls_scales_and_rolls_back() {
    let cluster = Cluster::start(&["n1", "n2"]).await;
    cluster.create::<Deployment>(web(3, "v1")).await;
    cluster.until("web", |d: &Deployment| is_complete(d, 3)).await;
    cluster
        .until_all(|pods: &[Pod]| {
            check(pods.len() == 3 && pods.iter().all(|p| image_of(p) == "v1"), "not three pods of v1")
        })
        .await;

    cluster
        .patch::<Deployment>(
            "web",
            json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}}),
        )
        .await;
    cluster.until("web", |d: &Deployment| is_complete(d, 3)).await;
    cluster
        .until_all(|pods: &[Pod]| {
            check(pods.len() == 3 && pods.iter().all(|p| image_of(p) == "v2"), "not three pods of v2")
        })
        .await;
    let sets = cluster
        .until_all(
            |sets: &[ReplicaSet]| {
                if sets.len() == 2 { Ok(sets.to_vec()) } else { Err("not two sets".into()) }
            },
        )
        .await;
    let revision = |set: &ReplicaSet| {
        set.metadata.annotations.as_ref().unwrap()["deployment.kubernetes.io/revision"].clone()
    };
    let mut revisions: Vec<_> = sets.iter().map(revision).collect();
    revisions.sort();
    assert_eq!(revisions, ["1", "2"]);

    cluster.patch::<Deployment>("web", json!({"spec": {"replicas": 7}})).await;
    cluster.until("web", |d: &Deployment| is_complete(d, 7)).await;
    cluster.patch::<Deployment>("web", json!({"spec": {"replicas": 1}})).await;
    cluster.until("web", |d: &Deployment| is_complete(d, 1)).await;
    cluster.until_all(|pods: &[Pod]| check(pods.len() == 1, "not one pod")).await;

    // What `kubectl rollout undo` does: the old set's template comes back.
    let old = sets.iter().find(|set| revision(set) == "1").unwrap();
    let mut template = serde_json::to_value(old.spec.as_ref().unwrap().template.clone()).unwrap();
    template["metadata"]["labels"].as_object_mut().unwrap().remove("pod-template-hash");
    cluster.patch::<Deployment>("web", json!({"spec": {"template": template}})).await;
    let name = old.metadata.name.clone().unwrap();
    cluster.until(&name, |set: &ReplicaSet| check(revision(set) == "3", "not revision 3")).await;
    cluster.until("web", |d: &Deployment| is_complete(d, 1)).await;
    cluster
        .until_all(|events: &[Event]| {
            let reasons: Vec<_> = events.iter().filter_map(|e| e.reason.as_deref()).collect();
            let all = ["ScalingReplicaSet", "SuccessfulCreate", "SuccessfulDelete", "Scheduled"];
            check(all.iter().all(|wanted| reasons.contains(wanted)), &format!("events missing: {reasons:?}"))
        })
        .await;
    assert!(cluster.controllers.reports().iter().all(|task| task.restarts == 0));
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pod_is_replaced_and_one_that_does_not_fit_says_why() {
    let cluster = Cluster::start(&["n1"]).await;
    cluster.create::<Deployment>(web(2, "v1")).await;
    cluster.until("web", |d: &Deployment| is_complete(d, 2)).await;
    let first = cluster.api::<Pod>().list(&Default::default()).await.unwrap().items.remove(0);
    cluster.api::<Pod>().delete(first.metadata.name.as_deref().unwrap(), &Default::default()).await.unwrap();
    cluster
        .until_all(|pods: &[Pod]| {
            let ready =
                pods.iter().filter(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running"));
            check(
                ready.count() == 2 && pods.iter().all(|p| p.metadata.uid != first.metadata.uid),
                "not replaced",
            )
        })
        .await;

    cluster
        .create::<Pod>(
            json!({"metadata": {"name": "huge"}, "spec": {"containers": [{"name": "c", "image": "v1",
            "resources": {"requests": {"cpu": "100"}}}]}}),
        )
        .await;
    let message = cluster
        .until("huge", |pod: &Pod| {
            let conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
            let scheduled = conditions.into_iter().find(|c| c.type_ == "PodScheduled" && c.status == "False");
            scheduled.and_then(|c| c.message).ok_or_else(|| "no condition".into())
        })
        .await;
    assert_eq!(message, "0/1 nodes are available: 1 Insufficient cpu.");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_wait_for_a_node_are_bound_when_it_comes() {
    let cluster = Cluster::start(&[]).await;
    cluster.create::<Deployment>(web(3, "v1")).await;
    cluster
        .until_all(|pods: &[Pod]| {
            let told = |p: &Pod| {
                p.status.as_ref().and_then(|s| s.conditions.as_ref()).is_some_and(|c| !c.is_empty())
            };
            check(pods.len() == 3 && pods.iter().all(told), "not three waiting pods")
        })
        .await;
    cluster.add_node("late").await;
    cluster.until("web", |d: &Deployment| is_complete(d, 3)).await;
    cluster.shutdown().await;
}
