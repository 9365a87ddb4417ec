//! NetworkPolicies as this node needs them: nothing but the policies while there are none, then every pod,
//! namespace and node as well.
//!
//! [`Judge`] has what connections are judged by now: dials of guests in this process here, packets by rules of
//! the kernel ([`rules`]), both from one snapshot. A pod that is set up is announced, and starts when what holds
//! for it is in force.

mod rules;

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use futures::{StreamExt, stream::select_all};
use ketch_api::k8s::api::{
    core::v1::{Container, Namespace, Node, Pod},
    networking::v1::NetworkPolicy,
};
use ketch_api::names::SYSTEM_NAMESPACE;
use ketch_net::{
    Cidr, Transport,
    isolation::{self, Door, End, Filter, Isolated, Policies},
};
use ketch_runtime::PodSandbox;
use kube::{Api, ResourceExt, runtime::watcher::Event};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub use rules::PolicyRules;

use crate::network::{GATHER, events};

/// How long a pod waits for what holds for it to be in force.
const PATIENCE: Duration = Duration::from_secs(10);

/// Namespace and name.
type Key = (String, String);

/// What connections are judged by, at one time.
#[derive(Default)]
pub(crate) struct Isolation {
    policies: Policies,
    pods: HashMap<IpAddr, isolation::Pod>,
    /// Where other nodes' own connections come from.
    nodes: BTreeSet<Ipv4Addr>,
    /// Whether everything that matters was listed.
    complete: bool,
    /// Pods announced until then.
    turn: u64,
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

    /// The same for the kernel: what holds for the pods with addresses in `range`. The addresses `dns` count as
    /// those of a pod of the cluster's DNS, which is none here. `door`: the node's own way to the API.
    fn filter(&self, range: Cidr, dns: &[IpAddr], door: Option<Door>) -> Filter {
        if self.policies.is_empty() {
            return Filter::default();
        }
        let dns = isolation::Pod {
            namespace: SYSTEM_NAMESPACE.to_owned(),
            labels: [("k8s-app".to_owned(), "kube-dns".to_owned())].into(),
            addresses: dns.to_vec(),
            ports: vec![("dns".to_owned(), Transport::Udp, 53), ("dns-tcp".to_owned(), Transport::Tcp, 53)],
        };
        let all: Vec<&isolation::Pod> = self.pods.values().chain([&dns]).collect();
        let local = self.pods.iter().filter(|(ip, _)| range.contains(**ip)).map(|(_, pod)| pod);
        Filter { nodes: self.nodes.clone(), door, ..self.policies.filter(local, &all) }
    }
}

/// Pods of this node by UID, from when they have an address.
#[derive(Default)]
struct Announced {
    turn: u64,
    pods: HashMap<String, (Key, isolation::Pod)>,
}

/// What connections are judged by now, and who waits for it.
pub(crate) struct Judge {
    current: ArcSwap<Isolation>,
    announced: Mutex<Announced>,
    news: Notify,
    /// Counts snapshots.
    snapshots: watch::Sender<u64>,
    /// The node's own way to the API.
    door: Mutex<Option<Door>>,
    /// Pods announced until the snapshot that is in force; `None`: none is.
    in_force: watch::Sender<Option<u64>>,
    /// Whether rules of the kernel have to follow for a snapshot to be in force.
    by_kernel: AtomicBool,
}

impl Judge {
    /// Nothing is known yet. `complete`: nor will there be more.
    pub(crate) fn new(complete: bool) -> Self {
        Self {
            current: ArcSwap::from_pointee(Isolation { complete, ..Isolation::default() }),
            announced: Mutex::default(),
            news: Notify::new(),
            snapshots: watch::Sender::new(0),
            door: Mutex::default(),
            in_force: watch::Sender::new(None),
            by_kernel: AtomicBool::new(false),
        }
    }

    /// What is known now.
    pub(crate) fn current(&self) -> Arc<Isolation> {
        self.current.load_full()
    }

    /// Announces a pod of this node that has `ip`, and waits until its policies are in force. Cancel-safe.
    ///
    /// # Errors
    /// When that takes too long: the text is for the pod's events.
    pub(crate) async fn settle(&self, pod: &Pod, ip: IpAddr) -> Result<(), String> {
        let Some(view) = view_at(pod, vec![ip]) else { return Ok(()) };
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let key = (view.namespace.clone(), pod.name_any());
        let turn = {
            let mut announced = self.announced();
            announced.turn += 1;
            announced.pods.insert(uid, (key, view));
            announced.turn
        };
        let current = self.current();
        if current.complete && current.policies.is_empty() {
            return Ok(());
        }
        self.news.notify_one();
        let mut in_force = self.in_force.subscribe();
        let reached = in_force.wait_for(|reached| reached.is_some_and(|reached| reached >= turn));
        match tokio::time::timeout(PATIENCE, reached).await {
            Ok(_) => Ok(()),
            Err(_) if current.complete => {
                Err("the rules for its NetworkPolicies are not in force yet".to_owned())
            }
            Err(_) => Err("the NetworkPolicies of the cluster could not be listed yet".to_owned()),
        }
    }

    /// Forgets a pod that has given its address back.
    pub(crate) fn forget(&self, uid: &str) {
        let known = self.announced().pods.remove(uid).is_some();
        // Its object may have gone before it has ended.
        if known && !self.current().policies.is_empty() {
            self.news.notify_one();
        }
    }

    /// Says where the node's own way to the API is, and what it leads to.
    pub(crate) fn behind_door(&self, door: Option<Door>) {
        let mut known = self.door.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != door {
            *known = door;
            self.snapshots.send_modify(|count| *count += 1);
        }
    }

    fn door(&self) -> Option<Door> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn announced(&self) -> MutexGuard<'_, Announced> {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, mirrors: &Mirrors) {
        let isolation = mirrors.isolation(&self.announced());
        let (complete, turn) = (isolation.complete, isolation.turn);
        self.current.store(Arc::new(isolation));
        self.snapshots.send_modify(|count| *count += 1);
        if complete && !self.by_kernel.load(Ordering::Acquire) {
            self.in_force.send_replace(Some(turn));
        }
    }
}

/// A change of one of the watched kinds.
enum Change {
    Policy(Box<Event<NetworkPolicy>>),
    Pod(Box<Event<Pod>>),
    Namespace(Box<Event<Namespace>>),
    Node(Box<Event<Node>>),
}

#[derive(Default)]
struct Mirrors {
    policies: Mirror<NetworkPolicy>,
    pods: Mirror<isolation::Pod>,
    namespaces: Mirror<isolation::Labels>,
    nodes: Mirror<Vec<Ipv4Addr>>,
}

impl Mirrors {
    fn take(&mut self, change: Change) {
        match change {
            Change::Policy(event) => self.policies.take(*event, Some),
            Change::Pod(event) => self.pods.take(*event, |pod| view(&pod)),
            Change::Namespace(event) => {
                self.namespaces.take(*event, |namespace| Some(namespace.metadata.labels.unwrap_or_default()));
            }
            Change::Node(event) => self.nodes.take(*event, |node| Some(own_addresses(&node))),
        }
    }

    fn isolation(&self, announced: &Announced) -> Isolation {
        let namespaces = self.namespaces.objects.iter();
        let namespaces = namespaces.map(|((_, name), labels)| (name.clone(), labels.clone()));
        let listed = self.pods.complete && self.namespaces.complete && self.nodes.complete;
        let mut isolation = Isolation {
            policies: Policies::new(self.policies.objects.values(), namespaces),
            pods: HashMap::new(),
            nodes: self.nodes.objects.values().flatten().copied().collect(),
            complete: self.policies.complete && (listed || self.policies.objects.is_empty()),
            turn: announced.turn,
        };
        let mut add = |pod: &isolation::Pod| {
            isolation.pods.extend(pod.addresses.iter().map(|ip| (*ip, pod.clone())));
        };
        self.pods.objects.values().for_each(&mut add);
        // An address that another pod had until just now is the new one's.
        let known = |(key, pod): &&(Key, isolation::Pod)| {
            self.pods.objects.get(key).is_some_and(|known| known.addresses == pod.addresses)
        };
        announced.pods.values().filter(|one| !known(one)).for_each(|(_, pod)| add(pod));
        isolation
    }
}

/// Follows policies, and as long as there are any what they select by, until `stop`.
pub(crate) async fn follow(judge: Arc<Judge>, client: kube::Client, stop: CancellationToken) {
    let mut mirrors = Mirrors::default();
    let policies = |client: &kube::Client| {
        let api = Api::<NetworkPolicy>::all(client.clone());
        events(api).map(|event| Change::Policy(Box::new(event))).boxed()
    };
    let mut changes = select_all([policies(&client)]);
    let mut whole = false;
    loop {
        let next = async {
            tokio::select! {
                change = changes.next() => change.map(Some),
                () = judge.news.notified() => Some(None),
            }
        };
        let Some(Some(change)) = stop.run_until_cancelled(next).await else { return };
        change.into_iter().for_each(|change| mirrors.take(change));
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
            let nodes = events(Api::<Node>::all(client.clone()));
            changes.push(pods.map(|event| Change::Pod(Box::new(event))).boxed());
            changes.push(namespaces.map(|event| Change::Namespace(Box::new(event))).boxed());
            changes.push(nodes.map(|event| Change::Node(Box::new(event))).boxed());
        }
        if whole && mirrors.policies.objects.is_empty() {
            // The last one is gone: no more watching of everything.
            whole = false;
            mirrors = Mirrors::default();
            mirrors.policies.complete = true;
            changes = select_all([policies(&client)]);
        }
        judge.publish(&mirrors);
    }
}

/// Where a node's own connections to pods of other nodes come from: the first address of its range.
fn own_addresses(node: &Node) -> Vec<Ipv4Addr> {
    let spec = node.spec.as_ref();
    let ranges = spec.into_iter().flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr));
    let first = |range: &String| match range.parse::<Cidr>().ok()?.nth(1)? {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    };
    ranges.filter_map(first).collect()
}

/// What policies look at. `None`: the pod has ended, or is in the node's network.
fn view(pod: &Pod) -> Option<isolation::Pod> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut addresses: Vec<IpAddr> =
        listed.chain(status.pod_ip.as_deref()).filter_map(|ip| ip.parse().ok()).collect();
    addresses.dedup();
    let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if over { None } else { view_at(pod, addresses) }
}

fn view_at(pod: &Pod, addresses: Vec<IpAddr>) -> Option<isolation::Pod> {
    let spec = pod.spec.as_ref().filter(|spec| spec.host_network != Some(true))?;
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    Some(isolation::Pod {
        namespace: pod.namespace().unwrap_or_default(),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        addresses,
        ports: containers.flat_map(ports).collect(),
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
    /// Whether there was a whole list.
    complete: bool,
}

impl<V> Default for Mirror<V> {
    fn default() -> Self {
        Self { objects: HashMap::new(), listed: HashMap::new(), complete: false }
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
            Event::InitDone => {
                self.objects = std::mem::take(&mut self.listed);
                self.complete = true;
            }
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
        let isolation = mirrors.isolation(&Announced::default());
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

    fn listed<K>(objects: Vec<K>) -> impl Iterator<Item = Event<K>> {
        std::iter::once(Event::Init).chain(objects.into_iter().map(Event::InitApply)).chain([Event::InitDone])
    }

    #[tokio::test]
    async fn a_pod_waits_until_its_policies_are_in_force() {
        let judge = Judge::new(false);
        let ip: IpAddr = "10.42.0.3".parse().unwrap();
        let new = pod("db", "", json!({"metadata": {"uid": "u"}, "status": {"podIP": null, "podIPs": null}}));
        let mut mirrors = Mirrors::default();
        let mut settled = std::pin::pin!(judge.settle(&new, ip));
        assert!(futures::poll!(&mut settled).is_pending(), "no list of policies has come yet");
        judge.publish(&mirrors);
        assert!(futures::poll!(&mut settled).is_pending());
        listed(Vec::new()).for_each(|event| mirrors.take(Change::Policy(Box::new(event))));
        judge.publish(&mirrors);
        assert_eq!(settled.await, Ok(()));
        // Without policies nobody waits; with some, for everything that they select by.
        assert_eq!(judge.settle(&new, ip).await, Ok(()));
        let policy = json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": {"podSelector": {}}});
        let policy = serde_json::from_value(policy).unwrap();
        mirrors.take(Change::Policy(Box::new(Event::Apply(policy))));
        judge.publish(&mirrors);
        assert!(!judge.current().complete);
        listed(Vec::new()).for_each(|event| mirrors.take(Change::Pod(Box::new(event))));
        listed(Vec::new()).for_each(|event| mirrors.take(Change::Namespace(Box::new(event))));
        let node = json!({"metadata": {"name": "n2"}, "spec": {"podCIDR": "10.42.32.0/24", "podCIDRs": ["10.42.32.0/24"]}});
        let node = serde_json::from_value(node).unwrap();
        listed(vec![node]).for_each(|event| mirrors.take(Change::Node(Box::new(event))));
        let mut settled = std::pin::pin!(judge.settle(&new, ip));
        assert!(futures::poll!(&mut settled).is_pending());
        judge.publish(&mirrors);
        assert_eq!(settled.await, Ok(()));
        // The kernel hears of it before the API knows its address, and of nothing once it is gone.
        let filter = |judge: &Judge| judge.current().filter("10.42.0.0/24".parse().unwrap(), &[], None);
        let found = filter(&judge);
        assert_eq!(found.ingress.keys().map(ToString::to_string).collect::<Vec<_>>(), ["10.42.0.3"]);
        assert_eq!(found.nodes, [Ipv4Addr::new(10, 42, 32, 1)].into());
        judge.forget("u");
        judge.publish(&mirrors);
        assert!(filter(&judge).ingress.is_empty());
    }
}
