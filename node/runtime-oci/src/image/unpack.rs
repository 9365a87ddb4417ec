//! Layers to snapshots, at pull time: an image that cannot be unpacked is an error of the pull, and starting
//! a container costs no unpacking.

use containerd_client::{
    services::v1::{
        ApplyRequest,
        snapshots::{
            CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
        },
    },
    types,
};
use ketch_runtime::Error;
use sha2::{Digest, Sha256};
use tonic::Code;

use super::{
    content::{Labels, Lease},
    manifest::Descriptor,
};
use crate::client::{QUICK, or_gone, scoped};

/// Most time for one layer: a large one on a slow disk.
const APPLY: std::time::Duration = std::time::Duration::from_secs(1800);

/// Unpacks `layers`, whose contents have the digests `diff_ids`; returns the name of the last snapshot.
pub(crate) async fn unpack(
    lease: &Lease<'_>,
    snapshotter: &str,
    layers: &[Descriptor],
    diff_ids: &[String],
) -> Result<String, Error> {
    let mut parent = String::new();
    for (layer, diff_id) in layers.iter().zip(diff_ids) {
        let chain = chain(&parent, diff_id);
        if !exists(lease, snapshotter, &chain).await? {
            let key = format!("extract-{}-{chain}", unique());
            let applied = apply(lease, snapshotter, &key, &parent, layer, diff_id).await;
            let done = match applied {
                Ok(()) => commit(lease, snapshotter, &key, &chain).await,
                Err(error) => Err(error),
            };
            if !matches!(done, Ok(true)) {
                discard(lease, snapshotter, &key).await;
            }
            done?;
        }
        parent = chain;
    }
    Ok(parent)
}

/// `ChainID` of the image specification.
fn chain(parent: &str, diff_id: &str) -> String {
    if parent.is_empty() {
        return diff_id.to_owned();
    }
    let sum = Sha256::digest(format!("{parent} {diff_id}"));
    sum.iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// Tells attempts of one process apart; those of earlier processes have other leases and are collected.
fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Whether there is a snapshot; it is leased then: the pull that made it may take it back.
async fn exists(lease: &Lease<'_>, snapshotter: &str, name: &str) -> Result<bool, Error> {
    lease.add(name, format!("snapshots/{snapshotter}")).await?;
    let request =
        lease.request(StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: name.to_owned() });
    let mut snapshots = lease.client.native().snapshots();
    match lease.client.call("look for a snapshot", QUICK, snapshots.stat(request)).await {
        Ok(_) => Ok(true),
        Err(Error::NotFound(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn apply(
    lease: &Lease<'_>,
    snapshotter: &str,
    key: &str,
    parent: &str,
    layer: &Descriptor,
    diff_id: &str,
) -> Result<(), Error> {
    let request = lease.request(PrepareSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
        parent: parent.to_owned(),
        labels: Labels::new(),
    });
    let mut snapshots = lease.client.native().snapshots();
    let mounts = lease.client.call("prepare a snapshot", QUICK, snapshots.prepare(request)).await?.mounts;
    let diff = Some(types::Descriptor {
        media_type: layer.media_type.clone(),
        digest: layer.digest.clone(),
        size: i64::try_from(layer.size).unwrap_or(i64::MAX),
        ..types::Descriptor::default()
    });
    let request = lease.request(ApplyRequest { diff, mounts, ..ApplyRequest::default() });
    let corrupt =
        |why: &str| Error::Pull(format!("layer {} cannot be unpacked, it is corrupt: {why}", layer.digest));
    let mut diffs = lease.client.native().diff();
    let applied = match lease.client.call("unpack", APPLY, diffs.apply(request)).await {
        Ok(response) => response.applied.unwrap_or_default().digest,
        // Neither is the image's fault.
        Err(Error::Internal(text)) if text.contains("no space left") || text.contains("does not answer") => {
            return Err(Error::Internal(text));
        }
        Err(error) => return Err(corrupt(&error.to_string())),
    };
    match applied == diff_id {
        true => Ok(()),
        false => Err(corrupt(&format!("its content is {applied}, the image says {diff_id}"))),
    }
}

/// Whether this attempt was the one that became the snapshot.
async fn commit(lease: &Lease<'_>, snapshotter: &str, key: &str, name: &str) -> Result<bool, Error> {
    let request = lease.request(CommitSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        name: name.to_owned(),
        key: key.to_owned(),
        labels: Labels::new(),
    });
    let mut snapshots = lease.client.native().snapshots();
    let answer = async {
        match snapshots.commit(request).await {
            Ok(_) => Ok(tonic::Response::new(true)),
            Err(status) if status.code() == Code::AlreadyExists => Ok(tonic::Response::new(false)),
            Err(status) => Err(status),
        }
    };
    lease.client.call("commit a snapshot", QUICK, answer).await
}

async fn discard(lease: &Lease<'_>, snapshotter: &str, key: &str) {
    let request = scoped(RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() });
    let mut snapshots = lease.client.native().snapshots();
    let gone = lease.client.call("remove a snapshot", QUICK, snapshots.remove(request)).await;
    if let Err(error) = or_gone(gone.map(drop)) {
        tracing::debug!(%error, "a snapshot is left to the garbage collector");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn chains_are_those_of_the_specification() {
        let first = "sha256:aa".to_owned();
        assert_eq!(super::chain("", &first), first);
        let second = super::chain(&first, "sha256:bb");
        // printf 'sha256:aa sha256:bb' | sha256sum
        assert!(second.starts_with("sha256:") && second.len() == 71, "{second}");
        assert_ne!(second, super::chain("sha256:bb", &first));
    }
}
