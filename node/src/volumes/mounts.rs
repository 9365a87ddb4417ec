//! What a pod's volumes have mounted: file systems in memory, and parts of volumes that were pinned. Everything
//! mounted under a pod's directory is unmounted before that is removed, whoever mounted it and when.

use std::{
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    mount::{MntFlags, MsFlags, mount, umount2},
};

/// Mounts a file system in memory at `directory`, unless there is one. `size` in bytes; `None`: half of the
/// memory, as the kernel has it. `false`: without the right to mount.
pub(super) fn memory(directory: &Path, size: Option<u64>) -> io::Result<bool> {
    if is_mounted(directory)? {
        return Ok(true);
    }
    let options = size.map(|size| format!("size={size},mode=0777")).unwrap_or_else(|| "mode=0777".to_owned());
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    match mount(Some("tmpfs"), directory, Some("tmpfs"), flags, Some(options.as_str())) {
        Ok(()) => Ok(true),
        Err(Errno::EPERM) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_mounted(directory: &Path) -> io::Result<bool> {
    let parent = directory.parent().unwrap_or(directory);
    Ok(directory.metadata()?.dev() != parent.metadata()?.dev())
}

/// Shows the part `sub` of the volume at `root` at `at`, for good: the part is looked up inside the volume in one
/// step, so that a container which changes links meanwhile cannot lead out of it (CVE-2021-25741). Returns
/// whether it is a directory.
///
/// # Errors
/// `EXDEV` when the path leads out; [`io::ErrorKind::PermissionDenied`] without the right to mount.
pub(super) fn pin(root: &Path, sub: &str, at: &Path) -> io::Result<bool> {
    let volume = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_DIRECTORY.bits() | OFlag::O_CLOEXEC.bits())
        .open(root)?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let part = openat2(&volume, sub, how)?;
    let opened = PathBuf::from(format!("/proc/self/fd/{}", part.as_raw_fd()));
    let is_directory = opened.metadata()?.is_dir();
    release(at)?;
    if is_directory {
        std::fs::create_dir_all(at)?;
    } else {
        if let Some(parent) = at.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::OpenOptions::new().create(true).append(true).open(at)?;
    }
    mount(Some(&opened), at, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(is_directory)
}

/// Takes away what an earlier [`pin`] left at `at`.
fn release(at: &Path) -> io::Result<()> {
    while umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok() {}
    match at.symlink_metadata() {
        Ok(found) if found.is_dir() => std::fs::remove_dir(at),
        Ok(_) => std::fs::remove_file(at),
        Err(_) => Ok(()),
    }
}

/// Unmounts everything under `directory`, then removes it. What cannot be unmounted is left: it may be a
/// directory of the host.
pub(crate) fn discard(directory: &Path) -> io::Result<()> {
    let Ok(directory) = directory.canonicalize() else { return Ok(()) };
    let mut points = points(&directory)?;
    // The innermost first.
    points.sort_by_key(|point| std::cmp::Reverse(point.as_os_str().len()));
    for point in &points {
        umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
    }
    std::fs::remove_dir_all(&directory)
}

/// Unmounts everything inside `directory`, then removes it. A file system that is mounted at `directory` itself
/// is the administrator's: it is emptied, and stays.
///
/// # Errors
/// When something cannot be unmounted or removed.
pub fn discard_inside(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.symlink_metadata()?.is_dir() { discard(&path)? } else { std::fs::remove_file(&path)? }
    }
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(()),
        other => other,
    }
}

/// Mount points at and under `directory`.
fn points(directory: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(under(&std::fs::read_to_string("/proc/self/mountinfo")?, directory))
}

fn under(mountinfo: &str, directory: &Path) -> Vec<PathBuf> {
    let point = |line: &str| line.split(' ').nth(4).map(|text| PathBuf::from(unescape(text)));
    mountinfo.lines().filter_map(point).filter(|point| point.starts_with(directory)).collect()
}

/// The kernel writes space, tab, newline and backslash as octal numbers.
fn unescape(text: &str) -> String {
    let known = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    known.iter().fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_root() -> bool {
        let root = nix::unistd::Uid::effective().is_root();
        if !root {
            println!("skipped: mounting needs root");
        }
        root
    }

    #[test]
    fn mount_points_are_read() {
        let text = "36 35 98:0 / /data/pods/u/volumes/a\\040b rw - tmpfs tmpfs rw\n\
                    37 35 98:0 / /data/pods/u2/volumes/x rw - tmpfs tmpfs rw\nshort\n";
        assert_eq!(under(text, Path::new("/data/pods/u")), [PathBuf::from("/data/pods/u/volumes/a b")]);
    }

    #[test]
    fn memory_is_limited_and_goes_with_the_pod() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("pod");
        let volume = pod.join("volumes/cache");
        std::fs::create_dir_all(&volume).unwrap();
        assert!(memory(&volume, Some(1 << 20)).unwrap());
        std::fs::write(volume.join("kept"), "x").unwrap();
        assert!(memory(&volume, Some(1 << 20)).unwrap(), "the second time nothing is mounted over it");
        assert!(volume.join("kept").exists());
        let error = std::fs::write(volume.join("large"), vec![0; 2 << 20]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::ENOSPC));
        discard(&pod).unwrap();
        assert!(!pod.exists());
        assert!(points(&pod).unwrap().is_empty());
    }

    #[test]
    fn a_pinned_part_stays_inside_its_volume_and_survives_a_swap() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (root, pod) = (dir.path().join("volume"), dir.path().join("pod"));
        std::fs::create_dir_all(root.join("data")).unwrap();
        std::fs::write(root.join("data/file"), "inside").unwrap();
        std::fs::create_dir_all(dir.path().join("host")).unwrap();
        std::fs::write(dir.path().join("host/file"), "outside").unwrap();
        std::os::unix::fs::symlink("../host", root.join("out")).unwrap();
        std::os::unix::fs::symlink("data", root.join("link")).unwrap();
        let at = pod.join("subpaths/main/0");
        for bad in ["out", "out/file", "../host", "link/../../host"] {
            assert_eq!(pin(&root, bad, &at).unwrap_err().raw_os_error(), Some(nix::libc::EXDEV), "{bad}");
        }
        assert!(pin(&root, "link", &at).unwrap());
        assert_eq!(std::fs::read_to_string(at.join("file")).unwrap(), "inside");
        // The container turns the directory into a link to the host: what was pinned stays.
        std::fs::rename(root.join("data"), root.join("old")).unwrap();
        std::os::unix::fs::symlink("../host", root.join("data")).unwrap();
        assert_eq!(std::fs::read_to_string(at.join("file")).unwrap(), "inside");
        // A file, at the same place.
        assert!(!pin(&root, "old/file", &at).unwrap());
        assert_eq!(std::fs::read_to_string(&at).unwrap(), "inside");
        discard(&pod).unwrap();
        assert!(!pod.exists() && root.join("old/file").exists() && dir.path().join("host/file").exists());
    }
}
