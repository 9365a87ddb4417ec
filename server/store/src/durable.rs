//! The durable back end: a journal and a redb database behind one committer thread, read from memory.
//!
//! Every write goes through the committer, which gathers what is waiting into one frame of the journal, so
//! that the cost of making it durable is shared. The database gets many frames at a time. Reads never open
//! it, except for history older than memory.

mod committer;
mod failure;
mod history;
pub(crate) mod journal;
mod open;
mod tables;

pub(crate) use tables::write_copy;

use crate::feed::Shared;
use crate::watch::{WatchOptions, view_at, watch};
use crate::{Error, ListOptions, Page, Revision, Storage, UpdateFn, Versioned, WatchStream, Written};
use async_trait::async_trait;
use committer::Request;
use history::Log;
use redb::{Database, StorageBackend};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::{mpsc, oneshot};

/// Opens the database; again, whenever an IO error has made the last one unusable.
pub(crate) type Medium = Box<dyn Fn() -> Result<Database, redb::DatabaseError> + Send>;

/// Where the open database is, while it is usable.
#[derive(Clone, Default)]
pub(crate) struct Slot(Arc<Mutex<Option<Arc<Database>>>>);

impl Slot {
    pub(crate) fn get(&self) -> Option<Arc<Database>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set(&self, database: Option<Arc<Database>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = database;
    }
}

/// Settings of a [`RedbStore`].
#[derive(Clone, Debug)]
pub struct RedbOptions {
    /// Watches.
    pub watch: WatchOptions,
    /// Most writes that share one sync.
    pub batch: usize,
    /// Writes that may wait for the committer; more wait outside, in their callers.
    pub queue: usize,
    /// Memory for pages of the file. Values are in memory anyway, so this serves writes only.
    pub cache_bytes: usize,
    /// Size of the journal on disk. 0: every batch is a transaction of the database.
    pub journal_bytes: u64,
}

impl Default for RedbOptions {
    fn default() -> Self {
        RedbOptions {
            watch: WatchOptions::default(),
            batch: 512,
            queue: 2_048,
            cache_bytes: 8 << 20,
            journal_bytes: 8 << 20,
        }
    }
}

/// A [`Storage`] in one directory.
///
/// Writes are acknowledged after they are synced to the journal, which is replayed into the database when
/// the process or the machine went down before the next two-phase commit. When the disk fills up or fails, the writes
/// under way fail, what was acknowledged stays, reads go on, and writes are tried again as they come.
pub struct RedbStore {
    shared: Arc<Shared>,
    log: Arc<Log>,
    requests: Mutex<Option<mpsc::Sender<Request>>>,
    committer: Mutex<Option<JoinHandle<()>>>,
}

impl RedbStore {
    /// Name of the database in the store's directory. A snapshot put there under this name is a restored
    /// store; a journal that lies beside it from before is ignored.
    pub const FILE: &'static str = "store.redb";

    /// Opens the store in the directory `dir`, which is made if it is missing. Blocks while it reads all
    /// current values.
    ///
    /// # Errors
    /// [`Error::InUse`] while another process, or another value in this one, has it open.
    pub fn open(dir: impl AsRef<Path>, options: RedbOptions) -> Result<Self, Error> {
        let directory = open::directory(dir.as_ref(), options.cache_bytes)?;
        Self::start(directory.medium, directory.journal, Some(directory.lock), options)
    }

    /// Opens the store on media of the caller's making; `medium` is asked again after IO errors. For tests
    /// that inject faults below the store.
    #[cfg(feature = "testing")]
    pub fn open_on<M>(
        medium: M,
        journal: Box<dyn StorageBackend>,
        options: RedbOptions,
    ) -> Result<Self, Error>
    where
        M: Fn() -> Result<Database, redb::DatabaseError> + Send + 'static,
    {
        Self::start(Box::new(medium), journal, None, options)
    }

    fn start(
        medium: Medium,
        journal: Box<dyn StorageBackend>,
        lock: Option<std::fs::File>,
        options: RedbOptions,
    ) -> Result<Self, Error> {
        let database = medium().map_err(failure::opening)?;
        let loaded = open::load(&database).map_err(|failure| failure.error())?;
        let (journal, events) =
            journal::Journal::open(journal, loaded.journal, loaded.view.revision, options.journal_bytes)
                .map_err(|failure| failure.error())?;
        let shared = Shared::new(loaded.view.clone(), loaded.compacted, true, options.watch.clone());
        shared.publish(loaded.view.after(&events), events.clone());
        let slot = Slot::default();
        slot.set(Some(Arc::new(database)));
        let (requests, queue) = mpsc::channel(options.queue.max(1));
        let committer = committer::Committer {
            shared: shared.clone(),
            medium,
            slot: slot.clone(),
            lock,
            journal,
            unlogged: events,
            forgotten: loaded.compacted,
            batch: options.batch.max(1),
            failed: None,
        };
        let thread = std::thread::Builder::new()
            .name("store-commit".into())
            .spawn(move || committer.run(queue))
            .map_err(|source| Error::Backend {
                context: "starting the store's committer thread".into(),
                source: source.into(),
            })?;
        Ok(RedbStore {
            shared,
            log: Arc::new(Log::new(slot)),
            requests: Mutex::new(Some(requests)),
            committer: Mutex::new(Some(thread)),
        })
    }

    /// Commits what is queued, ends all watches, and lets go of the file. Writes that come later get
    /// [`Error::Closed`]; reads from memory go on. Dropping the store does the same, but blocks.
    pub async fn close(&self) {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).take();
        let thread = self.committer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the store's committer thread ended in a panic");
            }
        }
    }

    async fn request<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Request,
    ) -> Result<T, Error> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let requests = requests.ok_or(Error::Closed)?;
        let (reply, answer) = oneshot::channel();
        requests.send(make(reply)).await.map_err(|_| Error::Closed)?;
        drop(requests);
        answer.await.unwrap_or(Err(Error::Closed))
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        self.requests.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let thread = self.committer.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the store's committer thread ended in a panic");
        }
    }
}

#[async_trait]
impl Storage for RedbStore {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, Error> {
        Ok(self.shared.get(key))
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<Page, Error> {
        let view = match options.at {
            Some(at) => view_at(&self.shared, Some(&*self.log), prefix, at).await?,
            None => self.shared.view(),
        };
        Ok(view.page(prefix, options.after.as_deref(), options.limit))
    }

    async fn update(&self, key: &str, update: UpdateFn) -> Result<Written, Error> {
        let key = key.into();
        self.request(|reply| Request::Update { key, update, reply }).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, Error> {
        watch(&self.shared, Some(self.log.clone()), prefix, from)
    }

    async fn revision(&self) -> Result<Revision, Error> {
        Ok(self.shared.revision())
    }

    async fn wait_for(&self, revision: Revision) -> Result<(), Error> {
        self.shared.wait_for(revision).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.shared.compact(revision)?;
        // Also when memory knew already: an earlier compaction may have been cut short on disk.
        while !self.request(|reply| Request::Compact { to: revision, reply }).await? {}
        Ok(())
    }

    async fn snapshot(&self, path: &Path) -> Result<Revision, Error> {
        crate::snapshot::write(self.shared.view(), path).await
    }
}
