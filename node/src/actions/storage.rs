//! What a pod writes to the node's disk, against its limits: those of its volumes, of all its containers together,
//! and of each container, in upstream's order and words (`localStorageEviction` of the kubelet's eviction
//! manager).

use std::{path::PathBuf, sync::Arc};

use ketch_api::{k8s::api::core::v1 as core, quantity::Quantity};

use super::{Done, instance};
use crate::{
    context::{Context, Report},
    volumes::{Scratch, scratch, used},
};

const RESOURCE: &str = "ephemeral-storage";

/// Whether anything the pod writes is limited.
pub(crate) fn has_limits(context: &Context, pod: &core::Pod) -> bool {
    scratch(context, pod).iter().any(|volume| volume.limit.is_some()) || total(pod).is_some()
}

/// Measures the pod, whose running containers have these names, instances and runtimes. One that uses more than it
/// may is evicted.
pub(crate) async fn measure(
    context: Arc<Context>,
    pod: Arc<core::Pod>,
    running: Vec<(String, u32, usize)>,
) -> Done {
    let mut own = Vec::new();
    for (name, attempt, runtime) in running {
        let id = instance(&pod, &name, attempt);
        let written = match context.runtime(runtime) {
            Some(runtime) => runtime.usage(&id).await.map_or(0, |usage| usage.disk),
            None => 0,
        };
        let logs = crate::logs::pod_dir(&context.root, &pod).join(&name);
        own.push((name, written, logs));
    }
    let (volumes, asked) = (scratch(&context, &pod), Arc::clone(&pod));
    let found = tokio::task::spawn_blocking(move || excess(&asked, volumes, own)).await;
    let found = found.ok().flatten();
    if let Some(message) = &found {
        context.event(&pod, None, Report::warning("Evicted", message.clone()));
    }
    Done::Measured(found)
}

/// What to say of the first limit that is exceeded. `own`: of each container its name, the bytes it wrote to its
/// own files, and where its logs are.
fn excess(pod: &core::Pod, volumes: Vec<Scratch>, own: Vec<(String, u64, PathBuf)>) -> Option<String> {
    let total = total(pod);
    let most = total.map_or(0, bytes);
    let mut sum = 0_u64;
    for volume in volumes {
        let limit = volume.limit.as_ref().map_or(0, |(bytes, _)| *bytes);
        let used = used(&volume.directory, limit.max(most));
        if let Some((limit, text)) = volume.limit
            && used > limit
        {
            return Some(format!(
                "Usage of EmptyDir volume \"{}\" exceeds the limit \"{text}\". ",
                volume.name
            ));
        }
        sum = sum.saturating_add(used);
    }
    let total = total?;
    let own: Vec<(String, u64)> =
        own.into_iter().map(|(name, bytes, logs)| (name, bytes.saturating_add(used(&logs, most)))).collect();
    if own.iter().fold(sum, |sum, (_, bytes)| sum.saturating_add(*bytes)) > most {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {total}. "
        ));
    }
    own.iter().find_map(|(name, used)| {
        let limit = limit(containers(pod).find(|one| one.name == *name)?)?;
        (*used > bytes(limit))
            .then(|| format!("Container {name} exceeded its local ephemeral storage limit \"{limit}\". "))
    })
}

fn bytes(quantity: Quantity) -> u64 {
    u64::try_from(quantity.value()).unwrap_or(0)
}

fn containers(pod: &core::Pod) -> impl Iterator<Item = &core::Container> {
    pod.spec.iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()))
}

fn limit(container: &core::Container) -> Option<Quantity> {
    container.resources.as_ref()?.limits.as_ref()?.get(RESOURCE)?.0.parse().ok()
}

/// What all containers that have a limit may use together: those that run beside each other, or the largest of
/// those that run alone.
fn total(pod: &core::Pod) -> Option<Quantity> {
    let spec = pod.spec.as_ref()?;
    let stays = |one: &&core::Container| one.restart_policy.as_deref() == Some("Always");
    let (stay, alone): (Vec<_>, Vec<_>) = spec.init_containers.iter().flatten().partition(stays);
    let beside = spec.containers.iter().chain(stay).filter_map(limit).reduce(|sum, one| sum + one);
    beside.into_iter().chain(alone.into_iter().filter_map(limit)).max()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn pod(limits: &[(&str, Option<&str>)], init: &[&str]) -> core::Pod {
        let one = |(name, limit): &(&str, Option<&str>)| match limit {
            Some(limit) => json!({"name": name, "resources": {"limits": {RESOURCE: limit}}}),
            None => json!({"name": name}),
        };
        let init: Vec<_> = init.iter().map(|limit| one(&("init", Some(limit)))).collect();
        let containers: Vec<_> = limits.iter().map(one).collect();
        serde_json::from_value(json!({"spec": {"containers": containers, "initContainers": init}})).unwrap()
    }

    #[test]
    fn limits_are_judged_in_upstreams_order() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), vec![1; 3 << 20]).unwrap();
        let volume = |limit: Option<(u64, &str)>| Scratch {
            name: "work".to_owned(),
            limit: limit.map(|(bytes, text)| (bytes, text.to_owned())),
            directory: dir.path().to_owned(),
        };
        let own = |bytes: u64| vec![("a".to_owned(), bytes, dir.path().join("none"))];
        let two = pod(&[("a", Some("2Mi")), ("b", Some("10Mi"))], &[]);
        for (pod, volume, own, expected) in [
            (
                &pod(&[("a", None)], &[]),
                volume(Some((MIB, "1Mi"))),
                own(0),
                "EmptyDir volume \"work\" exceeds the limit \"1Mi\"",
            ),
            (&pod(&[("a", None)], &[]), volume(None), own(99 * MIB), ""),
            (&pod(&[("a", Some("2Mi"))], &[]), volume(None), own(0), "total limit of containers 2Mi"),
            (&two, volume(None), own(0), ""),
            (
                &two,
                volume(Some((4 * MIB, "4Mi"))),
                own(3 * MIB),
                "Container a exceeded its local ephemeral storage limit \"2Mi\"",
            ),
            (&two, volume(None), own(10 * MIB), "total limit of containers 12Mi"),
        ] {
            let said = excess(pod, vec![volume], own).unwrap_or_default();
            assert!(
                said.contains(expected) && said.is_empty() == expected.is_empty(),
                "{said:?}: {expected:?}"
            );
        }
    }

    #[test]
    fn containers_that_run_alone_count_alone() {
        let total = |limits: &[(&str, Option<&str>)], init: &[&str]| {
            total(&pod(limits, init)).map(|total| total.to_string())
        };
        assert_eq!(total(&[("a", None)], &[]), None);
        assert_eq!(total(&[("a", Some("1Mi")), ("b", None)], &[]).as_deref(), Some("1Mi"));
        assert_eq!(total(&[("a", Some("1Mi"))], &["3Mi", "2Mi"]).as_deref(), Some("3Mi"));
    }
}
