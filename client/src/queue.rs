//! A work queue of keys: each at most once, back-off per key.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::Hash,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::sync::lock;

/// First delay after a failure; doubles up to [`LONGEST_BACKOFF`].
const FIRST_BACKOFF: Duration = Duration::from_millis(5);
/// Longest delay between two attempts at a key that keeps failing.
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// Longest delay that is kept: work that is asked for again too early is harmless, a time that no clock can show
/// is not.
const LONGEST_DELAY: Duration = Duration::from_secs(366 * 24 * 3600);

/// Keys that wait for work: each at most once, never handed out twice at a time, now or later, with a
/// back-off per key. The rules are those of client-go's `workqueue`.
///
/// Cloning gives another handle to the same queue. One task should call [`Queue::next`].
pub struct Queue<T> {
    inner: Arc<Mutex<Inner<T>>>,
    wake: Arc<Notify>,
}

struct Inner<T> {
    ready: VecDeque<T>,
    /// Waiting in `ready`, or to be put there when the running work on them is done.
    dirty: HashSet<T>,
    running: HashSet<T>,
    /// When each delayed key is due; `sequence` keeps keys of one instant apart.
    delayed: BTreeMap<(Instant, u64), T>,
    due: HashMap<T, (Instant, u64)>,
    sequence: u64,
    failures: HashMap<T, u32>,
}

// === impl Queue ===

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), wake: Arc::clone(&self.wake) }
    }
}

impl<T: Clone + Eq + Hash> Default for Queue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Clone + Eq + Hash> Queue<T> {
    /// An empty queue.
    pub fn new() -> Self {
        let inner = Inner {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            running: HashSet::new(),
            delayed: BTreeMap::new(),
            due: HashMap::new(),
            sequence: 0,
            failures: HashMap::new(),
        };
        Self { inner: Arc::new(Mutex::new(inner)), wake: Arc::new(Notify::new()) }
    }

    /// Asks for work on `key` as soon as possible.
    pub fn add(&self, key: T) {
        if lock(&self.inner).add(key) {
            self.wake.notify_one();
        }
    }

    /// Asks for work on `key` after `delay`, at most [`LONGEST_DELAY`]. An earlier request for the same key stands.
    pub fn add_after(&self, key: T, delay: Duration) {
        lock(&self.inner).add_at(key, Instant::now() + delay.min(LONGEST_DELAY));
        self.wake.notify_one();
    }

    /// Asks for work on a key whose last attempt failed; returns the delay, which grows with each failure
    /// until [`Queue::forget`].
    pub fn retry(&self, key: T) -> Duration {
        let delay = lock(&self.inner).next_backoff(&key);
        self.add_after(key, delay);
        delay
    }

    /// Ends the back-off of `key`.
    pub fn forget(&self, key: &T) {
        lock(&self.inner).failures.remove(key);
    }

    /// The next key, when there is one. Call [`Queue::done`] when the work on it has ended.
    ///
    /// Cancel-safe: a key is taken only when the future completes.
    pub async fn next(&self) -> T {
        loop {
            let due = {
                let mut inner = lock(&self.inner);
                if let Some(key) = inner.take(Instant::now()) {
                    return key;
                }
                inner.delayed.keys().next().map(|(at, _)| *at)
            };
            match due {
                Some(at) => {
                    let _ = tokio::time::timeout_at(at, self.wake.notified()).await;
                }
                None => self.wake.notified().await,
            }
        }
    }

    /// The work on `key` has ended; it is handed out again if it was asked for meanwhile.
    pub fn done(&self, key: &T) {
        if lock(&self.inner).done(key) {
            self.wake.notify_one();
        }
    }

    /// Keys waiting now, without the delayed ones.
    pub fn len(&self) -> usize {
        lock(&self.inner).ready.len()
    }

    /// Whether no key is waiting now.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

// === impl Inner ===

impl<T: Clone + Eq + Hash> Inner<T> {
    /// Whether a consumer should wake.
    fn add(&mut self, key: T) -> bool {
        if !self.dirty.insert(key.clone()) || self.running.contains(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    fn add_at(&mut self, key: T, at: Instant) {
        if let Some(old) = self.due.get(&key).copied() {
            if old.0 <= at {
                return;
            }
            self.delayed.remove(&old);
        }
        self.sequence += 1;
        self.due.insert(key.clone(), (at, self.sequence));
        self.delayed.insert((at, self.sequence), key);
    }

    fn take(&mut self, now: Instant) -> Option<T> {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let key = entry.remove();
            self.due.remove(&key);
            self.add(key);
        }
        let key = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.running.insert(key.clone());
        Some(key)
    }

    fn done(&mut self, key: &T) -> bool {
        self.running.remove(key);
        let again = self.dirty.contains(key);
        if again {
            self.ready.push_back(key.clone());
        }
        again
    }

    fn next_backoff(&mut self, key: &T) -> Duration {
        let failures = self.failures.entry(key.clone()).or_default();
        let delay = FIRST_BACKOFF.saturating_mul(1u32.checked_shl(*failures).unwrap_or(u32::MAX));
        *failures = failures.saturating_add(1).min(31);
        delay.min(LONGEST_BACKOFF)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once_and_runs_once_at_a_time() {
        let queue = Queue::new();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.len(), 2);
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().await, "b");
        assert!(queue.is_empty(), "a is being worked on");
        queue.done(&"a");
        assert_eq!(queue.next().await, "a");
        queue.done(&"a");
        queue.done(&"b");
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_delay_wins() {
        let queue = Queue::new();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(10));
        queue.add_after("a", Duration::from_secs(3));
        queue.add_after("a", Duration::from_secs(7));
        queue.add_after("b", Duration::from_secs(5));
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed().as_secs(), 3);
        assert_eq!(queue.next().await, "b");
        assert_eq!(start.elapsed().as_secs(), 5);
        assert!(lock(&queue.inner).delayed.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_delay_without_end_is_a_long_one() {
        let queue = Queue::new();
        let start = Instant::now();
        queue.add_after("a", Duration::MAX);
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed().as_secs(), LONGEST_DELAY.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_consumer_sees_a_shorter_delay() {
        let queue = Queue::new();
        let start = Instant::now();
        queue.add_after("late", Duration::from_secs(60));
        let other = queue.clone();
        let (key, ()) = tokio::join!(queue.next(), async move {
            tokio::task::yield_now().await;
            other.add_after("soon", Duration::from_secs(1));
        });
        assert_eq!((key, start.elapsed().as_secs()), ("soon", 1));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_per_key_until_forgotten() {
        let queue = Queue::new();
        let delays: Vec<_> = (0..4).map(|_| queue.retry("a").as_millis()).collect();
        assert_eq!(delays, [5, 10, 20, 40]);
        assert_eq!(queue.retry("b").as_millis(), 5);
        for _ in 0..40 {
            queue.retry("a");
        }
        assert_eq!(queue.retry("a"), LONGEST_BACKOFF);
        queue.forget(&"a");
        assert_eq!(queue.retry("a").as_millis(), 5);
    }
}
