//! Keeps something up to date with a part of the store: list, then watch, again after every interruption.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use ketch_store::{Error, Event, ListOptions, Revision, Storage, Versioned, WatchEvent};

/// Events taken in at a time: one rebuild for many changes.
const BATCH: usize = 512;
/// Pause before another attempt when the store fails.
const RETRY: Duration = Duration::from_millis(200);

/// What is kept up to date.
pub(crate) trait Reflect: Send + Sync {
    /// Takes these items for everything there is.
    fn replace(&self, items: &[Versioned]);
    /// Takes in changes, in order.
    fn apply(&self, events: &[Arc<Event>]);
}

/// Brings `target` to the latest state. Returns the revision to watch from.
pub(crate) async fn sync(
    storage: &dyn Storage,
    prefix: &str,
    target: &dyn Reflect,
) -> Result<Revision, Error> {
    let page = storage.list(prefix, ListOptions::default()).await?;
    target.replace(&page.items);
    Ok(page.revision)
}

/// Keeps `target` up to date from revision `from` on. Ends when the store is closed; drop it to stop.
pub(crate) async fn follow(storage: &dyn Storage, prefix: &str, from: Revision, target: &dyn Reflect) {
    let mut from = Some(from);
    loop {
        let ended = match from {
            Some(revision) => watch(storage, prefix, revision, target).await,
            None => match sync(storage, prefix, target).await {
                Ok(revision) => {
                    from = Some(revision);
                    continue;
                }
                Err(error) => error,
            },
        };
        match ended {
            Error::Closed => return,
            // History or queue were too short: what is missing is in the list.
            Error::Compacted { .. } | Error::Overflow => {}
            error => {
                tracing::warn!(prefix, %error, "cannot follow the store; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
        from = None;
    }
}

async fn watch(storage: &dyn Storage, prefix: &str, from: Revision, target: &dyn Reflect) -> Error {
    let stream = match storage.watch(prefix, from).await {
        Ok(stream) => stream,
        Err(error) => return error,
    };
    let mut batches = stream.ready_chunks(BATCH);
    while let Some(batch) = batches.next().await {
        let mut events = Vec::with_capacity(batch.len());
        let mut failed = None;
        for item in batch {
            match item {
                Ok(WatchEvent::Change(event)) => events.push(event),
                Ok(WatchEvent::Progress(_)) => {}
                Err(error) => failed = Some(error),
            }
        }
        if !events.is_empty() {
            target.apply(&events);
        }
        if let Some(error) = failed {
            return error;
        }
    }
    Error::Overflow
}
