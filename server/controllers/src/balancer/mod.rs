//! Addresses of Services of type LoadBalancer: the nodes themselves balance, on the Services' own ports.

mod plan;

use std::sync::Arc;

use async_trait::async_trait;
use ketch_api::k8s::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use ketch_client::{Change, Informer, Key, Queue, Recorder, Subject, is_not_found};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

use self::plan::{Observed, Plan};
use crate::{
    error::{Doing, Error},
    runner::{Next, Reconcile, Writes},
};

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A plan for hostile objects.
#[cfg(fuzzing)]
pub(crate) fn fuzz(service: &Service, all: &[&Service], nodes: &[&Node]) {
    let _ = plan::plan(&Observed { service, all, nodes, has_endpoint: &|_| true });
}

/// See the module. Keys are Services.
pub(crate) struct LoadBalancers {
    pub(crate) client: Client,
    pub(crate) services: Informer<Service>,
    pub(crate) nodes: Informer<Node>,
    pub(crate) slices: Informer<EndpointSlice>,
    pub(crate) recorder: Recorder,
    pub(crate) writes: Writes,
}

impl LoadBalancers {
    /// Puts Services that a change concerns into `queue`.
    pub(crate) fn listen(&self, queue: &Queue<Key>) {
        let (own, services) = (queue.clone(), self.services.clone());
        self.services.on_change(move |change: &Change<Service>| {
            own.add(change.key.clone());
            // Another one may have waited for its ports.
            let ours = |service: &Arc<Service>| plan::is_ours(service);
            if change.old.as_ref().is_some_and(ours) || change.new.as_ref().is_some_and(ours) {
                add_all(&own, &services);
            }
        });
        let (own, services) = (queue.clone(), self.services.clone());
        self.nodes.on_change(move |change: &Change<Node>| {
            if change.old.as_ref().map(|node| view(node)) != change.new.as_ref().map(|node| view(node)) {
                add_all(&own, &services);
            }
        });
        let (own, services) = (queue.clone(), self.services.clone());
        self.slices.on_change(move |change: &Change<EndpointSlice>| {
            let labels = change.latest().and_then(|slice| slice.metadata.labels.as_ref());
            let Some(name) = labels.and_then(|labels| labels.get(SERVICE_NAME)) else { return };
            let key = Key::new(change.key.namespace.clone(), name.clone());
            if services.get(&key).is_some_and(|service| plan::is_ours(&service)) {
                own.add(key);
            }
        });
    }

    fn plan(&self, key: &Key, service: &Service) -> Plan {
        let (all, nodes) = (self.services.all(), self.nodes.all());
        let all: Vec<&Service> = all.iter().map(AsRef::as_ref).collect();
        let nodes: Vec<&Node> = nodes.iter().map(AsRef::as_ref).collect();
        let has_endpoint = |node: &str| self.has_endpoint(key, node);
        let observed = Observed { service, all: &all, nodes: &nodes, has_endpoint: &has_endpoint };
        plan::plan(&observed)
    }

    fn has_endpoint(&self, key: &Key, node: &str) -> bool {
        self.slices.in_namespace(&key.namespace).iter().any(|slice| {
            let labels = slice.metadata.labels.as_ref();
            let of = labels.and_then(|labels| labels.get(SERVICE_NAME)) == Some(&key.name);
            of && slice.endpoints.iter().any(|endpoint| {
                let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
                ready && endpoint.node_name.as_deref() == Some(node)
            })
        })
    }
}

fn add_all(queue: &Queue<Key>, services: &Informer<Service>) {
    for service in services.all().iter().filter(|service| plan::is_ours(service)) {
        queue.add(Key::of(&service.metadata));
    }
}

/// What of a node matters.
fn view(node: &Node) -> serde_json::Value {
    let status = node.status.as_ref();
    let conditions = status.into_iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
    json!([ready, node.metadata.labels, status.map(|status| &status.addresses)])
}

#[async_trait]
impl Reconcile for LoadBalancers {
    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        self.writes.seen(key, &self.services).await;
        let Some(service) = self.services.get(key) else { return Ok(Next::OnChange) };
        let wanted = match self.plan(key, &service) {
            Plan::Leave => return Ok(Next::OnChange),
            Plan::Ingress(wanted) => wanted,
            Plan::Taken { port, by } => {
                let message = format!("port {port} of the nodes belongs to Service {by}");
                self.recorder.warning(Subject::of(service.as_ref()), "PortTaken", message);
                Vec::new()
            }
        };
        if wanted == plan::ingress(&service) {
            return Ok(Next::OnChange);
        }
        let api = Api::<Service>::namespaced(self.client.clone(), &key.namespace);
        let patch = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": wanted}}}));
        match api.patch_status(&key.name, &PatchParams::default(), &patch).await {
            Ok(written) => self.writes.wrote(key, &written),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error).doing(|| format!("writing the status of service {key}")),
        }
        Ok(Next::OnChange)
    }
}
