//! Revisioned key-value storage with watch, and the back ends that provide it.
//!
//! This crate knows bytes and keys, not kinds: it may not use `ketch-api`. Only `ketch-apiserver` uses it.
//!
//! Guarantees every back end gives, proved by one suite (`testing`):
//! - **Durable before acknowledged.** A write returns after it would survive `kill -9` and power loss
//!   (the memory back end excepted).
//! - **One order.** Every write gets a revision, greater by one than the last; revisions never repeat and
//!   never fall, across restarts too. All watchers see all writes in that order.
//! - **Watches neither skip nor repeat.** A watch from revision `r` delivers every later change of its
//!   prefix once, or ends with [`Error::Compacted`] or [`Error::Overflow`].
//! - **Reads are of the latest acknowledged state** unless a revision is asked for.

mod durable;
mod feed;
#[cfg(fuzzing)]
pub mod fuzzing;
mod memory;
mod retention;
mod snapshot;
mod state;
#[cfg(feature = "testing")]
pub mod testing;
mod watch;

pub use durable::{RedbOptions, RedbStore};
pub use memory::{MemoryOptions, MemoryStore};
pub use retention::{Retention, keep_compacted};
pub use watch::WatchOptions;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use std::fmt;
use std::sync::Arc;

/// Position in the one order of writes. 0: before the first write.
pub type Revision = u64;

/// A stored value.
#[derive(Clone, PartialEq, Eq)]
pub struct Versioned {
    /// Key, for instance `/apps/deployments/default/web`.
    pub key: Arc<str>,
    /// What was written.
    pub value: Bytes,
    /// Revision of the write that made this value.
    pub revision: Revision,
    /// Revision of the write that made the key.
    pub created: Revision,
}

/// Leaves the value itself out: it may be a secret, and is often long.
impl fmt::Debug for Versioned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Versioned")
            .field("key", &self.key)
            .field("bytes", &self.value.len())
            .field("revision", &self.revision)
            .field("created", &self.created)
            .finish()
    }
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Page {
    /// In key order.
    pub items: Vec<Versioned>,
    /// State the page is of: the store's revision, not the greatest of the items'.
    pub revision: Revision,
    /// Keys after this page, when there was a limit.
    pub remaining: usize,
}

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Only keys greater than this one (continuation).
    pub after: Option<String>,
    /// At most so many items; 0: all.
    pub limit: usize,
    /// State at this exact revision instead of the latest.
    pub at: Option<Revision>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Revision of the change.
    pub revision: Revision,
    /// Key that changed.
    pub key: Arc<str>,
    /// The value after the change; `None`: deleted.
    pub current: Option<Versioned>,
    /// The value before the change; `None`: created.
    pub previous: Option<Versioned>,
}

/// What a watch delivers.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    /// A change of the watched prefix.
    Change(Arc<Event>),
    /// Everything up to this revision has been delivered. Sent when there was nothing to deliver for a
    /// while, and once when catching up is done.
    Progress(Revision),
}

/// Changes in order. Ends after the first error.
pub type WatchStream = BoxStream<'static, Result<WatchEvent, Error>>;

/// What an update callback wants done.
#[derive(Clone, Debug)]
pub enum Update {
    /// Write this value.
    Put(Bytes),
    /// Delete the key. A no-op when there is none.
    Delete,
    /// Leave everything as it is; no revision is used.
    Keep,
}

/// Decides on the current value of a key. Synchronous: with redb it runs inside the commit, with etcd in
/// a compare-and-swap loop, so it can run more than once and must not have effects. `Err` aborts the
/// write and reaches the caller as [`Error::Aborted`].
pub type UpdateFn = Box<dyn FnMut(Option<&Versioned>) -> Result<Update, Abort> + Send>;

/// Why an update callback refused; the caller's own error, passed through.
pub type Abort = Box<dyn std::any::Any + Send>;

/// What a write did.
#[derive(Clone, Debug)]
pub struct Written {
    /// The value after the write; `None`: the key does not exist now.
    pub current: Option<Versioned>,
    /// The value before it.
    pub previous: Option<Versioned>,
    /// Revision of the write; of the store when nothing was written.
    pub revision: Revision,
}

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The update callback refused.
    #[error("refused by the update callback")]
    Aborted(Abort),
    /// The revision asked for is older than the history that is kept.
    #[error("revision {requested} has been compacted, the oldest kept is {oldest}")]
    Compacted {
        /// Asked for.
        requested: Revision,
        /// Oldest available.
        oldest: Revision,
    },
    /// The revision asked for has not happened yet.
    #[error("revision {requested} is in the future, the current one is {current}")]
    Future {
        /// Asked for.
        requested: Revision,
        /// Newest.
        current: Revision,
    },
    /// The watcher read too slowly and was cut off; list again and watch from there.
    #[error("the watcher fell behind by more than its queue holds")]
    Overflow,
    /// The disk is full. Reads go on; writes work again when there is space.
    #[error("no space left on the device that holds the store")]
    Full,
    /// The data directory belongs to a running process.
    #[error("the store is in use by another process")]
    InUse,
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
    /// Anything else the back end reports.
    #[error("{context}")]
    Backend {
        /// What was being done.
        context: String,
        /// What the back end said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A back end.
#[async_trait]
pub trait Storage: Send + Sync + 'static {
    /// The latest value of `key`.
    async fn get(&self, key: &str) -> Result<Option<Versioned>, Error>;

    /// Keys that start with `prefix`, in order.
    async fn list(&self, prefix: &str, options: ListOptions) -> Result<Page, Error>;

    /// Reads, decides and writes `key` as one atomic step. The only way to write: create, update and
    /// delete are callbacks. Dropping the future does not undo it: a write that is queued happens, whole.
    async fn update(&self, key: &str, update: UpdateFn) -> Result<Written, Error>;

    /// Changes of keys that start with `prefix`, after revision `from`. A `from` in the future waits.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, Error>;

    /// Newest acknowledged revision.
    async fn revision(&self) -> Result<Revision, Error>;

    /// Waits until the store has reached `revision`. Cancel-safe.
    async fn wait_for(&self, revision: Revision) -> Result<(), Error>;

    /// Forgets history before `revision`, in bounded steps. Later watches from before it get
    /// [`Error::Compacted`].
    async fn compact(&self, revision: Revision) -> Result<(), Error>;

    /// Writes a consistent copy of all current values to `path`, which must not exist. History is not
    /// part of it: watches on the copy start at the revision returned.
    async fn snapshot(&self, path: &std::path::Path) -> Result<Revision, Error>;
}
