//! Services as containers, the host and the outside see them.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Instant};

use ketch_api::k8s::api::{core::v1::Service, discovery::v1::EndpointSlice};
use ketch_net::{
    Table,
    conntrack::{Fronts, forget_stale},
    forward::HostPort,
    netns,
    nft::{Facts, Nft, rules},
};
use serde_json::{Value, json};

use crate::lab::{CLIENT, Lab, NODE, WASM};

fn facts() -> Facts {
    Facts {
        node: "n1".into(),
        addresses: vec![NODE.parse().unwrap()],
        pods: vec!["10.42.0.0/16".parse().unwrap()],
        local_pods: vec!["10.42.0.0/16".parse().unwrap()],
        services: vec!["10.43.0.0/16".parse().unwrap()],
        served: vec![Ipv4Addr::new(10, 43, 0, 10)],
        door: None,
    }
}

/// A Service and its endpoints: address and node.
fn service(name: &str, spec: Value, endpoints: &[(&str, &str)]) -> (Service, EndpointSlice) {
    let port = spec["ports"][0]["targetPort"].clone();
    let protocol = spec["ports"][0]["protocol"].clone();
    let object = json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec,
        "status": {"loadBalancer": {"ingress": spec.get("loadBalancerIP").map(|ip| vec![json!({"ip": ip})])}}});
    let endpoints: Vec<Value> =
        endpoints.iter().map(|(ip, node)| json!({"addresses": [ip], "nodeName": node})).collect();
    let slice = json!({"addressType": "IPv4", "ports": [{"port": port, "protocol": protocol}], "endpoints": endpoints,
        "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": name}}});
    (serde_json::from_value(object).unwrap(), serde_json::from_value(slice).unwrap())
}

fn table(all: &[(Service, EndpointSlice)]) -> Table {
    Table::build(all.iter().map(|(service, _)| service), all.iter().map(|(_, slice)| slice))
}

fn cluster() -> Vec<(Service, EndpointSlice)> {
    let both = &[("10.42.0.2", "n1"), ("10.42.0.3", "n2")][..];
    let spec = |ip: &str, node_port: u16| json!({"clusterIP": ip, "ports": [{"port": 80, "targetPort": 8080, "nodePort": node_port}]});
    let with = |mut spec: Value, more: Value| {
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    vec![
        service(
            "web",
            with(spec("10.43.0.20", 30080), json!({"loadBalancerIP": NODE, "externalIPs": ["198.51.100.9"]})),
            both,
        ),
        service("one", spec("10.43.0.30", 30090), &both[..1]),
        service("sticky", with(spec("10.43.0.21", 30081), json!({"sessionAffinity": "ClientIP"})), both),
        service("gone", spec("10.43.0.22", 30082), &[]),
        service("wasm", spec("10.43.0.23", 30083), &[(WASM, "n1")]),
        service("local", with(spec("10.43.0.24", 30084), json!({"externalTrafficPolicy": "Local"})), both),
        service(
            "far",
            with(spec("10.43.0.25", 30085), json!({"externalTrafficPolicy": "Local"})),
            &both[1..],
        ),
        service("own", with(spec("10.43.0.26", 30086), json!({"internalTrafficPolicy": "Local"})), both),
        service(
            "udp",
            json!({"clusterIP": "10.43.0.27", "ports": [{"port": 53, "targetPort": 5353, "protocol": "UDP"}]}),
            both,
        ),
    ]
}

async fn lab() -> Option<(Lab, Nft)> {
    let mut lab = Lab::new()?;
    for pod in ["pod1", "pod2"] {
        lab.serve(pod, "TCP-LISTEN:8080,fork,reuseaddr", pod);
        lab.serve_udp(pod, 5353, pod);
    }
    lab.serve("node", &format!("TCP-LISTEN:8080,fork,reuseaddr,bind={WASM}"), "wasm");
    let mut nft = Nft::new("ketch-test").within(lab.node());
    nft.apply(rules(&table(&cluster()), &[], &facts())).await.unwrap();
    Some((lab, nft))
}

/// Who answers to several connections.
fn askers(lab: &Lab, from: &str, target: &str, times: usize) -> BTreeSet<String> {
    let answers =
        (0..times).map(|_| lab.ask(from, target).unwrap_or_else(|error| panic!("{target}: {error}")));
    answers.map(|answer| answer.split(' ').next().unwrap_or_default().to_owned()).collect()
}

fn both() -> BTreeSet<String> {
    ["pod1", "pod2"].map(str::to_owned).into()
}

#[tokio::test]
async fn services_are_reached_from_everywhere() {
    let Some((lab, mut nft)) = lab().await else { return };
    // From a pod, from the node, from another network.
    for from in ["pod1", "node", "client"] {
        assert_eq!(askers(&lab, from, "TCP:10.43.0.20:80", 24), both(), "{from}");
    }
    // NodePort, load balancer, external address.
    for (from, target) in [
        ("client", format!("TCP:{NODE}:30080")),
        ("node", format!("TCP:{NODE}:30080")),
        ("pod1", format!("TCP:{NODE}:30080")),
        ("client", format!("TCP:{NODE}:80")),
        ("pod2", "TCP:198.51.100.9:80".to_owned()),
    ] {
        assert_eq!(askers(&lab, from, &target, 24), both(), "{from} {target}");
    }
    // A pod that reaches itself sees the node, everybody else in the cluster sees the pod.
    assert_eq!(lab.ask("pod1", "TCP:10.43.0.30:80").unwrap(), "pod1 10.42.0.1");
    assert_eq!(lab.ask("pod2", "TCP:10.43.0.30:80").unwrap(), "pod1 10.42.0.3");
    // Clients outside are hidden, unless the Service wants to see them.
    assert_eq!(lab.ask("client", &format!("TCP:{NODE}:30090")).unwrap(), "pod1 10.42.0.1");
    for _ in 0..6 {
        assert_eq!(lab.ask("client", &format!("TCP:{NODE}:30084")).unwrap(), format!("pod1 {CLIENT}"));
        assert_eq!(lab.ask("pod1", "TCP:10.43.0.26:80").unwrap(), "pod1 10.42.0.1");
    }
    nft.remove().await.unwrap();
    assert!(lab.ask("client", "TCP:10.43.0.20:80").is_err());
}

#[tokio::test]
async fn datagrams_reach_services() {
    let Some((lab, _nft)) = lab().await else { return };
    let udp: BTreeSet<String> = (0..16).map(|_| lab.ask_udp("pod1", "10.43.0.27/53").unwrap()).collect();
    assert_eq!(udp.len(), 2, "{udp:?}");
}

#[tokio::test]
async fn clients_with_a_socket_leave_an_endpoint_that_is_gone() {
    let Some((mut lab, mut nft)) = lab().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("heard");
    // One socket, so one flow, all the time.
    let script = format!(
        "exec 3<>/dev/udp/10.43.0.27/53; timeout 60 cat <&3 >{} & while true; do echo hello >&3; sleep 0.1; done",
        file.display()
    );
    lab.spawn("client", &["bash", "-c", &script]);
    let heard = || std::fs::read_to_string(&file).unwrap_or_default();
    until(|| !heard().is_empty());
    let first = heard().split(' ').next().unwrap_or_default().to_owned();
    let mut all = cluster();
    let udp = all.iter_mut().find(|(service, _)| service.metadata.name.as_deref() == Some("udp")).unwrap();
    udp.1.endpoints.remove(if first == "pod1" { 0 } else { 1 });
    let (before, now) = (Fronts::new(&table(&cluster()), &[], &[]), Fronts::new(&table(&all), &[], &[]));
    nft.apply(rules(&table(&all), &[], &facts())).await.unwrap();
    let path = lab.node();
    let forgotten = netns::run(std::path::Path::new(&path), || forget_stale(&before, &now)).unwrap().unwrap();
    assert_eq!(forgotten, 1);
    let other = if first == "pod1" { "pod2" } else { "pod1" };
    let start = Instant::now();
    until(|| heard().contains(other));
    assert!(start.elapsed().as_secs() < 2, "{:?}", start.elapsed());
    let again = netns::run(std::path::Path::new(&path), || forget_stale(&before, &now)).unwrap().unwrap();
    assert_eq!(again, 0, "the others are left alone");
}

fn until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed().as_secs() < 20, "it did not come to that");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn ports_of_the_node_lead_to_pods() {
    let Some((lab, mut nft)) = lab().await else { return };
    let port = |host: Option<&str>, port: u16, target: &str| HostPort {
        transport: ketch_net::Transport::Tcp,
        host: host.map(|host| host.parse().unwrap()),
        port,
        target: (target.parse().unwrap(), 8080),
    };
    let ports = [
        port(None, 8081, "10.42.0.2"),
        port(Some(NODE), 8082, WASM),
        port(Some("10.42.0.1"), 8083, "10.42.0.3"),
    ];
    nft.apply(rules(&table(&cluster()), &ports, &facts())).await.unwrap();
    for (from, number, answer) in [
        ("client", 8081, format!("pod1 {CLIENT}")),
        ("pod2", 8081, "pod1 10.42.0.3".to_owned()),
        ("pod1", 8081, "pod1 10.42.0.1".to_owned()),
        ("client", 8082, format!("wasm {CLIENT}")),
    ] {
        assert_eq!(lab.ask(from, &format!("TCP:{NODE}:{number}")), Ok(answer), "{from} {number}");
    }
    assert!(lab.ask("node", &format!("TCP:{NODE}:8081")).is_ok_and(|answer| answer.starts_with("pod1 ")));
    assert!(lab.ask("client", &format!("TCP:{NODE}:8083")).is_err(), "that one is at another address");
    assert_eq!(lab.ask("pod1", "TCP:10.42.0.1:8083"), Ok("pod2 10.42.0.2".to_owned()));
    nft.apply(rules(&table(&cluster()), &ports[1..], &facts())).await.unwrap();
    assert!(lab.ask("client", &format!("TCP:{NODE}:8081")).is_err());
}

#[tokio::test]
async fn ports_at_addresses_that_are_not_the_nodes_lead_nowhere() {
    let Some((mut lab, mut nft)) = lab().await else { return };
    lab.serve("client", "TCP-LISTEN:9000,fork,reuseaddr", "world");
    let port = |host: &str, port: u16| HostPort {
        transport: ketch_net::Transport::Tcp,
        host: Some(host.parse().unwrap()),
        port,
        target: ([10, 42, 0, 2].into(), 8080),
    };
    let ports = [port(CLIENT, 9000), port(WASM, 8080), port("10.42.0.3", 8080)];
    nft.apply(rules(&table(&cluster()), &ports, &facts())).await.unwrap();
    for from in ["node", "pod2"] {
        for (target, answer) in [(format!("{CLIENT}:9000"), "world "), (format!("{WASM}:8080"), "wasm ")] {
            let found = lab.ask(from, &format!("TCP:{target}"));
            assert!(
                found.as_ref().is_ok_and(|found| found.starts_with(answer)),
                "{from} {target}: {found:?}"
            );
        }
    }
    assert_eq!(lab.ask("pod1", "TCP:10.42.0.3:8080"), Ok("pod2 10.42.0.2".to_owned()));
}

#[tokio::test]
async fn pods_in_the_daemon_are_reached_through_local_addresses() {
    let Some((lab, _nft)) = lab().await else { return };
    for (from, target) in [
        ("client", format!("TCP:{NODE}:30083")),
        ("node", format!("TCP:{NODE}:30083")),
        ("client", "TCP:10.43.0.23:80".to_owned()),
        ("node", "TCP:10.43.0.23:80".to_owned()),
        ("pod1", "TCP:10.43.0.23:80".to_owned()),
    ] {
        assert!(lab.ask(from, &target).is_ok_and(|answer| answer.starts_with("wasm ")), "{from} {target}");
    }
    assert_eq!(lab.ask("pod1", "TCP:10.43.0.23:80").unwrap(), "wasm 10.42.0.2");
}

#[tokio::test]
async fn what_is_not_there_is_refused_at_once() {
    let Some((lab, _nft)) = lab().await else { return };
    for (from, target) in [
        ("pod1", "TCP:10.43.0.22:80"),
        ("node", "TCP:10.43.0.22:80"),
        ("client", "TCP:192.0.2.1:30082"),
        // A port that the Service does not have, and an address that no Service has.
        ("pod1", "TCP:10.43.0.20:81"),
        ("node", "TCP:10.43.77.77:80"),
    ] {
        let error = lab.ask(from, target).unwrap_err();
        assert!(error.contains("refused"), "{from} {target}: {error}");
    }
    // Nobody here for clients from outside: no answer, and none in the node's name.
    let error = lab.ask("client", &format!("TCP:{NODE}:30085")).unwrap_err();
    assert!(!error.contains("refused"), "{error}");
    assert!(lab.ask("pod1", &format!("TCP:{NODE}:30085")).is_ok());
}

#[tokio::test]
async fn clients_stay_with_their_endpoint() {
    let Some((lab, _nft)) = lab().await else { return };
    assert_eq!(askers(&lab, "client", "TCP:10.43.0.21:80", 12).len(), 1);
    assert_eq!(askers(&lab, "pod2", "TCP:10.43.0.21:80", 12).len(), 1);
}

#[tokio::test]
async fn pods_reach_the_world_as_the_node() {
    let Some((mut lab, _nft)) = lab().await else { return };
    lab.serve("client", "TCP-LISTEN:9000,fork,reuseaddr", "world");
    assert_eq!(lab.ask("pod1", &format!("TCP:{CLIENT}:9000")).unwrap(), format!("world {NODE}"));
    // Among themselves they are who they are.
    assert_eq!(lab.ask("pod1", "TCP:10.42.0.3:8080").unwrap(), "pod2 10.42.0.2");
}

#[tokio::test]
async fn changes_take_effect_and_a_crashed_runs_table_is_replaced() {
    let Some((lab, mut nft)) = lab().await else { return };
    let mut all = cluster();
    let applied = async |nft: &mut Nft, all: &[(Service, EndpointSlice)]| {
        nft.apply(rules(&table(all), &[], &facts())).await.unwrap()
    };
    assert!(!applied(&mut nft, &all).await, "nothing to do");
    all[0].1.endpoints.remove(0);
    all.remove(2);
    assert!(applied(&mut nft, &all).await);
    assert_eq!(askers(&lab, "client", "TCP:10.43.0.20:80", 12), BTreeSet::from(["pod2".to_owned()]));
    assert!(lab.ask("client", "TCP:10.43.0.21:80").is_err(), "the Service is gone");
    all[0].1.endpoints.clear();
    applied(&mut nft, &all).await;
    assert!(lab.ask("pod1", "TCP:10.43.0.20:80").unwrap_err().contains("refused"));
    // Another process that knows nothing of what is there.
    let mut next = Nft::new("ketch-test").within(lab.node());
    next.apply(rules(&table(&cluster()), &[], &facts())).await.unwrap();
    assert_eq!(askers(&lab, "client", "TCP:10.43.0.20:80", 24), both());
    // Somebody took the table away: the change fails, and everything is written.
    lab.run("node", &["nft", "delete", "table", "ip", "ketch-test"]);
    applied(&mut next, &all).await;
    assert!(lab.ask("pod1", "TCP:10.43.0.20:80").unwrap_err().contains("refused"));
}

#[tokio::test]
async fn many_services_load_quickly() {
    let Some(lab) = Lab::new() else { return };
    let many = |count: u32| -> Vec<(Service, EndpointSlice)> {
        (0..count)
            .map(|n| {
                let ip = format!("10.43.{}.{}", 1 + n / 250, 1 + n % 250);
                let spec = json!({"clusterIP": ip, "ports": [{"port": 80, "targetPort": 8080}]});
                service(&format!("s{n}"), spec, &[("10.42.0.2", "n1")])
            })
            .collect()
    };
    let all = many(5_000);
    let mut nft = Nft::new("ketch-many").within(lab.node());
    let start = Instant::now();
    nft.apply(rules(&table(&all), &[], &facts())).await.unwrap();
    let whole = start.elapsed();
    let start = Instant::now();
    nft.apply(rules(&table(&all[1..]), &[], &facts())).await.unwrap();
    println!("5,000 Services: {whole:?}; one less: {:?}", start.elapsed());
    assert!(whole.as_secs() < 30);
}
