//! The node's own object and its heartbeat.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use ketch_api::{
    k8s::{
        api::{coordination::v1 as coordination, core::v1 as core},
        apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
    },
    volume::DIRECTORY_ANNOTATION,
};
use kube::api::{Api, Patch, PatchParams, PostParams};
use tokio_util::sync::CancellationToken;

use crate::{
    context::Context,
    host::{self, Missing},
    options::NodeOptions,
};

/// Between renewals of the Lease: three within the eight seconds after which the control plane gives a node up.
const RENEW: Duration = Duration::from_secs(2);
/// For a renewal. A request that hangs must not hold up the next one until the node counts as lost.
const BEAT: Duration = Duration::from_secs(4);
const LEASE_SECONDS: i32 = 40;
/// Between statuses when nothing changes.
const STATUS: Duration = Duration::from_secs(300);
/// Between looks at what the API holds: a node that was silent for a while is not told that it counts as lost.
const LOOK: Duration = Duration::from_secs(10);
/// Between tries while the API is away.
const RETRY: Duration = Duration::from_secs(1);
/// Images named in the status (upstream's default).
const IMAGES: usize = 50;

/// Keeps the Node object and its Lease.
pub(crate) struct Registration {
    options: NodeOptions,
    context: Arc<Context>,
    nodes: Api<core::Node>,
    leases: Api<coordination::Lease>,
    uid: Option<String>,
    /// What was written last, without heartbeat times.
    written: Option<(core::NodeStatus, Instant)>,
    /// When the Lease was renewed, and when the object was looked at last.
    renewed: Instant,
    looked: Instant,
    conditions: Vec<core::NodeCondition>,
}

impl Registration {
    pub(crate) fn new(options: NodeOptions, context: Arc<Context>) -> Self {
        let client = options.client.clone();
        Self {
            options,
            context,
            nodes: Api::all(client.clone()),
            leases: Api::namespaced(client, "kube-node-lease"),
            uid: None,
            written: None,
            renewed: Instant::now(),
            looked: Instant::now(),
            conditions: Vec::new(),
        }
    }

    /// Registers the node and keeps it alive until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let wait = match tokio::time::timeout(BEAT, self.beat()).await {
                Ok(Ok(())) => RENEW,
                Ok(Err(error)) => {
                    tracing::warn!(node = self.options.name, %error, "the node's heartbeat failed");
                    RETRY
                }
                Err(_) => {
                    tracing::warn!(node = self.options.name, "the node's heartbeat got no answer");
                    RETRY
                }
            };
            if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
        }
    }

    async fn beat(&mut self) -> Result<(), kube::Error> {
        if self.uid.is_none() {
            self.register().await?;
        }
        self.renew().await?;
        let silent = self.renewed.elapsed() > BEAT;
        self.renewed = Instant::now();
        if silent || self.looked.elapsed() > LOOK {
            self.look().await?;
        }
        let status = self.status();
        let fresh = self.written.as_ref().is_some_and(|(old, at)| *old == status && at.elapsed() < STATUS);
        if fresh { Ok(()) } else { self.write(status).await }
    }

    /// Brings labels of the object up to date, or makes it.
    async fn register(&mut self) -> Result<(), kube::Error> {
        let labels = self.labels();
        let mut annotations: BTreeMap<String, String> = self.options.annotations.iter().cloned().collect();
        let volumes = crate::volumes::claimed(&self.context.root);
        annotations.insert(DIRECTORY_ANNOTATION.to_owned(), volumes.to_string_lossy().into_owned());
        let node = core::Node {
            metadata: ObjectMeta {
                name: Some(self.options.name.clone()),
                labels: Some(labels.clone()),
                annotations: Some(annotations.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(core::NodeSpec {
                pod_cidr: Some(self.options.pod_cidr.to_string()),
                pod_cidrs: Some(vec![self.options.pod_cidr.to_string()]),
                ..core::NodeSpec::default()
            }),
            status: Some(self.status()),
        };
        // The object of a node that joined was made by the server.
        let patch = serde_json::json!({ "metadata": { "labels": labels, "annotations": annotations } });
        let params = PatchParams::default();
        let made = match self.nodes.patch(&self.options.name, &params, &Patch::Merge(&patch)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.nodes.create(&PostParams::default(), &node).await?
            }
            other => other?,
        };
        self.conditions = made.status.and_then(|status| status.conditions).unwrap_or_default();
        self.uid = made.metadata.uid;
        Ok(())
    }

    /// Finds out whether the API still says what was written; if not, it is written again.
    async fn look(&mut self) -> Result<(), kube::Error> {
        let Some(node) = self.nodes.get_opt(&self.options.name).await? else {
            self.written = None;
            return self.register().await;
        };
        self.looked = Instant::now();
        let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
        if ready(&conditions) != ready(&self.conditions) {
            self.conditions = conditions;
            self.written = None;
        }
        Ok(())
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let (os, arch) = ("linux".to_owned(), host::architecture().to_owned());
        let mut labels = BTreeMap::from([
            ("kubernetes.io/hostname".to_owned(), self.options.name.clone()),
            ("kubernetes.io/os".to_owned(), os.clone()),
            ("kubernetes.io/arch".to_owned(), arch.clone()),
            ("beta.kubernetes.io/os".to_owned(), os),
            ("beta.kubernetes.io/arch".to_owned(), arch),
        ]);
        labels.extend(self.options.labels.iter().cloned());
        labels
    }

    async fn renew(&mut self) -> Result<(), kube::Error> {
        let name = self.options.name.clone();
        let now = MicroTime(Timestamp::now());
        let patch = serde_json::json!({ "spec": { "holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now } });
        let renewed = self.leases.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        match renewed {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => return other.map(|_| ()),
        }
        let owner = self.uid.clone().map(|uid| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: name.clone(),
            uid,
            ..OwnerReference::default()
        });
        let lease = coordination::Lease {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                owner_references: owner.map(|o| vec![o]),
                ..ObjectMeta::default()
            },
            spec: Some(coordination::LeaseSpec {
                holder_identity: Some(name),
                lease_duration_seconds: Some(LEASE_SECONDS),
                renew_time: Some(now),
                ..coordination::LeaseSpec::default()
            }),
        };
        self.leases.create(&PostParams::default(), &lease).await.map(|_| ())
    }

    async fn write(&mut self, status: core::NodeStatus) -> Result<(), kube::Error> {
        let now = Timestamp::now();
        let mut sent = status.clone();
        sent.conditions =
            Some(host::stamp(status.conditions.as_deref().unwrap_or_default(), &self.conditions, now));
        let patch = serde_json::json!({ "status": sent });
        match self
            .nodes
            .patch_status(&self.options.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
        {
            Ok(_) => {
                self.conditions = sent.conditions.unwrap_or_default();
                self.written = Some((status, Instant::now()));
                Ok(())
            }
            Err(error) => {
                // Someone deleted the object: register again.
                if matches!(&error, kube::Error::Api(status) if status.code == 404) {
                    self.uid = None;
                }
                Err(error)
            }
        }
    }

    fn status(&self) -> core::NodeStatus {
        let facts = host::Facts::read(&self.context.root, self.context.image_root().as_deref());
        let offered = || self.options.runtimes.iter().map(|entry| entry.runtime.capabilities());
        let versions: Vec<String> = offered().map(|one| one.version).collect();
        let limitations: Vec<String> = offered().flat_map(|one| one.limitations).collect();
        let away = offered().find_map(|one| one.unavailable);
        let missing = match self.context.containers() {
            None => Some(Missing { reason: "RuntimeMissing", text: self.context.no_containers() }),
            Some(_) => away.map(|text| Missing { reason: "RuntimeNotAnswering", text }),
        };
        let mut conditions = facts.conditions();
        conditions.push(host::runtimes(missing.as_ref(), &versions, &limitations));
        let images =
            self.context.images.present().into_iter().take(IMAGES).map(|image| core::ContainerImage {
                size_bytes: i64::try_from(image.size).ok(),
                names: Some(names(image.names, &image.digest)),
            });
        let mut addresses: Vec<core::NodeAddress> = (self.options.addresses.iter())
            .map(|ip| core::NodeAddress { type_: "InternalIP".to_owned(), address: ip.to_string() })
            .collect();
        addresses
            .push(core::NodeAddress { type_: "Hostname".to_owned(), address: self.options.name.clone() });
        core::NodeStatus {
            addresses: Some(addresses),
            allocatable: Some(facts.allocatable(self.options.max_pods)),
            capacity: Some(facts.capacity(self.options.max_pods)),
            conditions: Some(conditions),
            images: Some(images.collect()),
            node_info: Some(facts.node_info(versions.join(","))),
            runtime_handlers: Some(self.handlers()),
            ..core::NodeStatus::default()
        }
    }

    fn handlers(&self) -> Vec<core::NodeRuntimeHandler> {
        let names = self.options.runtimes.iter().flat_map(|entry| &entry.handlers);
        names.map(|name| core::NodeRuntimeHandler { name: Some(name.clone()), features: None }).collect()
    }
}

/// An image's names, by digest first, as upstream.
fn names(mut names: Vec<String>, digest: &str) -> Vec<String> {
    let mut all: Vec<String> = names.iter().map(|name| host::with_digest(name, digest)).collect();
    all.append(&mut names);
    all.dedup();
    all
}

fn ready(conditions: &[core::NodeCondition]) -> Option<&str> {
    conditions.iter().find(|condition| condition.type_ == "Ready").map(|condition| condition.status.as_str())
}
