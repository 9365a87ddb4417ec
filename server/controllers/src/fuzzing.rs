//! A door to the plans of the controllers, for the fuzz targets only.

use std::sync::Arc;

use jiff::Timestamp;
use ketch_api::{
    function::{Function, FunctionRevision},
    k8s::api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, Service},
        discovery::v1::EndpointSlice,
        storage::v1::StorageClass,
    },
};

use crate::{balancer, deployment, endpoints, function, node, replicaset, volume};

/// What there is in a cluster.
#[derive(Default)]
pub struct Objects {
    /// Pods.
    pub pods: Vec<Arc<Pod>>,
    /// Deployments.
    pub deployments: Vec<Arc<Deployment>>,
    /// ReplicaSets.
    pub sets: Vec<Arc<ReplicaSet>>,
    /// Services.
    pub services: Vec<Arc<Service>>,
    /// EndpointSlices.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// Nodes.
    pub nodes: Vec<Arc<Node>>,
    /// Functions.
    pub functions: Vec<Arc<Function>>,
    /// FunctionRevisions.
    pub revisions: Vec<Arc<FunctionRevision>>,
    /// Claims.
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
    /// Volumes.
    pub volumes: Vec<Arc<PersistentVolume>>,
    /// StorageClasses.
    pub classes: Vec<Arc<StorageClass>>,
}

/// Makes every plan.
pub fn plan(all: &Objects, now: Timestamp) {
    for set in &all.sets {
        replicaset::fuzz(set, &all.pods, now);
    }
    for one in &all.deployments {
        deployment::fuzz(one, all.sets.iter().map(Arc::as_ref).collect(), &all.pods, now);
    }
    let services: Vec<&Service> = all.services.iter().map(Arc::as_ref).collect();
    let nodes: Vec<&Node> = all.nodes.iter().map(Arc::as_ref).collect();
    for service in &services {
        endpoints::fuzz(service, &all.pods, &all.slices);
        balancer::fuzz(service, &services, &nodes);
    }
    for node in &nodes {
        node::fuzz(node, &all.pods, now);
    }
    for one in &all.functions {
        function::fuzz(one, &all.revisions, &all.deployments, &all.pods, now);
    }
    let volumes: Vec<&PersistentVolume> = all.volumes.iter().map(Arc::as_ref).collect();
    volume::fuzz(&all.claims, &volumes, all.classes.first().map(Arc::as_ref));
}
