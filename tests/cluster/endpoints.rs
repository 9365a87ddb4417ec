//! EndpointSlices and Endpoints follow the pods of a Service.

use ketch_api::k8s::api::{
    apps::v1::Deployment,
    core::v1::{Endpoints, Service},
    discovery::v1::EndpointSlice,
};
use serde_json::json;

use super::{Cluster, check};

#[tokio::test(flavor = "multi_thread")]
async fn slices_and_endpoints_follow_pods_and_then_rest() {
    let cluster = Cluster::start(&["n1"]).await;
    cluster
        .create::<Service>(json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}))
        .await;
    cluster
        .create::<Deployment>(json!({"metadata": {"name": "web"}, "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}}}}))
        .await;
    let ready = |wanted: usize| {
        move |slices: &[EndpointSlice]| {
            let ours = slices.iter().filter(|s| {
                s.metadata.labels.as_ref().is_some_and(|l| l["kubernetes.io/service-name"] == "web")
            });
            let ours: Vec<_> = ours.cloned().collect();
            let count = ours
                .iter()
                .flat_map(|s| &s.endpoints)
                .filter(|e| e.conditions.as_ref().unwrap().ready == Some(true))
                .count();
            if count == wanted && ours.len() == 1 {
                Ok(ours[0].clone())
            } else {
                Err(format!("{count} endpoints in {} slices", ours.len()))
            }
        }
    };
    let slice = cluster.until_all(ready(3)).await;
    assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));
    let addresses = |endpoints: &Endpoints| {
        endpoints.subsets.iter().flatten().flat_map(|s| s.addresses.iter().flatten()).count()
    };
    cluster.until("web", |e: &Endpoints| check(addresses(e) == 3, "not three addresses")).await;

    cluster.patch::<Deployment>("web", json!({"spec": {"replicas": 1}})).await;
    let settled = cluster.until_all(ready(1)).await;
    cluster.until("web", |e: &Endpoints| check(addresses(e) == 1, "not one address")).await;
    // Nothing is written again once it is right.
    cluster.patch::<Service>("web", json!({"metadata": {"annotations": {"look": "again"}}})).await;
    cluster.patch::<Service>("web", json!({"metadata": {"labels": {"now": "copied"}}})).await;
    let name = settled.metadata.name.clone().unwrap();
    let copied = |s: &EndpointSlice| {
        let has = s.metadata.labels.as_ref().unwrap().contains_key("now");
        if has { Ok(s.clone()) } else { Err("the label is not copied".to_owned()) }
    };
    let relabelled = cluster.until(&name, copied).await;
    cluster.patch::<Deployment>("web", json!({"spec": {"replicas": 2}})).await;
    let grown = cluster.until_all(ready(2)).await;
    let writes = grown.metadata.generation.unwrap() - relabelled.metadata.generation.unwrap();
    assert!((1..=2).contains(&writes), "{writes} writes for one pod that came and became ready");
    cluster.shutdown().await;
}
