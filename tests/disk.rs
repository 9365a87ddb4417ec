//! Small file systems, for tests of full ones.

use std::{fs::File, path::Path, process::Command};

use crate::succeeded;

/// A small file system, unmounted at the end.
pub struct SmallDisk {
    dir: tempfile::TempDir,
    /// What an ext4 is in.
    _file: Option<tempfile::NamedTempFile>,
}

impl SmallDisk {
    /// In memory.
    pub fn in_memory(mib: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(dir.path());
        succeeded("mount", mount.output().unwrap());
        Self { dir, _file: None }
    }

    /// An ext4 in a file. `None`, with a word, where there are no loop devices.
    pub fn ext4(mib: u64) -> Option<Self> {
        let (dir, file) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
        file.as_file().set_len(mib << 20).unwrap();
        let mut make = Command::new("mkfs.ext4");
        make.args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1"]).arg(file.path());
        succeeded("mkfs.ext4", make.output().unwrap());
        let mount = Command::new("mount").args(["-o", "loop"]).arg(file.path()).arg(dir.path()).output();
        let mount = mount.unwrap();
        if !mount.status.success() {
            eprintln!("skipped: {}", String::from_utf8_lossy(&mount.stderr));
            return None;
        }
        Some(Self { dir, _file: Some(file) })
    }

    /// Its top.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Bytes that are free.
    pub fn free(&self) -> u64 {
        let stat = nix::sys::statvfs::statvfs(self.path()).unwrap();
        stat.blocks_available() * stat.fragment_size()
    }

    /// Takes every byte that is free.
    pub fn fill(&self) -> std::path::PathBuf {
        use std::io::Write;
        let path = self.path().join("filler");
        let mut file = File::create(&path).unwrap();
        let chunk = [0; 4096];
        while file.write_all(&chunk).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).output();
    }
}
