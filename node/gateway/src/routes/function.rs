//! Routes of Functions.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ketch_api::{
    function::Function,
    k8s::api::core::v1::{Container, Pod},
    names,
};

use super::{
    Snapshot,
    table::{Builder, PathKind},
    target::{Backend, Endpoint, FunctionTarget, Share, Target},
};

/// Time-out of a function that names none.
const TIMEOUT: Duration = Duration::from_secs(30);
/// What the pod tells the node about time-outs.
const TIMEOUT_ANNOTATION: &str = "ketch.dev/timeout-seconds";
/// The container of a function's pod, and its port.
const CONTAINER: &str = "function";
const PORT: &str = "http";

/// Namespace and revision.
type RevisionKey = (String, String);

pub(super) fn add(builder: &mut Builder<'_>, snapshot: &Snapshot) {
    let mut pods: BTreeMap<RevisionKey, Vec<Endpoint>> = BTreeMap::new();
    for pod in &snapshot.pods {
        if let Some((key, endpoint)) = endpoint(builder, pod) {
            pods.entry(key).or_default().push(endpoint);
        }
    }
    for endpoints in pods.values_mut() {
        endpoints.sort_by_key(|e| e.address);
    }
    let mut functions: Vec<_> =
        snapshot.functions.iter().filter(|f| f.metadata.deletion_timestamp.is_none()).collect();
    functions.sort_by_key(|f| {
        (
            f.metadata.creation_timestamp.clone().map(|t| t.0),
            f.metadata.namespace.clone(),
            f.metadata.name.clone(),
        )
    });
    let mut targets = Vec::new();
    for function in functions {
        let target = Target::Function(Arc::new(target(builder, function, &pods)));
        let (namespace, name) = identity(function);
        let host = builder.default_host(namespace, name);
        let owner = format!("function {namespace}/{name}");
        builder.add(&owner, namespace, &host, PathKind::Prefix, "/", target.clone());
        targets.push((function, owner, target));
    }
    // After every default host, so that a trigger cannot take one.
    for (function, owner, target) in targets {
        let (namespace, _) = identity(function);
        for http in function.spec.triggers.iter().filter_map(|t| t.http.as_ref()) {
            let path = http.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
            for host in &http.hosts {
                builder.add(&owner, namespace, host, PathKind::Prefix, path, target.clone());
            }
        }
    }
}

fn identity(function: &Function) -> (&str, &str) {
    (
        function.metadata.namespace.as_deref().unwrap_or_default(),
        function.metadata.name.as_deref().unwrap_or_default(),
    )
}

fn target(
    builder: &mut Builder<'_>,
    function: &Function,
    pods: &BTreeMap<RevisionKey, Vec<Endpoint>>,
) -> FunctionTarget {
    let (namespace, name) = identity(function);
    let status = function.status.clone().unwrap_or_default();
    let share = |target: &ketch_api::function::TrafficTarget| Share {
        revision: target.revision_name.clone(),
        percent: u32::try_from(target.percent).unwrap_or(0),
        backend: Backend::new(
            pods.get(&(namespace.to_owned(), target.revision_name.clone())).cloned().unwrap_or_default(),
        ),
    };
    let ready = status.conditions.iter().find(|c| c.type_ == "Ready" && c.status != "True");
    let reason = ready.map(|c| if c.message.is_empty() { c.reason.clone() } else { c.message.clone() });
    FunctionTarget {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        shares: status.traffic.iter().map(share).collect(),
        reason: reason.unwrap_or_else(|| "it is being prepared".to_owned()),
        turns: builder.turns(namespace, name),
    }
}

/// A ready pod of a function, and whose it is.
fn endpoint(builder: &mut Builder<'_>, pod: &Pod) -> Option<(RevisionKey, Endpoint)> {
    let revision = pod.metadata.labels.as_ref()?.get(names::REVISION_LABEL)?;
    let namespace = pod.metadata.namespace.as_ref()?;
    let status = pod.status.as_ref()?;
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    if pod.metadata.deletion_timestamp.is_some() || status.phase.as_deref() != Some("Running") || !ready {
        return None;
    }
    let ip: IpAddr = status.pod_ip.as_deref()?.parse().ok()?;
    let address = SocketAddr::new(ip, port(pod));
    let seconds = pod.metadata.annotations.as_ref().and_then(|a| a.get(TIMEOUT_ANNOTATION));
    let timeout = seconds.and_then(|s| s.parse().ok()).map_or(TIMEOUT, Duration::from_secs);
    let endpoint = Endpoint { address, load: builder.load(address), timeout, h2c: false };
    Some(((namespace.clone(), revision.clone()), endpoint))
}

/// The port named `http` of the function's container, its first port, or 8080.
fn port(pod: &Pod) -> u16 {
    let containers: &[Container] = pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default();
    let container = containers.iter().find(|c| c.name == CONTAINER).or_else(|| containers.first());
    let ports = container.and_then(|c| c.ports.as_deref()).unwrap_or_default();
    let port = ports.iter().find(|p| p.name.as_deref() == Some(PORT)).or_else(|| ports.first());
    port.and_then(|p| u16::try_from(p.container_port).ok()).unwrap_or(names::DEFAULT_HTTP_PORT)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::routes::{RouteTable, build};

    fn function(name: &str, traffic: Value) -> Arc<Function> {
        let status = json!({"traffic": traffic, "conditions": [{
            "type": "Ready", "status": "False", "reason": "ImagePullBackOff", "message": "no such image", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        Arc::new(serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default"}, "status": status,
            "spec": {"image": "i", "triggers": [{"http": {"hosts": ["shop.example.com"], "path": "/cart"}}]},
        })).unwrap())
    }

    fn pod(name: &str, revision: &str, ip: &str, ready: &str) -> Arc<Pod> {
        Arc::new(serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default", "labels": {"ketch.dev/function": "f", "ketch.dev/revision": revision},
                         "annotations": {"ketch.dev/timeout-seconds": "5"}},
            "spec": {"containers": [{"name": "function", "ports": [{"name": "http", "containerPort": 9000}]}]},
            "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": ready}]},
        })).unwrap())
    }

    fn found(table: &RouteTable, host: &str, path: &str) -> Arc<FunctionTarget> {
        match table.find(host, path) {
            Some(Target::Function(function)) => Arc::clone(function),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn status_traffic_decides() {
        let snapshot = Snapshot {
            functions: vec![function("f", json!([{"revisionName": "f-00002", "percent": 100}]))],
            pods: vec![
                pod("a", "f-00001", "10.42.0.1", "True"),
                pod("b", "f-00002", "10.42.0.2", "True"),
                pod("c", "f-00002", "10.42.0.3", "False"),
            ],
            ..Snapshot::default()
        };
        let table = build(&snapshot, "localhost", &RouteTable::default());
        assert!(table.is_complete() && !RouteTable::default().is_complete());
        let target = found(&table, "f.default.localhost:8080", "/any/path");
        let endpoint = target.pick(&[]).unwrap();
        assert_eq!(endpoint.address.to_string(), "10.42.0.2:9000");
        assert_eq!(endpoint.timeout, Duration::from_secs(5));
        assert!(target.pick(&[endpoint.address]).is_none(), "only ready pods of revisions with traffic");
        assert_eq!(found(&table, "shop.example.com", "/cart/1").name, "f");
        assert!(table.find("shop.example.com", "/").is_none());
    }

    #[test]
    fn without_traffic_the_reason_is_known() {
        let snapshot = Snapshot { functions: vec![function("f", json!([]))], ..Snapshot::default() };
        let table = build(&snapshot, "localhost", &RouteTable::default());
        let target = found(&table, "f.default.localhost", "/");
        assert!(target.shares.is_empty());
        assert_eq!(target.reason, "no such image");
    }

    #[test]
    fn loads_survive_a_rebuild() {
        let snapshot = Snapshot {
            functions: vec![function("f", json!([{"revisionName": "r", "percent": 100}]))],
            pods: vec![pod("a", "r", "10.42.0.1", "True")],
            ..Snapshot::default()
        };
        let first = build(&snapshot, "localhost", &RouteTable::default());
        let busy = found(&first, "f.default.localhost", "/").pick(&[]).unwrap().load.enter();
        let second = build(&snapshot, "localhost", &first);
        assert_eq!(found(&second, "f.default.localhost", "/").pick(&[]).unwrap().load.get(), 1);
        drop(busy);
        assert_eq!(found(&second, "f.default.localhost", "/").pick(&[]).unwrap().load.get(), 0);
    }

    #[test]
    fn the_older_function_keeps_a_host() {
        let at = |function: &Arc<Function>, time: &str, name: &str| {
            let mut function = (**function).clone();
            function.metadata.name = Some(name.into());
            function.metadata.creation_timestamp =
                Some(ketch_api::k8s::apimachinery::pkg::apis::meta::v1::Time(time.parse().unwrap()));
            Arc::new(function)
        };
        let base = function("x", json!([]));
        let snapshot = Snapshot {
            functions: vec![at(&base, "2026-01-02T00:00:00Z", "a"), at(&base, "2026-01-01T00:00:00Z", "b")],
            ..Snapshot::default()
        };
        let table = build(&snapshot, "localhost", &RouteTable::default());
        assert_eq!(found(&table, "shop.example.com", "/cart").name, "b");
        assert_eq!(
            table.problems(),
            ["function default/a: shop.example.com/cart is taken by an older object"]
        );
    }
}
