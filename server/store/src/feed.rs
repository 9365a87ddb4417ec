//! What every back end keeps in memory: the current values, the most recent events, and the watchers.
//!
//! One lock orders publishing, joining and progress, which is what makes a watch neither skip nor repeat:
//! a watcher joins with the events up to a fence in hand, and its queue starts right behind that fence.
//! Reads of current values do not take that lock.

use crate::state::View;
use crate::watch::WatchOptions;
use crate::{Error, Event, Revision};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use tokio::sync::{mpsc, watch};

/// The in-memory side of a store, shared by its writer, its readers and its watch streams.
pub(crate) struct Shared {
    view: RwLock<View>,
    feed: Mutex<Feed>,
    revision: watch::Sender<Revision>,
    pub(crate) options: WatchOptions,
}

struct Feed {
    /// The events after `floor`, up to `revision`, without a hole.
    ring: VecDeque<Arc<Event>>,
    ring_bytes: usize,
    floor: Revision,
    revision: Revision,
    compacted: Revision,
    /// The last event that can be read elsewhere when it has left the ring; later ones stay in it. `None`:
    /// there is no elsewhere, what leaves the ring counts as compacted.
    logged: Option<Revision>,
    /// By prefix, so that an event is compared with each prefix once however many watch it.
    groups: BTreeMap<Arc<str>, Vec<Watcher>>,
    next_id: u64,
    closed: bool,
}

struct Watcher {
    id: u64,
    after: Revision,
    queue: mpsc::Sender<Arc<Event>>,
    overflowed: Arc<AtomicBool>,
}

/// A watcher's place in the feed. Dropping it unregisters the watcher.
pub(crate) struct Subscription {
    shared: Arc<Shared>,
    prefix: Arc<str>,
    id: u64,
    pub(crate) queue: mpsc::Receiver<Arc<Event>>,
    overflowed: Arc<AtomicBool>,
}

/// How a request for the events after some revision was met.
pub(crate) enum Join {
    /// The events are in `backlog`, up to revision `fence`; later ones come through the subscription.
    Live { backlog: VecDeque<Arc<Event>>, fence: Revision, subscription: Subscription },
    /// Older than what is in memory: read the log first.
    Behind,
}

/// The events of the ring after some revision, and the state they lead to.
pub(crate) struct Recent {
    pub(crate) events: Vec<Arc<Event>>,
    pub(crate) view: View,
}

impl Shared {
    /// `has_log`: events that leave memory can still be read from the back end, down to `compacted`; those
    /// after `view` once the back end says so with [`Shared::set_logged`].
    pub(crate) fn new(view: View, compacted: Revision, has_log: bool, options: WatchOptions) -> Arc<Self> {
        let revision = view.revision;
        Arc::new(Shared {
            view: RwLock::new(view),
            feed: Mutex::new(Feed {
                ring: VecDeque::new(),
                ring_bytes: 0,
                floor: revision,
                revision,
                compacted,
                logged: has_log.then_some(revision),
                groups: BTreeMap::new(),
                next_id: 0,
                closed: false,
            }),
            revision: watch::channel(revision).0,
            options,
        })
    }

    /// The latest published state.
    pub(crate) fn view(&self) -> View {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The latest published value of `key`.
    pub(crate) fn get(&self, key: &str) -> Option<crate::Versioned> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).values.get(key).cloned()
    }

    /// Newest published revision.
    pub(crate) fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    /// Waits until `revision` is published.
    pub(crate) async fn wait_for(&self, revision: Revision) -> Result<(), Error> {
        let mut published = self.revision.subscribe();
        published.wait_for(|newest| *newest >= revision).await.map(|_| ()).map_err(|_| Error::Closed)
    }

    /// Makes a committed batch visible: to readers first, then to watchers, in order.
    pub(crate) fn publish(&self, view: View, events: Vec<Arc<Event>>) {
        let revision = view.revision;
        let mut feed = self.feed();
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = view;
        self.revision.send_replace(revision);
        for event in events {
            feed.offer(&event);
            feed.push(event);
        }
        feed.revision = revision;
        feed.trim(&self.options);
    }

    /// Meets a request for the events of `prefix` after `from`, from memory if possible.
    pub(crate) fn join(self: &Arc<Self>, prefix: &Arc<str>, from: Revision) -> Result<Join, Error> {
        let mut feed = self.feed();
        if feed.closed {
            return Err(Error::Closed);
        }
        feed.check_kept(from)?;
        if from < feed.floor {
            return Ok(Join::Behind);
        }
        let backlog = feed.after(from).filter(|event| event.key.starts_with(&**prefix)).cloned().collect();
        let (fence, id) = (feed.revision, feed.next_id);
        feed.next_id += 1;
        let (sender, queue) = mpsc::channel(self.options.queue.max(1));
        let overflowed = Arc::new(AtomicBool::new(false));
        let after = from.max(fence);
        let watcher = Watcher { id, after, queue: sender, overflowed: overflowed.clone() };
        feed.groups.entry(prefix.clone()).or_default().push(watcher);
        let subscription =
            Subscription { shared: self.clone(), prefix: prefix.clone(), id, queue, overflowed };
        Ok(Join::Live { backlog, fence, subscription })
    }

    /// The events after `from` and the state they lead to; `None` when `from` is older than the ring.
    pub(crate) fn recent(&self, from: Revision) -> Result<Option<Recent>, Error> {
        let feed = self.feed();
        feed.check_kept(from)?;
        if from > feed.revision {
            return Err(Error::Future { requested: from, current: feed.revision });
        }
        if from < feed.floor {
            return Ok(None);
        }
        Ok(Some(Recent { events: feed.after(from).cloned().collect(), view: self.view() }))
    }

    /// Refuses watches from before `revision` from now on. `Ok(false)`: it was so already.
    pub(crate) fn compact(&self, revision: Revision) -> Result<bool, Error> {
        let mut feed = self.feed();
        if revision > feed.revision {
            return Err(Error::Future { requested: revision, current: feed.revision });
        }
        if revision <= feed.compacted {
            return Ok(false);
        }
        feed.compacted = revision;
        while feed.floor < revision && feed.drop_oldest() {}
        Ok(true)
    }

    /// Everything up to `revision` can be read from the back end's log.
    pub(crate) fn set_logged(&self, revision: Revision) {
        let mut feed = self.feed();
        feed.logged = Some(revision);
        feed.trim(&self.options);
    }

    /// Ends every watch; later ones are refused.
    pub(crate) fn close(&self) {
        let mut feed = self.feed();
        feed.closed = true;
        feed.groups.clear();
    }

    fn feed(&self) -> MutexGuard<'_, Feed> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    fn watchers(&self) -> usize {
        self.feed().groups.values().map(Vec::len).sum()
    }
}

impl Feed {
    fn check_kept(&self, from: Revision) -> Result<(), Error> {
        if from < self.compacted {
            return Err(Error::Compacted { requested: from, oldest: self.compacted });
        }
        Ok(())
    }

    /// Events after `from`, which must not be below the floor.
    fn after(&self, from: Revision) -> impl Iterator<Item = &Arc<Event>> {
        let skip = usize::try_from(from.saturating_sub(self.floor)).unwrap_or(usize::MAX);
        self.ring.range(skip.min(self.ring.len())..)
    }

    fn offer(&mut self, event: &Arc<Event>) {
        self.groups.retain(|prefix, watchers| {
            if event.key.starts_with(&**prefix) {
                watchers.retain(|watcher| watcher.offer(event));
            }
            !watchers.is_empty()
        });
    }

    fn push(&mut self, event: Arc<Event>) {
        self.ring_bytes += weight(&event);
        self.ring.push_back(event);
    }

    fn trim(&mut self, options: &WatchOptions) {
        while self.ring.len() > options.recent_events || self.ring_bytes > options.recent_bytes {
            let only_here = self.logged.is_some_and(|logged| self.floor >= logged);
            if only_here || !self.drop_oldest() {
                break;
            }
        }
        if self.logged.is_none() {
            self.compacted = self.compacted.max(self.floor);
        }
    }

    fn drop_oldest(&mut self) -> bool {
        match self.ring.pop_front() {
            Some(event) => {
                self.ring_bytes -= weight(&event);
                self.floor = event.revision;
                true
            }
            None => false,
        }
    }

    fn remove(&mut self, prefix: &Arc<str>, id: u64) {
        if let Some(watchers) = self.groups.get_mut(prefix) {
            watchers.retain(|watcher| watcher.id != id);
            if watchers.is_empty() {
                self.groups.remove(prefix);
            }
        }
    }
}

/// Bytes an event keeps in memory, about.
fn weight(event: &Event) -> usize {
    let size = |side: &Option<crate::Versioned>| side.as_ref().map_or(0, |versioned| versioned.value.len());
    size(&event.current) + size(&event.previous) + event.key.len() + size_of::<Event>()
}

impl Watcher {
    /// Queues the event; false when the watcher is gone or cut off.
    fn offer(&self, event: &Arc<Event>) -> bool {
        if event.revision <= self.after {
            return true;
        }
        match self.queue.try_send(event.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.overflowed.store(true, Ordering::Release);
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }
}

impl Subscription {
    /// Why the queue ended.
    pub(crate) fn end(&self) -> Error {
        if self.overflowed.load(Ordering::Acquire) { Error::Overflow } else { Error::Closed }
    }

    /// The revision up to which this watcher has been given everything, or the event that came first.
    pub(crate) fn progress(&mut self) -> Result<Revision, Arc<Event>> {
        let feed = self.shared.feed();
        // Publishing fills queues under this lock, so an empty queue now means nothing is on its way.
        match self.queue.try_recv() {
            Ok(event) => Err(event),
            Err(_) => Ok(feed.revision),
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.shared.feed().remove(&self.prefix, self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Pending;
    use crate::{Update, UpdateFn};

    fn write(shared: &Shared, key: &str) {
        let mut pending = Pending::new(shared.view());
        let update: UpdateFn = Box::new(|_| Ok(Update::Put("v".into())));
        pending.apply(&key.into(), update).unwrap();
        shared.publish(pending.view, pending.events);
    }

    fn live(join: Join) -> (VecDeque<Arc<Event>>, Subscription) {
        match join {
            Join::Live { backlog, subscription, .. } => (backlog, subscription),
            Join::Behind => panic!("behind"),
        }
    }

    #[test]
    fn dropping_a_subscription_unregisters_it() {
        let shared = Shared::new(View::default(), 0, false, WatchOptions::default());
        let (_, first) = live(shared.join(&"/a".into(), 0).unwrap());
        let (_, second) = live(shared.join(&"/a".into(), 0).unwrap());
        assert_eq!(shared.watchers(), 2);
        drop(first);
        assert_eq!(shared.watchers(), 1);
        drop(second);
        assert_eq!(shared.watchers(), 0);
    }

    #[test]
    fn without_a_log_what_leaves_the_ring_is_compacted() {
        let options = WatchOptions { recent_events: 2, ..WatchOptions::default() };
        let shared = Shared::new(View::default(), 0, false, options);
        (0..5).for_each(|_| write(&shared, "/a"));
        let (backlog, _) = live(shared.join(&"/".into(), 3).unwrap());
        assert_eq!(backlog.iter().map(|event| event.revision).collect::<Vec<_>>(), [4, 5]);
        let refused = shared.join(&"/".into(), 2).err().unwrap();
        assert!(matches!(refused, Error::Compacted { requested: 2, oldest: 3 }), "{refused:?}");
    }

    #[test]
    fn with_a_log_what_leaves_the_ring_is_behind() {
        let options = WatchOptions { recent_events: 2, ..WatchOptions::default() };
        let shared = Shared::new(View::default(), 0, true, options);
        (0..5).for_each(|_| write(&shared, "/a"));
        assert_eq!(live(shared.join(&"/".into(), 0).unwrap()).0.len(), 5, "not in the log yet");
        shared.set_logged(4);
        assert!(matches!(shared.join(&"/".into(), 2), Ok(Join::Behind)));
        assert_eq!(live(shared.join(&"/".into(), 3).unwrap()).0.len(), 2);
    }

    #[test]
    fn progress_never_overtakes_a_queued_event() {
        let shared = Shared::new(View::default(), 0, false, WatchOptions::default());
        let (_, mut subscription) = live(shared.join(&"/a".into(), 0).unwrap());
        write(&shared, "/a");
        write(&shared, "/b");
        assert_eq!(subscription.progress().unwrap_err().revision, 1);
        assert_eq!(subscription.progress().unwrap(), 2);
    }
}
