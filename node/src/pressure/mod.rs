//! Ends pods when a disk of the node runs full: the kubelet's node-pressure eviction. Limits are each pod's own affair
//! (`actions::storage`); this is for what has none, or for many that are within theirs.
//!
//! At [`Disk::is_low`] images that nobody uses go first. If that is not enough, one pod ends, the node looks again,
//! and so on. Who takes next to nothing is left alone: a disk that somebody else has filled is not the pods' fault.

mod rank;

use std::{os::unix::fs::MetadataExt, path::Path, sync::Arc, time::Duration};

use ketch_api::k8s::api::core::v1 as core;
use ketch_runtime::disk::Disk;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub(crate) use rank::Share;
use rank::{Candidate, Lack};

use crate::{
    context::{Context, Report},
    events::Note,
    usage, volumes,
};

/// Between looks at the disks.
const PERIOD: Duration = Duration::from_secs(2);
/// Looks after which a disk that is still low does not get better by itself.
const LOOKS: u32 = 3;
/// For a pod to end and its files to be removed.
const REMOVAL: Duration = Duration::from_secs(30);
/// Files that are counted in one directory: who has more has too many anyway.
const MOST_FILES: u64 = 1 << 19;

/// A pod that has to end.
#[derive(Debug)]
pub(crate) struct Eviction {
    pub(crate) uid: String,
    /// Why.
    pub(crate) message: String,
}

/// A disk that is low, and what of pods is on it.
struct Place {
    disk: Disk,
    lack: Lack,
    /// Volumes and logs.
    has_shared: bool,
    /// Containers' own files.
    has_own: bool,
}

/// Watches the disks until `stop`.
pub(crate) async fn relieve(context: Arc<Context>, evict: mpsc::Sender<Eviction>, stop: CancellationToken) {
    let mut looks = 0;
    while stop.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
        let Some(place) = low(&context) else {
            looks = 0;
            continue;
        };
        looks += 1;
        if looks == 1 {
            met(&context, place.lack);
            context.no_room.notify_one();
        }
        if looks < LOOKS {
            continue;
        }
        if let Some(eviction) = stop.run_until_cancelled(choose(&context, &place)).await.flatten() {
            let uid = eviction.uid.clone();
            if evict.send(eviction).await.is_err() {
                return;
            }
            stop.run_until_cancelled(removed(&context, &uid)).await;
            looks = 1;
        }
    }
}

/// The disk that is low, the node's own first.
fn low(context: &Context) -> Option<Place> {
    let device = |path: &Path| path.metadata().ok().map(|found| found.dev());
    let images = context.image_root();
    let apart = images.as_deref().is_some_and(|path| device(path) != device(&context.root));
    let place = |path: &Path, has_shared, has_own| {
        let disk = Disk::of(path);
        Lack::of(&disk).map(|lack| Place { disk, lack, has_shared, has_own })
    };
    let own = place(&context.root, true, !apart);
    own.or_else(|| place(images.as_deref().filter(|_| apart)?, false, true))
}

/// The pod that ends, if one has to; it has been said why.
async fn choose(context: &Arc<Context>, place: &Place) -> Option<Eviction> {
    let running = |pod: &Arc<core::Pod>| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Succeeded" | "Failed"))
    };
    let pods: Vec<Arc<core::Pod>> = context.index.pods().into_iter().filter(running).collect();
    let mut own: Vec<Vec<(String, Share)>> = vec![Vec::new(); pods.len()];
    if place.has_own {
        for one in usage::sample(context, &pods).await {
            let share = Share { bytes: one.usage.disk, files: one.usage.files };
            if let Some(of_pod) = own.get_mut(one.pod) {
                of_pod.push((one.name, share));
            }
        }
    }
    let shared = match place.has_shared {
        true => {
            let (context, pods) = (Arc::clone(context), pods.clone());
            let measure = move || pods.iter().map(|pod| shared(&context, pod)).collect();
            tokio::task::spawn_blocking(measure).await.ok()?
        }
        false => vec![Share::default(); pods.len()],
    };
    let candidates: Vec<Candidate<'_>> = (pods.iter().zip(shared).zip(own))
        .map(|((pod, shared), containers)| Candidate { pod, shared, containers })
        .collect();
    let chosen = candidates.get(rank::first(&candidates, place.lack, &place.disk)?)?;
    let message = rank::message(chosen, place.lack, &place.disk);
    context.event(chosen.pod, None, Report::warning("Evicted", message.clone()));
    Some(Eviction { uid: chosen.pod.metadata.uid.clone()?, message })
}

/// What volumes and logs of a pod take.
fn shared(context: &Context, pod: &core::Pod) -> Share {
    let volumes = volumes::scratch(context, pod).into_iter().map(|volume| volume.directory);
    let directories = volumes.chain([crate::logs::pod_dir(&context.root, pod)]);
    directories.map(|directory| volumes::share(&directory, MOST_FILES)).fold(Share::default(), |sum, one| {
        Share { bytes: sum.bytes.saturating_add(one.bytes), files: sum.files.saturating_add(one.files) }
    })
}

/// Returns when files of the pod are gone, or that takes too long.
async fn removed(context: &Context, uid: &str) {
    let directory = context.pod_dir(uid);
    let gone = async {
        while directory.exists() {
            tokio::time::sleep(PERIOD / 10).await;
        }
    };
    if tokio::time::timeout(REMOVAL, gone).await.is_err() {
        tracing::warn!(uid, "an evicted pod has not ended yet");
    }
}

/// Says at the node that there is too little.
fn met(context: &Context, lack: Lack) {
    let message = format!("Attempting to reclaim {}", lack.resource());
    let object = context.node_reference();
    context.events.record(Note { object, warning: true, reason: "EvictionThresholdMet", message });
}
