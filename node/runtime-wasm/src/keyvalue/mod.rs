//! `wasi:keyvalue`, both drafts in use: `0.2.0-draft2` and, for older guests, `0.2.0-draft`.
//!
//! What keeps the values is a [`KeyValue`]; here [`Memory`], one per pod.

mod draft;
mod draft2;
mod memory;

use std::sync::Arc;

use async_trait::async_trait;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};

pub use memory::Memory;

use crate::context::Ctx;

/// A pod's buckets.
pub(crate) type Buckets = Arc<dyn KeyValue>;

/// Why a store refused; the guest gets the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeyValueError(pub String);

/// Keeps values by bucket and key. Each call is atomic.
#[async_trait]
pub trait KeyValue: Send + Sync {
    /// The value of a key.
    async fn get(&self, bucket: &str, key: &str) -> Result<Option<Vec<u8>>, KeyValueError>;

    /// Sets a key, or removes it with `None`.
    async fn set(&self, bucket: &str, key: &str, value: Option<Vec<u8>>) -> Result<(), KeyValueError>;

    /// Sets a key that has the value `current`; whether it had.
    async fn swap(
        &self,
        bucket: &str,
        key: &str,
        current: Option<&[u8]>,
        value: Vec<u8>,
    ) -> Result<bool, KeyValueError>;

    /// Up to 1,000 keys after `after`, in order.
    async fn keys(&self, bucket: &str, after: Option<&str>) -> Result<Vec<String>, KeyValueError>;
}

/// An open bucket.
#[allow(unreachable_pub, reason = "generated code re-exports it")]
pub struct Bucket(String);

/// A key and the value it had.
#[allow(unreachable_pub, reason = "generated code re-exports it")]
pub struct Cas {
    bucket: String,
    key: String,
    value: Option<Vec<u8>>,
}

/// The view of a store that the interfaces work on.
pub(crate) struct View<'a> {
    table: &'a mut ResourceTable,
    buckets: Buckets,
}

struct HasView;

impl HasData for HasView {
    type Data<'a> = View<'a>;
}

impl<'a> View<'a> {
    fn new(ctx: &'a mut Ctx) -> Self {
        Self { table: &mut ctx.table, buckets: Arc::clone(&ctx.pod.buckets) }
    }

    fn open(&mut self, name: String) -> wasmtime::Result<Resource<Bucket>> {
        Ok(self.table.push(Bucket(name))?)
    }

    fn name(&self, bucket: &Resource<Bucket>) -> wasmtime::Result<String> {
        Ok(self.table.get(bucket)?.0.clone())
    }

    fn close(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }

    /// Adds to a number kept as decimal text; a missing key counts as 0.
    async fn add(&mut self, bucket: &str, key: &str, delta: i128) -> Result<i128, KeyValueError> {
        loop {
            let current = self.buckets.get(bucket, key).await?;
            let number = match &current {
                None => 0,
                Some(bytes) => {
                    number(bytes).ok_or_else(|| KeyValueError(format!("{key:?} is not a number")))?
                }
            };
            let sum = number.saturating_add(delta);
            if self.buckets.swap(bucket, key, current.as_deref(), sum.to_string().into_bytes()).await? {
                return Ok(sum);
            }
        }
    }
}

fn number(bytes: &[u8]) -> Option<i128> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

pub(crate) fn add_to_linker(linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
    draft::add_to_linker(linker)?;
    draft2::add_to_linker(linker)
}
