//! Frees the disk of images that no pod names: see [`super::collect`].

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use ketch_api::k8s::api::core::v1 as core;
use ketch_runtime::disk::Disk;
use tokio_util::sync::CancellationToken;

use super::collect::{Present, Usage, goal, is_full};
use crate::{context::Context, events::Note};

/// Between looks at the disk.
const PERIOD: Duration = Duration::from_secs(60);

/// Looks at the disk again and again until `stop`, and when there was no room for an image.
pub(crate) async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut usage = Usage::default();
    loop {
        let urgent = tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => false,
            () = context.no_room.notified() => true,
        };
        let present = context.images.present();
        let in_use = in_use(&context.index.pods(), &present);
        let removable = usage.removable(&present, &in_use, urgent, Instant::now());
        free(&context, removable, urgent).await;
    }
}

/// The fuller one of the disks that images are on.
fn disk(context: &Context) -> Disk {
    let own = Disk::of(&context.root);
    let images = context.image_root().map(|path| Disk::of(&path)).unwrap_or_default();
    let rank = |disk: &Disk| (disk.is_low(), disk.used_percent());
    if rank(&images) > rank(&own) { images } else { own }
}

/// Digests of the images that pods name, or run.
fn in_use(pods: &[Arc<core::Pod>], present: &[Present]) -> BTreeSet<String> {
    let mut names: BTreeSet<&str> = BTreeSet::new();
    let mut digests: BTreeSet<String> = BTreeSet::new();
    for pod in pods {
        let spec = pod.spec.iter();
        names.extend(
            spec.flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()))
                .filter_map(|container| container.image.as_deref()),
        );
        let status = pod.status.iter();
        let statuses = status.flat_map(|status| {
            status.container_statuses.iter().chain(&status.init_container_statuses).flatten()
        });
        digests.extend(statuses.filter_map(|one| Some(one.image_id.rsplit_once('@')?.1.to_owned())));
    }
    let named = present.iter().filter(|image| image.names.iter().any(|name| names.contains(name.as_str())));
    digests.extend(named.map(|image| image.digest.clone()));
    digests
}

/// Removes `images`, one after the other, until enough is free.
async fn free(context: &Context, images: Vec<Present>, urgent: bool) {
    let before = disk(context);
    let Some(goal) = goal(&before, urgent) else { return };
    let mut now = before;
    for image in images {
        if now.free >= goal && !now.lacks_files() {
            break;
        }
        match remove(context, &image).await {
            Ok(()) => {
                context.images.forget(&image.digest);
                tracing::info!(image = image.digest, size = image.size, "an unused image was removed");
            }
            Err(error) => tracing::warn!(image = image.digest, %error, "an unused image was not removed"),
        }
        now = disk(context);
    }
    if is_full(&now) {
        note_failure(context, goal.saturating_sub(before.free), now.free.saturating_sub(before.free));
    }
}

fn note_failure(context: &Context, attempted: u64, found: u64) {
    let message = format!(
        "Failed to garbage collect required amount of images. Attempted to free {attempted} bytes, but only found \
         {found} bytes eligible to free."
    );
    let object = context.node_reference();
    context.events.record(Note { object, warning: true, reason: "FreeDiskSpaceFailed", message });
}

async fn remove(context: &Context, image: &Present) -> Result<(), ketch_runtime::Error> {
    for name in &image.names {
        for entry in &context.runtimes {
            entry.runtime.remove_image(name, &image.digest).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn images_are_used_by_name_and_by_what_runs() {
        let pod = json!({"metadata": {}, "spec": {"containers": [{"name": "c", "image": "web:2"}],
            "initContainers": [{"name": "i", "image": "init"}]},
            "status": {"containerStatuses": [{"name": "c", "image": "web:1", "imageID": "web@sha256:old",
                "ready": true, "restartCount": 0}]}});
        let pods = [Arc::new(serde_json::from_value(pod).unwrap())];
        let image = |digest: &str, names: &[&str]| Present {
            digest: digest.to_owned(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            size: 1,
        };
        let present = [
            image("sha256:new", &["web:latest", "web:2"]),
            image("sha256:init", &["init"]),
            image("sha256:old", &["web:1"]),
            image("sha256:other", &["other"]),
        ];
        let used = in_use(&pods, &present);
        assert_eq!(used.into_iter().collect::<Vec<_>>(), ["sha256:init", "sha256:new", "sha256:old"]);
    }
}
