//! Discovery, version, health.

use serde_json::{Value, json};

use crate::{harness::Harness, samples::collection};

fn entry<'a>(list: &'a Value, name: &str) -> &'a Value {
    let resources = list["resources"].as_array().unwrap();
    resources.iter().find(|r| r["name"] == name).unwrap_or_else(|| panic!("no {name} in {list}"))
}

#[tokio::test]
async fn versions_are_plain_numbers() {
    let harness = Harness::new().await;
    let version = harness.get("/version").await.expect(200);
    assert_eq!((&version["major"], &version["minor"]), (&json!("1"), &json!("35")));
    assert!(version["gitVersion"].as_str().unwrap().starts_with("v1.35.0+ketch."));
}

#[tokio::test]
async fn every_kind_is_found_by_walking() {
    let harness = Harness::new().await;
    assert_eq!(harness.get("/api").await.expect(200)["versions"], json!(["v1"]));
    let groups = harness.get("/apis").await.expect(200);
    assert_eq!(groups["kind"], "APIGroupList");
    for resource in harness.server.registry().iter() {
        let descriptor = resource.descriptor();
        let root = match descriptor.group {
            "" => "/api/v1".to_owned(),
            group => {
                let groups = groups["groups"].as_array().unwrap();
                let found = groups.iter().find(|g| g["name"] == group).expect(group);
                assert_eq!(
                    &harness.get(&format!("/apis/{group}")).await.expect(200)["versions"],
                    &found["versions"]
                );
                format!("/apis/{}", found["preferredVersion"]["groupVersion"].as_str().unwrap())
            }
        };
        let list = harness.get(&root).await.expect(200);
        let found = entry(&list, descriptor.plural);
        assert_eq!(found["kind"], descriptor.kind);
        assert_eq!(found["namespaced"], descriptor.namespaced);
        assert_eq!(found["verbs"].as_array().unwrap().len(), 8);
        assert_eq!(harness.get(&collection(descriptor)).await.code, 200);
    }
    harness.get("/apis/nosuch.dev").await.text.contains("404");
}

#[tokio::test]
async fn subresources_have_their_own_kinds() {
    let harness = Harness::new().await;
    let core = harness.get("/api/v1").await.expect(200);
    let eviction = entry(&core, "pods/eviction");
    assert_eq!((&eviction["group"], &eviction["version"]), (&json!("policy"), &json!("v1")));
    assert_eq!(entry(&core, "pods")["shortNames"], json!(["po"]));
    assert_eq!(entry(&core, "bindings")["verbs"], json!(["create"]));
    assert_eq!(entry(&core, "namespaces/finalize")["verbs"], json!(["update"]));
    let apps = harness.get("/apis/apps/v1").await.expect(200);
    let scale = entry(&apps, "deployments/scale");
    assert_eq!((&scale["group"], &scale["kind"]), (&json!("autoscaling"), &json!("Scale")));
    assert!(entry(&apps, "deployments/status").get("group").is_none());
}

#[tokio::test]
async fn the_aggregated_form_is_cached() {
    let harness = Harness::new().await;
    for version in ["v2", "v2beta1"] {
        let accept = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
        let answer =
            harness.send("GET", "/apis", &[("accept", &format!("{accept},application/json"))], "").await;
        assert_eq!(answer.headers["content-type"], accept.as_str());
        assert_eq!(
            (&answer.headers["vary"], &answer.headers["cache-control"]),
            (&"Accept".parse().unwrap(), &"public".parse().unwrap())
        );
        let value = answer.expect(200);
        assert_eq!(value["apiVersion"], format!("apidiscovery.k8s.io/{version}"));
        let apps =
            value["items"].as_array().unwrap().iter().find(|g| g["metadata"]["name"] == "apps").unwrap();
        let resources = apps["versions"][0]["resources"].as_array().unwrap();
        let deployments = resources.iter().find(|r| r["resource"] == "deployments").unwrap();
        assert_eq!(deployments["scope"], "Namespaced");
        assert_eq!(
            deployments["responseKind"],
            json!({"group": "apps", "version": "v1", "kind": "Deployment"})
        );
        let scale =
            deployments["subresources"].as_array().unwrap().iter().find(|s| s["subresource"] == "scale");
        assert_eq!(scale.unwrap()["responseKind"]["group"], "autoscaling");

        let etag = answer.headers["etag"].to_str().unwrap();
        let headers = [("accept", accept.as_str()), ("if-none-match", etag)];
        let again = harness.send("GET", "/apis", &headers, "").await;
        assert_eq!((again.code, again.text.as_str()), (304, ""));
        let core = harness.send("GET", "/api", &[("accept", &accept)], "").await.expect(200);
        assert_eq!(core["items"][0]["versions"][0]["version"], "v1");
    }
}

#[tokio::test]
async fn the_index_and_health() {
    let harness = Harness::new().await;
    let paths = harness.get("/").await.expect(200);
    for path in ["/api/v1", "/apis/apps/v1", "/version", "/readyz"] {
        assert!(paths["paths"].as_array().unwrap().contains(&json!(path)), "{path}");
    }
    assert_eq!(harness.get("/readyz").await.text, "ok");
    let verbose = harness.get("/readyz?verbose").await.text;
    assert!(verbose.contains("[+]storage ok\n") && verbose.ends_with("readyz check passed\n"), "{verbose}");
}
