//! How much disk a volume uses.

use std::{os::unix::fs::MetadataExt, path::Path};

/// Bytes of a block in `stat`, whatever the file system has.
const BLOCK: u64 = 512;

/// Whether what is in `directory` takes more than `limit` bytes on disk. Stops looking once it does. What cannot
/// be read, because it is being removed, counts nothing.
pub(super) fn exceeds(directory: &Path, limit: u64) -> bool {
    let mut used = 0_u64;
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(found) = entry.path().symlink_metadata() else { continue };
            used = used.saturating_add(found.blocks().saturating_mul(BLOCK));
            if used > limit {
                return true;
            }
            if found.is_dir() {
                left.push(entry.path());
            }
        }
    }
    false
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
        assert!(!exceeds(&volume, 256 << 10));
        std::fs::write(volume.join("a/b/file"), vec![1; 512 << 10]).unwrap();
        assert!(exceeds(&volume, 256 << 10));
        assert!(!exceeds(&volume, 4 << 20));
        assert!(!exceeds(&dir.path().join("none"), 0));
    }
}
