//! What Ketch leaves on a machine: nothing while it runs longer, nothing when it is uninstalled.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    ops::Range,
    path::Path,
    process::Command,
};

use ketch_tests::{Ketch, binary, failed, guest, is_root, root, succeeded, until};

const RANGES: [&str; 6] =
    ["--service-cidr", "10.157.0.0/16", "--pod-cidr", "10.156.0.0/16", "--dns-addr", "10.157.0.10:53"];
/// In each round a container and a component come and go.
const ROUNDS: usize = 200;
/// Rounds at a time.
const AT_ONCE: usize = 20;
/// The first ones fill caches.
const FIRST: usize = 40;

/// Everything of the machine that could be ours, as lines by where they are from. Others on the machine come and
/// go meanwhile: only lines that name our ranges or directory count, but for devices and namespaces, which are
/// counted by their addresses.
fn machine(dir: &Path) -> BTreeMap<&'static str, BTreeSet<String>> {
    let run = |program: &str, arguments: &str| {
        let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let dir = dir.to_str().unwrap();
    let ours = |text: String, words: &[&str]| -> BTreeSet<String> {
        let lines = text.lines().filter(|line| words.iter().any(|word| line.contains(word)));
        lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    // Another Ketch of the machine may have another part of the same range.
    let ranges = ["10.156.0.", "10.156.16.", "10.157."];
    BTreeMap::from([
        ("addresses", ours(run("ip", "-o addr"), &ranges)),
        ("routes", ours(run("ip", "route show table all"), &ranges)),
        ("neighbours", ours(run("ip", "neigh show"), &ranges)),
        ("rules", ours(run("nft", "list ruleset"), &ranges)),
        ("mounts", ours(read("/proc/self/mountinfo"), &[dir])),
        ("processes", ours(run("ps", "-e -o args"), &[dir])),
        (
            "namespaces",
            fs::read_dir("/run/netns")
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .filter(|name| name.starts_with("cni-"))
                .collect(),
        ),
        ("cgroups", cgroups(dir)),
        (
            "network plugins' results",
            fs::read_dir("/var/lib/cni/results")
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| fs::read_to_string(path).is_ok_and(|text| text.contains("10.156.")))
                .map(|path| path.display().to_string())
                .collect(),
        ),
    ])
}

/// Control groups of this Ketch's pods, by the processes' own view of where they would be.
fn cgroups(dir: &str) -> BTreeSet<String> {
    let owner = owner(dir);
    let mut found = BTreeSet::new();
    let hierarchies =
        fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([Path::new("/sys/fs/cgroup").to_path_buf()]) {
        let pods = hierarchy.join("ketch").join(&owner);
        if pods.is_dir() {
            found.insert(pods.display().to_string());
            found.extend(
                fs::read_dir(&pods)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .filter(|entry| entry.path().is_dir())
                    .map(|entry| entry.path().display().to_string()),
            );
        }
    }
    found
}

/// The name that pods of a data directory have in the tree of control groups.
fn owner(dir: &str) -> String {
    let mut sum = Command::new("sh");
    let sum = sum.args(["-c", "printf %s \"$0\" | sha256sum", dir]).output().unwrap();
    String::from_utf8_lossy(&sum.stdout).chars().take(10).collect()
}

/// Open files, and resident memory in KiB.
fn usage(ketch: &Ketch) -> (usize, u64) {
    let pid = ketch.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    (files, resident.trim().trim_end_matches(" kB").parse().unwrap())
}

/// The pods of some rounds, `number` of which is the first.
fn manifest(number: usize) -> String {
    let container = "{name: c, image: 'ketch.local/default/busybox:latest', command: [sleep, '3600']}";
    let component = "{name: c, image: 'ketch.local/default/hello:latest', ports: [{containerPort: 8080}]}";
    let mut text = String::new();
    for round in number..number + AT_ONCE {
        for (kind, spec) in [("box", container), ("wasm", component)] {
            let _ = writeln!(
                text,
                "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: r{round}-{kind}, labels: {{app: churn}}}}, spec: {{terminationGracePeriodSeconds: 0, containers: [{spec}]}}}}"
            );
        }
    }
    text
}

/// Makes the pods of `rounds` and deletes them.
fn rounds(ketch: &Ketch, rounds: Range<usize>) {
    for number in rounds.step_by(AT_ONCE) {
        ketch.apply(&manifest(number));
        ketch.kubectl_ok(&["wait", "--for=condition=Ready", "pod", "-l", "app=churn", "--timeout=90s"]);
        ketch.kubectl_ok(&["delete", "pods", "-l", "app=churn", "--timeout=90s"]);
    }
}

fn start(dir: &Path) -> Ketch {
    Ketch::start_in(dir, &[&RANGES[..], &["--containerd", "managed"]].concat())
}

/// Takes away what a test that fails leaves.
struct Left<'a>(&'a Path);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        uninstall(self.0, &["--yes"]);
    }
}

fn uninstall(dir: &Path, flags: &[&str]) -> std::process::Output {
    let mut command = Command::new(binary());
    command.arg("uninstall").arg("--data-dir").arg(dir).args(flags).stdin(std::process::Stdio::null());
    command.output().unwrap()
}

#[test]
fn pods_leave_nothing_behind_and_neither_does_ketch() {
    if !is_root() {
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(parent.path()).unwrap().join("data");
    let untouched = machine(&dir);
    let _left = Left(&dir);
    let mut ketch = start(&dir);
    let push = Command::new(root().join("examples/push-images"))
        .arg(ketch.address("api-addr"))
        .env("KUBECONFIG", ketch.kubeconfig())
        .output();
    succeeded("push-images", push.unwrap());
    let image = guest("hello");
    succeeded("deploy", ketch.ketch(&["deploy", image.to_str().unwrap(), "--timeout", "180"]));
    // A policy, so that pods have rules too.
    ketch.apply("---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {podSelector: {matchLabels: {app: churn}}, ingress: [{from: [{podSelector: {}}]}]}}");
    rounds(&ketch, 0..FIRST);
    // Pods without grace are gone from the API before they have ended.
    let before = until("the end of the first pods", || {
        let seen = machine(&dir);
        match seen.values().flatten().find(|line| line.contains("10.156.16.")) {
            None => Ok(seen),
            Some(line) => Err(line.clone()),
        }
    });
    let (files, memory) = usage(&ketch);
    rounds(&ketch, FIRST..ROUNDS);
    until("everything of the pods to be gone", || match machine(&dir) {
        after if after == before => Ok(()),
        after => Err(difference(&before, &after)),
    });
    let (files_after, memory_after) = usage(&ketch);
    eprintln!("files {files} then {files_after}, resident {memory} KiB then {memory_after} KiB");
    assert!(files_after <= files + 20, "{files} open files became {files_after}");
    assert!(memory_after <= memory + 64 * 1024, "{memory} KiB became {memory_after} KiB");

    // Not while it runs; not without being asked; with pods that are still there, and after a crash.
    assert!(failed("uninstall", uninstall(&dir, &["--yes"])).contains("in use by another Ketch"));
    ketch.apply(&manifest(ROUNDS));
    ketch.kubectl_ok(&["wait", "--for=condition=Ready", "pod", "-l", "app=churn", "--timeout=90s"]);
    ketch.kill();
    assert!(failed("uninstall", uninstall(&dir, &[])).contains("--yes"));
    assert!(dir.exists());
    succeeded("uninstall", uninstall(&dir, &["--yes"]));
    let after = machine(&dir);
    assert!(after == untouched, "left behind:\n{}", difference(&untouched, &after));
    assert!(!dir.exists());
    assert!(succeeded("uninstall again", uninstall(&dir, &["--yes"])).contains("nothing"));
}

fn difference(
    before: &BTreeMap<&'static str, BTreeSet<String>>,
    after: &BTreeMap<&'static str, BTreeSet<String>>,
) -> String {
    let mut text = String::new();
    for (place, lines) in after {
        let known = &before[place];
        for (sign, line) in lines
            .difference(known)
            .map(|line| ('+', line))
            .chain(known.difference(lines).map(|line| ('-', line)))
        {
            let _ = writeln!(text, "{sign} {place}: {line}");
        }
    }
    text
}
