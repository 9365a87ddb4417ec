//! Writing a volume's files so that readers see all of the old or all of the new ones.
//!
//! As upstream's atomic writer: the files are in a directory of their own, `..data` is a symbolic link to
//! it that is replaced by a rename, and every top-level name links through `..data`. All links are relative
//! and stay inside the volume.

use std::{
    collections::BTreeSet,
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, symlink},
    path::Path,
};

use super::project::{File, Files};

const LINK: &str = "..data";

/// Brings the volume in `directory` up to date, readable by `group`; whether anything changed.
pub(super) fn write(directory: &Path, files: &Files, group: Option<u32>) -> io::Result<bool> {
    std::fs::create_dir_all(directory)?;
    let current = std::fs::read_link(directory.join(LINK)).ok();
    if let Some(current) = &current
        && is_same(&directory.join(current), files)
    {
        return Ok(false);
    }
    let name = fresh_name(directory);
    fill(&directory.join(&name), files)?;
    if let Some(group) = group {
        super::owner::give(&directory.join(&name), group, true)?;
    }
    let temporary = directory.join("..data_tmp");
    let _ = std::fs::remove_file(&temporary);
    symlink(&name, &temporary)?;
    std::fs::rename(&temporary, directory.join(LINK))?;
    relink(directory, files)?;
    if let Some(old) = current {
        let _ = std::fs::remove_dir_all(directory.join(old));
    }
    Ok(true)
}

fn fresh_name(directory: &Path) -> String {
    let time = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    (0..).map(|n: u32| format!("{time}.{n}")).find(|name| !directory.join(name).exists()).unwrap_or(time)
}

fn is_same(directory: &Path, files: &Files) -> bool {
    let same = |(path, file): (&String, &File)| {
        std::fs::read(directory.join(path)).is_ok_and(|bytes| bytes == file.bytes)
    };
    count(directory) == files.len() && files.iter().all(same)
}

fn count(directory: &Path) -> usize {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { count(&entry.path()) } else { 1 }).sum()
}

fn fill(directory: &Path, files: &Files) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for (path, file) in files {
        let target = directory.join(path);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        // Nobody else may read it before it has its permissions.
        let mut created = OpenOptions::new();
        created.write(true).create_new(true).mode(file.mode & 0o600).open(&target)?.write_all(&file.bytes)?;
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(file.mode))?;
        if file.owner.is_some() && nix::unistd::Uid::effective().is_root() {
            chown(&target, file.owner, None)?;
        }
    }
    Ok(())
}

/// Links for new top-level names; links of names that are gone are removed.
fn relink(directory: &Path, files: &Files) -> io::Result<()> {
    let wanted: BTreeSet<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &wanted {
        let link = directory.join(name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new(LINK).join(name), link)?;
        }
    }
    for entry in std::fs::read_dir(directory)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !wanted.contains(name.as_str()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        list.iter()
            .map(|(p, b)| ((*p).to_owned(), File { bytes: b.as_bytes().to_vec(), mode: 0o640, owner: None }))
            .collect()
    }

    #[test]
    fn contents_are_swapped_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let read = |path: &str| std::fs::read_to_string(dir.path().join(path)).ok();
        assert!(write(dir.path(), &files(&[("a", "1"), ("sub/b", "2")]), None).unwrap());
        assert_eq!((read("a"), read("sub/b")), (Some("1".into()), Some("2".into())));
        let mode = std::fs::metadata(dir.path().join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        assert!(!write(dir.path(), &files(&[("a", "1"), ("sub/b", "2")]), None).unwrap(), "nothing changed");
        assert!(write(dir.path(), &files(&[("a", "3"), ("c", "4")]), None).unwrap());
        assert_eq!((read("a"), read("sub/b"), read("c")), (Some("3".into()), None, Some("4".into())));
        let generations = std::fs::read_dir(dir.path()).unwrap().flatten().filter(|e| {
            e.file_name().to_string_lossy().starts_with("..") && e.path().is_dir() && !e.path().is_symlink()
        });
        assert_eq!(generations.count(), 1, "old contents are removed");
    }
}
