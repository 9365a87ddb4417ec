//! `wasi:keyvalue@0.2.0-draft`: numbers without sign, cursors that count, no compare-and-swap.

use wasmtime::component::{Linker, Resource};

use super::{Bucket, HasView, KeyValueError, View};
use crate::context::Ctx;

#[allow(missing_docs, unreachable_pub, reason = "generated")]
mod bindings {
    wasmtime::component::bindgen!({
        path: "wit/keyvalue-draft",
        world: "wasi:keyvalue/imports",
        imports: { default: async | trappable },
        with: { "wasi:keyvalue/store.bucket": crate::keyvalue::Bucket },
    });
}

use bindings::wasi::keyvalue::{
    atomics, batch,
    store::{self, Error, KeyResponse},
};

type Answer<T> = wasmtime::Result<Result<T, Error>>;

impl From<KeyValueError> for Error {
    fn from(error: KeyValueError) -> Self {
        Self::Other(error.0)
    }
}

fn answer<T>(result: Result<T, KeyValueError>) -> Answer<T> {
    Ok(result.map_err(Error::from))
}

impl store::Host for View<'_> {
    async fn open(&mut self, identifier: String) -> Answer<Resource<Bucket>> {
        self.open(identifier).map(Ok)
    }
}

impl store::HostBucket for View<'_> {
    async fn get(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<Option<Vec<u8>>> {
        answer(self.buckets.get(&self.name(&bucket)?, &key).await)
    }

    async fn set(&mut self, bucket: Resource<Bucket>, key: String, value: Vec<u8>) -> Answer<()> {
        answer(self.buckets.set(&self.name(&bucket)?, &key, Some(value)).await)
    }

    async fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<()> {
        answer(self.buckets.set(&self.name(&bucket)?, &key, None).await)
    }

    async fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<bool> {
        answer(self.buckets.get(&self.name(&bucket)?, &key).await.map(|value| value.is_some()))
    }

    /// All keys at once: a number says nothing about where in a changing set one is.
    async fn list_keys(&mut self, bucket: Resource<Bucket>, cursor: Option<u64>) -> Answer<KeyResponse> {
        let bucket = self.name(&bucket)?;
        let mut keys: Vec<String> = Vec::new();
        loop {
            let more = match self.buckets.keys(&bucket, keys.last().map(String::as_str)).await {
                Ok(more) => more,
                Err(error) => return Ok(Err(error.into())),
            };
            if more.is_empty() {
                break;
            }
            keys.extend(more);
        }
        let skipped = usize::try_from(cursor.unwrap_or(0)).unwrap_or(usize::MAX).min(keys.len());
        Ok(Ok(KeyResponse { keys: keys.split_off(skipped), cursor: None }))
    }

    async fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.close(bucket)
    }
}

impl atomics::Host for View<'_> {
    async fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: u64) -> Answer<u64> {
        let bucket = self.name(&bucket)?;
        let sum = self.add(&bucket, &key, i128::from(delta)).await;
        let fitting = |sum| u64::try_from(sum).map_err(|_| KeyValueError(format!("{key:?} is out of range")));
        answer(sum.and_then(fitting))
    }
}

impl batch::Host for View<'_> {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Answer<Vec<Option<(String, Vec<u8>)>>> {
        let bucket = self.name(&bucket)?;
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            match self.buckets.get(&bucket, &key).await {
                Ok(value) => found.push(value.map(|value| (key, value))),
                Err(error) => return Ok(Err(error.into())),
            }
        }
        Ok(Ok(found))
    }

    async fn set_many(&mut self, bucket: Resource<Bucket>, values: Vec<(String, Vec<u8>)>) -> Answer<()> {
        let bucket = self.name(&bucket)?;
        for (key, value) in values {
            if let Err(error) = self.buckets.set(&bucket, &key, Some(value)).await {
                return Ok(Err(error.into()));
            }
        }
        Ok(Ok(()))
    }

    async fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Answer<()> {
        let bucket = self.name(&bucket)?;
        for key in keys {
            if let Err(error) = self.buckets.set(&bucket, &key, None).await {
                return Ok(Err(error.into()));
            }
        }
        Ok(Ok(()))
    }
}

pub(super) fn add_to_linker(linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
    store::add_to_linker::<_, HasView>(linker, |ctx| View::new(ctx))?;
    atomics::add_to_linker::<_, HasView>(linker, |ctx| View::new(ctx))?;
    batch::add_to_linker::<_, HasView>(linker, |ctx| View::new(ctx))
}
