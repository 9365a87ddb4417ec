//! EndpointSlices and Endpoints of Services that select pods.

mod plan;

use std::sync::Arc;

use async_trait::async_trait;
use ketch_api::k8s::api::{
    core::v1::{Endpoints, Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use ketch_client::{Change, Informer, Key, Queue, is_already_exists, is_not_found};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};

use self::plan::Op;
use crate::{
    error::{Doing, Error},
    owner, pod,
    runner::{Next, Reconcile, Writes},
};

const ZONE: &str = "topology.kubernetes.io/zone";

/// Plans for hostile objects.
#[cfg(fuzzing)]
pub(crate) fn fuzz(service: &Service, pods: &[Arc<Pod>], slices: &[Arc<EndpointSlice>]) {
    let zone = |_: &str| Some("z".to_owned());
    let observed = plan::Observed { service, pods: pods.to_vec(), slices: slices.to_vec(), zone: &zone };
    let _ = (plan::slices(&observed), plan::endpoints(service, pods));
}

/// See the module.
pub(crate) struct ServiceEndpoints {
    pub(crate) client: Client,
    pub(crate) services: Informer<Service>,
    pub(crate) pods: Informer<Pod>,
    pub(crate) nodes: Informer<Node>,
    pub(crate) slices: Informer<EndpointSlice>,
    pub(crate) endpoints: Informer<Endpoints>,
    pub(crate) slice_writes: Writes,
    pub(crate) endpoints_writes: Writes,
}

impl ServiceEndpoints {
    /// Puts Services that a change concerns into `queue`.
    pub(crate) fn listen(&self, queue: &Queue<Key>) {
        let own = queue.clone();
        self.services.on_change(move |change: &Change<Service>| own.add(change.key.clone()));
        let own = queue.clone();
        self.slices.on_change(move |change: &Change<EndpointSlice>| {
            let labels = change.latest().and_then(|slice| slice.metadata.labels.as_ref());
            if let Some(service) = labels.and_then(|labels| labels.get(plan::SERVICE_NAME)) {
                own.add(Key::new(change.key.namespace.clone(), service.clone()));
            }
        });
        let own = queue.clone();
        self.endpoints.on_change(move |change: &Change<Endpoints>| own.add(change.key.clone()));
        let (own, services) = (queue.clone(), self.services.clone());
        self.pods.on_change(move |change: &Change<Pod>| {
            if !matters(change) {
                return;
            }
            for service in services.in_namespace(&change.key.namespace) {
                let selects = |pod: &Arc<Pod>| selects(&service, pod);
                if change.old.as_ref().is_some_and(selects) || change.new.as_ref().is_some_and(selects) {
                    own.add(Key::of(&service.metadata));
                }
            }
        });
    }

    async fn write_slice(&self, key: &Key, op: Op) -> Result<(), Error> {
        let api = Api::<EndpointSlice>::namespaced(self.client.clone(), &key.namespace);
        match op {
            Op::Create(slice) => {
                let created = api.create(&PostParams::default(), &slice).await;
                let created = created.doing(|| format!("creating an endpointslice of service {key}"))?;
                self.slice_writes.wrote(key, &created);
            }
            Op::Replace(slice) => {
                let name = owner::name(&slice.metadata);
                let replaced = api.replace(name, &PostParams::default(), &slice).await;
                let replaced = replaced.doing(|| format!("writing endpointslice {name}"))?;
                self.slice_writes.wrote(key, &replaced);
            }
            Op::Delete(name) => match api.delete(&name, &DeleteParams::default()).await {
                Err(error) if !is_not_found(&error) => {
                    return Err(error).doing(|| format!("deleting endpointslice {name}"));
                }
                _ => {}
            },
        }
        Ok(())
    }

    async fn write_endpoints(&self, key: &Key, wanted: Endpoints) -> Result<(), Error> {
        let api = Api::<Endpoints>::namespaced(self.client.clone(), &key.namespace);
        let written = match self.endpoints.get(key) {
            None => match api.create(&PostParams::default(), &wanted).await {
                // The watch will show it.
                Err(error) if is_already_exists(&error) => return Ok(()),
                other => other,
            },
            Some(existing)
                if existing.subsets == wanted.subsets
                    && existing.metadata.labels == wanted.metadata.labels =>
            {
                return Ok(());
            }
            Some(existing) => {
                let mut changed = Endpoints::clone(&existing);
                changed.subsets = wanted.subsets;
                changed.metadata.labels = wanted.metadata.labels;
                changed.metadata.annotations = wanted.metadata.annotations;
                api.replace(&key.name, &PostParams::default(), &changed).await
            }
        };
        let written = written.doing(|| format!("writing endpoints {key}"))?;
        self.endpoints_writes.wrote(key, &written);
        Ok(())
    }

    /// The Service is gone: its slices follow by garbage collection, its Endpoints, which have no owner, here.
    async fn clean_up(&self, key: &Key) -> Result<(), Error> {
        let managed = |endpoints: &Endpoints| {
            let labels = endpoints.metadata.labels.as_ref();
            labels.is_some_and(|labels| labels.contains_key("endpoints.kubernetes.io/managed-by"))
        };
        if self.endpoints.get(key).is_some_and(|endpoints| managed(&endpoints)) {
            let api = Api::<Endpoints>::namespaced(self.client.clone(), &key.namespace);
            match api.delete(&key.name, &DeleteParams::default()).await {
                Err(error) if !is_not_found(&error) => {
                    return Err(error).doing(|| format!("deleting endpoints {key}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn zone(&self, node: &str) -> Option<String> {
        self.nodes.get(&Key::cluster(node))?.metadata.labels.as_ref()?.get(ZONE).cloned()
    }
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    plan::selector(service).is_some_and(|selector| {
        selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    })
}

/// Whether a change can change an endpoint; most of a pod's status does not.
fn matters(change: &Change<Pod>) -> bool {
    let (Some(old), Some(new)) = (&change.old, &change.new) else { return true };
    let view = |pod: &Pod| {
        let ips = pod.status.as_ref().map(|status| (status.pod_ip.clone(), status.pod_ips.clone()));
        (pod::is_ready(pod), pod::is_terminating(pod), pod::is_finished(pod), pod::node(pod).to_owned(), ips)
    };
    view(old) != view(new)
        || old.metadata.labels != new.metadata.labels
        || old.metadata.uid != new.metadata.uid
}

#[async_trait]
impl Reconcile for ServiceEndpoints {
    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        self.slice_writes.seen(key, &self.slices).await;
        self.endpoints_writes.seen(key, &self.endpoints).await;
        let Some(service) = self.services.get(key) else {
            self.clean_up(key).await?;
            return Ok(Next::OnChange);
        };
        if plan::selector(&service).is_none() || service.metadata.deletion_timestamp.is_some() {
            return Ok(Next::OnChange);
        }
        let mut pods = self.pods.in_namespace(&key.namespace);
        pods.retain(|pod| selects(&service, pod));
        let slices = self.slices.controlled_by(owner::uid(&service.metadata));
        let zone = |node: &str| self.zone(node);
        let wanted = plan::endpoints(&service, &pods);
        let ops = plan::slices(&plan::Observed { service: &service, pods, slices, zone: &zone });
        for op in ops {
            self.write_slice(key, op).await?;
        }
        self.write_endpoints(key, wanted).await?;
        Ok(Next::OnChange)
    }
}
