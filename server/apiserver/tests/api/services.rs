//! Addresses and ports of Services.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::harness::Harness;

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn service(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["ports"] = json!([{"port": 80}]);
    json!({"metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn addresses_are_handed_out_kept_and_taken_back() {
    let harness = Harness::with(|config| config.service_cidr = "10.9.0.0/28".parse().unwrap()).await;
    let own = harness.get(&format!("{SERVICES}/kubernetes")).await.expect(200);
    assert_eq!(own["spec"]["clusterIP"], "10.9.0.1");
    let mut seen = HashSet::new();
    // The network, `kubernetes`, `kube-dns` and the broadcast address are taken.
    for n in 0..12 {
        let created = harness.post(SERVICES, &service(&format!("s{n}"), json!({}))).await.expect(201);
        let address = created["spec"]["clusterIP"].as_str().unwrap().to_owned();
        assert_eq!(created["spec"]["clusterIPs"], json!([address]));
        assert!(seen.insert(address));
    }
    let full = harness.post(SERVICES, &service("one-more", json!({}))).await;
    full.refused(500, "InternalError", "range 10.9.0.0/28 is full");
    harness.post(SERVICES, &service("s0", json!({}))).await.expect(500);
    harness.delete(&format!("{SERVICES}/s3")).await.expect(200);
    let dry = harness.post(&format!("{SERVICES}?dryRun=All"), &service("dry", json!({}))).await;
    dry.expect(201);
    harness.post(SERVICES, &service("one-more", json!({}))).await.expect(201);
    // A name that exists gives its tentative address back.
    harness.delete(&format!("{SERVICES}/s4")).await.expect(200);
    harness.post(SERVICES, &service("s5", json!({}))).await.refused(409, "AlreadyExists", "s5");
    harness.post(SERVICES, &service("last", json!({}))).await.expect(201);
}

#[tokio::test]
async fn explicit_addresses_must_be_free_and_in_range() {
    let harness = Harness::new().await;
    let ask = |name: &str, address: &str| service(name, json!({"clusterIP": address}));
    harness.post(SERVICES, &ask("a", "10.43.0.20")).await.expect(201);
    let taken = harness.post(SERVICES, &ask("b", "10.43.0.20")).await;
    taken.refused(422, "Invalid", "provided IP is already allocated");
    let outside = harness.post(SERVICES, &ask("b", "10.44.0.1")).await;
    outside.refused(422, "Invalid", "not in the valid range");
    let headless = harness.post(SERVICES, &ask("h", "None")).await.expect(201);
    assert_eq!(headless["spec"]["clusterIP"], "None");
    let external = json!({"type": "ExternalName", "externalName": "example.com"});
    let external = harness.post(SERVICES, &service("e", external)).await.expect(201);
    assert!(external["spec"].get("clusterIP").is_none());
    // An update that leaves the address out keeps it.
    let updated = harness.put(&format!("{SERVICES}/a"), &service("a", json!({}))).await.expect(200);
    assert_eq!(updated["spec"]["clusterIP"], "10.43.0.20");
}

#[tokio::test]
async fn node_ports_are_handed_out() {
    let harness = Harness::new().await;
    let created = harness.post(SERVICES, &service("n", json!({"type": "NodePort"}))).await.expect(201);
    let port = created["spec"]["ports"][0]["nodePort"].as_i64().unwrap();
    assert!((30_000..=32_767).contains(&port));
    let updated = harness.put(&format!("{SERVICES}/n"), &service("n", json!({"type": "NodePort"}))).await;
    assert_eq!(updated.expect(200)["spec"]["ports"][0]["nodePort"], port);
    let mut other = service("m", json!({"type": "NodePort"}));
    other["spec"]["ports"][0]["nodePort"] = port.into();
    harness.post(SERVICES, &other).await.refused(422, "Invalid", "provided port is already allocated");
    other["spec"]["ports"][0]["nodePort"] = 80.into();
    harness.post(SERVICES, &other).await.refused(422, "Invalid", "30000-32767");
    harness.delete(&format!("{SERVICES}/n")).await.expect(200);
    other["spec"]["ports"][0]["nodePort"] = port.into();
    harness.post(SERVICES, &other).await.expect(201);
}
