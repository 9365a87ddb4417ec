//! Taking possession of a directory and reading what is in it.

use super::failure::Failure;
use super::{Medium, RedbStore, tables};
use crate::state::View;
use crate::{Error, Revision};
use redb::backends::FileBackend;
use redb::{Builder, Database, StorageBackend};
use std::fs::{File, TryLockError};
use std::path::Path;

/// Files below this size are not worth rewriting at start.
const RECLAIM_FROM: u64 = 64 << 20;

/// What a file holds.
pub(super) struct Loaded {
    pub(super) view: View,
    pub(super) compacted: Revision,
    /// What the journal's frames are keyed with.
    pub(super) journal: u64,
}

/// A directory this process owns.
pub(super) struct Directory {
    /// Held as long as the store is open; the database is reopened after IO errors, this is not.
    pub(super) lock: File,
    pub(super) medium: Medium,
    pub(super) journal: Box<dyn StorageBackend>,
}

/// Reads everything a store needs in memory.
pub(super) fn load(database: &Database) -> Result<Loaded, Failure> {
    tables::prepare(database)?;
    let view = tables::read_current(database)?;
    let meta =
        tables::read_meta(database).map_err(|error| Failure::new("reading the store's file", error))?;
    Ok(Loaded { view, compacted: meta.compacted, journal: meta.journal })
}

/// Locks `dir` for this process, makes what is missing in it, and opens it.
pub(super) fn directory(dir: &Path, cache_bytes: usize) -> Result<Directory, Error> {
    std::fs::create_dir_all(dir).map_err(|source| io_error("creating the directory", dir, source))?;
    let lock_path = dir.join("store.lock");
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(|source| io_error("opening the lock file", &lock_path, source))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Error::InUse),
        Err(TryLockError::Error(source)) => return Err(io_error("locking", &lock_path, source)),
    }
    let path = dir.join(RedbStore::FILE);
    if !path.exists() {
        create(dir, &path)?;
    }
    let open = {
        let path = path.clone();
        move || Builder::new().set_cache_size(cache_bytes).open(&path)
    };
    reclaim(&open, &path)?;
    let journal = dir.join("store.journal");
    let journal = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&journal)
        .map_err(|source| io_error("opening", &journal, source))?;
    sync(dir)?;
    let journal = FileBackend::new(journal).map_err(super::failure::opening)?;
    Ok(Directory { lock, medium: Box::new(open), journal: Box::new(journal) })
}

/// Makes the file under another name first: a power cut while redb fills a new file leaves one that it
/// refuses to open.
fn create(dir: &Path, path: &Path) -> Result<(), Error> {
    let unfinished = dir.join(format!("{}.new", RedbStore::FILE));
    match std::fs::remove_file(&unfinished) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(io_error("removing", &unfinished, source));
        }
        _ => {}
    }
    let database = Database::create(&unfinished).map_err(super::failure::opening)?;
    tables::prepare(&database).map_err(|failure| failure.error())?;
    drop(database);
    std::fs::rename(&unfinished, path).map_err(|source| io_error("naming", path, source))?;
    sync(dir)
}

/// A file is only as durable as its name.
fn sync(dir: &Path) -> Result<(), Error> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| io_error("syncing the directory", dir, source))
}

/// Rewrites a large file that is mostly free pages: redb reuses them but never gives them back.
fn reclaim(open: &impl Fn() -> Result<Database, redb::DatabaseError>, path: &Path) -> Result<(), Error> {
    let mut database = open().map_err(super::failure::opening)?;
    let size = std::fs::metadata(path).map_err(|source| io_error("reading", path, source))?.len();
    if size < RECLAIM_FROM {
        return Ok(());
    }
    let compacted = used_bytes(&database).and_then(|used| {
        if used * 2 > size {
            return Ok(false);
        }
        tracing::info!(size, used, "rewriting the store's file, most of it is free space");
        Ok(database.compact()?)
    });
    if let Err(error) = compacted {
        // Not needed to go on; the disk may just be too full for it.
        tracing::warn!(%error, "the store's file could not be rewritten to save space");
    }
    Ok(())
}

fn used_bytes(database: &Database) -> Result<u64, redb::Error> {
    let txn = database.begin_write()?;
    let stats = txn.stats()?;
    txn.abort()?;
    Ok(stats.allocated_pages() * stats.page_size() as u64)
}

fn io_error(what: &str, path: &Path, source: std::io::Error) -> Error {
    Failure::new(format!("{what} {}", path.display()), source).error()
}
