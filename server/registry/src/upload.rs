//! Uploads under way: a file that grows, its hash so far, and the rule that only whole appends count.

use crate::disk::Disk;
use crate::{Digest, Error, Repository};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Content on its way. Dropping it removes its file.
pub(crate) struct Upload {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    received: u64,
    limit: u64,
    touched: Instant,
}

impl Upload {
    pub(crate) fn new(path: PathBuf, file: File, limit: u64) -> Self {
        Upload { path, file, hasher: Sha256::new(), received: 0, limit, touched: Instant::now() }
    }

    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Appends all of `bytes`, or fails with nothing appended.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let after = self.received.saturating_add(bytes.len() as u64);
        if after > self.limit {
            return Err(Error::TooLarge { what: "blob", limit: self.limit });
        }
        // A failed append may have left bytes behind.
        self.file
            .seek(SeekFrom::Start(self.received))
            .and_then(|_| self.file.write_all(bytes))
            .map_err(Error::on("writing the upload", &self.path))?;
        self.hasher.update(bytes);
        self.received = after;
        self.touched = Instant::now();
        Ok(())
    }

    /// Checks the content against `digest`, makes it durable and gives it to the repository.
    pub(crate) fn finish(
        &mut self,
        disk: &Disk,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(), Error> {
        let actual = Digest::finish(self.hasher.clone());
        if actual != *digest {
            return Err(Error::DigestInvalid {
                reason: format!("the content is {actual}, not {digest}: nothing was stored, upload it again"),
            });
        }
        self.file
            .set_len(self.received)
            .and_then(|()| self.file.sync_all())
            .map_err(Error::on("syncing the upload", &self.path))?;
        disk.add_blob(repository, digest, &self.path)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // After a finish there is nothing at the path any more.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// An upload and whose it is.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) id: String,
    pub(crate) repository: Repository,
    /// Held for the whole of a request that appends, so that two do not interleave.
    pub(crate) turn: Arc<tokio::sync::Mutex<()>>,
    /// Held for one append.
    pub(crate) upload: Arc<Mutex<Upload>>,
}

impl Session {
    pub(crate) fn received(&self) -> u64 {
        self.upload.lock().unwrap_or_else(PoisonError::into_inner).received()
    }

    fn idle(&self, now: Instant) -> Duration {
        let touched = self.upload.lock().unwrap_or_else(PoisonError::into_inner).touched;
        now.saturating_duration_since(touched)
    }
}

/// The uploads under way.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<HashMap<String, Session>>);

impl Sessions {
    /// Registers an upload, unless `limit` are under way.
    pub(crate) fn add(&self, session: Session, limit: usize) -> Result<(), Error> {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= limit {
            return Err(Error::TooManyUploads { limit });
        }
        sessions.insert(session.id.clone(), session);
        Ok(())
    }

    /// The upload `id` of `repository`.
    pub(crate) fn get(&self, repository: &Repository, id: &str) -> Result<Session, Error> {
        let sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = sessions.get(id).filter(|session| session.repository == *repository);
        found.cloned().ok_or_else(|| Error::UploadUnknown { repository: repository.clone() })
    }

    /// Forgets an upload; its file goes when the last request on it is done.
    pub(crate) fn remove(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Forgets what has not grown for `ttl`, and returns how many that were.
    pub(crate) fn expire(&self, now: Instant, ttl: Duration) -> usize {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = sessions.len();
        sessions.retain(|_, session| session.turn.try_lock().is_err() || session.idle(now) < ttl);
        before - sessions.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(limit: u64) -> (tempfile::TempDir, Disk, Upload) {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        let (_, path, file) = disk.new_upload().unwrap();
        (dir, disk, Upload::new(path, file, limit))
    }

    #[test]
    fn what_is_appended_is_what_is_stored() {
        let (_dir, disk, mut upload) = upload(100);
        let repository: Repository = "a/b".parse().unwrap();
        upload.append(b"hello ").unwrap();
        assert!(matches!(upload.append(&[0; 95]), Err(Error::TooLarge { limit: 100, .. })));
        upload.append(b"world").unwrap();
        let digest = Digest::of(b"hello world");
        assert!(matches!(
            upload.finish(&disk, &repository, &Digest::of(b"else")),
            Err(Error::DigestInvalid { .. })
        ));
        upload.finish(&disk, &repository, &digest).unwrap();
        assert_eq!(std::fs::read(disk.blob_path(&digest)).unwrap(), b"hello world");
        assert_eq!(disk.blob_size(&repository, &digest).unwrap(), 11);
    }

    #[test]
    fn a_full_disk_is_told_and_appends_nothing() {
        let (_dir, _disk, mut upload) = upload(100);
        upload.file = File::options().write(true).open("/dev/full").unwrap();
        assert!(matches!(upload.append(b"x"), Err(Error::Full)));
        assert_eq!(upload.received(), 0);
    }

    #[test]
    fn a_dropped_upload_leaves_no_file() {
        let (_dir, _disk, mut upload) = upload(100);
        upload.append(b"x").unwrap();
        let path = upload.path.clone();
        assert!(path.exists());
        drop(upload);
        assert!(!path.exists());
    }
}
