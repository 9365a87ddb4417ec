//! One suite of pods' lives, run with Wasm and with containers: same manifests, same status, same events.
//!
//! Every scenario is a function over a [`Pod`], which knows the kind. All run beside each other in one cluster;
//! what is asserted are facts of the pod's status, spelled out as lines (see [`facts`]). Where the kinds differ
//! the scenario says so, and `docs/operations.md` lists it.

mod containerds;
mod ends;
mod facts;
mod hardship;
mod images;
mod inputs;
mod network;
mod probes;
mod rig;
mod volumes;

use std::{any::Any, future::Future};

use futures::{FutureExt, future::BoxFuture};
use ketch_tests::Containers;
use tokio::{sync::Semaphore, task::JoinSet};

use rig::{Cluster, Kind, Pod};

/// Scenarios at work at a time. More would only make each slower.
const AT_ONCE: usize = 24;

type Scenario = (&'static str, fn(Pod) -> BoxFuture<'static, ()>);

macro_rules! scenarios {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$((stringify!($name), |pod| $module::$name(pod).boxed())),*]
    };
}

/// In the order in which they begin: those that wait longest first.
const SCENARIOS: &[Scenario] = scenarios![
    volumes::objects_that_change_reach_the_volume,
    volumes::a_volume_over_its_limit_ends_the_pod,
    volumes::storage_over_the_limit_ends_the_pod,
    ends::failures_are_restarted_with_back_off,
    ends::success_is_restarted_too,
    ends::a_failed_init_container_is_tried_again,
    images::a_missing_image_backs_off,
    images::logs_are_rotated,
    probes::liveness_restarts,
    probes::a_startup_probe_that_never_passes_restarts,
    probes::readiness_comes_and_goes,
    probes::programs_probe,
    probes::a_tcp_probe_connects,
    probes::grpc_probes_call,
    ends::programs_complete,
    ends::programs_fail,
    ends::init_containers_run_in_order,
    ends::a_failed_init_container_ends_the_pod,
    ends::sidecars_start_first_and_end_last,
    ends::sidecars_end_after_deletion_too,
    ends::the_deadline_ends_the_pod,
    ends::memory_is_limited,
    ends::what_cannot_start_says_why,
    ends::a_pod_can_be_deleted_at_any_time,
    ends::deletion_is_graceful,
    ends::grace_is_limited,
    ends::last_words_are_kept,
    ends::most_of_a_pod_is_fixed,
    probes::hooks_run_before_and_after,
    probes::hooks_are_requests_too,
    probes::a_failed_hook_ends_the_container,
    inputs::the_environment_comes_from_everywhere,
    inputs::a_missing_object_is_waited_for,
    inputs::a_missing_volume_is_waited_for,
    volumes::objects_become_files,
    volumes::containers_share_volumes,
    volumes::memory_volumes_are_limited,
    images::images_may_be_required_to_be_there,
    images::runtime_classes_choose,
    network::containers_share_localhost,
    network::names_of_the_pod_are_known,
    network::the_nodes_network_can_be_used,
];

/// What another program that starts containers could do otherwise.
const OF_THE_RUNTIME: &[&str] = &[
    "programs_probe",
    "programs_complete",
    "programs_fail",
    "memory_is_limited",
    "what_cannot_start_says_why",
    "a_pod_can_be_deleted_at_any_time",
    "deletion_is_graceful",
    "grace_is_limited",
    "hooks_run_before_and_after",
    "a_failed_hook_ends_the_container",
    "objects_become_files",
    "containers_share_volumes",
    "memory_volumes_are_limited",
    "containers_share_localhost",
];

#[test]
fn pods_of_both_kinds_live_alike() {
    let Some(containers) = Containers::start(154, 155) else { return };
    let wanted = std::env::var("SCENARIO").unwrap_or_default();
    live(&containers, &Kind::ALL, |name| name.contains(&wanted));
}

#[test]
fn pods_live_alike_under_crun() {
    let Some(containers) = Containers::start_with_crun(206, 207) else { return };
    live(&containers, &[Kind::Container], |name| OF_THE_RUNTIME.contains(&name));
    let config = std::fs::read_to_string(containers.dir.join("node/containerd/config.toml")).unwrap();
    assert!(config.contains("/crun\""), "containerd has another runtime:\n{config}");
}

fn live(containers: &Containers, kinds: &[Kind], wanted: impl Fn(&str) -> bool) {
    Cluster::push(containers);
    let failed = runtime().block_on(async {
        let cluster = Cluster::watch(containers).await;
        let chosen = SCENARIOS.iter().filter(|(name, _)| wanted(name));
        let both = chosen.flat_map(|scenario| kinds.iter().map(move |kind| (scenario, *kind)));
        let runs = both.map(|((name, run), kind)| (cluster.pod(name, kind), run));
        beside_each_other(runs.map(|(pod, run)| (pod.title(), run(pod)))).await
    });
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn pods_outlive_hard_times() {
    let Some(mut containers) = Containers::start(168, 169) else { return };
    Cluster::push(&containers);
    hardship::a_daemon_that_is_killed(&mut containers);
    hardship::a_containerd_that_is_killed(&containers);
    hardship::a_containerd_that_hangs(&containers);
    hardship::neighbours_that_take_all(&containers);
}

fn runtime() -> tokio::runtime::Runtime {
    ketch_tests::install_crypto();
    tokio::runtime::Runtime::new().unwrap()
}

/// Runs all of them; what those that panicked say.
async fn beside_each_other(
    runs: impl Iterator<Item = (String, impl Future<Output = ()> + Send + 'static)>,
) -> Vec<String> {
    let (mut tasks, turns) = (JoinSet::new(), std::sync::Arc::new(Semaphore::new(AT_ONCE)));
    for (title, run) in runs {
        let turns = std::sync::Arc::clone(&turns);
        tasks.spawn(async move {
            let _turn = turns.acquire_owned().await;
            let begun = std::time::Instant::now();
            let panic = std::panic::AssertUnwindSafe(run).catch_unwind().await.err();
            let verdict = if panic.is_none() { "ok    " } else { "FAILED" };
            eprintln!("{verdict} {title} {:.1} s", begun.elapsed().as_secs_f32());
            panic.map(|panic| format!("{title}: {}", message(panic.as_ref())))
        });
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref().copied()).unwrap_or("it panicked")
}
