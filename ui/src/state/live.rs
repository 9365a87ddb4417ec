//! Collections that keep themselves up to date: list, then watch from the list's revision.

use std::sync::Arc;

use ketch_ui_core::{
    object::text,
    rows::{Change, Keyed, Object, Rows},
    table::{Column, Table, TableRow},
    watch::{self, Frame},
};
use leptos::prelude::*;
use serde_json::Value;

use super::{Access, Console, console};
use crate::{
    api::{self, Error, socket::Watch},
    dom,
};

/// Objects asked for at once.
const PAGE: usize = 500;

/// A live collection.
pub(crate) struct Live<R: 'static> {
    /// The rows.
    pub rows: RwSignal<Rows<R>>,
    /// Header, for tables.
    pub columns: RwSignal<Vec<Column>>,
    /// Why it could not be read; rows of before stay.
    pub error: RwSignal<Option<Error>>,
}

impl<R> Clone for Live<R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Live<R> {}

/// A page of a list.
pub(crate) struct Page<R> {
    rows: Vec<Arc<R>>,
    columns: Option<Vec<Column>>,
    version: String,
    next: String,
}

/// What a collection can be made of.
pub(crate) trait Source: Keyed + Send + Sync + Sized + 'static {
    const TABLE: bool;
    fn page(answer: Value) -> Page<Self>;
    /// The row in an event's object; `None` when the event does not carry one.
    fn of_event(object: Value) -> Option<Arc<Self>>;
}

impl Source for Object {
    const TABLE: bool = false;

    fn page(mut answer: Value) -> Page<Self> {
        let version = text(&answer, "/metadata/resourceVersion").to_owned();
        let next = text(&answer, "/metadata/continue").to_owned();
        let (api_version, kind) =
            (text(&answer, "/apiVersion").to_owned(), text(&answer, "/kind").to_owned());
        let kind = kind.strip_suffix("List").unwrap_or(&kind).to_owned();
        let items =
            answer.get_mut("items").and_then(Value::as_array_mut).map(std::mem::take).unwrap_or_default();
        // A list may leave these out of its items.
        let complete = |mut item: Value| {
            if let Some(map) = item.as_object_mut() {
                map.entry("apiVersion").or_insert_with(|| api_version.clone().into());
                map.entry("kind").or_insert_with(|| kind.clone().into());
            }
            Arc::new(Object::new(item))
        };
        Page { rows: items.into_iter().map(complete).collect(), columns: None, version, next }
    }

    fn of_event(object: Value) -> Option<Arc<Self>> {
        Some(Arc::new(Object::new(object)))
    }
}

impl Source for TableRow {
    const TABLE: bool = true;

    fn page(answer: Value) -> Page<Self> {
        let table = Table::parse(&answer).unwrap_or_default();
        Page { rows: table.rows, columns: Some(table.columns), version: table.version, next: table.next }
    }

    fn of_event(object: Value) -> Option<Arc<Self>> {
        Table::parse(&object)?.rows.into_iter().next()
    }
}

/// Objects of a collection, for as long as the calling component lives.
pub(crate) fn live_objects(collection: String) -> Live<Object> {
    start(collection)
}

/// Rows of a collection as the server lays them out.
pub(crate) fn live_table(collection: String) -> Live<TableRow> {
    start(collection)
}

/// One object by name; [`Live::rows`] holds it or nothing.
pub(crate) fn live_object(collection: &str, name: &str) -> Live<Object> {
    start(format!("{collection}?fieldSelector={}", api::encode(&format!("metadata.name={name}"))))
}

fn start<R: Source>(collection: String) -> Live<R> {
    let live = Live {
        rows: RwSignal::new(Rows::default()),
        columns: RwSignal::new(Vec::new()),
        error: RwSignal::new(None),
    };
    let console = console();
    dom::spawn_scoped(async move { live.follow(console, &collection).await });
    live
}

impl Live<Object> {
    /// The only object, or the first.
    pub(crate) fn first(&self) -> Option<Arc<Object>> {
        self.rows.with(|rows| rows.iter().next().cloned())
    }
}

/// Why a watch is over.
enum Over {
    /// The rows must be listed again.
    Relist,
    /// The connection broke.
    Broken,
    /// The server ended it.
    Ended,
}

impl<R: Source> Live<R> {
    async fn follow(self, console: Console, collection: &str) {
        let mut attempt = 0;
        loop {
            if let Err(error) = self.list(collection).await {
                let (transient, out) = (error.is_transient(), error.is_unauthorized());
                self.error.set(Some(error));
                if out {
                    console.access.set(Access::Out);
                    return;
                }
                attempt += 1;
                let pause = if transient { watch::backoff(attempt, js_sys::Math::random()) } else { 15_000 };
                dom::sleep(pause).await;
                continue;
            }
            attempt = 0;
            self.error.set(None);
            self.watch(console, collection).await;
        }
    }

    async fn list(&self, collection: &str) -> Result<(), Error> {
        let separator = if collection.contains('?') { '&' } else { '?' };
        let mut rows = Vec::new();
        let mut next = String::new();
        loop {
            let mut path = format!("{collection}{separator}limit={PAGE}");
            if !next.is_empty() {
                path.push_str(&format!("&continue={}", api::encode(&next)));
            }
            let answer = if R::TABLE { api::get_table(&path).await? } else { api::get(&path).await? };
            let page = R::page(answer);
            rows.extend(page.rows);
            if let Some(columns) = page.columns.filter(|c| self.columns.with_untracked(|old| old != c)) {
                self.columns.set(columns);
            }
            self.rows.update(|r| r.replace(rows.clone(), &page.version));
            next = page.next;
            if next.is_empty() {
                return Ok(());
            }
        }
    }

    /// Watches until the rows must be listed again.
    async fn watch(&self, console: Console, collection: &str) {
        let hub = console.hub();
        loop {
            let version = self.rows.with_untracked(|r| r.version().to_owned());
            let mut watch = hub.watch(collection, &version, R::TABLE);
            match self.pump(&mut watch).await {
                Over::Relist => return dom::sleep(400).await,
                // Without a connection the list is polled, so that the page stays right.
                Over::Broken if !hub.online_within(5000).await => return,
                Over::Broken => {}
                Over::Ended => dom::sleep(500).await,
            }
        }
    }

    async fn pump(&self, watch: &mut Watch) -> Over {
        while let Some(first) = watch.next().await {
            // What arrives within a frame is drawn at once; long lists take longer to sort.
            let long = self.rows.with_untracked(|rows| rows.len() > 1000);
            dom::sleep(if long { 120 } else { 16 }).await;
            let mut frames = vec![first];
            while let Some(frame) = watch.ready() {
                frames.push(frame);
            }
            let mut changes = Vec::new();
            let mut over = None;
            for frame in frames {
                match Self::change(frame) {
                    Ok(change) => changes.push(change),
                    Err(why) => {
                        over = Some(why);
                        break;
                    }
                }
            }
            self.apply(changes);
            if let Some(over) = over {
                return over;
            }
        }
        Over::Broken
    }

    fn apply(&self, changes: Vec<(Change<R>, String)>) {
        self.rows.maybe_update(|rows| {
            let mut changed = false;
            for (change, version) in changes {
                changed |= rows.apply(change, &version);
            }
            changed
        });
    }

    fn change(frame: Frame) -> Result<(Change<R>, String), Over> {
        let (verb, object) = match frame {
            Frame::Event { verb, object, .. } => (verb, object),
            Frame::Expired { .. } => return Err(Over::Relist),
            // A refused watch is not asked for again as it was: the list finds out what changed.
            Frame::End { code, .. } if code != 0 => return Err(Over::Relist),
            Frame::End { .. } => return Err(Over::Ended),
        };
        let metadata =
            if text(&object, "/kind") == "Table" { "/rows/0/object/metadata" } else { "/metadata" };
        let version = match text(&object, &format!("{metadata}/resourceVersion")) {
            "" => text(&object, "/metadata/resourceVersion").to_owned(),
            version => version.to_owned(),
        };
        let uid = text(&object, &format!("{metadata}/uid")).to_owned();
        match verb.as_str() {
            "BOOKMARK" => Ok((Change::Bookmark, version)),
            "DELETED" => Ok((Change::Remove(uid), version)),
            _ => R::of_event(object).map(|row| (Change::Put(row), version)).ok_or(Over::Relist),
        }
    }
}
