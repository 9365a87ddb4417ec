//! Removing what nothing names any more.
//!
//! Manifests stay until they are deleted, tagged or not: revisions and pods name them by digest. Blobs stay
//! while a manifest of their repository names them.

use crate::disk::{Disk, names, remove};
use crate::manifest::{Content, Need};
use crate::{Digest, Error, Repository};
use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Removes claims that no manifest of their repository needs, then blobs that no repository claims. Both
/// only when they are older than `grace`: a push brings blobs first, and the manifest that names them last.
pub(crate) fn collect(disk: &Disk, now: SystemTime, grace: Duration) -> Result<Collected, Error> {
    let mut claimed = HashSet::new();
    for repository in disk.all_repositories()? {
        let needed = needed(disk, &repository)?;
        let claims = disk.claims(&repository);
        for hex in names(&claims)? {
            if !needed.contains(&hex) && is_older(&claims.join(&hex), now, grace)? {
                remove(&claims.join(&hex))?;
            } else {
                claimed.insert(hex);
            }
        }
    }
    sweep(disk, &claimed, now, grace)
}

fn needed(disk: &Disk, repository: &Repository) -> Result<HashSet<String>, Error> {
    let mut needed = HashSet::new();
    for manifest in disk.all_manifests(repository)? {
        let needs = Content::parse(&manifest.media_type, &manifest.content)?.needs()?;
        needed.extend(needs.iter().filter_map(|need| match need {
            Need::Blob(digest, _) => Some(Digest::hex(digest).to_owned()),
            Need::Manifest(_) => None,
        }));
    }
    Ok(needed)
}

fn sweep(
    disk: &Disk,
    claimed: &HashSet<String>,
    now: SystemTime,
    grace: Duration,
) -> Result<Collected, Error> {
    let mut collected = Collected::default();
    for start in names(&disk.blobs())? {
        let dir = disk.blobs().join(start);
        for hex in names(&dir)? {
            let path = dir.join(&hex);
            if claimed.contains(&hex) || !is_older(&path, now, grace)? {
                continue;
            }
            let size = std::fs::metadata(&path).map_err(Error::on("reading", &path))?.len();
            if remove(&path)? {
                collected.blobs += 1;
                collected.bytes += size;
            }
        }
    }
    Ok(collected)
}

fn is_older(path: &Path, now: SystemTime, grace: Duration) -> Result<bool, Error> {
    let modified = std::fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .map_err(Error::on("reading", path))?;
    // A clock that went back makes things young, which is the safe side.
    Ok(now.duration_since(modified).is_ok_and(|age| age >= grace))
}
