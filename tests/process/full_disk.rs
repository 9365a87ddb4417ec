//! A full disk: said once and clearly, nothing that runs is touched, and writes go on when there is room.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use ketch_tests::{Ketch, failed, guest, is_root, succeeded, until};

/// A small file system in memory, unmounted at the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"]).arg(dir.path());
        succeeded("mount", mount.output().unwrap());
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes every byte that is free.
    fn fill(&self) -> PathBuf {
        let path = self.path().join("filler");
        let mut file = File::create(&path).unwrap();
        let chunk = [0; 4096];
        while file.write_all(&chunk).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

#[test]
fn a_full_disk_is_said_and_survived() {
    if !is_root() {
        return;
    }
    let disk = SmallDisk::new();
    let ketch = Ketch::start_in(disk.path(), &[]);
    ketch.deploy("hello", &[]);
    let filler = disk.fill();

    let error = failed("deploy", ketch.ketch(&["deploy", guest("counter").to_str().unwrap()]));
    assert!(error.contains("no space left"), "{error}");
    let value = format!("a={}", "x".repeat(100_000));
    let literal = format!("--from-literal={value}");
    let error = (0..500).find_map(|number| {
        let output = ketch.kubectl(&["create", "configmap", &format!("large-{number}"), &literal]);
        (!output.status.success()).then(|| failed("create", output))
    });
    let error = error.expect("the disk is full at some time");
    assert!(error.contains("no space left") && error.contains("free some space"), "{error}");
    assert_eq!(ketch.call("hello", "/").unwrap().0, 200, "what runs is untouched");
    ketch.kubectl_ok(&["get", "configmap", "large-0"]);

    std::fs::remove_file(filler).unwrap();
    until("writes to go on", || {
        let output = ketch.kubectl(&["create", "configmap", "after", "--from-literal=a=b"]);
        if output.status.success() { Ok(()) } else { Err(failed("create", output)) }
    });
}
