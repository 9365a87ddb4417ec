//! A full disk: said once and clearly, nothing that runs is touched, and writes go on when there is room.

use ketch_tests::{Ketch, SmallDisk, failed, guest, is_root, until};

#[test]
fn a_full_disk_is_said_and_survived() {
    if !is_root() {
        return;
    }
    let disk = SmallDisk::in_memory(64);
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
