//! The pods bound to this node: one worker each.
//!
//! A watch of the API feeds workers their desired pod; one task per runtime looks at what it runs when it hints
//! that something changed, and the workers concerned get reports. A runtime that does not answer holds up its own
//! containers and nothing else. Workers are keyed by UID, so a pod that was deleted and made again under its
//! name has a worker of its own.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, TryStreamExt};
use ketch_api::k8s::api::core::v1 as core;
use ketch_runtime::{ContainerState, ContainerStatus, PodId, Runtime};
use kube::{
    api::Api,
    runtime::{WatchStreamExt, watcher},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    context::Context,
    pressure::Eviction,
    worker::{News, Seen, Target, Worker},
};

/// How long a runtime may take to be up at the start.
const FIRST_LOOK: Duration = Duration::from_secs(20);
/// Before a runtime that could not be looked at is looked at again; doubled up to the latter.
const AGAIN: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// A worker's inputs.
struct Handle {
    target: watch::Sender<Target>,
    news: mpsc::UnboundedSender<News>,
}

/// What a runtime has, by its place in the list.
type Look = (usize, Vec<ContainerStatus>);

/// Owner of the workers.
pub(crate) struct Pods {
    context: Arc<Context>,
    node: Arc<str>,
    workers: HashMap<String, Handle>,
    tasks: JoinSet<String>,
    looks: mpsc::Receiver<Look>,
    evictions: mpsc::Receiver<Eviction>,
    _observers: JoinSet<()>,
    /// Runtimes that have said what they run.
    heard: HashSet<usize>,
    /// What each runtime said last, so that only news is passed on.
    known: HashMap<String, (usize, ContainerStatus)>,
    /// Until the first complete list of pods, nothing may be taken for an orphan.
    complete: bool,
}

impl Pods {
    /// No workers yet. Those of pods that come in by `evictions` end them.
    pub(crate) fn new(context: Arc<Context>, node: Arc<str>, evictions: mpsc::Receiver<Eviction>) -> Self {
        let (sender, looks) = mpsc::channel(1);
        let mut observers = JoinSet::new();
        for (index, entry) in context.runtimes.iter().enumerate() {
            observers.spawn(observe(index, Arc::clone(&entry.runtime), sender.clone()));
        }
        Self {
            context,
            node,
            workers: HashMap::new(),
            tasks: JoinSet::new(),
            looks,
            evictions,
            _observers: observers,
            heard: HashSet::new(),
            known: HashMap::new(),
            complete: false,
        }
    }

    /// Runs until `stop`; workers end with it, their containers are left to the runtimes.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let api: Api<core::Pod> = Api::all(self.context.client.clone());
        let config = watcher::Config::default().fields(&format!("spec.nodeName={}", self.node));
        let mut events = watcher(api, config).default_backoff().boxed();
        let mut listed: Vec<core::Pod> = Vec::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                event = events.try_next() => match event {
                    Ok(Some(event)) => self.event(event, &mut listed, &stop).await,
                    Ok(None) => return,
                    Err(error) => tracing::warn!(%error, "the watch of this node's pods was interrupted"),
                },
                Some(look) = self.looks.recv() => self.saw(look),
                Some(eviction) = self.evictions.recv() => self.evict(eviction),
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => self.ended(ended),
            }
        }
    }

    async fn event(
        &mut self,
        event: watcher::Event<core::Pod>,
        listed: &mut Vec<core::Pod>,
        stop: &CancellationToken,
    ) {
        match event {
            watcher::Event::Apply(pod) => self.apply(pod),
            watcher::Event::Delete(pod) => self.gone(pod.metadata.uid.as_deref().unwrap_or_default()),
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitApply(pod) => listed.push(pod),
            watcher::Event::InitDone => self.replace(std::mem::take(listed), stop).await,
        }
    }

    /// A complete list: what is not in it is gone.
    async fn replace(&mut self, pods: Vec<core::Pod>, stop: &CancellationToken) {
        let uid = |pod: &core::Pod| pod.metadata.uid.clone().unwrap_or_default();
        let present: HashSet<String> = pods.iter().map(uid).collect();
        if !self.complete {
            let on_host =
                |pod: &core::Pod| pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
            let address = |pod: &core::Pod| match on_host(pod) {
                // It has the node's address, which is nobody's.
                true => None,
                false => pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok(),
            };
            let held = pods.iter().filter(|pod| !is_over(pod)).map(|pod| (uid(pod), address(pod)));
            self.context.addresses.recover(&held.collect::<Vec<_>>());
            self.first_look(stop).await;
            self.remove_orphans(&present).await;
            self.complete = true;
        }
        for pod in pods {
            self.apply(pod);
        }
        let absent: Vec<String> =
            self.workers.keys().filter(|uid| !present.contains(*uid)).cloned().collect();
        for uid in absent {
            self.gone(&uid);
        }
    }

    fn apply(&mut self, pod: core::Pod) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let pod = Arc::new(pod);
        self.context.index.insert(&pod);
        if let Some(handle) = self.workers.get(&uid) {
            handle.target.send_replace(Target::Pod(pod));
            return;
        }
        // A pod that ended and holds nothing here needs no worker, until it is deleted.
        let (target, targets) = watch::channel(Target::Pod(Arc::clone(&pod)));
        let (news, reports) = mpsc::unbounded_channel();
        let prefix = format!("{uid}.");
        for (id, (runtime, status)) in self.known.iter().filter(|(id, _)| id.starts_with(&prefix)) {
            if let Some(report) = report(id, *runtime, status) {
                let _ = news.send(News::Seen(report));
            }
        }
        // Boxed: a task would have room for it three times.
        let worker = Box::new(Worker::new(Arc::clone(&self.context), pod, targets, reports));
        let key = uid.clone();
        self.tasks.spawn(async move {
            worker.run().await;
            key
        });
        self.workers.insert(uid, Handle { target, news });
    }

    fn gone(&mut self, uid: &str) {
        self.context.index.remove(uid);
        if let Some(handle) = self.workers.get(uid) {
            handle.target.send_replace(Target::Gone);
        }
    }

    fn evict(&mut self, eviction: Eviction) {
        if let Some(handle) = self.workers.get(&eviction.uid) {
            let _ = handle.news.send(News::Evict(eviction.message));
        }
    }

    fn ended(&mut self, ended: Result<String, tokio::task::JoinError>) {
        match ended {
            Ok(uid) => {
                self.workers.remove(&uid);
            }
            // Its pod gets a new worker with the next event about it; see the handle's dropped receiver.
            Err(error) => {
                tracing::error!(%error, "a pod worker failed");
                self.workers.retain(|_, handle| !handle.news.is_closed());
            }
        }
    }

    /// Waits until every runtime has said what it runs: containers of one that is not up yet would be taken for
    /// lost, and started again beside themselves.
    async fn first_look(&mut self, stop: &CancellationToken) {
        let all = async {
            while self.heard.len() < self.context.runtimes.len() {
                let Some(look) = self.looks.recv().await else { return };
                self.saw(look);
            }
        };
        let _ = stop.run_until_cancelled(tokio::time::timeout(FIRST_LOOK, all)).await;
    }

    /// Passes on what changed in a runtime.
    fn saw(&mut self, (index, statuses): Look) {
        self.heard.insert(index);
        let present: HashSet<&str> = statuses.iter().map(|status| status.id.0.as_str()).collect();
        self.known.retain(|id, (runtime, _)| {
            let stays = *runtime != index || present.contains(id.as_str());
            if !stays {
                self.context.index.forget(id);
            }
            stays
        });
        for status in statuses {
            let id = status.id.0.clone();
            if self
                .known
                .get(&id)
                .is_some_and(|(_, known)| (&known.state, &known.handle) == (&status.state, &status.handle))
            {
                continue;
            }
            if let (Some(handle), Some(report)) =
                (self.workers.get(&status.pod.0), report(&id, index, &status))
            {
                let _ = handle.news.send(News::Seen(report));
            }
            // One that is about to start is not known yet: by now it may have started.
            if status.state != ContainerState::Created {
                self.context.index.mark(&id, matches!(status.state, ContainerState::Running { .. }));
            }
            self.known.insert(id, (index, status));
        }
    }

    /// Ends what runs for pods that are gone, and removes their files.
    async fn remove_orphans(&mut self, present: &HashSet<String>) {
        let orphans: HashSet<PodId> =
            self.known.values().map(|(_, s)| s.pod.clone()).filter(|pod| !present.contains(&pod.0)).collect();
        for pod in orphans {
            tracing::info!(uid = pod.0, "ending a pod that no longer exists");
            for entry in &self.context.runtimes {
                if let Err(error) = entry.runtime.remove_pod(&pod).await {
                    tracing::warn!(uid = pod.0, %error, "a pod that no longer exists could not be ended");
                }
            }
        }
        let is_present = |name: &str| present.contains(name.rsplit('_').next().unwrap_or_default());
        for directory in ["pods", "logs"] {
            let Ok(mut entries) = tokio::fs::read_dir(self.context.root.join(directory)).await else {
                continue;
            };
            while let Ok(Some(entry)) = entries.next_entry().await {
                if is_present(&entry.file_name().to_string_lossy()) {
                    continue;
                }
                let path = entry.path();
                let removed = tokio::task::spawn_blocking(move || crate::volumes::discard(&path)).await;
                if let Err(error) = removed.map_err(std::io::Error::other).flatten() {
                    tracing::warn!(path = %entry.path().display(), %error, "files of a pod that no longer exists stay");
                }
            }
        }
    }
}

/// Looks at a runtime at the start and whenever it hints at a change. What cannot be seen is looked at again.
async fn observe(index: usize, runtime: Arc<dyn Runtime>, looks: mpsc::Sender<Look>) {
    let mut changes = runtime.changes();
    let mut wait = AGAIN;
    loop {
        changes.mark_unchanged();
        match runtime.list().await {
            Ok(statuses) => {
                wait = AGAIN;
                if looks.send((index, statuses)).await.is_err() || changes.changed().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a runtime cannot list its containers");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
        }
    }
}

fn is_over(pod: &core::Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn report(id: &str, runtime: usize, status: &ContainerStatus) -> Option<Seen> {
    let attempt = id.rsplit_once('.')?.1.parse().ok()?;
    if status.state == ContainerState::Created {
        return None;
    }
    let ContainerStatus { name, handle, state, .. } = status.clone();
    Some(Seen { name, attempt, handle, state, runtime })
}
