//! Runs a [`Reconcile`] for the keys of a queue.
//!
//! Level-triggered: a key says which object to look at, never what happened to it. One key is worked on
//! by one worker at a time; failures back off per key.

use std::{
    collections::HashMap,
    fmt::Debug,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::FutureExt;
use ketch_api::k8s::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use ketch_client::{Informer, Key, Queue, TaskError};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use crate::error::{Doing, Error};

/// Every object is looked at again after this time even when nothing seems to have changed, in case an
/// event was misread.
const RESYNC: Duration = Duration::from_secs(600);
/// How long a reconcile waits for the watch to show its own last writes.
const CATCH_UP: Duration = Duration::from_secs(5);

/// When to look at the key again, besides changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// When something changes.
    OnChange,
    /// At the latest after this time.
    After(Duration),
}

/// Makes one object's surroundings what the object asks for.
#[async_trait]
pub(crate) trait Reconcile: Send + Sync + 'static {
    /// Looks at the object and does what is left to do.
    async fn reconcile(&self, key: &Key) -> Result<Next, Error>;
}

/// Works off `queue` with up to `workers` keys at a time, forever.
pub(crate) async fn run<R: Reconcile>(
    name: &'static str,
    reconciler: Arc<R>,
    queue: Queue<Key>,
    workers: usize,
) -> Result<(), TaskError> {
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = running.join_next() => {}
            key = queue.next(), if running.len() < workers => {
                running.spawn(work(name, Arc::clone(&reconciler), queue.clone(), key));
            }
        }
    }
}

/// Gives a key back when the work on it ends, also when it is aborted.
struct Claimed {
    queue: Queue<Key>,
    key: Key,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        self.queue.done(&self.key);
    }
}

async fn work<R: Reconcile>(name: &'static str, reconciler: Arc<R>, queue: Queue<Key>, key: Key) {
    let claimed = Claimed { queue: queue.clone(), key: key.clone() };
    let result = AssertUnwindSafe(reconciler.reconcile(&key)).catch_unwind().await;
    match result {
        Ok(Ok(next)) => {
            queue.forget(&key);
            if let Next::After(delay) = next {
                queue.add_after(key, delay);
            }
        }
        Ok(Err(error)) => {
            let conflict = error.is_conflict();
            let delay_ms = u64::try_from(queue.retry(key.clone()).as_millis()).unwrap_or(u64::MAX);
            if conflict {
                tracing::debug!(controller = name, object.r#ref = %key, %error, delay_ms, "trying again");
            } else {
                tracing::warn!(controller = name, object.r#ref = %key, %error, delay_ms, "reconcile failed");
            }
        }
        Err(_) => {
            queue.retry(key.clone());
            tracing::error!(controller = name, object.r#ref = %key, "reconcile panicked");
        }
    }
    drop(claimed);
}

/// Asks for every object of `informer` again and again, far apart.
pub(crate) async fn resync<K: Resource>(informer: Informer<K>, queue: Queue<Key>) -> Result<(), TaskError> {
    loop {
        tokio::time::sleep(RESYNC).await;
        for object in informer.all() {
            queue.add(Key::of(object.meta()));
        }
    }
}

/// Whether the server still has this very object and nobody is deleting it. To be asked before adopting:
/// our copy of an owner may be older than the decision to let its dependents go.
pub(crate) async fn is_alive<K>(api: &Api<K>, meta: &ObjectMeta) -> Result<bool, Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let name = meta.name.as_deref().unwrap_or_default();
    let live = api.get_opt(name).await.doing(|| format!("reading {name}"))?;
    Ok(live.is_some_and(|live| live.meta().uid == meta.uid && live.meta().deletion_timestamp.is_none()))
}

/// The writes a reconciler made, so that its next look at the same object sees them.
///
/// Informers lag behind writes. Without this, a reconciler that created three pods and looks again too
/// early would create three more.
#[derive(Default)]
pub(crate) struct Writes(Mutex<HashMap<Key, u64>>);

impl Writes {
    /// Remembers the version a write for `key` returned.
    pub(crate) fn wrote<K: Resource>(&self, key: &Key, object: &K) {
        let version = object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0);
        let mut versions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = versions.entry(key.clone()).or_default();
        *newest = version.max(*newest);
    }

    /// Waits until `informer` shows what was written for `key`.
    pub(crate) async fn seen<K: Resource>(&self, key: &Key, informer: &Informer<K>) {
        let version = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        if let Some(version) = version {
            informer.wait_for(version, CATCH_UP).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::mpsc;

    use super::*;

    struct Flaky {
        calls: AtomicUsize,
        seen: mpsc::UnboundedSender<usize>,
    }

    #[async_trait]
    impl Reconcile for Flaky {
        async fn reconcile(&self, _key: &Key) -> Result<Next, Error> {
            let call = self.calls.fetch_add(1, Ordering::SeqCst);
            self.seen.send(call).unwrap();
            match call {
                0 => Err(Error::Object("not yet".into())),
                1 => panic!("bug"),
                2 => Ok(Next::After(Duration::from_secs(30))),
                _ => Ok(Next::OnChange),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_and_panics_are_tried_again_and_delays_kept() {
        let (seen, mut calls) = mpsc::unbounded_channel();
        let queue = Queue::new();
        queue.add(Key::new("a", "b"));
        let flaky = Arc::new(Flaky { calls: AtomicUsize::new(0), seen });
        let start = tokio::time::Instant::now();
        tokio::select! {
            _ = run("flaky", flaky, queue.clone(), 2) => unreachable!("runs forever"),
            () = async { for expected in 0..4 { assert_eq!(calls.recv().await, Some(expected)); } } => {}
        }
        assert_eq!(start.elapsed().as_secs(), 30);
    }
}
