//! `fsGroup`: the group that owns a pod's volumes (upstream's `SetVolumeOwnership`).

use std::{
    io,
    os::unix::fs::{MetadataExt, PermissionsExt, lchown},
    path::Path,
};

/// Bits that the group gets: on files that are written, on files that are only read, on directories.
const WRITABLE: u32 = 0o660;
const READABLE: u32 = 0o440;
const DIRECTORY: u32 = 0o110;
const SETGID: u32 = 0o2000;

/// Gives `path` and what is in it to `group`; new files in its directories inherit it. Nothing is done where the
/// top has it already: a large volume is walked once.
pub(super) fn give(path: &Path, group: u32, read_only: bool) -> io::Result<()> {
    let top = path.symlink_metadata()?;
    if top.gid() == group && top.mode() & SETGID != 0 {
        return Ok(());
    }
    give_all(path, group, if read_only { READABLE } else { WRITABLE })
}

fn give_all(path: &Path, group: u32, bits: u32) -> io::Result<()> {
    let found = path.symlink_metadata()?;
    if found.is_dir() {
        for entry in std::fs::read_dir(path)? {
            give_all(&entry?.path(), group, bits)?;
        }
    }
    lchown(path, None, Some(group))?;
    if found.is_symlink() {
        return Ok(());
    }
    let more = if found.is_dir() { bits | DIRECTORY | SETGID } else { bits };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(found.mode() & 0o7777 | more))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_owns_everything_and_links_are_not_followed() {
        if !nix::unistd::Uid::effective().is_root() {
            println!("skipped: giving files away needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        std::fs::create_dir_all(volume.join("sub")).unwrap();
        std::fs::write(volume.join("sub/file"), "x").unwrap();
        std::fs::set_permissions(volume.join("sub/file"), std::fs::Permissions::from_mode(0o400)).unwrap();
        std::fs::write(dir.path().join("outside"), "x").unwrap();
        std::os::unix::fs::symlink("../outside", volume.join("link")).unwrap();
        give(&volume, 4242, true).unwrap();
        let of = |path: &str| {
            let found = volume.join(path).symlink_metadata().unwrap();
            (found.gid(), found.mode() & 0o7777)
        };
        assert_eq!(of("sub/file"), (4242, 0o440));
        assert_eq!(of("sub").0, 4242);
        assert_eq!(of("sub").1 & (SETGID | 0o550), SETGID | 0o550);
        assert_ne!(std::fs::metadata(dir.path().join("outside")).unwrap().gid(), 4242);
    }
}
