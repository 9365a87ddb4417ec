//! The cgroup that a pod's containers share: CRI limits what one container uses, the number of processes is
//! limited for the whole pod here, so that a fork bomb harms nobody else.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where control groups are mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// Parent of all pods.
const PARENT: &str = "ketch";
/// Most processes and threads of a pod.
const PIDS: u32 = 4096;

/// Name of a pod's cgroup, from the root.
pub(crate) fn path(owner: &str, pod: &str) -> String {
    // A UID is hexadecimal digits and dashes, but nothing here checks it.
    let safe: String =
        pod.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
    format!("{}/pod{safe}", parent(owner))
}

/// Name of the cgroup of all pods of one Ketch.
pub(crate) fn parent(owner: &str) -> String {
    format!("/{PARENT}/{owner}")
}

/// Makes the cgroup `path` with its limit. What the host does not offer is left out.
pub(crate) fn create(path: &str) {
    let relative = path.trim_start_matches('/');
    let (root, unified) = match Path::new(ROOT).join("cgroup.controllers").exists() {
        true => (PathBuf::from(ROOT), true),
        false => (Path::new(ROOT).join("pids"), false),
    };
    let directory = root.join(relative);
    let made = fs::create_dir_all(&directory).and_then(|()| {
        if unified {
            delegate(&root, relative)?;
        }
        fs::write(directory.join("pids.max"), PIDS.to_string())
    });
    if let Err(error) = made {
        tracing::warn!(path, %error, "the number of processes of a pod is not limited");
    }
}

/// cgroup v2 wants each controller handed down level by level.
fn delegate(root: &Path, relative: &str) -> std::io::Result<()> {
    let mut level = root.to_path_buf();
    for part in Path::new(relative) {
        fs::write(level.join("cgroup.subtree_control"), "+pids")?;
        level.push(part);
    }
    Ok(())
}

/// Removes a pod's cgroup from every hierarchy: runc removes only those of containers.
pub(crate) fn remove(path: &str) {
    let relative = path.trim_start_matches('/');
    if relative.is_empty() {
        return;
    }
    let hierarchies = fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([PathBuf::from(ROOT)]) {
        let directory = hierarchy.join(relative);
        for level in [Some(directory.as_path()), directory.parent()].into_iter().flatten() {
            // Not there, or in use by another pod.
            _ = fs::remove_dir(level);
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_cannot_leave_their_parent() {
        assert_eq!(super::path("me", "0f-1"), "/ketch/me/pod0f-1");
        assert_eq!(super::path("me", "../../x"), "/ketch/me/pod______x");
    }
}
