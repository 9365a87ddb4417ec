//! The values of the store at one revision, and how a batch of updates changes them. Pure: no locks, no IO.

use crate::{Error, Event, Page, Revision, Update, UpdateFn, Versioned, Written};
use bytes::Bytes;
use imbl::OrdMap;
use std::any::Any;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// All values at one revision. Cloning shares the tree, so a clone is a snapshot that costs nothing.
#[derive(Clone, Default)]
pub(crate) struct View {
    pub(crate) values: OrdMap<Arc<str>, Versioned>,
    pub(crate) revision: Revision,
}

impl View {
    /// One page of the keys under `prefix`, after the key `after`; `limit` 0 means all.
    pub(crate) fn page(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut keys = self
            .values
            .range::<_, str>((start, Bound::Unbounded))
            .map(|(_, versioned)| versioned)
            .take_while(|versioned| versioned.key.starts_with(prefix));
        let limit = if limit == 0 { usize::MAX } else { limit };
        let items: Vec<_> = keys.by_ref().take(limit).cloned().collect();
        Page { items, revision: self.revision, remaining: keys.count() }
    }

    /// The state that the next `events` lead to.
    pub(crate) fn after(mut self, events: &[Arc<Event>]) -> Self {
        for event in events {
            self.set(&event.key, event.current.clone());
            self.revision = event.revision;
        }
        self
    }

    /// Gives the key a value, or none.
    pub(crate) fn set(&mut self, key: &Arc<str>, value: Option<Versioned>) {
        match value {
            Some(versioned) => self.values.insert(key.clone(), versioned),
            None => self.values.remove(key),
        };
    }
}

/// A batch in the making: the state its callbacks see, and the events it will publish.
pub(crate) struct Pending {
    pub(crate) view: View,
    pub(crate) events: Vec<Arc<Event>>,
}

impl Pending {
    pub(crate) fn new(view: View) -> Self {
        Pending { view, events: Vec::new() }
    }

    /// Runs one update callback against the pending state. A callback that panics is reported and changes
    /// nothing.
    pub(crate) fn apply(&mut self, key: &Arc<str>, update: UpdateFn) -> Result<Written, Error> {
        let previous = self.view.values.get(key).cloned();
        let decision = catch_unwind(AssertUnwindSafe(move || {
            let mut update = update;
            update(previous.as_ref()).map(|decision| (decision, previous))
        }));
        let (decision, previous) = match decision {
            Ok(Ok(decided)) => decided,
            Ok(Err(abort)) => return Err(Error::Aborted(abort)),
            Err(panic) => return Err(panicked(key, panic.as_ref())),
        };
        match (decision, previous) {
            (Update::Put(value), previous) => Ok(self.put(key, value, previous)),
            (Update::Delete, Some(previous)) => Ok(self.delete(key, previous)),
            (Update::Delete | Update::Keep, previous) => {
                Ok(Written { current: previous.clone(), previous, revision: self.view.revision })
            }
        }
    }

    fn put(&mut self, key: &Arc<str>, value: Bytes, previous: Option<Versioned>) -> Written {
        let revision = self.view.revision + 1;
        let created = previous.as_ref().map_or(revision, |previous| previous.created);
        // The key already in the tree is reused, so that a key is in memory once.
        let key = previous.as_ref().map_or(key, |previous| &previous.key).clone();
        let current = Versioned { key, value, revision, created };
        self.record(Some(current), previous)
    }

    fn delete(&mut self, _key: &Arc<str>, previous: Versioned) -> Written {
        self.record(None, Some(previous))
    }

    fn record(&mut self, current: Option<Versioned>, previous: Option<Versioned>) -> Written {
        let revision = self.view.revision + 1;
        if let Some(key) = current.as_ref().or(previous.as_ref()).map(|versioned| versioned.key.clone()) {
            self.view.set(&key, current.clone());
            self.view.revision = revision;
            let (current, previous) = (current.clone(), previous.clone());
            self.events.push(Arc::new(Event { revision, key, current, previous }));
        }
        Written { current, previous, revision }
    }
}

fn panicked(key: &str, panic: &(dyn Any + Send)) -> Error {
    let message = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    Error::Backend { context: format!("the update callback of {key} panicked"), source: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(pending: &mut Pending, key: &str, value: &'static str) -> Written {
        let update: UpdateFn = Box::new(move |_| Ok(Update::Put(Bytes::from_static(value.as_bytes()))));
        pending.apply(&key.into(), update).unwrap()
    }

    #[test]
    fn a_batch_sees_its_own_writes() {
        let mut pending = Pending::new(View::default());
        assert_eq!(put(&mut pending, "/a", "1").revision, 1);
        let second = put(&mut pending, "/a", "2");
        assert_eq!(second.previous.unwrap().value, "1");
        let current = second.current.unwrap();
        assert_eq!((current.revision, current.created), (2, 1));
        assert_eq!(pending.events.len(), 2);
    }

    #[test]
    fn a_delete_of_nothing_uses_no_revision() {
        let mut pending = Pending::new(View::default());
        put(&mut pending, "/a", "1");
        let written = pending.apply(&"/b".into(), Box::new(|_| Ok(Update::Delete))).unwrap();
        assert_eq!((written.revision, written.current, written.previous), (1, None, None));
        assert_eq!(pending.events.len(), 1);
    }

    #[test]
    fn a_panicking_callback_changes_nothing() {
        let mut pending = Pending::new(View::default());
        let error = pending.apply(&"/a".into(), Box::new(|_| panic!("boom"))).unwrap_err();
        assert!(matches!(&error, Error::Backend { source, .. } if source.to_string() == "boom"), "{error:?}");
        assert_eq!(pending.view.revision, 0);
    }

    #[test]
    fn pages_stay_inside_their_prefix() {
        let mut pending = Pending::new(View::default());
        for key in ["/a/b", "/a/b/1", "/a/b/2", "/a/bc/1", "/a/b0"] {
            put(&mut pending, key, "x");
        }
        let page = pending.view.page("/a/b/", None, 1);
        assert_eq!((page.items.len(), page.remaining), (1, 1));
        let page = pending.view.page("/a/b/", Some("/a/b/1"), 0);
        assert_eq!(page.items.iter().map(|i| &*i.key).collect::<Vec<_>>(), ["/a/b/2"]);
        assert!(pending.view.page("/a/b/", Some("/a/b/2"), 0).items.is_empty());
        assert_eq!(pending.view.page("/a/b/", Some("/a/a"), 0).items.len(), 2);
    }
}
