//! What running containers use, as their runtimes say.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use ketch_api::k8s::api::core::v1 as core;
use ketch_runtime::{ContainerId, Usage};

use crate::{context::Context, machine::container_id};

/// How long all runtimes together may take. Who has not answered by then is left out: collectors do not wait for
/// ever, and the other containers have answered.
const PATIENCE: Duration = Duration::from_secs(4);
/// Containers asked for at a time: the answer of containerd takes a while.
const AT_A_TIME: usize = 16;

/// A container's use.
pub(crate) struct Sample {
    /// Place of its pod in the list.
    pub(crate) pod: usize,
    pub(crate) name: String,
    pub(crate) id: ContainerId,
    pub(crate) usage: Usage,
}

/// The use of all running containers of `pods`.
pub(crate) async fn sample(context: &Context, pods: &[Arc<core::Pod>]) -> Vec<Sample> {
    let end = tokio::time::Instant::now() + PATIENCE;
    let measure = async |(pod, name, id): (usize, String, ContainerId)| {
        for entry in &context.runtimes {
            if let Ok(Ok(usage)) = tokio::time::timeout_at(end, entry.runtime.usage(&id)).await {
                return Some(Sample { pod, name, id, usage });
            }
        }
        None
    };
    let all = stream::iter(running(context, pods)).map(measure).buffered(AT_A_TIME);
    all.collect::<Vec<_>>().await.into_iter().flatten().collect()
}

/// Running containers: pod, name, id.
fn running(context: &Context, pods: &[Arc<core::Pod>]) -> Vec<(usize, String, ContainerId)> {
    let mut found = Vec::new();
    for (index, pod) in pods.iter().enumerate() {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let Some(spec) = &pod.spec else { continue };
        for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
            let attempt = context.index.attempts(uid, &container.name).into_iter().max();
            let id = attempt.map(|attempt| container_id(uid, &container.name, attempt));
            if let Some(id) = id.filter(|id| context.index.runs(id) == Some(true)) {
                found.push((index, container.name.clone(), ContainerId(id)));
            }
        }
    }
    found
}
