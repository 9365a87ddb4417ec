//! The cluster's network as a pod's guest sees it.

use ketch_node::{ClusterNetwork, NetworkConfig};
use ketch_runtime::{Network, PodId, PodSandbox, Protocol};
use serde_json::json;

use crate::api::Api;

fn sandbox(outbound: &[&str]) -> PodSandbox {
    let ip = "127.42.0.2".parse().unwrap();
    PodSandbox {
        outbound: outbound.iter().map(|text| (*text).to_owned()).collect(),
        ..PodSandbox::new(PodId("uid-web".into()), "default", "web", ip)
    }
}

fn config() -> NetworkConfig {
    NetworkConfig {
        pod_cidrs: vec!["127.42.0.0/16".parse().unwrap()],
        local_pods: Vec::new(),
        service_cidrs: vec!["127.43.0.0/16".parse().unwrap()],
        node_addresses: vec!["192.0.2.1".parse().unwrap()],
        control_plane: vec!["127.0.0.1:6443".parse().unwrap(), "192.0.2.1:6443".parse().unwrap()],
        door: None,
    }
}

#[tokio::test]
async fn services_are_followed_and_chosen_at_connect_time() {
    let api = Api::new();
    let network = ClusterNetwork::start(api.client(), config());
    api.put(
        "/api/v1/namespaces/default/services/db",
        json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "db", "namespace": "default"},
        "spec": {"clusterIP": "127.43.0.9", "clusterIPs": ["127.43.0.9"], "ports": [{"port": 5432}]}}),
    );
    api.put(
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/db-1",
        json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "db-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "db"}},
        "ports": [{"port": 15432, "protocol": "TCP"}], "endpoints": [{"addresses": ["127.42.0.7"]}]}),
    );
    let pod = sandbox(&[]);
    let expected = vec!["127.42.0.7:15432".parse().unwrap()];
    let mut dialled = network.dial(&pod, "db", 5432).await;
    let waited = tokio::time::timeout(std::time::Duration::from_secs(10), async {
        while !dialled.as_ref().is_ok_and(|found| *found == expected) {
            tokio::task::yield_now().await;
            dialled = network.dial(&pod, "db", 5432).await;
        }
    });
    assert!(waited.await.is_ok(), "{dialled:?}");
    let resolved = network.resolve(&pod, "db.default.svc.cluster.local").await.unwrap();
    assert_eq!(resolved, ["127.43.0.9".parse::<std::net::IpAddr>().unwrap()]);
    let target = "127.43.0.9:5432".parse().unwrap();
    assert_eq!(network.route(&pod, target, Protocol::Tcp).unwrap(), expected[0]);
    let error = network.route(&pod, "127.43.0.9:1".parse().unwrap(), Protocol::Tcp).unwrap_err().to_string();
    assert!(error.contains("no Service"), "{error}");
    network.shutdown().await;
}

/// Services of the namespace `default`, by name and address, that all lead to the API.
fn leading_to_the_api(names: &[(&str, &str)]) -> ketch_net::Table {
    let service = |(name, ip): &(&str, &str)| {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "default"},
            "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"name": "https", "port": 443}]}}))
    };
    let slice = |(service, _): &(&str, &str)| {
        serde_json::from_value(json!({"addressType": "IPv4", "endpoints": [{"addresses": ["203.0.113.9"]}],
            "metadata": {"name": service, "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
            "ports": [{"name": "https", "port": 6443}]}))
    };
    let services: Vec<_> = names.iter().map(|name| service(name).unwrap()).collect();
    let slices: Vec<_> = names.iter().map(|name| slice(name).unwrap()).collect();
    ketch_net::Table::build(&services, &slices)
}

const API: (&str, &str) = ("kubernetes", "127.43.0.1");

#[tokio::test]
async fn pods_are_led_to_the_api_by_the_door_of_their_node() {
    let config = NetworkConfig { door: Some("127.42.0.1:7443".parse().unwrap()), ..config() };
    let network = ClusterNetwork::fixed(leading_to_the_api(&[API, ("disguise", "127.43.0.7")]), config);
    let reach = async |pattern: &str, host: &str, port: u16| {
        network.dial(&sandbox(&[pattern]), host, port).await.map_err(|error| error.to_string())
    };
    let door = vec!["127.42.0.1:7443".parse().unwrap()];
    let endpoint = vec!["203.0.113.9:6443".parse().unwrap()];
    assert_eq!(reach("kubernetes.default.svc:443", "kubernetes", 443).await.unwrap(), door);
    assert_eq!(reach("127.43.0.1:443", "127.43.0.1", 443).await.unwrap(), door);
    // Other ways to the API are what they are.
    assert_eq!(reach("203.0.113.9:6443", "203.0.113.9", 6443).await.unwrap(), endpoint);
    // Nobody comes by the door who may not reach the API.
    let error = reach("*", "127.42.0.1", 7443).await.unwrap_err();
    assert!(error.contains("control plane"), "{error}");
    assert_eq!(reach("127.42.0.1:7443", "127.42.0.1", 7443).await.unwrap(), door);
}

#[tokio::test]
async fn the_door_leads_on_when_nobody_is_told_where_the_api_is() {
    let service = json!({"metadata": {"name": API.0, "namespace": "default"}, "spec": {"clusterIP": API.1,
        "clusterIPs": [API.1], "ports": [{"name": "https", "port": 443}]}});
    let table = || ketch_net::Table::build(&[serde_json::from_value(service.clone()).unwrap()], []);
    let config = NetworkConfig { door: Some("127.42.0.1:7443".parse().unwrap()), ..config() };
    let network = ClusterNetwork::fixed(table(), config);
    let named = sandbox(&["kubernetes.default.svc:443"]);
    assert_eq!(network.dial(&named, "kubernetes", 443).await.unwrap(), ["127.42.0.1:7443".parse().unwrap()]);
    let error = network.dial(&sandbox(&["*"]), "kubernetes", 443).await.unwrap_err().to_string();
    assert!(error.contains("control plane"), "{error}");
    let without = ClusterNetwork::fixed(table(), self::config());
    let error = without.dial(&named, "kubernetes", 443).await.unwrap_err().to_string();
    assert!(error.contains("no ready endpoint"), "{error}");
}

#[tokio::test]
async fn only_the_names_of_the_api_mean_it() {
    let network = ClusterNetwork::fixed(leading_to_the_api(&[API, ("disguise", "127.43.0.7")]), config());
    let at_home = sandbox(&["*"]);
    let elsewhere = PodSandbox { namespace: "shop".into(), ..sandbox(&["*"]) };
    let led_astray = PodSandbox {
        hosts: [("kubernetes.default".to_owned(), vec!["203.0.113.5".parse().unwrap()])].into(),
        ..sandbox(&["*"])
    };
    let renamed = PodSandbox {
        hosts: [("api.example".to_owned(), vec!["127.43.0.1".parse().unwrap()])].into(),
        ..sandbox(&["*"])
    };
    for (pod, host, port, expected) in [
        (&at_home, "kubernetes", 443, true),
        (&at_home, "Kubernetes.Default", 443, true),
        (&at_home, "127.43.0.1", 443, true),
        (&at_home, "kubernetes", 6443, false),
        (&at_home, "disguise", 443, false),
        (&at_home, "127.43.0.7", 443, false),
        (&at_home, "203.0.113.9", 6443, false),
        (&at_home, "example.com", 443, false),
        (&at_home, "localhost", 443, false),
        (&elsewhere, "kubernetes", 443, false),
        (&elsewhere, "kubernetes.default.svc", 443, true),
        (&elsewhere, "kubernetes.default.svc.cluster.local.", 443, true),
        (&elsewhere, "kubernetes.default.example", 443, false),
        (&led_astray, "kubernetes.default", 443, false),
        (&led_astray, "kubernetes.default.svc", 443, true),
        (&renamed, "api.example", 443, false),
    ] {
        assert_eq!(network.is_api(pod, host, port), expected, "{host}:{port} in {}", pod.namespace);
    }
}

#[tokio::test]
async fn the_api_is_reached_by_who_names_it() {
    let table = leading_to_the_api(&[API, ("disguise", "127.43.0.7")]);
    let network = ClusterNetwork::fixed(table, config());
    let reach = async |patterns: &[&str], host: &str, port: u16| {
        network.dial(&sandbox(patterns), host, port).await.map_err(|error| error.to_string())
    };
    let endpoint = vec!["203.0.113.9:6443".parse().unwrap()];
    let named = ["kubernetes.default.svc:443"];
    assert_eq!(reach(&named, "kubernetes.default", 443).await.unwrap(), endpoint);
    assert_eq!(reach(&["203.0.113.9:6443"], "203.0.113.9", 6443).await.unwrap(), endpoint);
    for (patterns, host, port) in [
        (&["*"][..], "kubernetes.default", 443),
        (&["*"], "203.0.113.9", 6443),
        (&["*", "disguise.default.svc"], "203.0.113.9", 6443),
        (&["*"], "disguise", 443),
        (&named, "203.0.113.9", 6443),
    ] {
        let error = reach(patterns, host, port).await.unwrap_err();
        assert!(error.contains("control plane"), "{patterns:?} {host}: {error}");
    }
    assert!(reach(&["*"], "203.0.113.9", 80).await.is_ok(), "another port is another program");
}

#[tokio::test]
async fn localhost_is_the_pod_unless_the_node_is_named() {
    let network = ClusterNetwork::fixed(ketch_net::Table::default(), config());
    let pod = sandbox(&["*"]);
    let own = vec!["127.42.0.2:80".parse().unwrap()];
    assert_eq!(network.dial(&pod, "localhost", 80).await.unwrap(), own);
    assert_eq!(network.dial(&pod, "127.0.0.1", 80).await.unwrap(), own);
    assert_eq!(network.dial(&pod, "[::1]", 80).await.unwrap(), own);
    assert_eq!(network.dial(&pod, "0.0.0.0", 80).await.unwrap(), own);
    let error = network.dial(&pod, "192.0.2.1", 22).await.unwrap_err().to_string();
    assert!(error.contains("an address of the node"), "{error}");
    let named = sandbox(&["localhost:5432"]);
    assert_eq!(network.dial(&named, "localhost", 5432).await.unwrap(), ["127.0.0.1:5432".parse().unwrap()]);
    assert_eq!(network.dial(&named, "localhost", 80).await.unwrap(), own);
}

#[tokio::test]
async fn localhost_of_a_pod_with_a_namespace_is_in_it() {
    let config = NetworkConfig {
        pod_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
        local_pods: vec!["10.42.0.0/25".parse().unwrap()],
        ..config()
    };
    let network = ClusterNetwork::fixed(ketch_net::Table::default(), config);
    // A program of the host that listens everywhere is not in the way: it is not in the namespace.
    let host = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = host.local_addr().unwrap().port();
    let pod = PodSandbox {
        ip: "10.42.0.130".parse().unwrap(),
        network_namespace: Some("/var/run/netns/x".into()),
        ..sandbox(&["localhost:*"])
    };
    for (name, own) in [
        ("localhost", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("10.42.0.130", "10.42.0.130"),
    ] {
        let target = vec![std::net::SocketAddr::new(own.parse().unwrap(), port)];
        assert_eq!(network.dial(&pod, name, port).await.unwrap(), target, "{name}");
    }
    assert_eq!(
        network.resolve(&pod, "localhost").await.unwrap(),
        ["127.0.0.1".parse::<std::net::IpAddr>().unwrap()]
    );
    let other = network.dial(&pod, "10.42.0.131", port).await;
    assert!(other.is_ok(), "a container pod's address is not local: {other:?}");
    let wasm = network.dial(&pod, "10.42.0.9", port).await.unwrap_err().to_string();
    assert!(wasm.contains("a program of the node does"), "{wasm}");
}

#[tokio::test]
async fn names_that_no_pattern_means_are_not_even_looked_up() {
    let network = ClusterNetwork::fixed(ketch_net::Table::default(), config());
    let error = network.resolve(&sandbox(&[]), "secret-data.evil.example").await.unwrap_err().to_string();
    assert!(error.contains("ketch.dev/outbound"), "{error}");
    assert!(network.resolve(&sandbox(&[]), "none.default.svc.cluster.local").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_programs_wildcard_listener_is_not_reached_at_a_pods_address() {
    let host = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = host.local_addr().unwrap().port();
    let network = ClusterNetwork::fixed(ketch_net::Table::default(), config());
    for target in ["127.42.0.9", "127.42.0.2", "localhost", "127.0.0.1"] {
        let error = network.dial(&sandbox(&["*"]), target, port).await.unwrap_err().to_string();
        assert!(error.contains("a program of the node does"), "{target}: {error}");
    }
    drop(host);
    assert!(network.dial(&sandbox(&[]), "127.42.0.9", port).await.is_ok());
    let pod = std::net::TcpListener::bind("127.42.0.9:0").unwrap().local_addr().unwrap();
    assert_eq!(network.dial(&sandbox(&[]), "127.42.0.9", pod.port()).await.unwrap(), [pod]);
}
