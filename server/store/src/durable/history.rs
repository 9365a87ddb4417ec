//! Events that memory no longer holds, read from the file in short transactions.

use super::{Slot, tables};
use crate::watch::History;
use crate::{Error, Event, Revision};
use async_trait::async_trait;
use std::sync::Arc;

/// Reads the log table.
pub(super) struct Log {
    slot: Slot,
}

impl Log {
    pub(super) fn new(slot: Slot) -> Self {
        Log { slot }
    }
}

#[async_trait]
impl History for Log {
    async fn read(&self, after: Revision, limit: usize) -> Result<Vec<Arc<Event>>, Error> {
        let slot = self.slot.clone();
        let read = move || {
            let database = slot.get().ok_or(Error::Closed)?;
            let (events, meta) =
                tables::read_log(&database, after, limit).map_err(|failure| failure.error())?;
            // Rows go oldest first, so a missing next row means it was forgotten meanwhile.
            match events.first() {
                Some(first) if first.revision == after + 1 => Ok(events),
                _ => Err(Error::Compacted { requested: after, oldest: meta.compacted }),
            }
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| {
            Err(Error::Backend { context: "reading the store's history".into(), source: error.into() })
        })
    }
}
