//! The store in memory.

use ketch_store::testing::watch_options;
use ketch_store::{MemoryOptions, MemoryStore, Storage};
use std::sync::Arc;

async fn make() -> (Arc<dyn Storage>, ()) {
    (Arc::new(MemoryStore::new(MemoryOptions { watch: watch_options(100_000) })), ())
}

ketch_store::storage_suite!(make);
