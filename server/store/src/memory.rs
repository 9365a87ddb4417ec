//! The store that forgets: for tests, simulations and throw-away clusters.

use crate::feed::Shared;
use crate::state::{Pending, View};
use crate::watch::{WatchOptions, view_at, watch};
use crate::{Error, ListOptions, Page, Revision, Storage, UpdateFn, Versioned, WatchStream, Written};
use async_trait::async_trait;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Settings of a [`MemoryStore`].
#[derive(Clone, Debug)]
pub struct MemoryOptions {
    /// Watches; the recent events are all the history there is.
    pub watch: WatchOptions,
}

impl Default for MemoryOptions {
    fn default() -> Self {
        let watch = WatchOptions { recent_events: 100_000, recent_bytes: 256 << 20, ..Default::default() };
        MemoryOptions { watch }
    }
}

/// A [`Storage`] in memory. Durable in nothing; otherwise it behaves like every other.
pub struct MemoryStore {
    shared: Arc<Shared>,
    writer: Mutex<()>,
}

impl MemoryStore {
    /// An empty store at revision 0.
    pub fn new(options: MemoryOptions) -> Self {
        MemoryStore { shared: Shared::new(View::default(), 0, false, options.watch), writer: Mutex::new(()) }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        MemoryStore::new(MemoryOptions::default())
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.shared.close();
    }
}

#[async_trait]
impl Storage for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, Error> {
        Ok(self.shared.get(key))
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<Page, Error> {
        let view = match options.at {
            Some(at) => view_at(&self.shared, None, prefix, at).await?,
            None => self.shared.view(),
        };
        Ok(view.page(prefix, options.after.as_deref(), options.limit))
    }

    async fn update(&self, key: &str, update: UpdateFn) -> Result<Written, Error> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pending = Pending::new(self.shared.view());
        let written = pending.apply(&key.into(), update)?;
        if !pending.events.is_empty() {
            self.shared.publish(pending.view, pending.events);
        }
        Ok(written)
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, Error> {
        watch(&self.shared, None, prefix, from)
    }

    async fn revision(&self) -> Result<Revision, Error> {
        Ok(self.shared.revision())
    }

    async fn wait_for(&self, revision: Revision) -> Result<(), Error> {
        self.shared.wait_for(revision).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.shared.compact(revision).map(|_| ())
    }

    async fn snapshot(&self, path: &Path) -> Result<Revision, Error> {
        crate::snapshot::write(self.shared.view(), path).await
    }
}
