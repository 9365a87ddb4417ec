//! The data directory: made with the right mode, and owned by one process.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use fs4::fs_std::FileExt;

/// Why a data directory cannot be used. The texts are for the person who started Ketch.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process has it.
    #[error(
        "data directory {path} is in use by another Ketch (process {pid}); stop it, or choose another one with --data-dir"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Its owner, `?` when unknown.
        pid: String,
    },
    /// It cannot be made or written.
    #[error(
        "cannot write to data directory {path}: {source}; choose one this user can write with --data-dir"
    )]
    NotWritable {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A data directory that no other process uses as long as this value lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes `path` (mode 0700) when it is missing, and locks it. The lock ends with the process, however
    /// it ends.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let failed = |source| DataDirError::NotWritable { path: path.to_path_buf(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(failed)?;
        if !FileExt::try_lock_exclusive(&lock).map_err(failed)? {
            let mut pid = String::new();
            let _ = lock.read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() { "?".to_owned() } else { pid.trim().to_owned() };
            return Err(DataDirError::InUse { path: path.to_path_buf(), pid });
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(failed)?;
        Ok(Self { path: path.to_path_buf(), _lock: lock })
    }

    /// The process that has `path`, if one has it. Looks only: a Ketch that starts meanwhile is not kept from it.
    pub fn owner(path: &Path) -> Option<u32> {
        let lock = path.join("lock");
        let process = fs::read_to_string(&lock).ok()?.trim().parse().ok()?;
        let locks = fs::read_to_string("/proc/locks").ok()?;
        is_locked(&locks, process, fs::metadata(lock).ok()?.ino()).then_some(process)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `name` in the directory as a whole (a reader sees the old or the new text), mode 0600.
    pub fn write(&self, name: &str, text: &str) -> std::io::Result<()> {
        let (target, partial) = (self.path.join(name), self.path.join(format!(".{name}.partial")));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(partial, target)
    }
}

/// Whether `/proc/locks` has a lock of `process` on the file `inode`: `1: FLOCK ADVISORY WRITE 12 08:01:34 0 EOF`.
fn is_locked(locks: &str, process: u32, inode: u64) -> bool {
    let (process, inode) = (process.to_string(), inode.to_string());
    locks.lines().any(|line| {
        let mut fields = line.split_whitespace();
        fields.nth(1) == Some("FLOCK")
            && fields.nth(2) == Some(process.as_str())
            && fields.next().and_then(|file| file.rsplit(':').next()) == Some(inode.as_str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_one_owner_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        assert_eq!(DataDir::owner(&path), None);
        let first = DataDir::open(&path).unwrap();
        assert_eq!(DataDir::owner(&path), Some(std::process::id()));
        let message = DataDir::open(&path).unwrap_err().to_string();
        assert!(message.contains("in use") && message.contains(&std::process::id().to_string()), "{message}");
        drop(first);
        assert_eq!(DataDir::owner(&path), None);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn locks_are_found_by_process_and_file() {
        let locks = "1: POSIX  ADVISORY  WRITE 12 08:01:34 0 EOF\n2: FLOCK  ADVISORY  WRITE 12 08:01:56 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 78 08:01:56 0 EOF\n3: FLOCK\n";
        for (process, inode, expected) in [(12, 56, true), (12, 34, false), (78, 56, false), (1, 56, false)] {
            assert_eq!(is_locked(locks, process, inode), expected, "{process} {inode}");
        }
    }

    #[test]
    fn says_what_cannot_be_written() {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join("file");
        fs::write(&file, "").unwrap();
        let message = DataDir::open(&file.join("below")).unwrap_err().to_string();
        assert!(message.contains("--data-dir"), "{message}");
    }

    #[test]
    fn files_are_private_and_whole() {
        let parent = tempfile::tempdir().unwrap();
        let dir = DataDir::open(parent.path()).unwrap();
        dir.write("run.json", "{}").unwrap();
        let meta = fs::metadata(parent.path().join("run.json")).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    }
}
