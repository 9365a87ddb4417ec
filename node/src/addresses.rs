//! The node's pod addresses: an [`Allocator`] that survives restarts.
//!
//! The file is a hint that saves addresses of pods whose first status was not written yet; pod statuses are
//! read first. It is written in the background after a change, so no start waits for a disk.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use ketch_net::{Allocator, Cidr};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::machine::Failure;

/// How long changes are gathered before the file is written.
const GATHER: Duration = Duration::from_millis(500);

/// Addresses of the pods of this node.
pub(crate) struct AddressBook {
    allocator: Mutex<Allocator>,
    file: PathBuf,
    changed: Notify,
}

impl AddressBook {
    /// An empty book over `range`, kept in `file`.
    pub(crate) fn new(range: Cidr, file: PathBuf) -> Self {
        Self { allocator: Mutex::new(Allocator::new(range)), file, changed: Notify::new() }
    }

    /// Takes over what pods have by their statuses, then what the file says of pods that still exist.
    pub(crate) fn recover(&self, statuses: &[(String, Option<IpAddr>)]) {
        let saved: BTreeMap<String, IpAddr> = std::fs::read(&self.file)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        let mut allocator = self.lock();
        for (uid, address) in statuses {
            if let Some(address) = address
                && !allocator.adopt(uid, *address)
            {
                tracing::warn!(%uid, %address, "the pod's address is not free on this node; it gets another one");
            }
        }
        for (uid, address) in saved.iter().filter(|(uid, _)| statuses.iter().any(|(known, _)| known == *uid))
        {
            allocator.adopt(uid, *address);
        }
    }

    /// The pod's address.
    pub(crate) fn allocate(&self, uid: &str) -> Result<IpAddr, Failure> {
        let result = self.lock().allocate(uid);
        self.changed.notify_one();
        result.map_err(|error| Failure { reason: "FailedCreatePodSandBox", message: error.to_string() })
    }

    /// Gives the pod's address back.
    pub(crate) fn release(&self, uid: &str) {
        self.lock().release(uid);
        self.changed.notify_one();
    }

    /// Writes the file after changes until `stop`, and a last time then.
    pub(crate) async fn keep(&self, stop: CancellationToken) {
        loop {
            let stopped = tokio::select! {
                () = stop.cancelled() => true,
                () = self.changed.notified() => stop.run_until_cancelled(tokio::time::sleep(GATHER)).await.is_none(),
            };
            if let Err(error) = self.save().await {
                tracing::warn!(path = %self.file.display(), %error, "cannot write the pod addresses");
            }
            if stopped {
                return;
            }
        }
    }

    async fn save(&self) -> std::io::Result<()> {
        let entries: BTreeMap<String, IpAddr> =
            self.lock().entries().map(|(uid, ip)| (uid.to_owned(), ip)).collect();
        let temporary = self.file.with_extension("tmp");
        tokio::fs::write(&temporary, serde_json::to_vec(&entries)?).await?;
        tokio::fs::rename(&temporary, &self.file).await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Allocator> {
        self.allocator.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
