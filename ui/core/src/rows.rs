//! The store behind a live list: what a watch says, applied in order, cheap to read while it changes.

use std::{collections::HashMap, sync::Arc};

/// One change of a watched collection.
#[derive(Clone, Debug, PartialEq)]
pub enum Change<R> {
    /// Added or modified: a watch that was resumed may send either for a known object.
    Put(Arc<R>),
    /// Gone.
    Remove(String),
    /// Nothing changed; the stream is at this resourceVersion.
    Bookmark,
}

/// A row of a store.
pub trait Keyed {
    /// Identity: the object's uid. A re-created object is another row.
    fn key(&self) -> &str;
    /// resourceVersion, compared as a number where it is one.
    fn version(&self) -> &str;
}

/// The rows of one collection by key, and the resourceVersion they are at.
#[derive(Clone, Debug)]
pub struct Rows<R> {
    rows: HashMap<String, Arc<R>>,
    version: String,
    loaded: bool,
}

impl<R> Default for Rows<R> {
    fn default() -> Self {
        Self { rows: HashMap::new(), version: String::new(), loaded: false }
    }
}

impl<R: Keyed> Rows<R> {
    /// Replaces everything by a list's answer. Rows that did not change keep their allocation, so
    /// whoever compares by pointer does not draw them again.
    pub fn replace(&mut self, rows: Vec<Arc<R>>, version: &str) {
        let mut old = std::mem::take(&mut self.rows);
        for row in rows {
            let kept =
                old.remove(row.key()).filter(|o| o.version() == row.version() && !o.version().is_empty());
            self.rows.insert(row.key().to_owned(), kept.unwrap_or(row));
        }
        self.version = version.to_owned();
        self.loaded = true;
    }

    /// Applies one change and moves to `version`; `false` when nothing that can be seen changed.
    pub fn apply(&mut self, change: Change<R>, version: &str) -> bool {
        if !version.is_empty() {
            self.version = version.to_owned();
        }
        match change {
            Change::Bookmark => false,
            Change::Remove(key) => self.rows.remove(&key).is_some(),
            Change::Put(row) => self.put(row),
        }
    }

    fn put(&mut self, row: Arc<R>) -> bool {
        if let Some(old) = self.rows.get(row.key())
            && older_or_same(row.version(), old.version())
        {
            return false;
        }
        self.rows.insert(row.key().to_owned(), row);
        true
    }

    /// Whether a list has been applied.
    pub fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// Where a watch continues.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// One row.
    pub fn get(&self, key: &str) -> Option<&Arc<R>> {
        self.rows.get(key)
    }

    /// All rows, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<R>> {
        self.rows.values()
    }

    /// The keys of the rows that `keep` lets through, ordered by `order` and then by key.
    pub fn sorted(
        &self,
        mut keep: impl FnMut(&R) -> bool,
        mut order: impl FnMut(&R, &R) -> std::cmp::Ordering,
    ) -> Vec<Arc<R>> {
        let mut rows: Vec<Arc<R>> = self.rows.values().filter(|r| keep(r)).cloned().collect();
        rows.sort_unstable_by(|a, b| order(a, b).then_with(|| a.key().cmp(b.key())));
        rows
    }
}

/// A whole object as a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    key: String,
    version: String,
    /// As the API sent it.
    pub value: serde_json::Value,
}

impl Object {
    /// Wraps an object.
    pub fn new(value: serde_json::Value) -> Self {
        let version = crate::object::text(&value, "/metadata/resourceVersion").to_owned();
        Self { key: crate::object::uid(&value).to_owned(), version, value }
    }
}

impl Keyed for Object {
    fn key(&self) -> &str {
        &self.key
    }
    fn version(&self) -> &str {
        &self.version
    }
}

fn older_or_same(new: &str, old: &str) -> bool {
    match (new.parse::<u64>(), old.parse::<u64>()) {
        (Ok(new), Ok(old)) => new <= old,
        _ => false,
    }
}

/// The rows of a window over `total` rows of equal height, with some more on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First row drawn.
    pub start: usize,
    /// One past the last row drawn.
    pub end: usize,
}

/// The [`Window`] for a scroll position and a viewport's height in pixels. Lists up to `all` rows are
/// drawn whole.
pub fn window(total: usize, scroll: f64, viewport: f64, row: f64, all: usize) -> Window {
    const MARGIN: usize = 12;
    if total <= all || row <= 0.0 {
        return Window { start: 0, end: total };
    }
    let first = (scroll.max(0.0) / row) as usize;
    let visible = (viewport.max(0.0) / row).ceil() as usize;
    let start = first.saturating_sub(MARGIN).min(total);
    Window { start, end: (first + visible + MARGIN).min(total).max(start) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Item(&'static str, &'static str);

    impl Keyed for Item {
        fn key(&self) -> &str {
            self.0
        }
        fn version(&self) -> &str {
            self.1
        }
    }

    fn put(key: &'static str, version: &'static str) -> Change<Item> {
        Change::Put(Arc::new(Item(key, version)))
    }

    #[test]
    fn a_watch_is_applied_in_order() {
        let mut rows = Rows::default();
        assert!(!rows.is_loaded());
        rows.replace(vec![Arc::new(Item("a", "1")), Arc::new(Item("b", "2"))], "5");
        assert_eq!((rows.len(), rows.version()), (2, "5"));
        assert!(rows.apply(put("c", "6"), "6"));
        assert!(rows.apply(put("a", "7"), "7"));
        assert!(rows.apply(Change::Remove("b".into()), "8"));
        assert!(!rows.apply(Change::Remove("b".into()), "8"));
        assert!(!rows.apply(Change::Bookmark, "20"));
        assert_eq!(rows.version(), "20");
        assert_eq!(rows.get("a").unwrap().version(), "7");
        assert_eq!(rows.len(), 2);
    }

    #[test]
    fn an_event_seen_twice_changes_nothing() {
        let mut rows = Rows::default();
        rows.replace(vec![Arc::new(Item("a", "10"))], "10");
        assert!(!rows.apply(put("a", "10"), "10"));
        assert!(!rows.apply(put("a", "9"), "9"), "an older state never takes a newer one's place");
    }

    #[test]
    fn a_relist_drops_the_gone_and_keeps_the_unchanged() {
        let mut rows = Rows::default();
        rows.replace(vec![Arc::new(Item("a", "1")), Arc::new(Item("b", "2"))], "5");
        let before = rows.get("a").unwrap().clone();
        rows.replace(vec![Arc::new(Item("a", "1")), Arc::new(Item("c", "9"))], "9");
        assert!(Arc::ptr_eq(&before, rows.get("a").unwrap()));
        assert!(rows.get("b").is_none());
        let keys: Vec<_> = rows.sorted(|_| true, |a, b| b.0.cmp(a.0)).iter().map(|r| r.0).collect();
        assert_eq!(keys, ["c", "a"]);
    }

    #[test]
    fn windows() {
        assert_eq!(window(100, 0.0, 400.0, 36.0, 200), Window { start: 0, end: 100 });
        let w = window(5000, 36.0 * 1000.0, 720.0, 36.0, 200);
        assert!(w.start <= 1000 && w.end >= 1020 && w.end - w.start < 60, "{w:?}");
        assert_eq!(window(5000, 1e9, 720.0, 36.0, 200).end, 5000);
        assert_eq!(window(300, -50.0, 720.0, 36.0, 200).start, 0);
    }
}
