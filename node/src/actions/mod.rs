//! What a worker's steps do. Each is a future over owned values that ends in a [`Done`]; none touches the
//! worker.

mod exec;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod grpc;
mod hosts;
mod http;
mod lifecycle;
mod prepare;
mod probe;
mod pull;
mod sandbox;
mod spec;
mod start;
mod storage;
mod tls;

use std::{io::Read, os::unix::fs::OpenOptionsExt, sync::Arc};

use ketch_api::k8s::api::core::v1 as core;
use ketch_runtime::{ContainerId, PodId};
use kube::api::{Api, DeleteParams, Preconditions};

use crate::{
    context::{Context, Report, WASM},
    machine::{Desired, Failure, Outcome, Role, Unit, container_id, pod_title},
};

pub(crate) use lifecycle::{Stop, stop};
pub(crate) use prepare::prepare;
pub(crate) use probe::{ProbeTarget, probe};
pub(crate) use pull::pull;
pub(crate) use start::{Start, start};
pub(crate) use storage::{has_limits, measure};

/// How an action ended.
pub(crate) enum Done {
    /// To be folded into the pod's state.
    Outcome(Outcome),
    /// A pull, and which runtime the image is for.
    Pulled { name: String, runtime: Option<usize>, result: Result<ketch_runtime::Image, Failure> },
    /// A write of the status.
    Wrote(Box<Result<core::Pod, kube::Error>>),
    /// Nothing came of it: volumes were looked at, say.
    Refreshed,
    /// What the pod uses of the disk was measured: what to say when it is too much.
    Measured(Option<String>),
}

/// `namespace/name`.
pub(crate) fn title(pod: &core::Pod) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    format!("{}/{}", text(&pod.metadata.namespace), text(&pod.metadata.name))
}

fn uid(pod: &core::Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn instance(pod: &core::Pod, name: &str, attempt: u32) -> ContainerId {
    ContainerId(container_id(uid(pod), name, attempt))
}

/// A container as events refer to it.
fn reference(unit: &Unit) -> Option<(&str, bool)> {
    Some((unit.name.as_str(), unit.role != Role::Main))
}

/// Looks again at what the pod's volumes come from.
pub(crate) async fn refresh(context: Arc<Context>, pod: Arc<core::Pod>) -> Done {
    if let Err(failure) = crate::volumes::refresh(&context, &pod).await {
        tracing::debug!(pod = %title(&pod), message = failure.message, "volumes were not refreshed");
    }
    Done::Refreshed
}

/// Says that a container's restart has to wait.
pub(crate) fn note_back_off(context: &Context, desired: &Desired, unit: &Unit) {
    let (name, pod) = (&unit.name, pod_title(&desired.pod));
    let message = format!("Back-off restarting failed container {name} in pod {pod}");
    context.event(&desired.pod, reference(unit), Report::warning("BackOff", message));
}

/// Makes a runtime forget an ended instance. Its outcome is nothing: the next instance has another id.
pub(crate) async fn forget(
    context: Arc<Context>,
    pod: Arc<core::Pod>,
    name: String,
    attempt: u32,
    runtime: usize,
) -> Done {
    if let Some(runtime) = context.runtime(runtime)
        && let Err(error) = runtime.remove(&instance(&pod, &name, attempt)).await
    {
        tracing::debug!(pod = %title(&pod), container = name, %error, "an ended container was not removed");
    }
    crate::logs::prune(&context.root, &pod, &name, attempt).await;
    Done::Refreshed
}

/// Releases what the pod holds. `only_wasm`: the runtime for containers has nothing of it, and is not asked.
/// `keep`: its object stays, and so do its logs.
pub(crate) async fn cleanup(context: Arc<Context>, pod: Arc<core::Pod>, only_wasm: bool, keep: bool) -> Done {
    let id = PodId(uid(&pod).to_owned());
    let mut result = Ok(());
    let runtimes = if only_wasm { context.runtimes.get(..=WASM) } else { None };
    for entry in runtimes.unwrap_or(&context.runtimes) {
        if let Err(error) = entry.runtime.remove_pod(&id).await {
            result = Err(Failure { reason: "FailedKillPod", message: format!("error killing pod: {error}") });
        }
    }
    if let Err(failure) = &result {
        context.event(&pod, None, Report::warning(failure.reason, failure.message.clone()));
        return Done::Outcome(Outcome::Cleaned(result));
    }
    context.services.remove_pod(uid(&pod));
    context.addresses.release(uid(&pod));
    if let Some(network) = &context.network {
        network.judge().forget(uid(&pod));
        network.release_host_ports(uid(&pod)).await;
    }
    crate::volumes::remove(&context, uid(&pod)).await;
    if !keep {
        crate::logs::remove(&context.root, &pod).await;
    }
    Done::Outcome(Outcome::Cleaned(result))
}

/// Deletes the object for good, unless it is another one by now.
pub(crate) async fn delete(context: Arc<Context>, pod: Arc<core::Pod>) -> Done {
    let meta = &pod.metadata;
    let api: Api<core::Pod> =
        Api::namespaced(context.client.clone(), meta.namespace.as_deref().unwrap_or("default"));
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: meta.uid.clone(), resource_version: None }),
        ..DeleteParams::default()
    };
    // Logs of a pod that had ended by itself were kept until now.
    crate::logs::remove(&context.root, &pod).await;
    let result = match api.delete(meta.name.as_deref().unwrap_or_default(), &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        Err(error) => {
            tracing::warn!(pod = %title(&pod), %error, "cannot delete the ended pod");
            Err(Failure { reason: "FailedDelete", message: error.to_string() })
        }
    };
    Done::Outcome(Outcome::Deleted(result))
}

/// What a container left to say when it ended: its message file, else, when the pod wants that, the end of
/// its log. `None`: keep what the runtime says.
pub(crate) fn termination_message(
    context: &Context,
    pod: &core::Pod,
    unit: &Unit,
    attempt: u32,
    code: i32,
) -> Option<String> {
    let file = spec::message_file(context, uid(pod), unit)?;
    let text = read_message(&file).unwrap_or_default();
    if !text.is_empty() {
        return Some(String::from_utf8_lossy(&text).into_owned());
    }
    let fall_back = unit.container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    (fall_back && code != 0).then(|| crate::logs::tail(&context.root, pod, &unit.name, attempt))
}

/// The start of a message file. What is there was made by the container: a link is not followed, what blocks is
/// not waited for, and what is long is not read to its end.
fn read_message(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    const LONGEST: u64 = 4096;
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut text = Vec::new();
    if file.metadata()?.is_file() {
        file.take(LONGEST).read_to_end(&mut text)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_a_short_plain_file() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("long"), vec![b'x'; 1 << 20]).unwrap();
        assert_eq!(read_message(&at("long")).unwrap().len(), 4096);
        std::os::unix::fs::symlink("long", at("link")).unwrap();
        assert!(read_message(&at("link")).is_err(), "it would lead anywhere on the host");
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read_message(&at("pipe")).unwrap().is_empty());
    }
}
