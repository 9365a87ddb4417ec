//! NetworkPolicies as this node needs them: nothing but the policies while there are none, then every pod
//! and namespace as well.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use arc_swap::ArcSwap;
use futures::{StreamExt, stream::select_all};
use ketch_api::k8s::api::{
    core::v1::{Container, Namespace, Pod},
    networking::v1::NetworkPolicy,
};
use ketch_net::{
    Transport,
    isolation::{self, End, Isolated, Policies},
};
use ketch_runtime::PodSandbox;
use kube::{Api, ResourceExt, runtime::watcher::Event};
use tokio_util::sync::CancellationToken;

use crate::network::{GATHER, events};

/// Namespace and name.
type Key = (String, String);

/// What connections are judged by, at one time.
#[derive(Default)]
pub(crate) struct Isolation {
    policies: Policies,
    pods: HashMap<IpAddr, isolation::Pod>,
}

impl Isolation {
    /// Whether `from` may connect to `to`.
    pub(crate) fn check(
        &self,
        from: &PodSandbox,
        to: SocketAddr,
        transport: Transport,
    ) -> Result<(), Isolated> {
        if self.policies.is_empty() || from.namespaces.host_network {
            return Ok(());
        }
        // Its own object may not have its address yet.
        let own = self.pods.get(&from.ip).cloned().unwrap_or_else(|| isolation::Pod {
            namespace: from.namespace.clone(),
            labels: from.labels.clone(),
            addresses: vec![from.ip],
            ports: Vec::new(),
        });
        let target = self.pods.get(&to.ip()).map_or(End::Outside(to.ip()), End::Pod);
        self.policies.allowed(End::Pod(&own), target, transport, to.port())
    }
}

/// A change of one of the watched kinds.
enum Change {
    Policy(Box<Event<NetworkPolicy>>),
    Pod(Box<Event<Pod>>),
    Namespace(Box<Event<Namespace>>),
}

#[derive(Default)]
struct Mirrors {
    policies: Mirror<NetworkPolicy>,
    pods: Mirror<isolation::Pod>,
    namespaces: Mirror<isolation::Labels>,
}

impl Mirrors {
    fn take(&mut self, change: Change) {
        match change {
            Change::Policy(event) => self.policies.take(*event, Some),
            Change::Pod(event) => self.pods.take(*event, |pod| view(&pod)),
            Change::Namespace(event) => {
                self.namespaces.take(*event, |namespace| Some(namespace.metadata.labels.unwrap_or_default()));
            }
        }
    }

    fn isolation(&self) -> Isolation {
        let namespaces = self.namespaces.objects.iter();
        let namespaces = namespaces.map(|((_, name), labels)| (name.clone(), labels.clone()));
        let pods = self.pods.objects.values();
        let by_address = pods.flat_map(|pod| pod.addresses.iter().map(|ip| (*ip, pod.clone())));
        Isolation {
            policies: Policies::new(self.policies.objects.values(), namespaces),
            pods: by_address.collect(),
        }
    }
}

/// Follows policies, and as long as there are any what they select by, until `stop`.
pub(crate) async fn follow(current: Arc<ArcSwap<Isolation>>, client: kube::Client, stop: CancellationToken) {
    let mut mirrors = Mirrors::default();
    let policies = |client: &kube::Client| {
        let api = Api::<NetworkPolicy>::all(client.clone());
        events(api).map(|event| Change::Policy(Box::new(event))).boxed()
    };
    let mut changes = select_all([policies(&client)]);
    let mut whole = false;
    while let Some(Some(change)) = stop.run_until_cancelled(changes.next()).await {
        mirrors.take(change);
        let _ = tokio::time::timeout(GATHER, async {
            while let Some(change) = changes.next().await {
                mirrors.take(change);
            }
        })
        .await;
        if !whole && !mirrors.policies.objects.is_empty() {
            whole = true;
            let pods = events(Api::<Pod>::all(client.clone()));
            let namespaces = events(Api::<Namespace>::all(client.clone()));
            changes.push(pods.map(|event| Change::Pod(Box::new(event))).boxed());
            changes.push(namespaces.map(|event| Change::Namespace(Box::new(event))).boxed());
        }
        if whole && mirrors.policies.objects.is_empty() {
            // The last one is gone: no more watching of everything.
            whole = false;
            mirrors = Mirrors::default();
            changes = select_all([policies(&client)]);
        }
        current.store(Arc::new(mirrors.isolation()));
    }
}

/// What policies look at. `None`: the pod has ended, or is in the node's network.
fn view(pod: &Pod) -> Option<isolation::Pod> {
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if over || spec.host_network == Some(true) {
        return None;
    }
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut addresses: Vec<IpAddr> =
        listed.chain(status.pod_ip.as_deref()).filter_map(|ip| ip.parse().ok()).collect();
    addresses.dedup();
    Some(isolation::Pod {
        namespace: pod.namespace().unwrap_or_default(),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        addresses,
        ports: spec.containers.iter().flat_map(ports).collect(),
    })
}

fn ports(container: &Container) -> Vec<(String, Transport, u16)> {
    let port = |port: &ketch_api::k8s::api::core::v1::ContainerPort| {
        let transport = match port.protocol.as_deref() {
            None | Some("TCP") => Transport::Tcp,
            Some("UDP") => Transport::Udp,
            Some(_) => return None,
        };
        Some((port.name.clone()?, transport, u16::try_from(port.container_port).ok()?))
    };
    container.ports.iter().flatten().filter_map(port).collect()
}

/// What matters of the objects of a kind.
struct Mirror<V> {
    objects: HashMap<Key, V>,
    listed: HashMap<Key, V>,
}

impl<V> Default for Mirror<V> {
    fn default() -> Self {
        Self { objects: HashMap::new(), listed: HashMap::new() }
    }
}

impl<V> Mirror<V> {
    fn take<K: kube::Resource>(&mut self, event: Event<K>, view: impl Fn(K) -> Option<V>) {
        let key = |object: &K| (object.namespace().unwrap_or_default(), object.name_any());
        match event {
            Event::Apply(object) => {
                let key = key(&object);
                match view(object) {
                    Some(value) => self.objects.insert(key, value),
                    None => self.objects.remove(&key),
                };
            }
            Event::Delete(object) => {
                self.objects.remove(&key(&object));
            }
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => {
                let key = key(&object);
                self.listed.extend(view(object).map(|value| (key, value)));
            }
            Event::InitDone => self.objects = std::mem::take(&mut self.listed),
        }
    }
}

#[cfg(test)]
mod tests {
    use ketch_runtime::PodId;
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, ip: &str, more: Value) -> Pod {
        let mut pod = json!({"metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"podIP": ip, "podIPs": [{"ip": ip}]}});
        json_patch::merge(&mut pod, &more);
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn connections_are_judged_by_what_was_watched() {
        let mut mirrors = Mirrors::default();
        let policy = json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": {"podSelector": {"matchLabels": {"app": "db"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": "http"}]}]}});
        mirrors.take(Change::Policy(Box::new(Event::Apply(serde_json::from_value(policy).unwrap()))));
        for pod in [
            pod("web", "10.42.0.2", json!({})),
            pod("db", "10.42.0.3", json!({})),
            pod("other", "10.42.0.4", json!({})),
            // An ended pod's address is not its any more, and a host's is nobody's.
            pod("old", "10.42.0.3", json!({"status": {"phase": "Succeeded"}})),
            pod("agent", "192.0.2.1", json!({"spec": {"hostNetwork": true}})),
        ] {
            mirrors.take(Change::Pod(Box::new(Event::Apply(pod))));
        }
        let isolation = mirrors.isolation();
        let check = |name: &str, ip: &str, to: &str| {
            let mut sandbox = PodSandbox::new(PodId(name.into()), "shop", name, ip.parse().unwrap());
            sandbox.labels = [("app".to_owned(), name.to_owned())].into();
            isolation.check(&sandbox, to.parse().unwrap(), Transport::Tcp)
        };
        assert_eq!(check("web", "10.42.0.2", "10.42.0.3:8080"), Ok(()));
        assert_eq!(check("web", "10.42.0.2", "10.42.0.3:8081"), Err(Isolated::Ingress));
        assert_eq!(check("other", "10.42.0.4", "10.42.0.3:8080"), Err(Isolated::Ingress));
        // A pod that is not in the API with its address yet goes by its sandbox.
        assert_eq!(check("web", "10.42.0.9", "10.42.0.3:8080"), Ok(()));
        assert_eq!(check("other", "10.42.0.4", "10.42.0.2:8080"), Ok(()));
        assert_eq!(check("other", "10.42.0.4", "192.0.2.1:22"), Ok(()));
        assert_eq!(
            Isolation::default().check(
                &PodSandbox::new(PodId("x".into()), "shop", "x", "10.42.0.8".parse().unwrap()),
                "10.42.0.3:1".parse().unwrap(),
                Transport::Tcp
            ),
            Ok(())
        );
    }
}
