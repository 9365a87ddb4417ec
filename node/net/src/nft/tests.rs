//! What the rules are, and how they change.

use std::net::Ipv4Addr;

use ketch_api::k8s::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde_json::{Value, json};

use super::{
    batch::{change, replace},
    model::{Collection, Key, Rules},
    rules::{
        CLUSTER_IPS, Facts, HOST_ADDRESSES, HOST_PORTS, NOBODY, NOBODY_PORTS, NODE_IPS, NODE_PORTS, SERVICES,
        rules,
    },
};
use crate::{
    forward::HostPort,
    services::{Table, Transport::Tcp},
};

fn facts() -> Facts {
    Facts {
        node: "n1".into(),
        addresses: vec![Ipv4Addr::new(192, 0, 2, 1)],
        pods: vec!["10.42.0.0/16".parse().unwrap()],
        local_pods: vec!["10.42.0.0/19".parse().unwrap()],
        services: vec!["10.43.0.0/16".parse().unwrap()],
        served: vec![Ipv4Addr::new(10, 43, 0, 10)],
        door: None,
    }
}

fn service(name: &str, spec: Value) -> Value {
    json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec})
}

fn build(service: Value, endpoints: &[(&str, &str)]) -> Rules {
    let name = service["metadata"]["name"].clone();
    let list: Vec<Value> =
        endpoints.iter().map(|(ip, node)| json!({"addresses": [ip], "nodeName": node})).collect();
    let slice = json!({"addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": list,
        "metadata": {"namespace": "shop", "name": "s", "labels": {"kubernetes.io/service-name": name}}});
    let slice: EndpointSlice = serde_json::from_value(slice).unwrap();
    let service: Service = serde_json::from_value(service).unwrap();
    rules(&Table::build([&service], [&slice]), &[], &facts())
}

/// Where an element leads: the start of the chain's name.
fn verdict(rules: &Rules, set: &'static str, key: Key) -> Option<String> {
    let chain = rules.elements.get(&(set.into(), key))?.clone().unwrap_or_default();
    Some(chain.split_once('-').map_or(chain.clone(), |(kind, _)| kind.to_owned()))
}

fn at(ip: [u8; 4]) -> Key {
    Key::Service(ip.into(), Tcp, 80)
}

const IP: [u8; 4] = [10, 43, 0, 20];
const NODE: [u8; 4] = [192, 0, 2, 1];
const TWO: &[(&str, &str)] = &[("10.42.0.2", "n1"), ("10.42.64.2", "n2")];

#[test]
fn where_addresses_lead() {
    let plain = || json!({"clusterIP": "10.43.0.20", "ports": [{"port": 80, "nodePort": 30080}]});
    let with = |field: &str, value: Value| {
        let mut spec = plain();
        spec[field] = value;
        service("web", spec)
    };
    let balanced = |mut service: Value| {
        service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}});
        service
    };
    let port = Key::Port(Tcp, 30080);
    let whole = build(service("web", plain()), TWO);
    assert_eq!(verdict(&whole, SERVICES, at(IP)).as_deref(), Some("svc"));
    assert_eq!(verdict(&whole, NODE_PORTS, port.clone()).as_deref(), Some("ext"));
    assert_eq!(verdict(&whole, CLUSTER_IPS, Key::Address(IP.into())).as_deref(), Some(""));
    assert_eq!(verdict(&whole, NODE_IPS, Key::Address(NODE.into())).as_deref(), Some(""));
    // Nobody there: refused, on every address.
    let gone = build(balanced(service("web", plain())), &[]);
    for key in [at(IP), at(NODE)] {
        assert_eq!(verdict(&gone, NOBODY, key).as_deref(), Some("refuse"));
    }
    assert_eq!(verdict(&gone, NOBODY_PORTS, port.clone()).as_deref(), Some("refuse"));
    // Nobody on this node: dropped, so that whoever balances looks elsewhere.
    let other = &[("10.42.64.2", "n2")];
    let local = build(with("internalTrafficPolicy", json!("Local")), other);
    assert_eq!(verdict(&local, NOBODY, at(IP)).as_deref(), Some("drop"));
    assert_eq!(verdict(&local, NODE_PORTS, port).as_deref(), Some("ext"));
    // External addresses, load balancers, and those that not everybody may use.
    let external = build(with("externalIPs", json!(["198.51.100.1", "2001:db8::1"])), TWO);
    assert_eq!(verdict(&external, SERVICES, at([198, 51, 100, 1])).as_deref(), Some("ext"));
    let guarded = build(balanced(with("loadBalancerSourceRanges", json!(["203.0.113.0/24"]))), TWO);
    assert_eq!(verdict(&guarded, SERVICES, at(NODE)).as_deref(), Some("lbs"));
    // Cluster DNS is the node's own.
    let dns = build(service("dns", json!({"clusterIP": "10.43.0.10", "ports": [{"port": 80}]})), TWO);
    assert_eq!(verdict(&dns, SERVICES, at([10, 43, 0, 10])), None);
    assert_eq!(verdict(&dns, CLUSTER_IPS, Key::Address([10, 43, 0, 10].into())), None);
    // Headless Services have nothing to translate.
    let headless = build(service("db", json!({"clusterIP": "None", "ports": [{"port": 80}]})), TWO);
    assert!(headless.elements.keys().all(|(set, _)| *set == NODE_IPS));
}

/// A chain's rules as nft's JSON, by the start of its name.
fn chain(rules: &Rules, prefix: &str) -> Value {
    let (_, found) = rules.chains.iter().find(|(name, _)| name.starts_with(prefix)).unwrap();
    serde_json::to_value(found).unwrap()
}

#[test]
fn a_clusters_port_in_full() {
    let found = build(service("web", json!({"clusterIP": "10.43.0.20", "ports": [{"port": 80}]})), &TWO[..1]);
    let mut names = found.chains.keys().filter(|name| name.contains("shop/web"));
    let name = names.next().unwrap();
    assert!(names.next().is_none() && name.starts_with("ep-"), "one endpoint needs no choice");
    assert!(name.ends_with("-shop/web/tcp/80/10.42.0.2/8080"));
    assert_eq!(found.elements[&(SERVICES.into(), at(IP))].as_ref(), Some(name));
    let saddr = json!({"payload": {"protocol": "ip", "field": "saddr"}});
    let expected = json!([
        [{"match": {"left": saddr, "op": "==", "right": "10.42.0.2"}}, {"jump": {"target": "masquerade-later"}}],
        [{"match": {"left": {"meta": {"key": "l4proto"}}, "op": "==", "right": "tcp"}}, {"dnat": {"addr": "10.42.0.2", "port": 8080}}],
    ]);
    assert_eq!(chain(&found, "ep-"), expected);
}

#[test]
fn pods_are_led_to_the_api_by_the_door_of_their_node() {
    let build = |name: &str, namespace: &str, endpoints: &[&str]| {
        let metadata = json!({"namespace": namespace, "name": name});
        let spec = json!({"type": "NodePort", "clusterIP": "10.43.0.20",
            "ports": [{"port": 80, "targetPort": 6443, "nodePort": 30080}]});
        let service = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
        let labels = json!({"kubernetes.io/service-name": name});
        let endpoints: Vec<Value> = endpoints.iter().map(|ip| json!({"addresses": [ip]})).collect();
        let slice = json!({"addressType": "IPv4", "ports": [{"port": 6443}], "endpoints": endpoints,
            "metadata": {"namespace": namespace, "name": name, "labels": labels}});
        let slice = serde_json::from_value(slice).unwrap();
        let door = Some("10.42.0.1:6443".parse().unwrap());
        rules(&Table::build([&service], [&slice]), &[], &Facts { door, ..facts() })
    };
    let leads = |rules: &Rules, key: Key| {
        let maps = [SERVICES, NODE_PORTS, NOBODY, NOBODY_PORTS];
        let found = maps.iter().find_map(|map| rules.elements.get(&((*map).into(), key.clone())));
        let chain = found.unwrap().clone().unwrap();
        chain.rsplit_once("/tcp/80/").map_or(chain.clone(), |(_, end)| end.to_owned())
    };
    let api = build("kubernetes", "default", &["192.0.2.9"]);
    assert_eq!(leads(&api, at(IP)), "10.42.0.1/6443");
    // Who comes from outside does not use the door.
    let all = chain(&api, "ext-");
    assert!(all.to_string().contains("192.0.2.9/6443"), "{all}");
    assert_eq!(leads(&build("kubernetes", "shop", &["192.0.2.9"]), at(IP)), "192.0.2.9/6443");
    // A server on loopback has no endpoint for others.
    let alone = build("kubernetes", "default", &[]);
    assert_eq!(leads(&alone, at(IP)), "10.42.0.1/6443");
    assert_eq!(leads(&alone, Key::Port(Tcp, 30080)), "refuse");
}

#[test]
fn several_endpoints_are_chosen_from_at_random() {
    let found = build(service("web", json!({"clusterIP": "10.43.0.20", "ports": [{"port": 80}]})), TWO);
    let ends: Vec<&String> = found.chains.keys().filter(|name| name.starts_with("ep-")).collect();
    let mut rule = chain(&found, "svc-");
    let choice = rule[0][0]["vmap"]["data"]["set"].take();
    assert_eq!(
        rule,
        json!([[{"vmap": {"key": {"numgen": {"mode": "random", "mod": 2}}, "data": {"set": null}}}]])
    );
    let mut chosen: Vec<&str> =
        choice.as_array().unwrap().iter().map(|pair| pair[1]["goto"]["target"].as_str().unwrap()).collect();
    chosen.sort_unstable();
    assert_eq!(chosen, ends);
}

#[test]
fn affinity_has_a_set_per_endpoint() {
    let spec = json!({"clusterIP": "10.43.0.20", "ports": [{"port": 80}], "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}});
    let found = build(service("web", spec), TWO);
    let clients = found.collections.values().filter(|one| matches!(one, Collection::Clients(60)));
    assert_eq!(clients.count(), 2);
    assert_eq!(chain(&found, "svc-").as_array().unwrap().len(), 2 + 1);
}

#[test]
fn only_what_changed_is_written() {
    let spec = json!({"clusterIP": "10.43.0.20", "ports": [{"port": 80}]});
    let one = build(service("web", spec.clone()), &TWO[..1]);
    let two = build(service("web", spec), TWO);
    assert!(change("ketch", &one, &one).is_none());
    let grown = serde_json::to_value(change("ketch", &one, &two).unwrap()).unwrap();
    let verbs: Vec<String> = grown["nftables"]
        .as_array()
        .unwrap()
        .iter()
        .map(|command| {
            let (verb, what) = command.as_object().unwrap().iter().next().unwrap();
            format!("{verb} {}", what.as_object().unwrap().keys().next().unwrap())
        })
        .collect();
    // A chain for the new endpoint with its two rules, one for the choice, and the address leads there.
    let expected =
        ["add chain", "add chain", "add rule", "add rule", "add rule", "delete element", "add element"];
    assert_eq!(verbs, expected);
    let all = serde_json::to_value(replace("ketch", &two)).unwrap();
    assert!(all["nftables"].as_array().unwrap().len() > 40);
}

#[test]
fn ports_of_pods_are_at_addresses_of_the_node() {
    let port = |host: Option<[u8; 4]>| HostPort {
        transport: Tcp,
        host: host.map(Ipv4Addr::from),
        port: 80,
        target: ([10, 42, 0, 2].into(), 8080),
    };
    let table = Table::build([], []);
    let leads = |host| {
        let found = rules(&table, &[port(host)], &facts());
        let key = host.map_or(Key::Port(Tcp, 80), at);
        verdict(&found, if host.is_some() { HOST_ADDRESSES } else { HOST_PORTS }, key).is_some()
    };
    for host in [None, Some(NODE), Some([192, 0, 2, 77]), Some([10, 42, 0, 1])] {
        assert!(leads(host), "{host:?}");
    }
    // A pod of this node, the first address of another one, a Service.
    for host in [[10, 42, 0, 3], [10, 42, 32, 1], IP] {
        assert!(!leads(Some(host)), "{host:?}");
    }
}
