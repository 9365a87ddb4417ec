//! Keeps the table up to date: one watch per kind, and a task that rebuilds when any of them changed.

use std::{
    fmt::Debug,
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::StreamExt;
use ketch_api::{
    k8s::{
        api::{
            core::v1::{Pod, Service},
            discovery::v1::EndpointSlice,
            networking::v1::{Ingress, IngressClass},
        },
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    },
    names,
};
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt,
        reflector::{self, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::routes::{self, Routes, Snapshot};

/// Shortest pause between two rebuilds: changes that arrive together are built together.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// Longest: a route is live this soon after its objects, however many there are.
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// Objects of one kind.
struct Kind<K: reflector::Lookup + Clone + 'static>
where
    K::DynamicType: Eq + Hash + Clone,
{
    store: Store<K>,
    complete: Arc<AtomicBool>,
}

impl<K> Kind<K>
where
    K: Resource<DynamicType = ()>
        + ketch_api::k8s::Metadata<Ty = ObjectMeta>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    fn list(&self) -> Vec<Arc<K>> {
        self.store.state()
    }

    fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }
}

/// Starts tasks that follow one kind.
struct Follower {
    client: Client,
    changed: Arc<Notify>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Follower {
    fn follow<K>(&self, config: watcher::Config) -> Kind<K>
    where
        K: Resource<DynamicType = ()>
            + ketch_api::k8s::Metadata<Ty = ObjectMeta>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        let (store, mut writer) = reflector::store::<K>();
        let complete = Arc::new(AtomicBool::new(false));
        let kind = Kind { store, complete: Arc::clone(&complete) };
        let (changed, stop) = (Arc::clone(&self.changed), self.stop.clone());
        let events = watcher(Api::<K>::all(self.client.clone()), config).default_backoff();
        self.tasks.spawn(async move {
            let mut events = std::pin::pin!(events);
            while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
                match event {
                    Ok(event) => {
                        let event = event.modify(|object| object.metadata_mut().managed_fields = None);
                        writer.apply_watcher_event(&event);
                        if matches!(event, watcher::Event::InitDone) {
                            complete.store(true, Ordering::Release);
                        }
                        if !matches!(event, watcher::Event::Init | watcher::Event::InitApply(_)) {
                            changed.notify_one();
                        }
                    }
                    Err(error) => {
                        tracing::warn!(kind = %K::kind(&()), %error, "watch interrupted; the routes in force stay");
                    }
                }
            }
        });
        kind
    }
}

/// Follows the cluster and puts tables in force until `stop`.
pub(crate) fn start(
    client: Client,
    suffix: String,
    routes: Routes,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    let changed = Arc::new(Notify::new());
    let follower =
        Follower { client, changed: Arc::clone(&changed), tasks: tasks.clone(), stop: stop.clone() };
    let all = watcher::Config::default;
    let functions = follower.follow::<ketch_api::function::Function>(all());
    let pods = follower.follow::<Pod>(all().labels(names::FUNCTION_LABEL));
    let services = follower.follow::<Service>(all());
    let slices = follower.follow::<EndpointSlice>(all());
    let ingresses = follower.follow::<Ingress>(all());
    let classes = follower.follow::<IngressClass>(all());
    let stop = stop.clone();
    tasks.spawn(async move {
        let mut reported = Vec::new();
        while stop.run_until_cancelled(changed.notified()).await.is_some() {
            let complete = functions.is_complete()
                && pods.is_complete()
                && services.is_complete()
                && slices.is_complete()
                && ingresses.is_complete()
                && classes.is_complete();
            if !complete {
                continue;
            }
            let begun = Instant::now();
            let snapshot = Snapshot {
                functions: functions.list(),
                pods: pods.list(),
                services: services.list(),
                slices: slices.list(),
                ingresses: ingresses.list(),
                classes: classes.list(),
            };
            let table = routes::build(&snapshot, &suffix, &routes.current());
            if table.problems() != reported {
                reported = table.problems().to_vec();
                reported.iter().for_each(|problem| tracing::warn!(%problem, "route left out"));
            }
            routes.publish(table);
            tokio::time::sleep(begun.elapsed().clamp(PAUSE_MIN, PAUSE_MAX)).await;
        }
    });
}
