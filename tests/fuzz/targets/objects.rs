//! Objects that tenants make up: decoded, defaulted and validated as every kind; those that the server lets through
//! go to whoever acts on them: controllers, scheduler, gateway, Services, NetworkPolicies, the node.
//!
//! The first byte chooses how objects are made: changes to the samples, JSON documents, or a protobuf body.
#![no_main]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, LazyLock},
};

use jiff::Timestamp;
use ketch_api::{
    DynStrategy,
    k8s::api::{core::v1::Pod, networking::v1::NetworkPolicy},
    kinds, meta,
    strategy::Context,
};
use ketch_controllers::fuzzing::Objects;
use ketch_gateway::{RouteTable, Snapshot, routes};
use ketch_net::{
    Cidr, Table, Transport,
    isolation::{self, End, Policies},
    names,
    nft::{self, Facts},
};
use ketch_scheduler::core::{Cluster, PodInfo, schedule};
use libfuzzer_sys::fuzz_target;
use serde::de::DeserializeOwned;
use serde_json::Value;

static KINDS: LazyLock<Vec<Box<dyn DynStrategy>>> = LazyLock::new(kinds::all);
static SAMPLES: LazyLock<Vec<Value>> =
    LazyLock::new(|| serde_json::from_str(include_str!("../objects.json")).expect("the samples are JSON"));

/// What numbers and texts are mistaken for.
static ODD: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let texts = [
        "",
        "0",
        "-1",
        "%",
        "100%",
        "99999999999999999999%",
        "2147483647",
        "9223372036854775807",
        "1e9999",
        "1n",
        "9223372036854775807",
        "..",
        "/",
        "a",
        "A",
        "*",
        "*.a",
        "*.",
        "0.0.0.0/0",
        "::/0",
        "10.0.0.0/8",
        "127.0.0.1",
        "::1",
        "255.255.255.255",
        "None",
        "Always",
        "Never",
        "Exists",
        "In",
        "Gt",
        "NoExecute",
        "RollingUpdate",
        "Recreate",
        "ExternalName",
        "LoadBalancer",
        "NodePort",
        "UDP",
        "SCTP",
        "Local",
        "-262144-01-01T00:00:00Z",
        "9999-12-30T22:00:00Z",
        "1970-01-01T00:00:00Z",
        "$(A)",
        "$(A",
        "metadata.labels['a']",
        "é\u{301}\u{1f980}",
    ];
    let numbers =
        [0, 1, -1, 2, 80, 100, 65_535, 65_536, i64::from(i32::MAX), i64::from(i32::MIN), i64::MAX, i64::MIN];
    let long = "a".repeat(300);
    (texts.iter().map(|text| Value::from(*text)))
        .chain(numbers.iter().map(|number| Value::from(*number)))
        .chain([Value::Null, true.into(), false.into(), 0.5.into(), long.into(), Value::Array(vec![])])
        .chain([Value::Object(serde_json::Map::new())])
        .collect()
});

fuzz_target!(|bytes: &[u8]| {
    let Some((mode, rest)) = bytes.split_first() else { return };
    let objects = match mode % 3 {
        0 => changed(rest),
        1 => rest
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .take(16)
            .collect(),
        _ => ketch_apiserver::protobuf::decode(rest).into_iter().collect(),
    };
    let passed: Vec<Value> = objects.into_iter().filter_map(admit).collect();
    act(&passed);
});

/// Samples with changes that the bytes say.
fn changed(bytes: &[u8]) -> Vec<Value> {
    let mut bytes = bytes.iter().copied();
    let mut objects = Vec::new();
    while let Some(which) = bytes.next().filter(|_| objects.len() < 10) {
        let mut object = SAMPLES[usize::from(which) % SAMPLES.len()].clone();
        for _ in 0..bytes.next().unwrap_or_default() % 5 {
            change(&mut object, &mut bytes, 0);
        }
        objects.push(object);
    }
    objects
}

fn change(value: &mut Value, bytes: &mut impl Iterator<Item = u8>, depth: usize) {
    let step = bytes.next().unwrap_or_default();
    let children = match value {
        Value::Array(items) => items.len(),
        Value::Object(members) => members.len(),
        _ => 0,
    };
    // One in sixteen stops above the leaves; nobody changes a whole object.
    if children > 0 && (depth < 2 || step < 240) {
        let index = usize::from(step) % children;
        match value {
            Value::Array(items) => {
                if bytes.next().is_some_and(|byte| byte > 240) {
                    let item = items[index].clone();
                    items.push(item);
                }
                change(&mut items[index], bytes, depth + 1);
            }
            Value::Object(members) => {
                if let Some(member) = members.values_mut().nth(index) {
                    change(member, bytes, depth + 1);
                }
            }
            _ => {}
        }
        return;
    }
    let odd = usize::from(bytes.next().unwrap_or_default());
    *value = match ODD.get(odd) {
        Some(value) => value.clone(),
        None if odd % 2 == 0 => {
            Value::from(i64::from_le_bytes(std::array::from_fn(|_| bytes.next().unwrap_or(0))))
        }
        None => {
            let text: Vec<u8> = bytes.by_ref().take(odd % 24).collect();
            String::from_utf8_lossy(&text).into_owned().into()
        }
    };
}

/// The object as the server would store it.
fn admit(raw: Value) -> Option<Value> {
    let text = |name: &str| raw.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind) = (text("apiVersion"), text("kind"));
    let strategy = KINDS
        .iter()
        .find(|one| one.descriptor().kind == kind && one.descriptor().api_version() == version)?;
    let cx = Context { now: now(), user: "fuzzer".into() };
    let decoded = strategy.decode(raw).ok()?.object;
    let again = strategy.decode(decoded.clone()).expect("what was decoded is decoded again").object;
    assert_eq!(again, decoded, "defaulting is idempotent");
    let _ = (strategy.grace_seconds(&decoded), strategy.fields(&decoded));
    assert_eq!(strategy.row(&decoded, now()).len(), strategy.columns().len());
    let _ = strategy.update(&cx, decoded.clone(), &decoded);
    if !meta::validate(strategy.descriptor(), &decoded).is_empty() {
        return None;
    }
    let stored = strategy.create(&cx, decoded.clone()).ok()?.object;
    let _ = meta::validate_update(&stored, &decoded);
    // A status is not part of a create; whoever may write one may write anything into it.
    let mut stored = stored;
    if let Some(status) = decoded.get("status") {
        stored["status"] = status.clone();
    }
    Some(stored)
}

fn act(all: &[Value]) {
    let objects = Objects {
        pods: typed(all, "Pod"),
        deployments: typed(all, "Deployment"),
        sets: typed(all, "ReplicaSet"),
        services: typed(all, "Service"),
        slices: typed(all, "EndpointSlice"),
        nodes: typed(all, "Node"),
        functions: typed(all, "Function"),
        revisions: typed(all, "FunctionRevision"),
        claims: typed(all, "PersistentVolumeClaim"),
        volumes: typed(all, "PersistentVolume"),
        classes: typed(all, "StorageClass"),
    };
    ketch_controllers::fuzzing::plan(&objects, now());
    for pod in &objects.pods {
        ketch_node::fuzzing::pod(pod, now());
    }
    place(&objects);
    serve(all, &objects);
    isolate(&typed(all, "NetworkPolicy"), &objects.pods);
}

/// Gives the pods nodes.
fn place(objects: &Objects) {
    let mut cluster = Cluster::new();
    for node in &objects.nodes {
        cluster.set_node(node);
    }
    for class in &objects.classes {
        cluster.set_class(class.metadata.name.as_deref().unwrap_or_default(), Some(Arc::clone(class)));
    }
    for volume in &objects.volumes {
        cluster.set_volume(volume.metadata.name.as_deref().unwrap_or_default(), Some(Arc::clone(volume)));
    }
    for claim in &objects.claims {
        let meta = &claim.metadata;
        let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
        cluster.set_claim(namespace.unwrap_or_default(), name.unwrap_or_default(), Some(Arc::clone(claim)));
    }
    for pod in &objects.pods {
        let info = Arc::new(PodInfo::new(Arc::clone(pod)));
        match schedule(&cluster, &info) {
            Ok(node) => cluster.place(info, &node),
            Err(why) => drop(why.to_string()),
        }
    }
}

/// Leads requests and connections to Services.
fn serve(all: &[Value], objects: &Objects) {
    let snapshot = Snapshot {
        functions: objects.functions.clone(),
        pods: objects.pods.clone(),
        services: objects.services.clone(),
        slices: objects.slices.clone(),
        ingresses: typed(all, "Ingress"),
        classes: typed(all, "IngressClass"),
    };
    let first = routes::build(&snapshot, "localhost", &RouteTable::default());
    let table = routes::build(&snapshot, "localhost", &first);
    for (host, path) in [("a.example.com", "/"), ("f.default.localhost:80", "/x"), ("", ""), ("*", "//")] {
        let _ = (table.find(host, path), table.function_of_host(host));
    }
    let table =
        Table::build(objects.services.iter().map(Arc::as_ref), objects.slices.iter().map(Arc::as_ref));
    let facts = Facts { node: "n".into(), addresses: vec![Ipv4Addr::new(192, 0, 2, 1)], ..Facts::default() };
    let rules = nft::rules(&table, &[], &facts);
    let _ =
        (nft::replace("t", &rules), nft::change("t", &nft::rules(&Table::default(), &[], &facts), &rules));
    let pods: Vec<Cidr> = "10.42.0.0/16".parse().into_iter().collect();
    for name in ["web", "web.default", "web.default.svc.cluster.local", "10-42-0-1.default.pod.cluster.local"]
    {
        let _ = names::resolve(&table, &pods, "default", name);
    }
    for forward in table.forwards().iter().take(8) {
        for address in forward.cluster.iter().take(2) {
            let target = (*address, forward.port.number).into();
            let _ = table.choose(IpAddr::from([10, 42, 0, 9]), target, forward.port.transport, 7);
        }
    }
}

/// Judges connections between the pods; the rules of the kernel are made of the same.
fn isolate(policies: &[Arc<NetworkPolicy>], pods: &[Arc<Pod>]) {
    let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    let policies = Policies::new(policies.iter().map(Arc::as_ref), [("default".to_owned(), labels)]);
    let known = |pod: &Arc<Pod>| isolation::Pod {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        addresses: vec![IpAddr::from([10, 42, 0, 3])],
        ports: vec![("http".to_owned(), Transport::Tcp, 80)],
    };
    let pods: Vec<isolation::Pod> = pods.iter().map(known).collect();
    let all: Vec<&isolation::Pod> = pods.iter().collect();
    for from in &pods {
        for port in [0, 80, 65_535] {
            let outside = End::Outside(IpAddr::from([192, 0, 2, 7]));
            let _ = policies.allowed(End::Pod(from), outside, Transport::Tcp, port);
            let _ = policies.allowed(outside, End::Pod(from), Transport::Udp, port);
        }
    }
    let _ = nft::judge(&policies.filter(all.iter().copied(), &all));
}

fn typed<T: DeserializeOwned>(all: &[Value], kind: &str) -> Vec<Arc<T>> {
    let of_kind = all.iter().filter(|object| object["kind"] == kind);
    of_kind.filter_map(|object| serde_json::from_value(object.clone()).ok()).map(Arc::new).collect()
}

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_hours(490_000)
}
