//! Power cuts at random points, full disks, and disks that lie.

use crate::faults::{Fate, FaultyFile, FaultyMedium};
use futures::FutureExt;
use ketch_store::testing::{delete, next_change, put, watch_options};
use ketch_store::{Error, ListOptions, RedbOptions, RedbStore, Revision, Storage, Versioned, Written};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

const CRASHES: u64 = 300;

/// A small generator, so that a failing point can be run again by its number.
struct Dice(u64);

impl Dice {
    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % sides
    }

    fn fate(&mut self) -> Fate {
        match self.roll(5) {
            0 | 1 => Fate::Kept,
            2 | 3 => Fate::Lost,
            _ => Fate::Torn,
        }
    }
}

fn open(medium: &FaultyMedium) -> Result<Arc<dyn Storage>, Error> {
    let (medium, journal) = (medium.clone(), medium.journal.clone());
    // Small, so that it fills up and starts over often.
    let options =
        RedbOptions { watch: watch_options(8), batch: 4, journal_bytes: 100_000, ..RedbOptions::default() };
    Ok(Arc::new(RedbStore::open_on(move || medium.open(), Box::new(journal), options)?))
}

/// What has been acknowledged, by revision, and which writes were never answered: they may have happened.
#[derive(Default)]
struct Model {
    acknowledged: BTreeMap<Revision, (String, Option<Versioned>)>,
    unanswered_puts: BTreeSet<String>,
    unanswered_deletes: BTreeSet<String>,
    compacted: Revision,
}

impl Model {
    fn note(&mut self, key: &str, written: Written) {
        self.acknowledged.insert(written.revision, (key.to_owned(), written.current));
    }

    fn newest(&self) -> Revision {
        self.acknowledged.keys().next_back().copied().unwrap_or(0)
    }
}

/// Writes until the power goes; some writes at a time, so that batches form.
async fn work(store: &Arc<dyn Storage>, dice: &mut Dice, model: &mut Model) {
    loop {
        let writes = (0..=dice.roll(6)).map(|_| {
            let (key, size, kind) = (format!("/k/{}", dice.roll(12)), dice.roll(20_000), dice.roll(4));
            async move {
                let written = match kind {
                    0 => delete(store, &key).await,
                    _ => put(store, &key, vec![kind as u8; size as usize]).await,
                };
                (key, kind, written)
            }
        });
        let written = futures::future::join_all(writes.collect::<Vec<_>>()).await;
        let failed = written.iter().any(|(_, _, written)| written.is_err());
        for (key, kind, written) in written {
            match written {
                Ok(written) if written.current != written.previous => model.note(&key, written),
                // A deletion of nothing repeats the store's revision and is no write.
                Ok(_) => {}
                Err(_) if kind == 0 => drop(model.unanswered_deletes.insert(key)),
                Err(_) => drop(model.unanswered_puts.insert(key)),
            }
        }
        if failed {
            return;
        }
        if dice.roll(8) == 0 && model.newest() > 3 {
            let target = model.newest() - 3;
            model.compacted = model.compacted.max(target);
            if store.compact(target).await.is_err() {
                return;
            }
        }
    }
}

/// Everything acknowledged is there, with its history, and the store works.
async fn check(store: &Arc<dyn Storage>, model: &Model) {
    let revision = store.revision().await.unwrap();
    assert!(revision >= model.newest(), "revision {revision} is below {}", model.newest());
    let mut last_of_key = BTreeMap::new();
    for (revision, (key, current)) in &model.acknowledged {
        last_of_key.insert(key, (*revision, current));
    }
    for (key, (acknowledged, expected)) in last_of_key {
        let found = store.get(key).await.unwrap();
        let explained = found.as_ref() == expected.as_ref()
            || match &found {
                Some(found) => found.revision > acknowledged && model.unanswered_puts.contains(key),
                None => model.unanswered_deletes.contains(key),
            };
        assert!(explained, "{key}: revision {acknowledged} was acknowledged, {found:?} is there");
    }
    let (from, mut watch) = oldest_watch(store, model).await;
    for expected in from + 1..=revision {
        let event = next_change(&mut watch).await.unwrap();
        assert_eq!(event.revision, expected);
        if let Some((key, current)) = model.acknowledged.get(&expected) {
            assert_eq!((&*event.key, &event.current), (&**key, current));
        }
    }
    assert_eq!(put(store, "/after", "x").await.unwrap().revision, revision + 1);
    assert_eq!(store.list("", ListOptions::default()).await.unwrap().revision, revision + 1);
}

async fn oldest_watch(store: &Arc<dyn Storage>, model: &Model) -> (Revision, ketch_store::WatchStream) {
    match store.watch("", 0).await {
        Ok(watch) => (0, watch),
        Err(Error::Compacted { oldest, .. }) => {
            assert!(oldest <= model.compacted, "more is forgotten than was asked for");
            (oldest, store.watch("", oldest).await.unwrap())
        }
        Err(error) => panic!("{error:?}"),
    }
}

/// Cuts the power three times under one store, checks what is left, and returns how many writes had been
/// acknowledged. Each next cut comes while recovering from the last, or soon after.
async fn survive(seed: u64, syncing: bool) -> usize {
    let mut dice = Dice(seed);
    // A new file only gets its name when it is whole, so crashes begin after that.
    let mut medium = FaultyMedium::new();
    drop(open(&medium).unwrap());
    let mut model = Model::default();
    for _cut in 0..3 {
        if !syncing {
            medium.stop_syncing();
        }
        medium.cut_power_after(dice.roll(120));
        if let Ok(store) = open(&medium) {
            work(&store, &mut dice, &mut model).await;
        }
        medium = medium.after_crash(|| dice.fate());
    }
    let store = open(&medium).unwrap_or_else(|error| panic!("seed {seed} does not open: {error:?}"));
    check(&store, &model).await;
    model.acknowledged.len()
}

#[tokio::test]
async fn power_cuts_lose_nothing_acknowledged() {
    let mut acknowledged = 0;
    for seed in 0..CRASHES {
        acknowledged += survive(seed, true).await;
    }
    assert!(acknowledged > 1_000, "only {acknowledged} writes were acknowledged: the cuts come too early");
}

#[tokio::test]
async fn the_power_cut_test_notices_a_disk_that_does_not_sync() {
    for seed in 0..20 {
        if AssertUnwindSafe(survive(seed, false)).catch_unwind().await.is_err() {
            return;
        }
    }
    panic!("20 stores without a single sync survived: the test tests nothing");
}

#[tokio::test]
async fn a_full_disk_refuses_writes_until_there_is_space() {
    let medium = FaultyMedium::new();
    let store = open(&medium).unwrap();
    put(&store, "/a", "1").await.unwrap();
    let mut watch = store.watch("/", 0).await.unwrap();
    assert_eq!(next_change(&mut watch).await.unwrap().revision, 1);
    medium.set_full(true);
    for _ in 0..3 {
        let refused = put(&store, "/a", "2").await;
        assert!(matches!(refused, Err(Error::Full)), "{refused:?}");
    }
    assert_eq!(store.get("/a").await.unwrap().unwrap().value, "1");
    assert_eq!(store.revision().await.unwrap(), 1);
    medium.set_full(false);
    let written = retried(&store, "/a", "3").await;
    assert_eq!(written.revision, 2);
    assert_eq!(next_change(&mut watch).await.unwrap().current.as_ref().unwrap().value, "3");
    drop(store);
    let store = open(&medium.after_crash(|| Fate::Lost)).unwrap();
    assert_eq!(store.get("/a").await.unwrap().unwrap().value, "3");
}

/// A write whose sync is reported as failed, on the journal or the database. It is unknown whether it is
/// there, but whatever is seen must be so for good.
async fn after_a_lie(file: impl Fn(&FaultyMedium) -> FaultyFile, size: usize) {
    let medium = FaultyMedium::new();
    let store = open(&medium).unwrap();
    put(&store, "/a", "1").await.unwrap();
    let mut watch = store.watch("/", 1).await.unwrap();
    file(&medium).lie_about_next_sync();
    let failed = put(&store, "/b", vec![1; size]).await;
    assert!(matches!(failed, Err(Error::Backend { .. })), "{failed:?}");
    assert_eq!(store.revision().await.unwrap(), 1);
    let written = retried(&store, "/c", "1").await;
    let landed = store.get("/b").await.unwrap();
    assert_eq!(written.revision, 2 + u64::from(landed.is_some()));
    for expected in 2..=written.revision {
        assert_eq!(next_change(&mut watch).await.unwrap().revision, expected);
    }
    drop(store);
    let store = open(&medium.after_crash(|| Fate::Lost)).unwrap();
    assert_eq!(store.revision().await.unwrap(), written.revision);
    assert_eq!(store.get("/b").await.unwrap(), landed);
}

#[tokio::test]
async fn a_journal_sync_that_only_seemed_to_fail() {
    after_a_lie(|medium| medium.journal.clone(), 10).await;
}

#[tokio::test]
async fn a_commit_that_only_seemed_to_fail() {
    // Too large for the journal, so it goes to the database at once.
    after_a_lie(|medium| medium.database.clone(), 200_000).await;
}

#[tokio::test]
async fn a_journal_outlives_a_database_that_cannot_be_written() {
    let medium = FaultyMedium::new();
    let store = open(&medium).unwrap();
    medium.database.set_full(true);
    put(&store, "/a", "1").await.unwrap();
    let refused = put(&store, "/large", vec![1; 200_000]).await;
    assert!(matches!(refused, Err(Error::Full)), "{refused:?}");
    drop(store);
    medium.database.set_full(false);
    let store = open(&medium.after_crash(|| Fate::Lost)).unwrap();
    assert_eq!(store.get("/a").await.unwrap().unwrap().value, "1");
    assert_eq!(store.revision().await.unwrap(), 1);
    let mut watch = store.watch("/", 0).await.unwrap();
    assert_eq!(next_change(&mut watch).await.unwrap().revision, 1);
}

/// Writes until the store has recovered.
async fn retried(store: &Arc<dyn Storage>, key: &str, value: &'static str) -> Written {
    loop {
        match put(store, key, value).await {
            Ok(written) => return written,
            Err(Error::Full | Error::Backend { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error:?}"),
        }
    }
}
