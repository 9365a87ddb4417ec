//! NetworkPolicies as containers and pods in the daemon feel them.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use ketch_api::k8s::api::networking::v1::NetworkPolicy;
use ketch_net::{
    isolation::{Filter, Labels, Pod, Policies},
    nft::{Nft, judge},
    services::Transport::Tcp,
};
use serde_json::{Value, json};

use crate::lab::{CLIENT, Lab, NODE, WASM};

/// `web` and `db` have namespaces, `wasm` is in the daemon, `far` on another node.
fn pods() -> Vec<Pod> {
    [("web", "10.42.0.2"), ("db", "10.42.0.3"), ("wasm", WASM), ("far", "10.42.64.2")]
        .map(|(app, ip)| Pod {
            namespace: "shop".into(),
            labels: [("app".to_owned(), app.to_owned())].into(),
            addresses: vec![ip.parse().unwrap()],
            ports: vec![("http".into(), Tcp, 8080)],
        })
        .into()
}

fn filter(specs: &[Value], pods: &[Pod]) -> Filter {
    let object = |(n, spec)| {
        let metadata = json!({"namespace": "shop", "name": format!("p{n}")});
        serde_json::from_value::<NetworkPolicy>(json!({"metadata": metadata, "spec": spec})).unwrap()
    };
    let policies: Vec<NetworkPolicy> = specs.iter().enumerate().map(object).collect();
    let policies = Policies::new(&policies, [("shop".to_owned(), Labels::new())]);
    let all: Vec<&Pod> = pods.iter().collect();
    policies.filter(pods.iter().filter(|pod| pod.labels["app"] != "far"), &all)
}

struct Rig {
    lab: Lab,
    nft: Nft,
}

impl Rig {
    fn new() -> Option<Self> {
        let mut lab = Lab::new()?;
        for (pod, word) in [("pod1", "web"), ("pod2", "db")] {
            lab.serve(pod, "TCP-LISTEN:8080,fork,reuseaddr", word);
            lab.serve(pod, "TCP-LISTEN:9090,fork,reuseaddr", word);
        }
        lab.serve("node", &format!("TCP-LISTEN:8080,fork,reuseaddr,bind={WASM}"), "wasm");
        lab.serve("client", "TCP-LISTEN:9000,fork,reuseaddr", "world");
        lab.ip("client", &format!("route add 10.42.0.0/16 via {NODE}"));
        let nft = Nft::new("ketch-judge").within(lab.node());
        Some(Self { lab, nft })
    }

    async fn hold(&mut self, specs: &[Value]) {
        self.nft.apply(judge(&filter(specs, &pods()))).await.unwrap();
    }

    /// Who answers; `-`: not allowed.
    fn ask(&self, from: &str, target: &str) -> String {
        match self.lab.ask(from, &format!("TCP:{target}")) {
            Ok(answer) => answer.split(' ').next().unwrap_or_default().to_owned(),
            Err(error) if error.contains("No route to host") => "-".to_owned(),
            Err(error) => panic!("{from} to {target}: {error}"),
        }
    }

    /// Who answers on 8080: to the other pod, to the pod in the daemon, from the node, from outside.
    fn web(&self) -> [String; 4] {
        let web = "10.42.0.2:8080";
        [("pod2", web), ("pod1", &format!("{WASM}:8080")), ("node", web), ("client", web)]
            .map(|(from, target)| self.ask(from, target))
    }
}

fn on(app: &str, more: Value) -> Value {
    let mut spec = json!({"podSelector": {"matchLabels": {"app": app}}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

#[tokio::test]
async fn connections_in_are_those_that_policies_allow() {
    let Some(mut rig) = Rig::new() else { return };
    rig.hold(&[]).await;
    assert_eq!(rig.web(), ["web", "wasm", "web", "web"]);
    // Nobody but the node.
    rig.hold(&[json!({"podSelector": {}})]).await;
    assert_eq!(rig.web(), ["-", "-", "web", "-"]);
    assert_eq!(rig.ask("node", &format!("{WASM}:8080")), "wasm");
    // Labels, and each for itself.
    let app = |app: &str| json!({"podSelector": {"matchLabels": {"app": app}}});
    let deny = || json!({"podSelector": {}});
    rig.hold(&[deny(), on("web", json!({"ingress": [{"from": [app("db")]}]}))]).await;
    assert_eq!(rig.web(), ["web", "-", "web", "-"]);
    rig.hold(&[deny(), on("wasm", json!({"ingress": [{"from": [app("web")]}]}))]).await;
    assert_eq!(rig.web(), ["-", "wasm", "web", "-"]);
    // Ports by number, range and name.
    for (port, open, shut) in [
        (json!({"port": 8080}), 8080, 9090),
        (json!({"port": 9000, "endPort": 9100}), 9090, 8080),
        (json!({"port": "http"}), 8080, 9090),
    ] {
        rig.hold(&[deny(), on("web", json!({"ingress": [{"ports": [port]}]}))]).await;
        assert_eq!(rig.ask("pod2", &format!("10.42.0.2:{open}")), "web");
        assert_eq!(rig.ask("pod2", &format!("10.42.0.2:{shut}")), "-");
    }
    // Ranges with holes.
    let block = |except: &str| json!({"ipBlock": {"cidr": "192.0.2.0/24", "except": [except]}});
    rig.hold(&[deny(), on("web", json!({"ingress": [{"from": [block("192.0.2.64/26")]}]}))]).await;
    assert_eq!(rig.web(), ["-", "-", "web", "web"]);
    rig.hold(&[deny(), on("web", json!({"ingress": [{"from": [block("192.0.2.2/32")]}]}))]).await;
    assert_eq!(rig.web(), ["-", "-", "web", "-"]);
    rig.hold(&[]).await;
    assert_eq!(rig.web(), ["web", "wasm", "web", "web"]);
}

#[tokio::test]
async fn connections_out_are_those_that_policies_allow() {
    let Some(mut rig) = Rig::new() else { return };
    let out = |rig: &Rig| {
        ["10.42.0.3:8080".to_owned(), format!("{WASM}:8080"), format!("{CLIENT}:9000")]
            .map(|target| rig.ask("pod1", &target))
    };
    rig.hold(&[on("web", json!({"policyTypes": ["Egress"]}))]).await;
    assert_eq!(out(&rig), ["-", "-", "-"]);
    assert_eq!(rig.ask("pod2", "10.42.0.2:8080"), "web", "answers are part of a connection in");
    let to = |peer: Value| on("web", json!({"policyTypes": ["Egress"], "egress": [{"to": [peer]}]}));
    rig.hold(&[to(json!({"ipBlock": {"cidr": format!("{CLIENT}/32")}}))]).await;
    assert_eq!(out(&rig), ["-", "-", "world"]);
    rig.hold(&[to(json!({"podSelector": {"matchLabels": {"app": "wasm"}}}))]).await;
    assert_eq!(out(&rig), ["-", "wasm", "-"]);
    let named = json!({"policyTypes": ["Egress"], "egress": [{"ports": [{"port": "http"}]}]});
    rig.hold(&[on("web", named)]).await;
    assert_eq!(out(&rig), ["db", "wasm", "-"]);
    // Both ends have a say.
    rig.hold(&[on("db", json!({}))]).await;
    assert_eq!(out(&rig), ["-", "wasm", "world"]);
}

#[tokio::test]
async fn a_pod_sends_in_its_own_name_only() {
    let Some(mut rig) = Rig::new() else { return };
    rig.hold(&[]).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("heard");
    let sink = format!("OPEN:{},creat,append", file.display());
    rig.lab.spawn("node", &["socat", "-u", "UDP-RECV:7000", &sink]);
    rig.lab.ip("pod1", "addr add 10.42.0.3/32 dev eth0");
    let say = |word: &str, source: &str| {
        let send = format!("echo {word} | socat -u - UDP-SENDTO:10.42.0.1:7000,bind={source}");
        assert!(rig.lab.run("pod1", &["bash", "-c", &send]).status.success());
    };
    let heard = || std::fs::read_to_string(&file).unwrap_or_default();
    wait(|| {
        say("forged", "10.42.0.3");
        say("honest", "10.42.0.2");
        heard().contains("honest")
    });
    assert!(!heard().contains("forged"), "{}", heard());
}

fn wait(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "it did not come to that");
    }
}

#[tokio::test]
async fn a_change_among_a_thousand_pods_is_small() {
    let Some(lab) = Lab::new() else { return };
    let pod = |n: u32| Pod {
        namespace: "shop".into(),
        labels: [("app".to_owned(), format!("a{}", n % 50))].into(),
        addresses: vec![Ipv4Addr::from(0x0A2A_0000 + 2 + n).into()],
        ports: vec![("http".into(), Tcp, 8080)],
    };
    let mut all: Vec<Pod> = (0..1_000).map(pod).collect();
    let peer = |n: u32| json!({"podSelector": {"matchLabels": {"app": format!("a{n}")}}});
    let policy = |n: u32| {
        on(
            &format!("a{n}"),
            json!({"ingress": [{"from": [peer((n + 1) % 50)], "ports": [{"port": "http"}]}]}),
        )
    };
    let specs: Vec<Value> = (0..50).map(policy).collect();
    let mut nft = Nft::new("ketch-thousand").within(lab.node());
    nft.apply(judge(&filter(&specs, &all))).await.unwrap();
    all.push(pod(1_000));
    let (start, rules) = (Instant::now(), judge(&filter(&specs, &all)));
    let computed = start.elapsed();
    nft.apply(rules).await.unwrap();
    println!(
        "1,000 pods, 50 policies: computed in {computed:?}, one pod more in force after {:?}",
        start.elapsed()
    );
    assert!(start.elapsed() < Duration::from_secs(10));
}
