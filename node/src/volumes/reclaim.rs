//! Removes the data of volumes that are to go. The control plane deletes the object; a finalizer keeps it until
//! the node that has the data says, by taking it away, that there is none any more.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt};
use ketch_api::{
    k8s::api::core::v1 as core,
    volume::{self, DATA_FINALIZER, NODE_FIELD},
};
use kube::{
    api::{Api, Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{claim, mounts};
use crate::context::Context;

/// Before data that could not be removed is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// What becomes of a volume's data.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    /// The object goes, the data stays.
    Keep,
    Remove,
}

fn due(found: &core::PersistentVolume) -> Due {
    let held = found.metadata.finalizers.iter().flatten().any(|one| one == DATA_FINALIZER);
    let ours = volume::is_local_path(found) && found.metadata.deletion_timestamp.is_some() && held;
    let spec = found.spec.as_ref();
    match spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()) {
        _ if !ours || volume::phase(found) == "Bound" => Due::Nothing,
        Some("Delete") => Due::Remove,
        _ => Due::Keep,
    }
}

/// Follows the volumes that are on this node until `stop`.
pub(crate) async fn run(context: Arc<Context>, stop: CancellationToken) {
    let api = Api::<core::PersistentVolume>::all(context.client.clone());
    let config = watcher::Config::default().fields(&format!("{NODE_FIELD}={}", context.name));
    let mut events = watcher(api.clone(), config).default_backoff().boxed();
    let mut failed: BTreeMap<String, core::PersistentVolume> = BTreeMap::new();
    loop {
        let again = tokio::time::sleep(RETRY);
        let seen = tokio::select! {
            () = stop.cancelled() => return,
            event = events.try_next() => match event {
                Ok(Some(watcher::Event::Apply(seen) | watcher::Event::InitApply(seen))) => seen,
                Ok(Some(watcher::Event::Delete(seen))) => {
                    failed.remove(seen.metadata.name.as_deref().unwrap_or_default());
                    continue;
                }
                Ok(Some(_)) => continue,
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "the watch of this node's volumes was interrupted");
                    continue;
                }
            },
            () = again, if !failed.is_empty() => match failed.pop_first() {
                Some((_, seen)) => seen,
                None => continue,
            },
        };
        let name = seen.metadata.name.clone().unwrap_or_default();
        if let Err(error) = settle(&context, &api, &seen).await {
            tracing::warn!(volume = name, error, "the data of a volume was not removed");
            failed.insert(name, seen);
        }
    }
}

async fn settle(
    context: &Context,
    api: &Api<core::PersistentVolume>,
    seen: &core::PersistentVolume,
) -> Result<(), String> {
    let name = seen.metadata.name.as_deref().unwrap_or_default();
    match due(seen) {
        Due::Nothing => return Ok(()),
        Due::Keep => {}
        Due::Remove => {
            let path = claim::path(&context.root, name).ok_or("it has no name of a volume")?;
            let removed = tokio::task::spawn_blocking(move || mounts::discard(&path)).await;
            removed.map_err(std::io::Error::other).flatten().map_err(|error| error.to_string())?;
            tracing::info!(volume = name, "the data of a volume was removed");
        }
    }
    let kept: Vec<&String> =
        seen.metadata.finalizers.iter().flatten().filter(|one| *one != DATA_FINALIZER).collect();
    let patch = json!({"metadata": {"resourceVersion": seen.metadata.resource_version, "finalizers": kept}});
    match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        // With a newer version comes an event of its own.
        Err(error) if ketch_client::is_not_found(&error) || ketch_client::is_conflict(&error) => Ok(()),
        other => other.map(drop).map_err(|error| ketch_client::status_text(&error)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn data_goes_with_what_is_released_and_deleted() {
        let volume = |policy: &str, phase: &str, more: Value| {
            let mut volume = json!({"metadata": {"name": "pv", "deletionTimestamp": "2026-01-01T00:00:00Z",
                "finalizers": [DATA_FINALIZER], "annotations": {volume::PROVISIONED_BY: volume::PROVISIONER}},
                "spec": {"persistentVolumeReclaimPolicy": policy}, "status": {"phase": phase}});
            for (key, value) in more.as_object().unwrap() {
                volume["metadata"][key] = value.clone();
            }
            due(&serde_json::from_value(volume).unwrap())
        };
        assert_eq!(volume("Delete", "Released", json!({})), Due::Remove);
        assert_eq!(volume("Retain", "Released", json!({})), Due::Keep);
        assert_eq!(volume("Delete", "Bound", json!({})), Due::Nothing);
        assert_eq!(volume("Delete", "Released", json!({"deletionTimestamp": null})), Due::Nothing);
        assert_eq!(volume("Delete", "Released", json!({"annotations": {}})), Due::Nothing);
        assert_eq!(volume("Delete", "Released", json!({"finalizers": []})), Due::Nothing);
    }
}
