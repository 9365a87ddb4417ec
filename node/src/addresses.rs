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

use ketch_net::{Allocator, PodRanges};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{kind::Kind, machine::Failure};

/// How long changes are gathered before the file is written.
const GATHER: Duration = Duration::from_millis(500);

/// Addresses of the pods of this node.
pub(crate) struct AddressBook {
    halves: Mutex<Halves>,
    file: PathBuf,
    changed: Notify,
}

/// An allocator per kind of pod.
struct Halves {
    wasm: Allocator,
    sandboxed: Option<Allocator>,
}

impl Halves {
    fn all(&mut self) -> impl Iterator<Item = (Kind, &mut Allocator)> {
        let sandboxed = self.sandboxed.as_mut().map(|half| (Kind::Sandboxed, half));
        std::iter::once((Kind::Wasm, &mut self.wasm)).chain(sandboxed)
    }

    /// Notes what a pod has. `false`: in neither half, or not free.
    fn adopt(&mut self, uid: &str, address: IpAddr) -> bool {
        let holds = self.all().any(|(_, half)| half.address(uid).is_some_and(|held| held != address));
        !holds && self.all().any(|(_, half)| half.adopt(uid, address))
    }
}

impl AddressBook {
    /// An empty book over `ranges`, kept in `file`.
    pub(crate) fn new(ranges: PodRanges, file: PathBuf) -> Self {
        let halves =
            Halves { wasm: Allocator::new(ranges.wasm), sandboxed: ranges.sandboxed.map(Allocator::new) };
        Self { halves: Mutex::new(halves), file, changed: Notify::new() }
    }

    /// Takes over what pods have by their statuses, then what the file says of pods that still exist.
    pub(crate) fn recover(&self, statuses: &[(String, Option<IpAddr>)]) {
        let saved: BTreeMap<String, IpAddr> = std::fs::read(&self.file)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        let mut halves = self.lock();
        for (uid, address) in statuses {
            if let Some(address) = address
                && !halves.adopt(uid, *address)
            {
                tracing::warn!(%uid, %address, "the pod's address is not free on this node; it gets another one");
            }
        }
        for (uid, address) in saved.iter().filter(|(uid, _)| statuses.iter().any(|(known, _)| known == *uid))
        {
            halves.adopt(uid, *address);
        }
    }

    /// The pod's address, out of the half for its kind; one it had in the other half is given back.
    pub(crate) fn allocate(&self, uid: &str, kind: Kind) -> Result<IpAddr, Failure> {
        let failed = |message: String| Failure { reason: "FailedCreatePodSandBox", message };
        let mut halves = self.lock();
        let mut address = Err(failed(
            "this node has no addresses for pods with containers: run Ketch as root, with a --pod-cidr outside of 127.0.0.0/8"
                .to_owned(),
        ));
        for (half, allocator) in halves.all() {
            if half == kind {
                address = allocator.allocate(uid).map_err(|error| failed(error.to_string()));
            } else {
                allocator.release(uid);
            }
        }
        self.changed.notify_one();
        address
    }

    /// The kind of pod that the address a pod holds is for.
    pub(crate) fn kind(&self, uid: &str) -> Option<Kind> {
        let mut halves = self.lock();
        let mut all = halves.all();
        all.find(|(_, half)| half.address(uid).is_some()).map(|(kind, _)| kind)
    }

    /// Gives the pod's address back.
    pub(crate) fn release(&self, uid: &str) {
        self.lock().all().for_each(|(_, half)| half.release(uid));
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
        let entries: BTreeMap<String, IpAddr> = self
            .lock()
            .all()
            .flat_map(|(_, half)| half.entries())
            .map(|(uid, ip)| (uid.to_owned(), ip))
            .collect();
        let temporary = self.file.with_extension("tmp");
        tokio::fs::write(&temporary, serde_json::to_vec(&entries)?).await?;
        tokio::fs::rename(&temporary, &self.file).await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Halves> {
        self.halves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(file: &std::path::Path) -> AddressBook {
        AddressBook::new(PodRanges::of("10.42.0.0/24".parse().unwrap()), file.to_owned())
    }

    #[test]
    fn each_kind_has_its_half_and_a_pod_one_address() {
        let dir = tempfile::tempdir().unwrap();
        let book = book(&dir.path().join("addresses.json"));
        assert_eq!(book.allocate("a", Kind::Wasm).unwrap().to_string(), "10.42.0.2");
        assert_eq!(book.allocate("b", Kind::Sandboxed).unwrap().to_string(), "10.42.0.130");
        assert_eq!(
            (book.kind("a"), book.kind("b"), book.kind("c")),
            (Some(Kind::Wasm), Some(Kind::Sandboxed), None)
        );
        assert_eq!(book.allocate("a", Kind::Sandboxed).unwrap().to_string(), "10.42.0.131");
        assert_eq!(book.lock().wasm.entries().count(), 0);
        let loopback =
            AddressBook::new(PodRanges::of("127.42.0.0/16".parse().unwrap()), dir.path().join("x"));
        assert!(loopback.allocate("a", Kind::Sandboxed).unwrap_err().message.contains("as root"));
    }

    #[tokio::test]
    async fn addresses_of_both_halves_are_recovered() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("addresses.json");
        let before = book(&file);
        let saved = before.allocate("saved", Kind::Sandboxed).unwrap();
        before.save().await.unwrap();
        let after = book(&file);
        let known = |uid: &str, ip: Option<&str>| (uid.to_owned(), ip.map(|ip| ip.parse().unwrap()));
        after.recover(&[
            known("w", Some("10.42.0.9")),
            known("s", Some("10.42.0.200")),
            known("saved", None),
        ]);
        assert_eq!((after.kind("w"), after.kind("s")), (Some(Kind::Wasm), Some(Kind::Sandboxed)));
        assert_eq!(after.allocate("saved", Kind::Sandboxed).unwrap(), saved);
        assert_eq!(after.allocate("s", Kind::Sandboxed).unwrap().to_string(), "10.42.0.200");
    }
}
