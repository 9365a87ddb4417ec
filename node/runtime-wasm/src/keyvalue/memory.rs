//! Values in memory, gone with the pod.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;

use super::{KeyValue, KeyValueError};

/// Bytes of keys and values one pod may keep.
const CAPACITY: usize = 16 << 20;

/// See the module. Holds at most 16 MiB.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Values>);

#[derive(Debug, Default)]
struct Values {
    values: BTreeMap<(String, String), Vec<u8>>,
    size: usize,
}

impl Values {
    fn set(&mut self, bucket: &str, key: &str, value: Option<Vec<u8>>) -> Result<(), KeyValueError> {
        let name = (bucket.to_owned(), key.to_owned());
        let overhead = bucket.len() + key.len();
        let old = self.values.get(&name).map_or(0, |value| value.len() + overhead);
        let size = self.size - old + value.as_ref().map_or(0, |value| value.len() + overhead);
        if size > CAPACITY && size > self.size {
            return Err(KeyValueError(format!(
                "the pod's key-value store is full at {} MiB",
                CAPACITY >> 20
            )));
        }
        self.size = size;
        match value {
            Some(value) => self.values.insert(name, value),
            None => self.values.remove(&name),
        };
        Ok(())
    }
}

impl Memory {
    fn with<R>(&self, work: impl FnOnce(&mut Values) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl KeyValue for Memory {
    async fn get(&self, bucket: &str, key: &str) -> Result<Option<Vec<u8>>, KeyValueError> {
        Ok(self.with(|values| values.values.get(&(bucket.to_owned(), key.to_owned())).cloned()))
    }

    async fn set(&self, bucket: &str, key: &str, value: Option<Vec<u8>>) -> Result<(), KeyValueError> {
        self.with(|values| values.set(bucket, key, value))
    }

    async fn swap(
        &self,
        bucket: &str,
        key: &str,
        current: Option<&[u8]>,
        value: Vec<u8>,
    ) -> Result<bool, KeyValueError> {
        self.with(|values| {
            let found = values.values.get(&(bucket.to_owned(), key.to_owned())).map(Vec::as_slice);
            if found != current {
                return Ok(false);
            }
            values.set(bucket, key, Some(value)).map(|()| true)
        })
    }

    async fn keys(&self, bucket: &str, after: Option<&str>) -> Result<Vec<String>, KeyValueError> {
        let start = match after {
            Some(after) => Bound::Excluded((bucket.to_owned(), after.to_owned())),
            None => Bound::Included((bucket.to_owned(), String::new())),
        };
        Ok(self.with(|values| {
            let range = values.values.range((start, Bound::Unbounded));
            let own = range.map_while(|((name, key), _)| (name == bucket).then(|| key.clone()));
            own.take(1000).collect()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn values_are_kept_by_bucket() {
        let memory = Memory::default();
        memory.set("a", "k", Some(b"1".to_vec())).await.unwrap();
        memory.set("b", "k", Some(b"2".to_vec())).await.unwrap();
        assert_eq!(memory.get("a", "k").await.unwrap().unwrap(), b"1");
        assert_eq!(memory.keys("a", None).await.unwrap(), ["k"]);
        assert!(memory.keys("a", Some("k")).await.unwrap().is_empty());
        assert!(!memory.swap("a", "k", None, b"x".to_vec()).await.unwrap());
        assert!(memory.swap("a", "k", Some(b"1"), b"x".to_vec()).await.unwrap());
        memory.set("a", "k", None).await.unwrap();
        assert_eq!(memory.get("a", "k").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_full_store_refuses_and_can_be_emptied() {
        let memory = Memory::default();
        memory.set("", "big", Some(vec![0; CAPACITY - 3])).await.unwrap();
        let error = memory.set("", "more", Some(vec![0; 10])).await.unwrap_err();
        assert!(error.0.contains("full at 16 MiB"), "{error}");
        memory.set("", "big", None).await.unwrap();
        memory.set("", "more", Some(vec![0; 10])).await.unwrap();
    }
}
