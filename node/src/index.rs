//! Which pods and containers are on the node now, for those who ask from outside the workers.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    ops::Bound,
    sync::{Arc, PoisonError, RwLock},
};

use ketch_api::k8s::api::core::v1 as core;

type Name = (String, String);

/// Pods by name, and whether instances of containers run.
#[derive(Default)]
pub(crate) struct Index {
    pods: RwLock<HashMap<Name, Arc<core::Pod>>>,
    /// In order, so that those of one container are beside each other.
    instances: RwLock<BTreeMap<String, bool>>,
    /// By address: UID and namespace.
    owners: RwLock<HashMap<IpAddr, (String, String)>>,
}

fn name(pod: &core::Pod) -> Name {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}

impl Index {
    /// Notes a pod.
    pub(crate) fn insert(&self, pod: &Arc<core::Pod>) {
        self.pods.write().unwrap_or_else(PoisonError::into_inner).insert(name(pod), Arc::clone(pod));
        let hosts = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
        let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()?.parse().ok());
        if let (Some(address), Some(uid), false) = (address, pod.metadata.uid.clone(), hosts) {
            let mut owners = self.owners.write().unwrap_or_else(PoisonError::into_inner);
            owners.insert(address, (uid, name(pod).0));
        }
    }

    /// The namespace of the pod that has an address of its own.
    pub(crate) fn namespace_at(&self, address: IpAddr) -> Option<String> {
        let owners = self.owners.read().unwrap_or_else(PoisonError::into_inner);
        owners.get(&address).map(|(_, namespace)| namespace.clone())
    }

    /// Forgets a pod by its UID; another one of its name stays.
    pub(crate) fn remove(&self, uid: &str) {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        pods.retain(|_, pod| pod.metadata.uid.as_deref() != Some(uid));
        let mut owners = self.owners.write().unwrap_or_else(PoisonError::into_inner);
        owners.retain(|_, (owner, _)| owner != uid);
    }

    /// A pod by namespace and name.
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<core::Pod>> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// Every pod.
    pub(crate) fn pods(&self) -> Vec<Arc<core::Pod>> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Notes whether an instance runs.
    pub(crate) fn mark(&self, instance: &str, runs: bool) {
        self.instances.write().unwrap_or_else(PoisonError::into_inner).insert(instance.to_owned(), runs);
    }

    /// Notes that an instance was started, unless the runtime has said more of it: who is told that a container
    /// runs can use it at once.
    pub(crate) fn begun(&self, instance: &str) {
        let mut instances = self.instances.write().unwrap_or_else(PoisonError::into_inner);
        instances.entry(instance.to_owned()).or_insert(true);
    }

    /// Forgets an instance.
    pub(crate) fn forget(&self, instance: &str) {
        self.instances.write().unwrap_or_else(PoisonError::into_inner).remove(instance);
    }

    /// Whether an instance runs; `None`: the runtimes do not know it.
    pub(crate) fn runs(&self, instance: &str) -> Option<bool> {
        self.instances.read().unwrap_or_else(PoisonError::into_inner).get(instance).copied()
    }

    /// Numbers of the instances of a container that the runtimes know.
    pub(crate) fn attempts(&self, uid: &str, container: &str) -> Vec<u32> {
        let prefix = format!("{uid}.{container}.");
        let instances = self.instances.read().unwrap_or_else(PoisonError::into_inner);
        let from = (Bound::Included(prefix.as_str()), Bound::Unbounded);
        let own = instances.range::<str, _>(from).map_while(|(id, _)| id.strip_prefix(&prefix));
        own.filter_map(|attempt| attempt.parse().ok()).collect()
    }
}
