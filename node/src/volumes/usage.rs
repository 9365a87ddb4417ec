//! How much disk a volume uses.

use std::{fs::Metadata, os::unix::fs::MetadataExt, path::Path};

use crate::pressure::Share;

/// Bytes of a block in `stat`, whatever the file system has.
const BLOCK: u64 = 512;

/// Bytes on disk that what is in `directory` takes. Stops looking once it is more than `most`. What cannot be
/// read, because it is being removed, counts nothing.
pub(crate) fn used(directory: &Path, most: u64) -> u64 {
    let mut used = 0_u64;
    walk(directory, |found| {
        used = used.saturating_add(found.blocks().saturating_mul(BLOCK));
        used <= most
    });
    used
}

/// What `directory` takes. Stops looking once that is more than `most` files.
pub(crate) fn share(directory: &Path, most: u64) -> Share {
    let mut share = Share::default();
    walk(directory, |found| {
        share.bytes = share.bytes.saturating_add(found.blocks().saturating_mul(BLOCK));
        share.files += 1;
        share.files <= most
    });
    share
}

/// Looks at everything in `directory`, links not followed, while `each` wants to see more.
fn walk(directory: &Path, mut each: impl FnMut(&Metadata) -> bool) {
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(found) = entry.path().symlink_metadata() else { continue };
            if !each(&found) {
                return;
            }
            if found.is_dir() {
                left.push(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_inside_counts_and_links_do_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        std::fs::create_dir_all(volume.join("a/b")).unwrap();
        std::fs::write(dir.path().join("large"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink("../large", volume.join("link")).unwrap();
        assert!(used(&volume, 256 << 10) <= 256 << 10);
        std::fs::write(volume.join("a/b/file"), vec![1; 512 << 10]).unwrap();
        assert!(used(&volume, 256 << 10) > 256 << 10);
        assert!(used(&volume, 4 << 20) >= 512 << 10);
        assert_eq!(used(&dir.path().join("none"), 0), 0);
    }
}
