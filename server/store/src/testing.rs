//! The suite every back end passes: the guarantees of this crate, as code.
//!
//! A back end's test file calls [`storage_suite!`](crate::storage_suite) with an async function that makes
//! an empty store, and gets one test per property.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

use crate::{
    Error, Event, ListOptions, Revision, Storage, Update, Versioned, WatchEvent, WatchOptions, WatchStream,
    Written,
};
use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use futures::{FutureExt, StreamExt};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

type Store = Arc<dyn Storage>;

/// Watch settings the suite expects: the default queue, and a progress interval short enough to wait for.
/// `recent_events` as given: a back end with a log sets it low, so that its log is used.
pub fn watch_options(recent_events: usize) -> WatchOptions {
    WatchOptions { progress_interval: Duration::from_millis(20), recent_events, ..WatchOptions::default() }
}

/// One test per property of the suite. `$make` is an async function without arguments that returns
/// `(Arc<dyn Storage>, guard)`; the guard is kept until the test ends.
#[macro_export]
macro_rules! storage_suite {
    ($make:path) => {
        $crate::storage_suite!(@ $make:
            writes_are_numbered_one_by_one
            nothing_to_do_uses_no_revision
            reads_see_acknowledged_writes
            racing_updates_are_all_counted
            racing_creates_have_one_winner
            an_aborting_callback_passes_its_reason
            a_panicking_callback_is_an_error
            a_dropped_update_happens_whole
            values_may_be_large
            prefixes_are_exact
            a_recreated_key_is_new
            pages_are_of_one_revision
            past_states_can_be_listed
            lists_outside_history_are_refused
            a_watch_from_anywhere_is_complete
            watches_under_compaction_skip_nothing
            all_watchers_see_one_order
            a_watch_of_the_future_waits
            a_watch_at_the_compaction_gets_the_next_event
            a_slow_watcher_is_cut_off
            progress_follows_catching_up
            an_event_seen_can_be_read
            waiting_ends_at_the_revision
            a_snapshot_holds_everything
        );
    };
    (@ $make:path: $($property:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $property() {
                let (store, _guard) = $make().await;
                $crate::testing::$property(store).await;
            }
        )*
    };
}

/// Writes `value` to `key`.
pub async fn put(store: &Store, key: &str, value: impl Into<Bytes>) -> Result<Written, Error> {
    let value = value.into();
    store.update(key, Box::new(move |_| Ok(Update::Put(value.clone())))).await
}

/// Deletes `key`.
pub async fn delete(store: &Store, key: &str) -> Result<Written, Error> {
    store.update(key, Box::new(|_| Ok(Update::Delete))).await
}

/// The next change; progress is skipped. Panics when nothing comes for long.
pub async fn next_change(watch: &mut WatchStream) -> Result<Arc<Event>, Error> {
    loop {
        let next = tokio::time::timeout(Duration::from_secs(30), watch.next()).await;
        match next.expect("no event for 30 seconds").expect("the watch ended without an error")? {
            WatchEvent::Change(event) => return Ok(event),
            WatchEvent::Progress(_) => {}
        }
    }
}

/// Changes up to and including revision `last`, or the error that ended the watch.
async fn changes_until(watch: &mut WatchStream, last: Revision) -> Result<Vec<Arc<Event>>, Error> {
    let mut events: Vec<Arc<Event>> = Vec::new();
    loop {
        let next = tokio::time::timeout(Duration::from_secs(30), watch.next()).await;
        match next.expect("no event for 30 seconds").expect("the watch ended without an error")? {
            WatchEvent::Change(event) => {
                assert!(event.revision <= last, "{event:?} is after revision {last}");
                events.push(event);
            }
            WatchEvent::Progress(revision) if revision >= last => return Ok(events),
            WatchEvent::Progress(_) => {}
        }
    }
}

fn revisions(events: &[Arc<Event>]) -> Vec<Revision> {
    events.iter().map(|event| event.revision).collect()
}

/// Some history: `count` writes over a few keys, every fifth a deletion. Returns the state after each
/// revision, from 0 on.
async fn history(store: &Store, count: usize) -> Vec<BTreeMap<String, Versioned>> {
    let mut states = vec![BTreeMap::new()];
    for step in 0..count {
        let key = format!("/h/{}", step % 7);
        let mut state = states[states.len() - 1].clone();
        if step % 5 == 4 && state.contains_key(&key) {
            delete(store, &key).await.unwrap();
            state.remove(&key);
        } else {
            let written = put(store, &key, format!("value {step}")).await.unwrap();
            state.insert(key, written.current.unwrap());
        }
        states.push(state);
    }
    states
}

/// Each write is greater by one than the last; `created` is that of the first of the key.
pub async fn writes_are_numbered_one_by_one(store: Store) {
    assert_eq!(store.revision().await.unwrap(), 0);
    assert_eq!(put(&store, "/a", "1").await.unwrap().revision, 1);
    assert_eq!(put(&store, "/b", "1").await.unwrap().revision, 2);
    let written = put(&store, "/a", "2").await.unwrap();
    let (current, previous) = (written.current.unwrap(), written.previous.unwrap());
    assert_eq!((written.revision, current.revision, current.created), (3, 3, 1));
    assert_eq!((&previous.value[..], previous.revision), (&b"1"[..], 1));
    let deleted = delete(&store, "/a").await.unwrap();
    assert_eq!((deleted.revision, deleted.current), (4, None));
    assert_eq!(deleted.previous, Some(current));
    assert_eq!(store.revision().await.unwrap(), 4);
}

/// Keeping, and deleting what is not there, write nothing.
pub async fn nothing_to_do_uses_no_revision(store: Store) {
    put(&store, "/a", "1").await.unwrap();
    let kept = store.update("/a", Box::new(|_| Ok(Update::Keep))).await.unwrap();
    assert_eq!(kept.revision, 1);
    assert_eq!(kept.current, kept.previous);
    assert_eq!(kept.current.unwrap().value, "1");
    let nothing = delete(&store, "/b").await.unwrap();
    assert_eq!((nothing.revision, nothing.current, nothing.previous), (1, None, None));
    assert_eq!(store.revision().await.unwrap(), 1);
}

/// What was acknowledged is in every later read.
pub async fn reads_see_acknowledged_writes(store: Store) {
    let tasks = (0..16).map(|task| {
        let store = store.clone();
        async move {
            for round in 0..10 {
                let key = format!("/own/{task}");
                let written = put(&store, &key, format!("{round}")).await?;
                assert_eq!(store.get(&key).await?, written.current);
                assert!(store.revision().await? >= written.revision);
                let page = store.list(&key, ListOptions::default()).await?;
                assert!(page.revision >= written.revision);
                assert!(page.items.iter().any(|item| Some(item) == written.current.as_ref()));
            }
            Ok::<_, Error>(())
        }
    });
    try_join_all(tasks).await.unwrap();
}

/// Read, decide and write are one step: no increment is lost, no revision is given twice.
pub async fn racing_updates_are_all_counted(store: Store) {
    let increment = || {
        store.update(
            "/counter",
            Box::new(|current| {
                let count: u64 = current
                    .map_or(0, |current| std::str::from_utf8(&current.value).unwrap().parse().unwrap());
                Ok(Update::Put((count + 1).to_string().into()))
            }),
        )
    };
    let tasks = (0..32).map(|_| async {
        let mut revisions = Vec::new();
        for _ in 0..10 {
            revisions.push(increment().await?.revision);
        }
        Ok::<_, Error>(revisions)
    });
    let mut revisions: Vec<_> = try_join_all(tasks).await.unwrap().concat();
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=320).collect::<Vec<_>>());
    assert_eq!(store.get("/counter").await.unwrap().unwrap().value, "320");
}

/// A callback that creates only what is missing succeeds once.
pub async fn racing_creates_have_one_winner(store: Store) {
    let create = |task: usize| {
        store.update(
            "/one",
            Box::new(move |current| match current {
                Some(_) => Err(Box::new("exists")),
                None => Ok(Update::Put(task.to_string().into())),
            }),
        )
    };
    let outcomes = join_all((0..32).map(create)).await;
    let winners: Vec<_> = outcomes.iter().flatten().collect();
    assert_eq!(winners.len(), 1);
    assert!(
        outcomes.iter().flat_map(|outcome| outcome.as_ref().err()).all(|e| matches!(e, Error::Aborted(_)))
    );
    assert_eq!(store.get("/one").await.unwrap(), winners[0].current);
}

/// The callback's own error arrives as it is, and nothing is written.
pub async fn an_aborting_callback_passes_its_reason(store: Store) {
    #[derive(Debug, PartialEq)]
    struct Reason(u32);
    let refused = store.update("/a", Box::new(|_| Err(Box::new(Reason(7))))).await;
    let Err(Error::Aborted(reason)) = refused else { panic!("not aborted: {refused:?}") };
    assert_eq!(reason.downcast_ref::<Reason>(), Some(&Reason(7)));
    assert_eq!(store.revision().await.unwrap(), 0);
    assert_eq!(store.get("/a").await.unwrap(), None);
}

/// A bug in a callback costs its caller an error, and nobody else anything.
pub async fn a_panicking_callback_is_an_error(store: Store) {
    let (panicked, written) =
        tokio::join!(store.update("/a", Box::new(|_| panic!("a test's panic"))), put(&store, "/b", "1"));
    assert!(matches!(&panicked, Err(Error::Backend { .. })), "{panicked:?}");
    assert_eq!(written.unwrap().revision, 1);
    assert_eq!(put(&store, "/a", "1").await.unwrap().revision, 2);
}

/// A caller that goes away after the first poll does not take its write back.
pub async fn a_dropped_update_happens_whole(store: Store) {
    drop(put(&store, "/a", "1").now_or_never());
    put(&store, "/b", "1").await.unwrap();
    assert_eq!(store.revision().await.unwrap(), 2);
    assert_eq!(store.get("/a").await.unwrap().unwrap().value, "1");
}

/// Values of some megabytes, empty ones, and bytes that are not text.
pub async fn values_may_be_large(store: Store) {
    let large = Bytes::from((0..3_u32 << 20).map(|index| (index % 251) as u8).collect::<Vec<_>>());
    put(&store, "/large", large.clone()).await.unwrap();
    put(&store, "/empty", "").await.unwrap();
    assert_eq!(store.get("/large").await.unwrap().unwrap().value, large);
    assert_eq!(store.get("/empty").await.unwrap().unwrap().value, "");
    let mut watch = store.watch("/", 0).await.unwrap();
    assert_eq!(next_change(&mut watch).await.unwrap().current.as_ref().unwrap().value, large);
}

/// A prefix is a string prefix: callers end theirs with `/` to mean a directory, and get just that.
pub async fn prefixes_are_exact(store: Store) {
    let mut watch = store.watch("/a/b/", 0).await.unwrap();
    for key in ["/a/b/1", "/a/bc/1", "/a/b0", "/a/b", "/b/a/b/1", "/a/b/2"] {
        put(&store, key, "x").await.unwrap();
    }
    let page = store.list("/a/b/", ListOptions::default()).await.unwrap();
    assert_eq!(page.items.iter().map(|item| &*item.key).collect::<Vec<_>>(), ["/a/b/1", "/a/b/2"]);
    assert_eq!((page.revision, page.remaining), (6, 0));
    assert_eq!(revisions(&changes_until(&mut watch, 6).await.unwrap()), [1, 6]);
    assert_eq!(store.list("/a/b", ListOptions::default()).await.unwrap().items.len(), 5);
    assert_eq!(store.list("", ListOptions::default()).await.unwrap().items.len(), 6);
    assert!(store.list("/c", ListOptions::default()).await.unwrap().items.is_empty());
}

/// Deleting ends a key's history; the next write of the name begins another.
pub async fn a_recreated_key_is_new(store: Store) {
    let mut watch = store.watch("/", 0).await.unwrap();
    put(&store, "/a", "1").await.unwrap();
    delete(&store, "/a").await.unwrap();
    put(&store, "/a", "2").await.unwrap();
    let events = changes_until(&mut watch, 3).await.unwrap();
    assert_eq!(revisions(&events), [1, 2, 3]);
    assert_eq!((events[0].previous.is_none(), events[1].current.is_none()), (true, true));
    assert_eq!(events[1].previous.as_ref().unwrap().value, "1");
    assert_eq!(events[2].previous, None);
    assert_eq!(store.get("/a").await.unwrap().unwrap().created, 3);
}

/// Pages of a list continued at its revision add up to the state at that revision, whatever is written
/// in between.
pub async fn pages_are_of_one_revision(store: Store) {
    for index in 0..50 {
        put(&store, &format!("/p/{index:03}"), "old").await.unwrap();
    }
    let first = store.list("/p/", ListOptions { limit: 7, ..Default::default() }).await.unwrap();
    assert_eq!((first.items.len(), first.remaining, first.revision), (7, 43, 50));
    let mut items = first.items;
    loop {
        let index = items.len();
        put(&store, &format!("/p/{index:03}"), "new").await.unwrap();
        put(&store, &format!("/p/{index:03}-more"), "new").await.unwrap();
        delete(&store, &format!("/p/{:03}", 49 - index % 7)).await.unwrap();
        let after = items.last().map(|item| item.key.to_string());
        let page =
            store.list("/p/", ListOptions { after, limit: 7, at: Some(first.revision) }).await.unwrap();
        assert_eq!(page.revision, first.revision);
        items.extend(page.items);
        assert_eq!(page.remaining, 50 - items.len());
        if page.remaining == 0 {
            break;
        }
    }
    assert_eq!(items.len(), 50);
    for (index, item) in items.iter().enumerate() {
        assert_eq!((&*item.key, &item.value[..]), (&*format!("/p/{index:03}"), &b"old"[..]));
    }
}

/// Every state since the compaction can be listed exactly.
pub async fn past_states_can_be_listed(store: Store) {
    let states = history(&store, 120).await;
    for (revision, state) in states.iter().enumerate() {
        let at = Some(revision as Revision);
        let page = store.list("/h/", ListOptions { at, ..Default::default() }).await.unwrap();
        assert_eq!(page.revision, revision as Revision);
        let listed: BTreeMap<_, _> =
            page.items.into_iter().map(|item| (item.key.to_string(), item)).collect();
        assert_eq!(&listed, state, "at revision {revision}");
    }
}

/// The future and the forgotten past are errors that say so.
pub async fn lists_outside_history_are_refused(store: Store) {
    history(&store, 20).await;
    let list = |at| store.list("/h/", ListOptions { at: Some(at), ..Default::default() });
    let future = list(21).await.unwrap_err();
    assert!(matches!(future, Error::Future { requested: 21, current: 20 }), "{future:?}");
    store.compact(10).await.unwrap();
    let old = list(9).await.unwrap_err();
    assert!(matches!(old, Error::Compacted { requested: 9, oldest: 10 }), "{old:?}");
    assert_eq!(list(10).await.unwrap().revision, 10);
}

/// Whatever revision a watch starts from, it gets every later change of its prefix, once, in order, with
/// the values before and after.
pub async fn a_watch_from_anywhere_is_complete(store: Store) {
    let states = history(&store, 150).await;
    for from in 0..states.len() {
        let mut watch = store.watch("/h/", from as Revision).await.unwrap();
        let events = changes_until(&mut watch, 150).await.unwrap();
        assert_eq!(revisions(&events), (from as Revision + 1..=150).collect::<Vec<_>>());
        for event in events {
            let (before, after) = (&states[event.revision as usize - 1], &states[event.revision as usize]);
            assert_eq!(event.previous.as_ref(), before.get(&*event.key));
            assert_eq!(event.current.as_ref(), after.get(&*event.key));
        }
    }
    let mut one = store.watch("/h/3", 0).await.unwrap();
    let expected: Vec<_> = (0..150).filter(|step| step % 7 == 3).map(|step| step + 1).collect();
    assert_eq!(revisions(&changes_until(&mut one, 150).await.unwrap()), expected);
}

/// Watches that start all over history, while it grows and is forgotten, get everything or an error that
/// says they did not.
pub async fn watches_under_compaction_skip_nothing(store: Store) {
    const LAST: Revision = 600;
    let write = async {
        for index in 0..LAST {
            put(&store, &format!("/w/{}", index % 10), index.to_string()).await.unwrap();
        }
    };
    let compact = async {
        for target in (20..LAST - 50).step_by(23) {
            store.wait_for(target + 50).await.unwrap();
            store.compact(target).await.unwrap();
        }
    };
    let watch = |start: Revision| {
        let store = &store;
        async move {
            store.wait_for(start).await.unwrap();
            let from = start.saturating_sub(60);
            let mut watch = match store.watch("/w/", from).await {
                Ok(watch) => watch,
                Err(error) => return assert!(matches!(error, Error::Compacted { .. }), "{error:?}"),
            };
            let mut expected = from + 1;
            while expected <= LAST {
                match next_change(&mut watch).await {
                    Ok(event) => assert_eq!(event.revision, expected),
                    Err(error) => return assert!(matches!(error, Error::Compacted { .. }), "{error:?}"),
                }
                expected += 1;
            }
        }
    };
    tokio::join!(write, compact, join_all((0..LAST).step_by(9).map(watch)));
    let refused = store.watch("/w/", 0).await.err();
    assert!(matches!(refused, Some(Error::Compacted { requested: 0, .. })), "{refused:?}");
}

/// Events of concurrent writers reach all watchers in the order of their revisions.
pub async fn all_watchers_see_one_order(store: Store) {
    let watches = try_join_all((0..20).map(|_| store.watch("/o/", 0))).await.unwrap();
    let writers = (0..20).map(|writer| {
        let store = &store;
        async move {
            for round in 0..20 {
                put(store, &format!("/o/{writer}"), format!("{round}")).await.unwrap();
            }
        }
    });
    let readers = watches.into_iter().map(|mut watch| async move {
        let mut seen = Vec::new();
        while seen.len() < 400 {
            seen.push(next_change(&mut watch).await.unwrap());
        }
        seen
    });
    let (_, seen) = tokio::join!(join_all(writers), join_all(readers));
    assert_eq!(revisions(&seen[0]), (1..=400).collect::<Vec<_>>());
    assert!(seen.iter().all(|events| events == &seen[0]));
}

/// Nothing at or before the revision asked for is delivered, nor progress below it.
pub async fn a_watch_of_the_future_waits(store: Store) {
    put(&store, "/f/0", "x").await.unwrap();
    let mut watch = store.watch("/f/", 4).await.unwrap();
    for index in 1..6 {
        put(&store, &format!("/f/{index}"), "x").await.unwrap();
    }
    let mut seen = Vec::new();
    while seen.last() != Some(&6) {
        match watch.next().await.unwrap().unwrap() {
            WatchEvent::Change(event) => seen.push(event.revision),
            WatchEvent::Progress(revision) => assert!(revision >= 4, "progress {revision} is in the past"),
        }
    }
    assert_eq!(seen, [5, 6]);
}

/// The edge: a watch from the compacted revision itself misses nothing, deletions included.
pub async fn a_watch_at_the_compaction_gets_the_next_event(store: Store) {
    put(&store, "/a", "1").await.unwrap();
    delete(&store, "/a").await.unwrap();
    store.compact(1).await.unwrap();
    let mut watch = store.watch("/", 1).await.unwrap();
    let deleted = next_change(&mut watch).await.unwrap();
    assert_eq!((deleted.revision, deleted.current.is_none()), (2, true));
    assert_eq!(deleted.previous.as_ref().unwrap().value, "1");
    store.compact(2).await.unwrap();
    store.compact(1).await.unwrap();
    let old = store.watch("/", 1).await.err();
    assert!(matches!(old, Some(Error::Compacted { requested: 1, oldest: 2 })), "{old:?}");
    let mut watch = store.watch("/", 2).await.unwrap();
    put(&store, "/b", "1").await.unwrap();
    assert_eq!(next_change(&mut watch).await.unwrap().revision, 3);
    let future = store.compact(9).await.unwrap_err();
    assert!(matches!(future, Error::Future { requested: 9, current: 3 }), "{future:?}");
}

/// A watcher that does not read is cut off at its queue's length: what it got is complete, it is told, and
/// it can go on from there.
pub async fn a_slow_watcher_is_cut_off(store: Store) {
    let queue = WatchOptions::default().queue as Revision;
    let mut slow = store.watch("/s/", 0).await.unwrap();
    let writes = (0..queue + 200).map(|index| {
        let store = store.clone();
        async move { put(&store, &format!("/s/{}", index % 50), "x").await }
    });
    let written = try_join_all(writes).await.unwrap();
    let mut expected = 1;
    let error = loop {
        match next_change(&mut slow).await {
            Ok(event) => assert_eq!(event.revision, expected),
            Err(error) => break error,
        }
        expected += 1;
    };
    assert!(matches!(error, Error::Overflow), "{error:?}");
    assert_eq!(expected, queue + 1);
    assert!(slow.next().await.is_none(), "a watch ends after an error");
    let last = written.iter().map(|written| written.revision).max().unwrap();
    let mut again = store.watch("/s/", queue).await.unwrap();
    let rest = changes_until(&mut again, last).await.unwrap();
    assert_eq!(revisions(&rest), (queue + 1..=last).collect::<Vec<_>>());
}

/// Progress comes after what it covers, once at the end of catching up and then when idle, also for
/// prefixes nothing happens in.
pub async fn progress_follows_catching_up(store: Store) {
    history(&store, 30).await;
    let mut busy = store.watch("/h/", 10).await.unwrap();
    for expected in 11..=30 {
        let event = busy.next().await.unwrap().unwrap();
        assert!(matches!(&event, WatchEvent::Change(event) if event.revision == expected), "{event:?}");
    }
    let progress = busy.next().await.unwrap().unwrap();
    assert!(matches!(progress, WatchEvent::Progress(30)), "{progress:?}");
    let mut idle = store.watch("/quiet/", 0).await.unwrap();
    put(&store, "/h/x", "x").await.unwrap();
    loop {
        match idle.next().await.unwrap().unwrap() {
            WatchEvent::Progress(31) => break,
            WatchEvent::Progress(revision) => assert_eq!(revision, 30),
            WatchEvent::Change(event) => panic!("not of the prefix: {event:?}"),
        }
    }
}

/// Whoever has seen an event reads a state that contains it.
pub async fn an_event_seen_can_be_read(store: Store) {
    let mut watch = store.watch("/", 0).await.unwrap();
    let write = async {
        for index in 0..100 {
            put(&store, "/a", index.to_string()).await.unwrap();
        }
    };
    let read = async {
        for _ in 0..100 {
            let event = next_change(&mut watch).await.unwrap();
            assert!(store.get("/a").await.unwrap().unwrap().revision >= event.revision);
            assert!(store.list("/", ListOptions::default()).await.unwrap().revision >= event.revision);
            assert!(store.revision().await.unwrap() >= event.revision);
        }
    };
    tokio::join!(write, read);
}

/// Waiting returns when the revision is there, at once when it was already.
pub async fn waiting_ends_at_the_revision(store: Store) {
    store.wait_for(0).await.unwrap();
    assert!(store.wait_for(2).now_or_never().is_none());
    let write = async {
        put(&store, "/a", "1").await.unwrap();
        put(&store, "/a", "2").await.unwrap();
    };
    let wait = async {
        store.wait_for(2).await.unwrap();
        assert_eq!(store.get("/a").await.unwrap().unwrap().value, "2");
    };
    tokio::join!(wait, write);
}

/// A snapshot opens as a store with the same values and revision, and never overwrites anything.
pub async fn a_snapshot_holds_everything(store: Store) {
    let states = history(&store, 40).await;
    let dir = std::env::temp_dir().join(format!("ketch-store-{}", std::process::id()));
    let dir = dir.join(format!("{:p}", Arc::as_ptr(&store)));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join(crate::RedbStore::FILE);
    assert_eq!(store.snapshot(&path).await.unwrap(), 40);
    put(&store, "/h/later", "x").await.unwrap();
    assert!(store.snapshot(&path).await.is_err());
    let open = dir.clone();
    let copy: Store = tokio::task::spawn_blocking(move || crate::RedbStore::open(open, Default::default()))
        .await
        .unwrap()
        .map(Arc::new)
        .unwrap();
    let page = copy.list("", ListOptions::default()).await.unwrap();
    assert_eq!(page.revision, 40);
    let items: BTreeMap<_, _> = page.items.into_iter().map(|item| (item.key.to_string(), item)).collect();
    assert_eq!(items, states[40]);
    assert_eq!(put(&copy, "/next", "x").await.unwrap().revision, 41);
    let old = copy.watch("/", 39).await.err();
    assert!(matches!(old, Some(Error::Compacted { oldest: 40, .. })), "{old:?}");
    drop(copy);
    std::fs::remove_dir_all(&dir).unwrap();
}
