//! Ketch without root: everything but what needs it.

use std::{os::unix::fs::chown, process::Command};

use ketch_tests::{Ketch, binary, failed, is_root};

/// `nobody` and `nogroup` of Debian.
const USER: u32 = 65_534;

fn as_user(program: &std::path::Path) -> Command {
    let mut command = Command::new("setpriv");
    let id = USER.to_string();
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]).arg(program);
    command
}

#[test]
fn an_ordinary_user_has_the_whole_way_to_a_url() {
    if !is_root() {
        // Then every other test is this one.
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    chown(dir.path(), Some(USER), Some(USER)).unwrap();
    // The build directory may be closed to others.
    let program = dir.path().join("ketch");
    std::fs::copy(binary(), &program).unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    chown(&data, Some(USER), Some(USER)).unwrap();
    let ketch = Ketch::start_as(as_user(&program), "up", &data, &[]);
    let owner = std::fs::read_to_string(format!("/proc/{}/status", ketch.pid())).unwrap();
    assert!(owner.contains(&format!("Uid:\t{USER}")), "{owner}");
    ketch.deploy("hello", &[]);
    assert_eq!(ketch.call("hello", "/").unwrap().0, 200);
    let ip = ketch.kubectl_ok(&["get", "pods", "-o", "jsonpath={.items[0].status.podIP}"]);
    assert!(ip.starts_with("127.42."), "{ip}");
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("ketch");
    std::fs::copy(binary(), &program).unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = as_user(&program).args(["up", "--data-dir"]).arg(dir.path().join("data")).output().unwrap();
    let error = failed("up in a directory of root's", output);
    assert!(error.contains("data") && error.contains("denied") && error.contains("--data-dir"), "{error}");
}
