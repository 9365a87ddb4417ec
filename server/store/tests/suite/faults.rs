//! A medium that can be told to fail, to fill up, and to lose power.
//!
//! Writes since the last sync are kept apart. A crash keeps what was synced, and of the rest whatever the
//! test's dice say: any subset of the writes, in any order the disk liked, the last one torn.

use redb::{Builder, Database, DatabaseError, StorageBackend};
use std::io;
use std::sync::{Arc, Mutex};

/// What a file holds.
#[derive(Debug, Default)]
struct Content {
    synced: Vec<u8>,
    /// As the running program sees it.
    cached: Vec<u8>,
    unsynced: Vec<Write>,
    /// Operations on any file until everything fails; none: never.
    fuse: Arc<Mutex<Option<u64>>>,
    full: bool,
    /// Report the next sync as failed although it was done.
    lie_about_sync: bool,
    /// Claim to sync, and do not: the disk the crash test must find out.
    never_sync: bool,
}

#[derive(Clone, Debug)]
enum Write {
    Length(u64),
    Bytes(u64, Vec<u8>),
}

/// A handle on a file; clones see the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct FaultyFile(Arc<Mutex<Content>>);

/// The files of a store, which lose power together.
#[derive(Clone, Debug)]
pub(crate) struct FaultyMedium {
    pub(crate) database: FaultyFile,
    pub(crate) journal: FaultyFile,
    fuse: Arc<Mutex<Option<u64>>>,
}

impl FaultyMedium {
    pub(crate) fn new() -> Self {
        Self::of(Vec::new(), Vec::new())
    }

    fn of(database: Vec<u8>, journal: Vec<u8>) -> Self {
        let fuse: Arc<Mutex<Option<u64>>> = Arc::default();
        let file = |image: Vec<u8>| {
            let content =
                Content { synced: image.clone(), cached: image, fuse: fuse.clone(), ..Content::default() };
            FaultyFile(Arc::new(Mutex::new(content)))
        };
        FaultyMedium { database: file(database), journal: file(journal), fuse }
    }

    pub(crate) fn open(&self) -> Result<Database, DatabaseError> {
        Builder::new().set_cache_size(1 << 20).create_with_backend(self.database.clone())
    }

    /// From now on there is no space, or there is again.
    pub(crate) fn set_full(&self, full: bool) {
        self.database.set_full(full);
        self.journal.set_full(full);
    }

    /// From now on no sync has an effect, though it says it has.
    pub(crate) fn stop_syncing(&self) {
        self.database.0.lock().unwrap().never_sync = true;
        self.journal.0.lock().unwrap().never_sync = true;
    }

    /// The power goes after `operations` more writes or syncs.
    pub(crate) fn cut_power_after(&self, operations: u64) {
        *self.fuse.lock().unwrap() = Some(operations);
    }

    /// What a new process finds: `keep` says of each unsynced write whether it reached the platter.
    pub(crate) fn after_crash(&self, mut keep: impl FnMut() -> Fate) -> FaultyMedium {
        Self::of(self.database.after_crash(&mut keep), self.journal.after_crash(&mut keep))
    }
}

impl FaultyFile {
    /// See [`FaultyMedium::set_full`].
    pub(crate) fn set_full(&self, full: bool) {
        self.0.lock().unwrap().full = full;
    }

    /// The next sync works, but is reported as failed.
    pub(crate) fn lie_about_next_sync(&self) {
        self.0.lock().unwrap().lie_about_sync = true;
    }

    fn after_crash(&self, keep: &mut impl FnMut() -> Fate) -> Vec<u8> {
        let content = self.0.lock().unwrap();
        let mut image = content.synced.clone();
        for write in &content.unsynced {
            match (keep(), write) {
                (Fate::Lost, _) => {}
                (Fate::Torn, Write::Bytes(offset, bytes)) => {
                    apply(&mut image, &Write::Bytes(*offset, bytes[..bytes.len() / 2].to_vec()));
                }
                (Fate::Kept | Fate::Torn, write) => apply(&mut image, write),
            }
        }
        image
    }
}

/// What became of an unsynced write.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    Kept,
    Lost,
    Torn,
}

fn apply(image: &mut Vec<u8>, write: &Write) {
    match write {
        Write::Length(length) => image.resize(*length as usize, 0),
        Write::Bytes(offset, bytes) => {
            let (start, end) = (*offset as usize, *offset as usize + bytes.len());
            // The growth of the file may be among what was lost.
            image.resize(image.len().max(end), 0);
            image[start..end].copy_from_slice(bytes);
        }
    }
}

impl Content {
    fn burn(&mut self) -> io::Result<()> {
        match &mut *self.fuse.lock().unwrap() {
            Some(0) => Err(io::Error::other("the power is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn write(&mut self, write: Write) -> io::Result<()> {
        self.burn()?;
        if self.full {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        apply(&mut self.cached, &write);
        self.unsynced.push(write);
        Ok(())
    }
}

impl StorageBackend for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().cached.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let content = self.0.lock().unwrap();
        let bytes = content.cached.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.lock().unwrap().write(Write::Length(length))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut content = self.0.lock().unwrap();
        content.burn()?;
        if content.never_sync {
            return Ok(());
        }
        let unsynced = std::mem::take(&mut content.unsynced);
        unsynced.iter().for_each(|write| apply(&mut content.synced, write));
        if std::mem::take(&mut content.lie_about_sync) {
            return Err(io::Error::other("a sync that failed, or so it says"));
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().write(Write::Bytes(offset, data.to_vec()))
    }
}
