//! Which notes become events, and which only raise a count. Pure.

use std::collections::{HashMap, VecDeque};

use jiff::Timestamp;
use ketch_api::k8s::api::core::v1::ObjectReference;

/// Distinct events remembered.
const REMEMBERED: usize = 4_096;
/// Events an object may have at once, and the seconds after which it may have another (upstream's spam
/// filter).
const BURST: f64 = 25.0;
const REFILL: f64 = 300.0;

/// Something worth telling about an object.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    /// The object, with `fieldPath` when it is about a container.
    pub(crate) object: ObjectReference,
    /// `Warning` instead of `Normal`.
    pub(crate) warning: bool,
    /// One word in CamelCase.
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) message: String,
}

impl Note {
    /// `Normal` or `Warning`.
    pub(crate) fn kind(&self) -> &'static str {
        if self.warning { "Warning" } else { "Normal" }
    }
}

/// An event to write: new when its count is 1.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) note: Note,
    pub(super) name: String,
    pub(super) count: i32,
    pub(super) first: Timestamp,
    pub(super) last: Timestamp,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    object: String,
    field: String,
    reason: &'static str,
    warning: bool,
    message: String,
}

struct Seen {
    name: String,
    count: i32,
    first: Timestamp,
}

/// Counts repeated notes and limits an object's events.
#[derive(Default)]
pub(super) struct Aggregator {
    seen: HashMap<Key, Seen>,
    order: VecDeque<Key>,
    buckets: HashMap<String, (f64, Timestamp)>,
}

impl Aggregator {
    /// What to write for a note; `None` when its object has had too many events.
    pub(super) fn take(&mut self, note: Note, now: Timestamp) -> Option<Write> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let object = text(&note.object.uid) + "/" + &text(&note.object.name);
        if !self.admit(&object, now) {
            return None;
        }
        let key = Key {
            object,
            field: text(&note.object.field_path),
            reason: note.reason,
            warning: note.warning,
            message: note.message.clone(),
        };
        if let Some(seen) = self.seen.get_mut(&key) {
            seen.count = seen.count.saturating_add(1);
            return Some(Write {
                note,
                name: seen.name.clone(),
                count: seen.count,
                first: seen.first,
                last: now,
            });
        }
        // Upstream's form: the object's name and the time in hexadecimal.
        let name =
            format!("{}.{:x}", text(&note.object.name), now.as_nanosecond() + self.order.len() as i128);
        self.remember(key, Seen { name: name.clone(), count: 1, first: now });
        Some(Write { note, name, count: 1, first: now, last: now })
    }

    fn remember(&mut self, key: Key, seen: Seen) {
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        self.order.push_back(key.clone());
        self.seen.insert(key, seen);
    }

    fn admit(&mut self, object: &str, now: Timestamp) -> bool {
        if self.buckets.len() > REMEMBERED {
            self.buckets.clear();
        }
        let (tokens, updated) = self.buckets.entry(object.to_owned()).or_insert((BURST, now));
        let elapsed = now.duration_since(*updated).as_secs_f64().max(0.0);
        *tokens = (*tokens + elapsed / REFILL).min(BURST);
        *updated = now;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(reason: &'static str) -> Note {
        let object =
            ObjectReference { name: Some("web".into()), uid: Some("u".into()), ..Default::default() };
        Note { object, warning: false, reason, message: "m".into() }
    }

    #[test]
    fn repeated_notes_raise_a_count() {
        let mut events = Aggregator::default();
        let start = Timestamp::UNIX_EPOCH;
        let first = events.take(note("Pulled"), start).unwrap();
        let second = events.take(note("Pulled"), start + jiff::SignedDuration::from_secs(5)).unwrap();
        assert_eq!((first.count, second.count), (1, 2));
        assert_eq!(first.name, second.name);
        assert_eq!(second.first, start);
        assert_ne!(events.take(note("Started"), start).unwrap().name, first.name);
    }

    #[test]
    fn an_object_cannot_flood() {
        let mut events = Aggregator::default();
        let start = Timestamp::UNIX_EPOCH;
        let written = (0..100).filter(|_| events.take(note("BackOff"), start).is_some()).count();
        assert_eq!(written, 25);
        assert!(events.take(note("BackOff"), start + jiff::SignedDuration::from_secs(301)).is_some());
    }
}
