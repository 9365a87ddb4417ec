//! The pods that wait for a node, and when each is tried. Pure: time is an argument.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::core::PodInfo;

/// Tries that follow a change of the cluster at once; after them a pod that fits nowhere waits longer and
/// longer, so that thousands of such pods do not keep the scheduler busy.
const EAGER_TRIES: u32 = 3;
/// First and longest wait after that, as upstream's back-off queue.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// A pod is tried again after this time even when nothing seems to have changed.
const RESYNC: Duration = Duration::from_secs(300);

/// Higher priority first, then first come, first served.
type Rank = (Reverse<i32>, u64);

/// See the module.
#[derive(Default)]
pub(crate) struct Pending {
    entries: HashMap<String, Entry>,
    ready: BTreeMap<Rank, String>,
    /// Waiting for their time.
    timed: BTreeMap<(Instant, Rank), String>,
    sequence: u64,
}

struct Entry {
    info: Arc<PodInfo>,
    rank: Rank,
    tries: u32,
    last_try: Option<Instant>,
    place: Place,
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Ready,
    Timed(Instant),
    /// Handed out.
    Out,
}

// === impl Pending ===

impl Pending {
    /// A pod appeared or changed. A change makes a waiting pod ready again; one that is handed out stays out.
    pub(crate) fn put(&mut self, info: PodInfo) {
        let Some(uid) = info.pod.metadata.uid.clone() else { return };
        let priority = info.pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        let info = Arc::new(info);
        let Some(entry) = self.entries.get_mut(&uid) else {
            self.sequence += 1;
            let rank = (Reverse(priority), self.sequence);
            self.ready.insert(rank, uid.clone());
            self.entries.insert(uid, Entry { info, rank, tries: 0, last_try: None, place: Place::Ready });
            return;
        };
        // Its status is written by us; only another spec or other labels are a reason to try again.
        let same = entry.info.pod.spec == info.pod.spec
            && entry.info.pod.metadata.labels == info.pod.metadata.labels;
        entry.info = info;
        if !same {
            entry.tries = 0;
            self.make_ready(&uid);
        }
    }

    /// A pod is bound or gone.
    pub(crate) fn remove(&mut self, uid: &str) {
        let Some(entry) = self.entries.remove(uid) else { return };
        match entry.place {
            Place::Ready => {
                self.ready.remove(&entry.rank);
            }
            Place::Timed(at) => {
                self.timed.remove(&(at, entry.rank));
            }
            Place::Out => {}
        }
    }

    /// Hands out the next pod to try.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        while let Some(first) = self.timed.first_entry().filter(|first| first.key().0 <= now) {
            let uid = first.remove();
            if let Some(entry) = self.entries.get_mut(&uid) {
                entry.place = Place::Ready;
                self.ready.insert(entry.rank, uid);
            }
        }
        let (_, uid) = self.ready.pop_first()?;
        let entry = self.entries.get_mut(&uid)?;
        entry.place = Place::Out;
        entry.tries = entry.tries.saturating_add(1);
        entry.last_try = Some(now);
        Some(Arc::clone(&entry.info))
    }

    /// The pod fits nowhere: it waits for a change.
    pub(crate) fn set_aside(&mut self, uid: &str, now: Instant) {
        self.wait_until(uid, now + RESYNC);
    }

    /// The pod fits but could not be bound: it is tried again soon.
    pub(crate) fn failed(&mut self, uid: &str, now: Instant) {
        let Some(entry) = self.entries.get(uid) else { return };
        let wait = wait(entry.tries.max(EAGER_TRIES));
        self.wait_until(uid, now + wait);
    }

    /// The pod was handed out and is to be tried once more, at once.
    pub(crate) fn again(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.tries = 0;
        if entry.place == Place::Out {
            entry.place = Place::Ready;
            self.ready.insert(entry.rank, uid.to_owned());
        } else {
            self.make_ready(uid);
        }
    }

    /// A claim changed: whoever uses it and waits is tried again at once.
    pub(crate) fn claim_changed(&mut self, namespace: &str, name: &str) {
        let uses =
            |entry: &Entry| matches!(entry.place, Place::Timed(_)) && entry.info.has_claim(namespace, name);
        let users: Vec<String> =
            self.entries.iter().filter(|(_, entry)| uses(entry)).map(|(uid, _)| uid.clone()).collect();
        for uid in users {
            self.again(&uid);
        }
    }

    /// The pod of that uid, while it waits or is handed out.
    pub(crate) fn info(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.entries.get(uid).map(|entry| &entry.info)
    }

    /// Something changed that may make room: whoever waits is tried again, soon.
    pub(crate) fn room_was_made(&mut self) {
        let waiting: Vec<(Instant, Rank)> = self.timed.keys().copied().collect();
        for (at, rank) in waiting {
            let Some(uid) = self.timed.get(&(at, rank)).cloned() else { continue };
            let Some(entry) = self.entries.get(&uid) else { continue };
            let due = entry.last_try.map(|last| last + wait(entry.tries));
            match due {
                Some(due) if due < at => self.wait_until(&uid, due),
                _ => {}
            }
        }
    }

    /// When [`Pending::pop`] will have something, if that is only a matter of time.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.timed.keys().next().map(|(at, _)| *at)
    }

    /// Whether the pod waits or is handed out.
    pub(crate) fn holds(&self, uid: &str) -> bool {
        self.entries.contains_key(uid)
    }

    /// Whether [`Pending::pop`] has something now.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Pods that wait.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    fn make_ready(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        if let Place::Timed(at) = entry.place {
            self.timed.remove(&(at, entry.rank));
            entry.place = Place::Ready;
            self.ready.insert(entry.rank, uid.to_owned());
        }
    }

    fn wait_until(&mut self, uid: &str, at: Instant) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        match entry.place {
            Place::Ready => return,
            Place::Timed(before) => {
                self.timed.remove(&(before, entry.rank));
            }
            Place::Out => {}
        }
        entry.place = Place::Timed(at);
        self.timed.insert((at, entry.rank), uid.to_owned());
    }
}

/// Time between a try and the next.
fn wait(tries: u32) -> Duration {
    match tries.checked_sub(EAGER_TRIES) {
        None => Duration::ZERO,
        Some(more) => FIRST_WAIT.saturating_mul(1u32.checked_shl(more).unwrap_or(u32::MAX)).min(LONGEST_WAIT),
    }
}

#[cfg(test)]
mod tests {
    use ketch_api::k8s::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    fn pod(name: &str, priority: i32) -> PodInfo {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": name, "uid": name}, "spec": {"priority": priority, "containers": []}}),
        )
        .unwrap();
        PodInfo::new(Arc::new(pod))
    }

    fn names(pending: &mut Pending, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| pending.pop(now)).map(|info| info.pod.metadata.name.clone().unwrap()).collect()
    }

    #[test]
    fn priority_first_then_first_come() {
        let mut pending = Pending::default();
        for (name, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", 5)] {
            pending.put(pod(name, priority));
        }
        assert_eq!(names(&mut pending, Instant::now()), ["b", "d", "a", "c"]);
        assert_eq!(pending.len(), 4);
    }

    #[test]
    fn a_pod_that_fits_nowhere_is_tried_when_room_is_made() {
        let (mut pending, start) = (Pending::default(), Instant::now());
        pending.put(pod("a", 0));
        for _ in 0..2 {
            assert_eq!(names(&mut pending, start), ["a"]);
            pending.set_aside("a", start);
            assert!(names(&mut pending, start).is_empty());
            pending.room_was_made();
        }
        assert_eq!(names(&mut pending, start), ["a"], "third try");
        pending.set_aside("a", start);
        pending.room_was_made();
        assert!(names(&mut pending, start).is_empty(), "now it is slowed down");
        assert_eq!(pending.next_due(), Some(start + FIRST_WAIT));
        assert_eq!(names(&mut pending, start + FIRST_WAIT), ["a"]);
    }

    #[test]
    fn our_own_status_writes_are_no_reason_to_try_again() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        pending.put(pod("a", 0));
        assert_eq!(names(&mut pending, now), ["a"]);
        pending.set_aside("a", now);
        pending.put(pod("a", 0));
        assert!(names(&mut pending, now).is_empty());
        pending.put(pod("a", 1));
        assert_eq!(names(&mut pending, now), ["a"], "the spec changed");
    }

    #[test]
    fn what_is_gone_is_not_tried() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        pending.put(pod("a", 0));
        pending.put(pod("b", 0));
        pending.remove("a");
        assert_eq!(names(&mut pending, now), ["b"]);
        pending.failed("b", now);
        pending.remove("b");
        assert_eq!((pending.len(), pending.next_due()), (0, None));
    }
}
