//! The scheduler's picture of the cluster, kept up to date change by change.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use ketch_api::{
    k8s::api::{
        core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, PodSpec, Taint},
        storage::v1::StorageClass,
    },
    volume,
};

use super::request::Request;

/// A pod with what deciding needs worked out once.
#[derive(Clone, Debug)]
pub struct PodInfo {
    /// The object.
    pub pod: Arc<Pod>,
    /// What it asks for.
    pub request: Request,
    pub(super) nominal: (i64, i64),
    pub(super) ports: Vec<HostPort>,
    /// uid of its controller, for spreading.
    pub(super) controller: Option<String>,
    /// Names of the claims it uses.
    pub(super) claims: Vec<String>,
}

/// A port of the node that a pod wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostPort {
    ip: String,
    protocol: String,
    port: i32,
}

/// A node and what is on it.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeInfo {
    pub(super) name: String,
    /// The object is known; false when only pods on it are.
    pub(super) present: bool,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) taints: Vec<Taint>,
    pub(super) unschedulable: bool,
    pub(super) allocatable: Request,
    pub(super) max_pods: i64,
    /// Bytes of each image that is there already, by every name it has.
    pub(super) images: HashMap<String, i64>,
    pub(super) requested: Request,
    pub(super) nominal: (i64, i64),
    pub(super) pods: HashMap<String, Arc<PodInfo>>,
    pub(super) ports: Vec<HostPort>,
    /// Its place in the cluster's list.
    pub(super) index: usize,
}

/// Nodes, the pods bound or about to be bound to them, namespaces' labels, claims and volumes.
#[derive(Debug, Default)]
pub struct Cluster {
    /// By index; a removed node leaves an absent entry that its name takes up again.
    nodes: Vec<NodeInfo>,
    by_name: HashMap<String, usize>,
    /// uid of each counted pod, and its node.
    places: HashMap<String, usize>,
    /// uids of counted pods with required anti-affinity, which other pods must respect.
    pub(super) repelling: BTreeSet<String>,
    pub(super) namespaces: HashMap<String, BTreeMap<String, String>>,
    /// Pods on each node (by index), by the uid of their controller.
    siblings: HashMap<String, HashMap<usize, i64>>,
    /// By namespace and name.
    claims: HashMap<(String, String), Arc<PersistentVolumeClaim>>,
    /// uids of counted pods by the claims they use.
    users: HashMap<(String, String), BTreeSet<String>>,
    pub(super) volumes: BTreeMap<String, Arc<PersistentVolume>>,
    pub(super) classes: HashMap<String, Arc<StorageClass>>,
}

// === impl PodInfo ===

impl PodInfo {
    /// Works out what deciding needs.
    pub fn new(pod: Arc<Pod>) -> Self {
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let request = Request::of(spec);
        let owners = pod.metadata.owner_references.iter().flatten();
        let controller =
            owners.into_iter().find(|o| o.controller == Some(true)).map(|owner| owner.uid.clone());
        let ports = host_ports(spec);
        let nominal = request.nominal(spec.containers.len());
        let claims = volume::claims_of(&pod).map(|(_, claim)| claim.to_owned()).collect();
        Self { request, nominal, ports, controller, claims, pod }
    }

    pub(super) fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    pub(super) fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    pub(super) fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    pub(super) fn labels(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.pod.metadata.labels.as_ref().unwrap_or(&NONE)
    }

    /// Whether it uses this claim.
    pub fn has_claim(&self, namespace: &str, name: &str) -> bool {
        self.claims.iter().any(|claim| claim == name) && self.namespace() == namespace
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let host_network = spec.host_network.unwrap_or(false);
    let sidecars =
        spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number = port.host_port.unwrap_or(if host_network { port.container_port } else { 0 });
            (number > 0).then(|| HostPort {
                ip: port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned()),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port: number,
            })
        })
        .collect()
}

// === impl HostPort ===

impl HostPort {
    pub(super) fn conflicts_with(&self, other: &Self) -> bool {
        let any = |ip: &str| ip == "0.0.0.0" || ip == "::";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || any(&self.ip) || any(&other.ip))
    }
}

// === impl NodeInfo ===

impl NodeInfo {
    fn update(&mut self, node: &Node) {
        self.present = true;
        self.labels = node.metadata.labels.clone().unwrap_or_default();
        let spec = node.spec.clone().unwrap_or_default();
        self.taints = spec.taints.unwrap_or_default();
        self.unschedulable = spec.unschedulable.unwrap_or(false);
        let status = node.status.clone().unwrap_or_default();
        let allocatable = status.allocatable.or(status.capacity).unwrap_or_default();
        self.max_pods = allocatable
            .get("pods")
            .and_then(|text| ketch_api::quantity::Quantity::try_from(text).ok())
            .map_or(0, |quantity| quantity.value());
        self.allocatable = Request::from_map(&allocatable);
        self.images.clear();
        for image in status.images.into_iter().flatten() {
            let size = image.size_bytes.unwrap_or(0);
            self.images.extend(image.names.into_iter().flatten().map(|name| (name, size)));
        }
    }

    fn put(&mut self, pod: &Arc<PodInfo>) {
        self.count(pod);
        self.ports.extend(pod.ports.iter().cloned());
        self.pods.insert(pod.uid().to_owned(), Arc::clone(pod));
    }

    fn count(&mut self, pod: &PodInfo) {
        self.requested.add(&pod.request);
        let (cpu, memory) = pod.nominal;
        self.nominal = (self.nominal.0.saturating_add(cpu), self.nominal.1.saturating_add(memory));
    }

    fn take(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let pod = self.pods.remove(uid)?;
        if self.requested.is_held() || self.nominal.0 == i64::MAX || self.nominal.1 == i64::MAX {
            // Pods that were bound by others asked for more than a sum can tell: it has no parts to take away.
            (self.requested, self.nominal) = (Request::default(), (0, 0));
            let left: Vec<_> = self.pods.values().cloned().collect();
            left.iter().for_each(|pod| self.count(pod));
        } else {
            self.requested.subtract(&pod.request);
            self.nominal = (self.nominal.0 - pod.nominal.0, self.nominal.1 - pod.nominal.1);
        }
        for port in &pod.ports {
            if let Some(at) = self.ports.iter().position(|taken| taken == port) {
                self.ports.swap_remove(at);
            }
        }
        Some(pod)
    }
}

// === impl Cluster ===

impl Cluster {
    /// A cluster without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a node or takes over its changes.
    pub fn set_node(&mut self, node: &Node) {
        let index = self.index(node.metadata.name.as_deref().unwrap_or_default());
        if let Some(info) = self.nodes.get_mut(index) {
            info.update(node);
        }
    }

    /// Takes a node out. The pods on it are counted until they are removed themselves.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(info) = self.by_name.get(name).and_then(|index| self.nodes.get_mut(*index)) {
            info.present = false;
        }
    }

    fn index(&mut self, name: &str) -> usize {
        if let Some(index) = self.by_name.get(name) {
            return *index;
        }
        let index = self.nodes.len();
        self.nodes.push(NodeInfo { name: name.to_owned(), index, ..NodeInfo::default() });
        self.by_name.insert(name.to_owned(), index);
        index
    }

    /// Counts a pod on a node: bound there, or about to be. Replaces what was known about it.
    pub fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.remove_pod(pod.uid());
        let index = self.index(node);
        if super::affinity::repels(&pod) {
            self.repelling.insert(pod.uid().to_owned());
        }
        self.places.insert(pod.uid().to_owned(), index);
        if let Some(controller) = &pod.controller {
            *self.siblings.entry(controller.clone()).or_default().entry(index).or_default() += 1;
        }
        for claim in &pod.claims {
            let key = (pod.namespace().to_owned(), claim.clone());
            self.users.entry(key).or_default().insert(pod.uid().to_owned());
        }
        if let Some(info) = self.nodes.get_mut(index) {
            info.put(&pod);
        }
    }

    /// Counts a pod no longer. Returns whether it was counted.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        self.repelling.remove(uid);
        let Some(index) = self.places.remove(uid) else { return false };
        let Some(pod) = self.nodes.get_mut(index).and_then(|info| info.take(uid)) else { return false };
        if let Some(controller) = &pod.controller {
            self.forget_sibling(controller, index);
        }
        for claim in &pod.claims {
            let key = (pod.namespace().to_owned(), claim.clone());
            if let Some(users) = self.users.get_mut(&key) {
                users.remove(uid);
                if users.is_empty() {
                    self.users.remove(&key);
                }
            }
        }
        true
    }

    fn forget_sibling(&mut self, controller: &str, index: usize) {
        let Some(counts) = self.siblings.get_mut(controller) else { return };
        if let Some(count) = counts.get_mut(&index) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&index);
            }
        }
        if counts.is_empty() {
            self.siblings.remove(controller);
        }
    }

    /// How many pods of a controller each node has, by index; `None` when there is no such pod.
    pub(super) fn siblings(&self, controller: &str) -> Option<&HashMap<usize, i64>> {
        self.siblings.get(controller)
    }

    /// The node a pod is counted on.
    pub fn node_of(&self, uid: &str) -> Option<&str> {
        let info = self.nodes.get(*self.places.get(uid)?)?;
        Some(&info.name)
    }

    /// Remembers a namespace's labels, which affinity terms may select by.
    pub fn set_namespace(&mut self, name: &str, labels: BTreeMap<String, String>) {
        self.namespaces.insert(name.to_owned(), labels);
    }

    /// Forgets a namespace.
    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// Takes over a claim as it is now; `None`: it is gone.
    pub fn set_claim(&mut self, namespace: &str, name: &str, claim: Option<Arc<PersistentVolumeClaim>>) {
        let key = (namespace.to_owned(), name.to_owned());
        match claim {
            Some(claim) => self.claims.insert(key, claim),
            None => self.claims.remove(&key),
        };
    }

    /// Takes over a volume as it is now; `None`: it is gone.
    pub fn set_volume(&mut self, name: &str, volume: Option<Arc<PersistentVolume>>) {
        match volume {
            Some(volume) => self.volumes.insert(name.to_owned(), volume),
            None => self.volumes.remove(name),
        };
    }

    /// Takes over a storage class as it is now; `None`: it is gone.
    pub fn set_class(&mut self, name: &str, class: Option<Arc<StorageClass>>) {
        match class {
            Some(class) => self.classes.insert(name.to_owned(), class),
            None => self.classes.remove(name),
        };
    }

    pub(super) fn claim(&self, namespace: &str, name: &str) -> Option<&Arc<PersistentVolumeClaim>> {
        self.claims.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Whether a pod other than `uid` is counted that uses the claim.
    pub(super) fn uses(&self, namespace: &str, name: &str, uid: &str) -> bool {
        let users = self.users.get(&(namespace.to_owned(), name.to_owned()));
        users.is_some_and(|users| users.iter().any(|user| user != uid))
    }

    pub(super) fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.nodes.get(*self.by_name.get(name)?).filter(|node| node.present)
    }

    /// The nodes that exist.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.iter().filter(|node| node.present)
    }

    pub(super) fn placed(&self, uid: &str) -> Option<(&PodInfo, &NodeInfo)> {
        let node = self.nodes.get(*self.places.get(uid)?)?;
        Some((node.pods.get(uid)?, node))
    }

    /// Nodes that exist.
    pub fn node_count(&self) -> usize {
        self.nodes().count()
    }
}
