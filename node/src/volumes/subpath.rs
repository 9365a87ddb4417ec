//! What of a volume a mount shows.
//!
//! Containers are shown files too. Guests are shown directories only: a `subPath` that is a file is copied to a
//! directory of its own, which stands in for the parent of the mount path; upstream does not update such files
//! either.

use std::{
    io,
    path::{Component, Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{View, mounts};

/// What a mount shows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shown {
    /// On the host.
    pub(super) source: PathBuf,
    /// Where the container sees it.
    pub(super) target: String,
    /// It has a copy of a file.
    pub(super) is_copy: bool,
}

/// Where the node may put things for a container.
#[derive(Debug)]
pub(super) struct Places<'a> {
    /// Copies of files.
    pub(super) staged: &'a Path,
    /// What is pinned; `None`: nothing needs to be, because nobody but this process writes the volume.
    pub(super) pinned: Option<PathBuf>,
}

/// Resolves `sub` inside the volume at `root`. Links that lead out of the volume are refused: another
/// container of the pod may have made them.
pub(super) fn show(
    root: &Path,
    sub: Option<&str>,
    target: &str,
    places: &Places<'_>,
    view: View,
) -> io::Result<Shown> {
    let whole = |source: PathBuf| Shown { source, target: target.to_owned(), is_copy: false };
    let Some(sub) = sub else { return Ok(whole(root.to_owned())) };
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !Path::new(sub).components().all(plain) {
        return Err(io::Error::other(format!("subPath {sub:?} must be relative and stay inside the volume")));
    }
    let path = root.join(sub);
    if path.symlink_metadata().is_err() {
        let parent = existing(root, &path)?;
        inside(root, &parent, sub)?;
        make(root, &path)?;
    }
    let source = match &places.pinned {
        Some(at) => {
            mounts::pin(root, sub, at)?;
            at.clone()
        }
        None => {
            let source = path.canonicalize()?;
            inside(root, &source, sub)?;
            source
        }
    };
    if view == View::Native || source.is_dir() {
        Ok(whole(source))
    } else {
        copy(&source, target, places.staged)
    }
}

/// A copy of the file `source`, in a directory that is shown as the parent of `target`.
fn copy(source: &Path, target: &str, staged: &Path) -> io::Result<Shown> {
    let (parent, name) = target.rsplit_once('/').unwrap_or(("", target));
    let parent = if parent.is_empty() { "/" } else { parent };
    let key: String = Sha256::digest(parent).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let directory = staged.join(key);
    std::fs::create_dir_all(&directory)?;
    let copy = directory.join(name);
    let _ = std::fs::remove_file(&copy);
    std::fs::copy(source, copy)?;
    Ok(Shown { source: directory, target: parent.to_owned(), is_copy: true })
}

/// Makes the directory `path` in the volume; what is new has the volume's own mode, as upstream.
fn make(root: &Path, path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> =
        path.ancestors().take_while(|parent| parent.symlink_metadata().is_err()).collect();
    std::fs::create_dir_all(path)?;
    let permissions = root.metadata()?.permissions();
    missing.into_iter().try_for_each(|made| std::fs::set_permissions(made, permissions.clone()))
}

/// The closest parent of `path` that exists.
fn existing(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let parents = path.ancestors().skip(1).take_while(|parent| parent.starts_with(root));
    let found = parents.into_iter().find(|parent| parent.symlink_metadata().is_ok());
    found.unwrap_or(root).canonicalize()
}

fn inside(root: &Path, path: &Path, sub: &str) -> io::Result<()> {
    if path.starts_with(root.canonicalize()?) {
        return Ok(());
    }
    Err(io::Error::other(format!("subPath {sub:?} leads out of the volume")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_paths_stay_inside_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        let (root, staged) = (dir.path().join("volume"), dir.path().join("staged"));
        std::fs::create_dir_all(root.join("data")).unwrap();
        std::fs::write(dir.path().join("secret"), "s").unwrap();
        std::os::unix::fs::symlink("..", root.join("up")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("etc")).unwrap();
        let places = Places { staged: &staged, pinned: None };
        let show = |sub: &str| show(&root, Some(sub), "/mnt/x", &places, View::Wasm);
        assert!(show("data").unwrap().source.ends_with("volume/data"));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions();
        std::fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        assert!(show("made/on/demand").unwrap().source.is_dir());
        assert_eq!(mode(&root.join("made/on")), mode(&root), "whoever may write the volume may write there");
        for bad in [
            "..",
            "../secret",
            "/etc",
            "up",
            "up/secret",
            "etc",
            "etc/passwd",
            "up/new/dir",
            "data/../../secret",
        ] {
            assert!(show(bad).is_err(), "{bad}");
        }
        assert!(!dir.path().join("new").exists());
    }

    #[test]
    fn a_file_is_shown_in_a_directory_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (root, staged) = (dir.path().join("volume"), dir.path().join("staged"));
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(root.join("app.toml"), "x = 1").unwrap();
        std::fs::write(root.join("other"), "hidden").unwrap();
        let places = Places { staged: &staged, pinned: None };
        let shown = show(&root, Some("app.toml"), "/etc/app/config.toml", &places, View::Wasm).unwrap();
        assert_eq!((shown.target.as_str(), shown.is_copy), ("/etc/app", true));
        assert_eq!(std::fs::read_to_string(shown.source.join("config.toml")).unwrap(), "x = 1");
        assert!(!shown.source.join("other").exists());
    }
    #[test]
    fn a_container_is_shown_the_file_itself() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("app.toml"), "x = 1").unwrap();
        let places = Places { staged: &dir.path().join("staged"), pinned: None };
        let shown = show(dir.path(), Some("app.toml"), "/etc/app.toml", &places, View::Native).unwrap();
        assert_eq!((shown.target.as_str(), shown.is_copy), ("/etc/app.toml", false));
        assert!(shown.source.ends_with("app.toml") && shown.source.is_file());
    }
}
