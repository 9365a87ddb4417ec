//! The store in a file.

use futures::FutureExt;
use ketch_store::testing::{delete, next_change, put, watch_options};
use ketch_store::{Error, ListOptions, RedbOptions, RedbStore, Storage};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// Few events stay in memory, so that most watches begin in the log.
fn options() -> RedbOptions {
    RedbOptions { watch: watch_options(16), ..RedbOptions::default() }
}

fn open(dir: &Path) -> Arc<RedbStore> {
    Arc::new(RedbStore::open(dir, options()).unwrap())
}

async fn make() -> (Arc<dyn Storage>, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (open(dir.path()), dir)
}

ketch_store::storage_suite!(make);

/// The same without a journal: every batch is a transaction.
mod direct {
    use super::*;

    async fn make() -> (Arc<dyn Storage>, TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let options = RedbOptions { journal_bytes: 0, ..options() };
        (Arc::new(RedbStore::open(dir.path(), options).unwrap()), dir)
    }

    ketch_store::storage_suite!(make);
}

#[tokio::test]
async fn everything_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Storage> = open(dir.path());
    for index in 0..30 {
        put(&store, &format!("/a/{}", index % 4), index.to_string()).await.unwrap();
    }
    delete(&store, "/a/3").await.unwrap();
    store.compact(5).await.unwrap();
    let before = store.list("", ListOptions::default()).await.unwrap();
    drop(store);

    let store: Arc<dyn Storage> = open(dir.path());
    let after = store.list("", ListOptions::default()).await.unwrap();
    assert_eq!((after.revision, after.items), (31, before.items));
    let mut watch = store.watch("/a/", 5).await.unwrap();
    for expected in 6..=31 {
        assert_eq!(next_change(&mut watch).await.unwrap().revision, expected);
    }
    let old = store.watch("/a/", 4).await.err();
    assert!(matches!(old, Some(Error::Compacted { requested: 4, oldest: 5 })), "{old:?}");
    assert_eq!(put(&store, "/a/3", "again").await.unwrap().current.unwrap().created, 32);
}

#[tokio::test]
async fn a_journal_of_another_store_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Storage> = open(dir.path());
    put(&store, "/a", "1").await.unwrap();
    let snapshot = dir.path().join("snapshot");
    store.snapshot(&snapshot).await.unwrap();
    put(&store, "/a", "2").await.unwrap();
    let journal = std::fs::read(dir.path().join("store.journal")).unwrap();
    drop(store);
    std::fs::rename(&snapshot, dir.path().join(RedbStore::FILE)).unwrap();
    std::fs::write(dir.path().join("store.journal"), journal).unwrap();
    let store: Arc<dyn Storage> = open(dir.path());
    assert_eq!(store.get("/a").await.unwrap().unwrap().value, "1");
    assert_eq!(store.revision().await.unwrap(), 1);
}

#[tokio::test]
async fn a_directory_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    let second = RedbStore::open(dir.path(), options()).err();
    assert!(matches!(second, Some(Error::InUse)), "{second:?}");
    first.close().await;
    open(dir.path());
}

#[tokio::test]
async fn closing_ends_watches_and_refuses_writes() {
    let dir = tempfile::tempdir().unwrap();
    let closing = open(dir.path());
    let store: Arc<dyn Storage> = closing.clone();
    put(&store, "/a", "1").await.unwrap();
    let mut watch = store.watch("/", 0).await.unwrap();
    put(&store, "/b", "1").await.unwrap();
    assert_eq!(next_change(&mut watch).await.unwrap().revision, 1);
    assert_eq!(next_change(&mut watch).await.unwrap().revision, 2);
    let mut queued = Box::pin(put(&store, "/queued", "1"));
    assert!((&mut queued).now_or_never().is_none());
    closing.close().await;
    assert_eq!(queued.await.unwrap().revision, 3, "what is queued is still written");
    assert_eq!(next_change(&mut watch).await.unwrap().revision, 3);
    let ended = next_change(&mut watch).await;
    assert!(matches!(ended, Err(Error::Closed)), "{ended:?}");
    let refused = put(&store, "/c", "1").await;
    assert!(matches!(refused, Err(Error::Closed)), "{refused:?}");
    assert!(matches!(store.watch("/", 0).await.err(), Some(Error::Closed)));
    assert_eq!(store.get("/a").await.unwrap().unwrap().value, "1");
}

#[tokio::test]
async fn a_file_that_is_not_a_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(RedbStore::FILE), "something else entirely").unwrap();
    let refused = RedbStore::open(dir.path(), options()).err();
    assert!(matches!(refused, Some(Error::Backend { .. })), "{refused:?}");
}

#[tokio::test]
async fn an_interrupted_first_start_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("store.redb.new"), "half a fi").unwrap();
    let store: Arc<dyn Storage> = open(dir.path());
    assert_eq!(put(&store, "/a", "1").await.unwrap().revision, 1);
    assert!(!dir.path().join("store.redb.new").exists());
}

#[tokio::test]
async fn compaction_goes_in_steps_and_to_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Storage> = open(dir.path());
    let writes = (0..2_500).map(|index| {
        let store = store.clone();
        async move { put(&store, &format!("/c/{}", index % 9), "x").await }
    });
    futures::future::try_join_all(writes).await.unwrap();
    store.compact(2_400).await.unwrap();
    drop(store);
    let store: Arc<dyn Storage> = open(dir.path());
    assert!(matches!(store.watch("/", 2_399).await.err(), Some(Error::Compacted { oldest: 2_400, .. })));
    let mut watch = store.watch("/", 2_400).await.unwrap();
    assert_eq!(next_change(&mut watch).await.unwrap().revision, 2_401);
}
