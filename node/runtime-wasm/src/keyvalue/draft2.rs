//! `wasi:keyvalue@0.2.0-draft2`.

use wasmtime::component::{Linker, Resource};

use super::{Bucket, Cas, HasView, KeyValueError, View};
use crate::context::Ctx;

#[allow(missing_docs, unreachable_pub, reason = "generated")]
mod bindings {
    wasmtime::component::bindgen!({
        path: "wit/keyvalue",
        world: "wasi:keyvalue/imports",
        imports: { default: async | trappable },
        with: {
            "wasi:keyvalue/store.bucket": crate::keyvalue::Bucket,
            "wasi:keyvalue/atomics.cas": crate::keyvalue::Cas,
        },
    });
}

use bindings::wasi::keyvalue::{
    atomics::{self, CasError},
    batch,
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

    async fn list_keys(&mut self, bucket: Resource<Bucket>, cursor: Option<String>) -> Answer<KeyResponse> {
        let keys = self.buckets.keys(&self.name(&bucket)?, cursor.as_deref()).await;
        answer(keys.map(|keys| KeyResponse { cursor: keys.last().cloned(), keys }))
    }

    async fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.close(bucket)
    }
}

impl atomics::Host for View<'_> {
    async fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: i64) -> Answer<i64> {
        let bucket = self.name(&bucket)?;
        let sum = self.add(&bucket, &key, i128::from(delta)).await;
        let fitting = |sum| i64::try_from(sum).map_err(|_| KeyValueError(format!("{key:?} is out of range")));
        answer(sum.and_then(fitting))
    }

    async fn swap(&mut self, cas: Resource<Cas>, value: Vec<u8>) -> wasmtime::Result<Result<(), CasError>> {
        let found = self.table.get(&cas)?;
        let swapped = self.buckets.swap(&found.bucket, &found.key, found.value.as_deref(), value).await;
        match swapped {
            Ok(true) => {
                self.table.delete(cas)?;
                Ok(Ok(()))
            }
            Ok(false) => {
                let (bucket, key) = (found.bucket.clone(), found.key.clone());
                let current = self.buckets.get(&bucket, &key).await;
                let found = self.table.get_mut(&cas)?;
                Ok(Err(match current {
                    Ok(value) => {
                        found.value = value;
                        CasError::CasFailed(cas)
                    }
                    Err(error) => CasError::StoreError(error.into()),
                }))
            }
            Err(error) => Ok(Err(CasError::StoreError(error.into()))),
        }
    }
}

impl atomics::HostCas for View<'_> {
    async fn new(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<Resource<Cas>> {
        let bucket = self.name(&bucket)?;
        match self.buckets.get(&bucket, &key).await {
            Ok(value) => Ok(Ok(self.table.push(Cas { bucket, key, value })?)),
            Err(error) => Ok(Err(error.into())),
        }
    }

    async fn current(&mut self, cas: Resource<Cas>) -> Answer<Option<Vec<u8>>> {
        Ok(Ok(self.table.get(&cas)?.value.clone()))
    }

    async fn drop(&mut self, cas: Resource<Cas>) -> wasmtime::Result<()> {
        self.table.delete(cas)?;
        Ok(())
    }
}

impl batch::Host for View<'_> {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Answer<Vec<(String, Option<Vec<u8>>)>> {
        let bucket = self.name(&bucket)?;
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            match self.buckets.get(&bucket, &key).await {
                Ok(value) => found.push((key, value)),
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
