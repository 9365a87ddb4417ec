//! How much disk a volume uses.

use std::{os::unix::fs::MetadataExt, path::Path};

/// Bytes of a block in `stat`, whatever the file system has.
const BLOCK: u64 = 512;

/// Bytes on disk that what is in `directory` takes. Stops looking once it is more than `most`. What cannot be
/// read, because it is being removed, counts nothing.
pub(crate) fn used(directory: &Path, most: u64) -> u64 {
    let mut used = 0_u64;
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(found) = entry.path().symlink_metadata() else { continue };
            used = used.saturating_add(found.blocks().saturating_mul(BLOCK));
            if used > most {
                return used;
            }
            if found.is_dir() {
                left.push(entry.path());
            }
        }
    }
    used
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
