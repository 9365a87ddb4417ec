//! Lists: pages, revisions, selectors, negotiation.

use serde_json::{Value, json};

use crate::harness::{CONFIG_MAPS, Harness, version};

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn pages_are_of_one_state() {
    let harness = Harness::new().await;
    for n in 0..7 {
        harness.config_map(&format!("c{n}"), json!({"odd": (n % 2).to_string()})).await;
    }
    let first = harness.get(&format!("{CONFIG_MAPS}?limit=3")).await.expect(200);
    assert_eq!(names(&first), ["c0", "c1", "c2"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    harness.config_map("c3a", json!({})).await;
    harness.delete(&format!("{CONFIG_MAPS}/c4")).await.expect(200);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let rest = harness.get(&format!("{CONFIG_MAPS}?limit=30&continue={token}")).await.expect(200);
    assert_eq!(names(&rest), ["c3", "c4", "c5", "c6"]);
    assert_eq!(version(&rest), version(&first));
    assert!(rest["metadata"].get("continue").is_none());

    let odd = harness.get(&format!("{CONFIG_MAPS}?limit=2&labelSelector=odd%3D1")).await.expect(200);
    assert_eq!(names(&odd), ["c1", "c3"]);
    assert!(odd["metadata"].get("remainingItemCount").is_none(), "unknown when a selector discards some");
    let token = odd["metadata"]["continue"].as_str().unwrap();
    let uri = format!("{CONFIG_MAPS}?limit=2&labelSelector=odd%3D1&continue={token}");
    let odd = harness.get(&uri).await.expect(200);
    assert_eq!(names(&odd), ["c5"]);
    harness.get(&format!("{CONFIG_MAPS}?continue=nonsense")).await.refused(400, "BadRequest", "continue key");
    let uri = format!("{CONFIG_MAPS}?continue={token}&resourceVersion=1");
    harness.get(&uri).await.refused(400, "BadRequest", "not allowed when using continue");
}

#[tokio::test]
async fn a_compacted_page_comes_with_a_fresh_token() {
    let harness = Harness::new().await;
    for n in 0..4 {
        harness.config_map(&format!("c{n}"), json!({})).await;
    }
    let first = harness.get(&format!("{CONFIG_MAPS}?limit=2")).await.expect(200);
    for n in 4..6 {
        harness.config_map(&format!("c{n}"), json!({})).await;
    }
    let storage = harness.server.storage();
    storage.compact(storage.revision().await.unwrap()).await.unwrap();
    let token = first["metadata"]["continue"].as_str().unwrap();
    let expired = harness.get(&format!("{CONFIG_MAPS}?limit=2&continue={token}")).await;
    let expired = expired.refused(410, "Expired", "The provided continue parameter is too old");
    let token = expired["metadata"]["continue"].as_str().unwrap();
    let rest = harness.get(&format!("{CONFIG_MAPS}?continue={token}")).await.expect(200);
    assert_eq!(names(&rest), ["c2", "c3", "c4", "c5"]);
    let exact = format!("{CONFIG_MAPS}?resourceVersion={}&resourceVersionMatch=Exact", version(&first));
    harness.get(&exact).await.refused(410, "Expired", "too old");
}

#[tokio::test]
async fn revisions_are_honoured() {
    let harness = Harness::new().await;
    let old = version(&harness.config_map("a", json!({})).await).to_owned();
    harness.config_map("b", json!({})).await;
    let exact = format!("{CONFIG_MAPS}?resourceVersion={old}&resourceVersionMatch=Exact");
    let list = harness.get(&exact).await.expect(200);
    assert_eq!((names(&list), version(&list)), (vec!["a"], old.as_str()));
    let newer = format!("{CONFIG_MAPS}?resourceVersion={old}&resourceVersionMatch=NotOlderThan");
    assert_eq!(names(&harness.get(&newer).await.expect(200)), ["a", "b"]);
    assert_eq!(
        names(&harness.get(&format!("{CONFIG_MAPS}?resourceVersion=0")).await.expect(200)),
        ["a", "b"]
    );
    for (query, part) in [
        ("resourceVersionMatch=Exact", "forbidden unless resourceVersion is provided"),
        ("resourceVersionMatch=Exact&resourceVersion=0", "forbidden for resourceVersion \"0\""),
        ("resourceVersionMatch=Best&resourceVersion=5", "supported values"),
        ("resourceVersion=abc", "Invalid value"),
        ("sendInitialEvents=true", "forbidden for list"),
    ] {
        harness.get(&format!("{CONFIG_MAPS}?{query}")).await.refused(422, "Invalid", part);
    }
}

#[tokio::test]
async fn a_revision_from_the_future_is_waited_for_and_then_refused() {
    let harness = Harness::new().await;
    let uri = format!("{CONFIG_MAPS}?resourceVersion=100000");
    let late = harness.get(&uri).await;
    let status = late.refused(504, "Timeout", "Too large resource version: 100000");
    assert_eq!(status["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    assert_eq!(late.headers["retry-after"], "1");
}

#[tokio::test]
async fn selectors_select() {
    let harness = Harness::new().await;
    harness.config_map("a", json!({"app": "web", "tier": "x"})).await;
    harness.config_map("b", json!({"app": "db"})).await;
    for (query, wanted) in [
        ("labelSelector=app%3Dweb", vec!["a"]),
        ("labelSelector=app+in+(web,db),!tier", vec!["b"]),
        ("fieldSelector=metadata.name%3Db", vec!["b"]),
        ("fieldSelector=metadata.name!%3Db", vec!["a"]),
        ("fieldSelector=metadata.namespace%3Dother", vec![]),
    ] {
        let list = harness.get(&format!("{CONFIG_MAPS}?{query}")).await.expect(200);
        assert_eq!(names(&list), wanted, "{query}");
    }
    let all = harness.get("/api/v1/configmaps?fieldSelector=metadata.namespace%3Ddefault").await.expect(200);
    assert_eq!(names(&all), ["a", "b"]);
    let refused = harness.get(&format!("{CONFIG_MAPS}?fieldSelector=data.k%3Dv")).await;
    refused.refused(400, "BadRequest", "field label not supported: data.k");
    let refused = harness.get(&format!("{CONFIG_MAPS}?labelSelector=a%3D%3D%3Db")).await;
    assert_eq!(refused.code, 400);
}

#[tokio::test]
async fn kinds_have_fields_of_their_own() {
    let harness = Harness::new().await;
    let pod = |name: &str, node: &str| {
        json!({"metadata": {"name": name},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}})
    };
    for (name, node) in [("p1", "n1"), ("p2", "n2")] {
        harness.post(crate::harness::PODS, &pod(name, node)).await.expect(201);
    }
    let list = harness.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn2").await.expect(200);
    assert_eq!(names(&list), ["p2"]);
}

#[tokio::test]
async fn forms_that_cannot_be_had_are_refused() {
    let harness = Harness::new().await;
    let xml = [("accept", "text/html")];
    harness.send("GET", CONFIG_MAPS, &xml, "").await.refused(406, "NotAcceptable", "application/json");
    let head = harness.send("HEAD", CONFIG_MAPS, &[], "").await;
    assert_eq!((head.code, head.text.as_str()), (200, ""));
}
