//! Container logs: where they are, who removes them, and how they are read. Runtimes write them, in CRI
//! format.

#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod line;
mod reader;

use std::path::{Path, PathBuf};

use ketch_api::k8s::api::core::v1 as core;

pub(crate) use line::Query;
pub(crate) use reader::{Reader, tail_text};

/// Lines and bytes of a log that stand in for a termination message (upstream's).
const TAIL_LINES: u64 = 80;
const TAIL_BYTES: usize = 2048;

/// `<namespace>_<name>_<uid>`, the name of a pod's directory.
fn directory_name(pod: &core::Pod) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let meta = &pod.metadata;
    format!("{}_{}_{}", text(&meta.namespace), text(&meta.name), text(&meta.uid))
}

/// Directory of a pod's logs.
pub(crate) fn pod_dir(root: &Path, pod: &core::Pod) -> PathBuf {
    root.join("logs").join(directory_name(pod))
}

/// Log file of one instance of a container.
pub(crate) fn file(root: &Path, pod: &core::Pod, container: &str, attempt: u32) -> PathBuf {
    pod_dir(root, pod).join(container).join(format!("{attempt}.log"))
}

/// Instances of a container that left a log, in order.
pub(crate) fn attempts(root: &Path, pod: &core::Pod, container: &str) -> Vec<u32> {
    let entries = std::fs::read_dir(pod_dir(root, pod).join(container)).into_iter().flatten().flatten();
    let number = |name: String| name.strip_suffix(".log")?.parse().ok();
    let mut found: Vec<u32> =
        entries.filter_map(|entry| number(entry.file_name().to_string_lossy().into_owned())).collect();
    found.sort_unstable();
    found
}

/// Removes logs that are too old once instance `ended` has: it and the one that follows are kept.
pub(crate) async fn prune(root: &Path, pod: &core::Pod, container: &str, ended: u32) {
    for attempt in attempts(root, pod, container).into_iter().filter(|attempt| *attempt < ended) {
        let path = file(root, pod, container, attempt);
        for number in 1.. {
            if tokio::fs::remove_file(ketch_runtime::log::rotated(&path, number)).await.is_err() {
                break;
            }
        }
        let _ = tokio::fs::remove_file(path).await;
    }
}

/// Removes a pod's logs.
pub(crate) async fn remove(root: &Path, pod: &core::Pod) {
    let _ = tokio::fs::remove_dir_all(pod_dir(root, pod)).await;
}

/// The end of an instance's log, without time stamps.
pub(crate) fn tail(root: &Path, pod: &core::Pod, container: &str, attempt: u32) -> String {
    tail_text(&file(root, pod, container, attempt), TAIL_LINES, TAIL_BYTES)
}
