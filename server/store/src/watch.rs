//! The stream a watch is: events of the log, then of the ring, then live ones, and progress in between.

use crate::feed::{Join, Shared, Subscription};
use crate::{Error, Event, Revision, WatchEvent, WatchStream};
use async_trait::async_trait;
use futures::StreamExt;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Events read from the log at a time while catching up.
pub(crate) const LOG_CHUNK: usize = 512;

/// How watches behave and what they cost.
#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// Events that may wait for a slow watcher before it is cut off with [`Error::Overflow`].
    pub queue: usize,
    /// How long nothing must happen before a watcher is sent [`WatchEvent::Progress`].
    pub progress_interval: Duration,
    /// Events kept in memory for watches that start in the past. A store without a log on disk forgets
    /// what is older.
    pub recent_events: usize,
    /// Bytes of such events.
    pub recent_bytes: usize,
}

impl Default for WatchOptions {
    fn default() -> Self {
        WatchOptions {
            queue: 1_000,
            progress_interval: Duration::from_secs(5),
            recent_events: 8_192,
            recent_bytes: 8 << 20,
        }
    }
}

/// Events that are no longer in memory.
#[async_trait]
pub(crate) trait History: Send + Sync {
    /// Up to `limit` events after `after`, without a hole, or [`Error::Compacted`]. Not empty.
    async fn read(&self, after: Revision, limit: usize) -> Result<Vec<Arc<Event>>, Error>;
}

/// Watches `prefix` for changes after `from`.
pub(crate) fn watch(
    shared: &Arc<Shared>,
    history: Option<Arc<dyn History>>,
    prefix: &str,
    from: Revision,
) -> Result<WatchStream, Error> {
    let mut cursor = Cursor {
        shared: shared.clone(),
        history,
        prefix: prefix.into(),
        from,
        position: from,
        backlog: VecDeque::new(),
        live: None,
        fence: None,
    };
    // Joined at once when memory reaches back far enough, so that errors are the call's, not the stream's.
    cursor.try_join()?;
    Ok(futures::stream::unfold(Some(cursor), |cursor| async {
        let mut cursor = cursor?;
        match cursor.next().await {
            Ok(event) => Some((Ok(event), Some(cursor))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed())
}

struct Cursor {
    shared: Arc<Shared>,
    history: Option<Arc<dyn History>>,
    prefix: Arc<str>,
    from: Revision,
    /// Everything up to here is delivered or in the backlog. Meaningful until live.
    position: Revision,
    backlog: VecDeque<Arc<Event>>,
    live: Option<Subscription>,
    /// Revision at which catching up ended, until it has been reported.
    fence: Option<Revision>,
}

impl Cursor {
    async fn next(&mut self) -> Result<WatchEvent, Error> {
        loop {
            if let Some(event) = self.backlog.pop_front() {
                return Ok(WatchEvent::Change(event));
            }
            // A watch of the future has no progress to report before the present is there.
            if let Some(fence) = self.fence.take().filter(|fence| *fence >= self.from) {
                return Ok(WatchEvent::Progress(fence));
            }
            if self.live.is_some() {
                return self.next_live().await;
            }
            self.try_join()?;
            if self.live.is_none() {
                self.read_log().await?;
            }
        }
    }

    async fn next_live(&mut self) -> Result<WatchEvent, Error> {
        let interval = self.shared.options.progress_interval;
        let Some(live) = self.live.as_mut() else { return Err(Error::Closed) };
        loop {
            match tokio::time::timeout(interval, live.queue.recv()).await {
                Ok(Some(event)) => return Ok(WatchEvent::Change(event)),
                Ok(None) => return Err(live.end()),
                Err(_) => match live.progress() {
                    Err(event) => return Ok(WatchEvent::Change(event)),
                    Ok(revision) if revision >= self.from => return Ok(WatchEvent::Progress(revision)),
                    Ok(_) => {}
                },
            }
        }
    }

    fn try_join(&mut self) -> Result<(), Error> {
        match self.shared.join(&self.prefix, self.position)? {
            Join::Live { backlog, fence, subscription } => {
                self.backlog = backlog;
                self.fence = Some(fence);
                self.live = Some(subscription);
            }
            Join::Behind => {}
        }
        Ok(())
    }

    async fn read_log(&mut self) -> Result<(), Error> {
        let Some(history) = self.history.as_ref() else {
            return Err(Error::Compacted { requested: self.position, oldest: self.shared.revision() });
        };
        for event in history.read(self.position, LOG_CHUNK).await? {
            self.position = event.revision;
            if event.key.starts_with(&*self.prefix) {
                self.backlog.push_back(event);
            }
        }
        Ok(())
    }
}

/// The state at revision `at`: the latest, with every later event taken back.
pub(crate) async fn view_at(
    shared: &Arc<Shared>,
    history: Option<&dyn History>,
    prefix: &str,
    at: Revision,
) -> Result<crate::state::View, Error> {
    let mut before = std::collections::HashMap::new();
    let mut note = |event: &Arc<Event>| {
        if event.key.starts_with(prefix) {
            // The first change after `at` is the one that knows the value at `at`.
            before.entry(event.key.clone()).or_insert_with(|| event.previous.clone());
        }
    };
    let mut position = at;
    let mut view = loop {
        match (shared.recent(position)?, history) {
            (Some(recent), _) => {
                recent.events.iter().for_each(&mut note);
                break recent.view;
            }
            (None, Some(history)) => {
                for event in history.read(position, LOG_CHUNK).await? {
                    position = event.revision;
                    note(&event);
                }
            }
            (None, None) => return Err(Error::Compacted { requested: at, oldest: shared.revision() }),
        }
    };
    for (key, value) in before {
        view.set(&key, value);
    }
    view.revision = at;
    Ok(view)
}
