//! Logs of containers: containerd writes them, their size is kept within bounds here, under the names that
//! `ketch_runtime::log` uses too.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_cri::v1::{ContainerState, ReopenContainerLogRequest};
use ketch_runtime::log::LogLimits;
use tokio_util::sync::CancellationToken;

use crate::{
    client::{Client, QUICK},
    pod::LOG,
    runtime::owned,
};

/// How often sizes are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Rotates logs of `owner`'s running containers until `end`.
pub(crate) async fn rotate(client: Client, owner: String, limits: LogLimits, end: CancellationToken) {
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let Ok(all) = owned(&client, &owner, []).await else { continue };
        for container in all {
            let Some(path) = container.annotations.get(LOG).map(PathBuf::from) else { continue };
            let running = container.state == ContainerState::ContainerRunning as i32;
            let full = fs::metadata(&path).is_ok_and(|data| data.len() >= limits.file);
            if !running || !full {
                continue;
            }
            shift(&path, limits.files);
            let mut runtime = client.runtime();
            let request = ReopenContainerLogRequest { container_id: container.id };
            let reopened = runtime.reopen_container_log(request);
            if let Err(error) = client.call("reopen a log", QUICK, reopened).await {
                tracing::warn!(path = %path.display(), %error, "a container's log cannot be rotated");
                // What it writes goes where the name should lead.
                _ = fs::rename(numbered(&path, 1), &path);
            }
        }
    }
}

/// `path` becomes `path.1` and so on; `files` are kept, the one to come included.
fn shift(path: &Path, files: u32) {
    let oldest = files.saturating_sub(1);
    if oldest == 0 {
        _ = fs::remove_file(path);
    }
    for number in (1..oldest).rev() {
        _ = fs::rename(numbered(path, number), numbered(path, number + 1));
    }
    if oldest > 0 {
        _ = fs::rename(path, numbered(path, 1));
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_are_kept_as_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        for round in 0..5 {
            fs::write(&path, round.to_string()).unwrap();
            shift(&path, 3);
        }
        let read = |path: &Path| fs::read_to_string(path).ok();
        assert_eq!(read(&path), None);
        assert_eq!(read(&numbered(&path, 1)).as_deref(), Some("4"));
        assert_eq!(read(&numbered(&path, 2)).as_deref(), Some("3"));
        assert_eq!(read(&numbered(&path, 3)), None);
    }
}
