//! Noticing that containers changed: containerd's events tell when to look, a slow poll covers what they do
//! not tell, and only a difference in what CRI lists wakes anybody.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use containerd_client::{services::v1::SubscribeRequest, tonic::Streaming, types::Envelope};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    client::{Client, scoped},
    runtime::owned,
};

/// How often is looked without an event, and the wait before events are subscribed to again.
const POLL: Duration = Duration::from_secs(3);
/// First wait for CRI to have seen an event too; doubled until [`POLL`].
const SETTLE: Duration = Duration::from_millis(4);

/// Containers and their states.
type Seen = BTreeMap<String, i32>;

/// Counts up whenever a container of `owner` changed, and knows whether containerd answers.
pub(crate) struct Watcher {
    client: Client,
    owner: String,
    changes: watch::Sender<u64>,
    answers: Arc<AtomicBool>,
    seen: Option<Seen>,
}

impl Watcher {
    pub(crate) fn new(
        client: Client,
        owner: String,
        changes: watch::Sender<u64>,
        answers: Arc<AtomicBool>,
    ) -> Self {
        Self { client, owner, changes, answers, seen: None }
    }

    /// Until `end`.
    pub(crate) async fn run(mut self, end: CancellationToken) {
        while !end.is_cancelled() {
            let request = scoped(SubscribeRequest {
                filters: vec!["topic~=\"^/tasks/\",namespace==k8s.io".to_owned()],
            });
            let mut events = self.client.native().events();
            // Boxed: requests are large values. Even the answer's head comes with the first event only.
            let mut subscribing = Box::pin(events.subscribe(request));
            let subscribed = loop {
                tokio::select! {
                    () = end.cancelled() => return,
                    subscribed = &mut subscribing => break subscribed,
                    () = tokio::time::sleep(POLL) => {
                        self.look().await;
                    }
                }
            };
            match subscribed {
                Ok(stream) => self.follow(stream.into_inner(), &end).await,
                Err(status) => tracing::debug!(%status, "events of containerd cannot be had"),
            }
            _ = self.look().await;
            tokio::select! {
                () = end.cancelled() => {}
                () = tokio::time::sleep(POLL / 6) => {}
            }
        }
    }

    /// Looks whenever there is an event, and now and then without, until the stream or everything ends.
    async fn follow(&mut self, mut stream: Streaming<Envelope>, end: &CancellationToken) {
        loop {
            let event = tokio::select! {
                () = end.cancelled() => return,
                event = tokio::time::timeout(POLL, stream.message()) => event,
            };
            match event {
                Ok(Ok(Some(_))) => self.settle().await,
                Ok(Ok(None) | Err(_)) => return,
                Err(_) => _ = self.look().await,
            }
        }
    }

    /// CRI learns from the same event, at about the same time: looks until it has.
    async fn settle(&mut self) {
        let mut wait = SETTLE;
        while !self.look().await && wait < POLL / 8 {
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
    }

    /// Whether something changed.
    async fn look(&mut self) -> bool {
        let all = owned(&self.client, &self.owner, []).await;
        self.answers.store(all.is_ok(), Relaxed);
        let Ok(all) = all else { return false };
        let now: Seen = all.into_iter().map(|container| (container.id, container.state)).collect();
        let changed = self.seen.as_ref() != Some(&now);
        if changed {
            self.seen = Some(now);
            self.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
        changed
    }
}
