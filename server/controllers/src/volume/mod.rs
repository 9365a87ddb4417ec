//! Claims and volumes: finds them for each other, has volumes made on the node of the first pod, and gives back
//! what nobody claims any more. Data is made and removed by the node that has it.

mod claim_plan;
#[cfg(test)]
mod plan_tests;
mod volume_plan;

use std::sync::Arc;

use async_trait::async_trait;
use ketch_api::{
    k8s::api::{
        core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
        storage::v1::StorageClass,
    },
    volume::{
        self, BIND_COMPLETED, BOUND_BY_CONTROLLER, CLAIM_FINALIZER, DIRECTORY_ANNOTATION, HOSTNAME_LABEL,
        SELECTED_NODE, STORAGE_PROVISIONER,
    },
};
use ketch_client::{Change, Informer, Key, Queue, Recorder, Subject, is_already_exists, is_not_found};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use self::claim_plan::Place;
use crate::{
    error::{Doing, Error},
    pod,
    runner::{Next, Reconcile, Writes},
};

/// Plans for hostile objects.
#[cfg(fuzzing)]
pub(crate) fn fuzz(
    claims: &[Arc<PersistentVolumeClaim>],
    volumes: &[&PersistentVolume],
    class: Option<&StorageClass>,
) {
    for claim in claims {
        for (in_use, waiting, place) in [
            (false, Some("p"), Place::Open),
            (true, None, Place::Gone),
            (false, Some("p"), Place::Node("n", "/volumes")),
        ] {
            let _ = claim_plan::plan(&claim_plan::Observed { claim, volumes, class, in_use, waiting, place });
        }
    }
    for volume in volumes {
        let claim = claims.first().map(Arc::as_ref);
        let _ = volume_plan::plan(&volume_plan::Observed { volume, claim, node_exists: false });
    }
}

/// See the module. Keys are claims.
pub(crate) struct Claims {
    pub(crate) client: Client,
    pub(crate) claims: Informer<PersistentVolumeClaim>,
    pub(crate) volumes: Informer<PersistentVolume>,
    pub(crate) classes: Informer<StorageClass>,
    pub(crate) pods: Informer<Pod>,
    pub(crate) nodes: Informer<Node>,
    pub(crate) recorder: Recorder,
    pub(crate) writes: Writes,
}

/// See the module. Keys are volumes.
pub(crate) struct Volumes {
    pub(crate) client: Client,
    pub(crate) claims: Informer<PersistentVolumeClaim>,
    pub(crate) volumes: Informer<PersistentVolume>,
    pub(crate) nodes: Informer<Node>,
    pub(crate) recorder: Recorder,
    pub(crate) writes: Writes,
}

fn name_of(meta: &ketch_api::k8s::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

/// What of a node matters here.
fn place_of(node: &Node) -> (Option<String>, Option<String>) {
    let of = |all: Option<&std::collections::BTreeMap<String, String>>, key| {
        volume::annotation(all, key).map(str::to_owned)
    };
    let meta = &node.metadata;
    (of(meta.labels.as_ref(), HOSTNAME_LABEL), of(meta.annotations.as_ref(), DIRECTORY_ANNOTATION))
}

// === impl Claims ===

impl Claims {
    /// Puts claims that a change concerns into `queue`.
    pub(crate) fn listen(&self, queue: &Queue<Key>) {
        let own = queue.clone();
        self.claims.on_change(move |change: &Change<PersistentVolumeClaim>| own.add(change.key.clone()));
        let own = queue.clone();
        self.pods.on_change(move |change: &Change<Pod>| {
            let pods = [&change.old, &change.new];
            // Most pods have no claims, and of most changes only the node matters.
            if let [Some(old), Some(new)] = pods
                && pod::node(old) == pod::node(new)
            {
                return;
            }
            for (_, claim) in change.latest().into_iter().flat_map(|pod| volume::claims_of(pod)) {
                own.add(Key::new(change.key.namespace.clone(), claim));
            }
        });
        let (own, claims) = (queue.clone(), self.claims.clone());
        self.volumes.on_change(move |change: &Change<PersistentVolume>| {
            for seen in [&change.old, &change.new].into_iter().flatten() {
                match volume::claim_ref(seen) {
                    Some(claim) => own.add(Key::new(
                        claim.namespace.clone().unwrap_or_default(),
                        claim.name.clone().unwrap_or_default(),
                    )),
                    None => add_waiting(&own, &claims),
                }
            }
        });
        let (own, claims) = (queue.clone(), self.claims.clone());
        self.classes.on_change(move |_: &Change<StorageClass>| add_waiting(&own, &claims));
        let (own, claims) = (queue.clone(), self.claims.clone());
        self.nodes.on_change(move |change: &Change<Node>| {
            if change.old.as_ref().map(|node| place_of(node))
                != change.new.as_ref().map(|node| place_of(node))
            {
                add_waiting(&own, &claims);
            }
        });
    }

    fn api(&self, key: &Key) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), &key.namespace)
    }

    fn plan(&self, claim: &PersistentVolumeClaim, key: &Key) -> Vec<claim_plan::Op> {
        let volumes = self.volumes.all();
        let volumes: Vec<&PersistentVolume> = volumes.iter().map(AsRef::as_ref).collect();
        let class = self.classes.get(&Key::cluster(volume::class_of(claim)));
        let pods = self.users(claim, key);
        let waiting = pods.iter().find(|pod| pod::node(pod).is_empty());
        let selected = claim_plan::selected_node(claim);
        let node = selected.and_then(|name| self.nodes.get(&Key::cluster(name)));
        let (host, directory) = node.as_ref().map(|node| place_of(node)).unwrap_or_default();
        let place = match (selected, &node, &directory) {
            (None, ..) => Place::Open,
            (Some(_), None, _) => Place::Gone,
            (Some(name), _, None) => Place::Unfit(name),
            (Some(name), _, Some(directory)) => Place::Node(host.as_deref().unwrap_or(name), directory),
        };
        claim_plan::plan(&claim_plan::Observed {
            claim,
            volumes: &volumes,
            class: class.as_deref(),
            in_use: pods.iter().any(|pod| !pod::node(pod).is_empty()),
            waiting: waiting.map(|pod| name_of(&pod.metadata)),
            place,
        })
    }

    /// The pods that use a claim, where it matters.
    fn users(&self, claim: &PersistentVolumeClaim, key: &Key) -> Vec<Arc<Pod>> {
        if claim.metadata.deletion_timestamp.is_none() && volume::is_bound(claim) {
            return Vec::new();
        }
        let mut pods = self.pods.in_namespace(&key.namespace);
        pods.retain(|pod| volume::claims_of(pod).any(|(_, name)| name == key.name));
        pods
    }

    async fn apply(&self, key: &Key, claim: &PersistentVolumeClaim, op: claim_plan::Op) -> Result<(), Error> {
        use claim_plan::Op;
        match op {
            Op::Tell(note) => {
                let subject = Subject::of(claim);
                match note.warning {
                    true => self.recorder.warning(subject, note.reason, note.message),
                    false => self.recorder.normal(subject, note.reason, note.message),
                }
                Ok(())
            }
            Op::Release => self.release(key, claim).await,
            Op::Bind(name) => self.bind(key, claim, &name).await,
            Op::Provision(volume) => self.provision(claim, &volume).await,
            Op::Unselect => {
                self.patch(key, json!({"metadata": {"annotations": {SELECTED_NODE: null}}})).await
            }
            Op::Ask(who) => {
                self.patch(key, json!({"metadata": {"annotations": {STORAGE_PROVISIONER: who}}})).await
            }
            Op::Lost => self.patch_status(key, json!({"status": {"phase": "Lost"}})).await,
            Op::Grow(name, size) => {
                let patch = json!({"spec": {"capacity": {"storage": size.to_string()}}});
                let volumes = Api::<PersistentVolume>::all(self.client.clone());
                let grown = volumes.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
                grown.map(drop).doing(|| format!("growing volume {name}"))
            }
        }
    }

    async fn patch(&self, key: &Key, patch: Value) -> Result<(), Error> {
        match self.api(key).patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(error) if is_not_found(&error) => Ok(()),
            other => {
                other.map(|written| self.writes.wrote(key, &written)).doing(|| format!("writing claim {key}"))
            }
        }
    }

    async fn patch_status(&self, key: &Key, patch: Value) -> Result<(), Error> {
        match self.api(key).patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(error) if is_not_found(&error) => Ok(()),
            other => other
                .map(|written| self.writes.wrote(key, &written))
                .doing(|| format!("writing the status of claim {key}")),
        }
    }

    /// Reserves the volume, then names it in the claim, then says so: whoever is interrupted goes on where it was.
    async fn bind(&self, key: &Key, claim: &PersistentVolumeClaim, name: &str) -> Result<(), Error> {
        let volumes = Api::<PersistentVolume>::all(self.client.clone());
        let found = volumes.get_opt(name).await.doing(|| format!("reading volume {name}"))?;
        let Some(mut found) = found else { return Ok(()) };
        if volume::claim_ref(&found).is_none_or(|reference| reference.uid != claim.metadata.uid) {
            if volume::claim_ref(&found).is_some_and(|reference| !volume::is_for(reference, claim)) {
                return Err(Error::Object(format!("volume {name} was taken by another claim than {key}")));
            }
            let mut patch = json!({"metadata": {"resourceVersion": found.metadata.resource_version},
                "spec": {"claimRef": claim_plan::reference(claim)}});
            if volume::claim_ref(&found).is_none()
                && let Some(metadata) = patch.get_mut("metadata").and_then(Value::as_object_mut)
            {
                metadata.insert("annotations".to_owned(), json!({BOUND_BY_CONTROLLER: "yes"}));
            }
            let reserved = volumes.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
            found = reserved.doing(|| format!("binding volume {name}"))?;
        }
        let mut annotations = json!({BIND_COMPLETED: "yes"});
        if volume::volume_name(claim).is_empty()
            && let Some(annotations) = annotations.as_object_mut()
        {
            annotations.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".into());
        }
        self.patch(key, json!({"metadata": {"annotations": annotations}, "spec": {"volumeName": name}}))
            .await?;
        let spec = found.spec.unwrap_or_default();
        let status = json!({"phase": "Bound", "accessModes": spec.access_modes, "capacity": spec.capacity});
        self.patch_status(key, json!({ "status": status })).await
    }

    async fn provision(&self, claim: &PersistentVolumeClaim, made: &PersistentVolume) -> Result<(), Error> {
        let volumes = Api::<PersistentVolume>::all(self.client.clone());
        let name = name_of(&made.metadata);
        match volumes.create(&PostParams::default(), made).await {
            Err(error) if is_already_exists(&error) => return Ok(()),
            other => other.map(drop).doing(|| format!("creating volume {name}"))?,
        }
        let message = format!("Successfully provisioned volume {name}");
        self.recorder.normal(Subject::of(claim), "ProvisioningSucceeded", message);
        Ok(())
    }

    /// Lets a claim go, unless a pod that was placed a moment ago uses it.
    async fn release(&self, key: &Key, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &key.namespace);
        let pods =
            pods.list(&ListParams::default()).await.doing(|| format!("listing pods of {}", key.namespace))?;
        let uses = |pod: &Pod| {
            !pod::node(pod).is_empty() && volume::claims_of(pod).any(|(_, name)| name == key.name)
        };
        if pods.items.iter().any(uses) {
            return Ok(());
        }
        self.patch(key, without(&claim.metadata, &[CLAIM_FINALIZER])).await
    }
}

/// The patch that takes finalizers away from an object that has not changed since.
fn without(
    meta: &ketch_api::k8s::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    finalizers: &[&str],
) -> Value {
    let kept: Vec<&String> = meta
        .finalizers
        .iter()
        .flatten()
        .filter(|finalizer| !finalizers.contains(&finalizer.as_str()))
        .collect();
    json!({"metadata": {"resourceVersion": meta.resource_version, "finalizers": kept}})
}

/// Claims that may find now what they wait for.
fn add_waiting(queue: &Queue<Key>, claims: &Informer<PersistentVolumeClaim>) {
    for claim in claims.all().iter().filter(|claim| !volume::is_bound(claim)) {
        queue.add(Key::of(&claim.metadata));
    }
}

#[async_trait]
impl Reconcile for Claims {
    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        self.writes.seen(key, &self.claims).await;
        let Some(claim) = self.claims.get(key) else { return Ok(Next::OnChange) };
        for op in self.plan(&claim, key) {
            self.apply(key, &claim, op).await?;
        }
        Ok(Next::OnChange)
    }
}

// === impl Volumes ===

impl Volumes {
    /// Puts volumes that a change concerns into `queue`.
    pub(crate) fn listen(&self, queue: &Queue<Key>) {
        let own = queue.clone();
        self.volumes.on_change(move |change: &Change<PersistentVolume>| own.add(change.key.clone()));
        let own = queue.clone();
        self.claims.on_change(move |change: &Change<PersistentVolumeClaim>| {
            for claim in [&change.old, &change.new].into_iter().flatten() {
                match volume::volume_name(claim) {
                    "" => {}
                    name => own.add(Key::cluster(name)),
                }
            }
        });
        let (own, volumes) = (queue.clone(), self.volumes.clone());
        self.nodes.on_change(move |change: &Change<Node>| {
            if change.new.is_none() {
                volumes.all().iter().for_each(|volume| own.add(Key::of(&volume.metadata)));
            }
        });
    }

    /// The claim a volume names. What the watch does not show (any more) is asked for.
    async fn claim(&self, seen: &PersistentVolume) -> Result<Option<Arc<PersistentVolumeClaim>>, Error> {
        let Some(reference) = volume::claim_ref(seen) else { return Ok(None) };
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        let key = Key::new(part(&reference.namespace), part(&reference.name));
        let known = self.claims.get(&key).filter(|claim| claim.metadata.uid == reference.uid);
        if known.is_some() || reference.uid.is_none() {
            return Ok(known);
        }
        let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &key.namespace);
        let live = api.get_opt(&key.name).await.doing(|| format!("reading claim {key}"))?;
        Ok(live.map(Arc::new))
    }

    fn node_exists(&self, seen: &PersistentVolume) -> bool {
        volume::node_of(seen).is_none_or(|host| {
            self.nodes
                .all()
                .iter()
                .any(|node| name_of(&node.metadata) == host || place_of(node).0.as_deref() == Some(host))
        })
    }

    async fn apply(&self, key: &Key, seen: &PersistentVolume, op: volume_plan::Op) -> Result<(), Error> {
        use volume_plan::Op;
        let api = Api::<PersistentVolume>::all(self.client.clone());
        let (name, params) = (&key.name, PatchParams::default());
        let written = match op {
            Op::Phase(phase, message) => {
                if phase == "Failed" {
                    let reason = if message.contains("recycled") {
                        "VolumeFailedRecycle"
                    } else {
                        "VolumeFailedDelete"
                    };
                    self.recorder.warning(Subject::of(seen), reason, message.clone());
                }
                let message = Some(message).filter(|message| !message.is_empty());
                let patch = json!({"status": {"phase": phase, "message": message,
                    "lastPhaseTransitionTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()}});
                api.patch_status(name, &params, &Patch::Merge(patch)).await
            }
            Op::Release(finalizers) => {
                let patch = without(&seen.metadata, &finalizers);
                api.patch(name, &params, &Patch::Merge(patch)).await
            }
            Op::Unbind => {
                let patch = json!({"metadata": {"annotations": {BOUND_BY_CONTROLLER: null}},
                    "spec": {"claimRef": null}});
                api.patch(name, &params, &Patch::Merge(patch)).await
            }
            Op::Delete => {
                return match api.delete(name, &DeleteParams::default()).await {
                    Err(error) if is_not_found(&error) => Ok(()),
                    other => other.map(drop).doing(|| format!("deleting volume {name}")),
                };
            }
        };
        match written {
            Err(error) if is_not_found(&error) => Ok(()),
            other => {
                other.map(|volume| self.writes.wrote(key, &volume)).doing(|| format!("writing volume {name}"))
            }
        }
    }
}

#[async_trait]
impl Reconcile for Volumes {
    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        self.writes.seen(key, &self.volumes).await;
        let Some(seen) = self.volumes.get(key) else { return Ok(Next::OnChange) };
        let claim = self.claim(&seen).await?;
        let observed = volume_plan::Observed {
            volume: &seen,
            claim: claim.as_deref(),
            node_exists: self.node_exists(&seen),
        };
        // One at a time: the next look sees what it changed.
        match volume_plan::plan(&observed).into_iter().next() {
            Some(op) => self.apply(key, &seen, op).await?,
            None => return Ok(Next::OnChange),
        }
        Ok(Next::OnChange)
    }
}
