//! What upstream's admission does for claims and volumes: a class for claims without one, protection of what is in
//! use, and growth only where the class allows it.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use ketch_api::{
    Status,
    k8s::api::{core::v1::PersistentVolumeClaim, storage::v1::StorageClass},
    volume::{self, CLAIM_FINALIZER, VOLUME_FINALIZER},
};
use ketch_store::{ListOptions, Storage};
use serde_json::{Value, json};

use super::{Admission, Operation, Request};
use crate::rest::transaction::failure;

const CANNOT_GROW: &str = "only dynamically provisioned pvc can be resized and the storageclass that provisions \
                           the pvc must support resize";

/// Keeps claims and volumes until nothing uses them any more; controllers take the finalizers away.
pub(super) struct InUseProtection;

impl Admission for InUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn mutate(&self, request: &Request, object: &mut Value, _old: Option<&Value>) -> Result<(), Status> {
        let finalizer = match (request.descriptor.group, request.descriptor.plural) {
            ("", "persistentvolumeclaims") => CLAIM_FINALIZER,
            ("", "persistentvolumes") => VOLUME_FINALIZER,
            _ => return Ok(()),
        };
        if request.operation != Operation::Create {
            return Ok(());
        }
        let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return Ok(()) };
        let list = metadata.entry("finalizers").or_insert_with(|| json!([]));
        if list.is_null() {
            *list = json!([]);
        }
        if let Some(list) = list.as_array_mut().filter(|list| !list.contains(&finalizer.into())) {
            list.push(finalizer.into());
        }
        Ok(())
    }
}

/// DefaultStorageClass and PersistentVolumeClaimResize.
pub(super) struct Classes {
    storage: Arc<dyn Storage>,
    /// As they were at the latest review: there are few, and whichever is newer is right.
    seen: Mutex<Arc<Vec<StorageClass>>>,
}

impl Classes {
    pub(super) fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage, seen: Mutex::default() }
    }

    fn seen(&self) -> Arc<Vec<StorageClass>> {
        Arc::clone(&self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_about(request: &Request, operation: Operation) -> bool {
        request.operation == operation
            && request.is("", "persistentvolumeclaims")
            && request.subresource.is_empty()
    }
}

#[async_trait]
impl Admission for Classes {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    async fn review(&self, request: &Request, _object: Option<&mut Value>) -> Result<(), Status> {
        if ![Operation::Create, Operation::Update].iter().any(|one| Self::is_about(request, *one)) {
            return Ok(());
        }
        let page = self.storage.list("/storage.k8s.io/storageclasses/", ListOptions::default()).await;
        let read = |item| serde_json::from_value(crate::wire::stored::decode(item).ok()?).ok();
        let classes: Vec<StorageClass> = page.map_err(failure)?.items.iter().filter_map(read).collect();
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(classes);
        Ok(())
    }

    fn mutate(&self, request: &Request, object: &mut Value, _old: Option<&Value>) -> Result<(), Status> {
        if !Self::is_about(request, Operation::Create) || has_class(object) {
            return Ok(());
        }
        let classes = self.seen();
        if let (Some(name), Some(spec)) =
            (default_class(&classes), object.get_mut("spec").and_then(Value::as_object_mut))
        {
            spec.insert("storageClassName".to_owned(), name.into());
        }
        Ok(())
    }

    fn validate(&self, request: &Request, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
        let (Some(new), Some(old)) = (object, old) else { return Ok(()) };
        if !Self::is_about(request, Operation::Update) {
            return Ok(());
        }
        let typed = |object: &Value| serde_json::from_value::<PersistentVolumeClaim>(object.clone());
        let (Ok(new), Ok(old)) = (typed(new), typed(old)) else { return Ok(()) };
        let class = volume::class_of(&old);
        let grows = volume::requested(&new) > volume::requested(&old);
        if !grows
            || self.seen().iter().any(|one| one.metadata.name.as_deref() == Some(class) && may_grow(one))
        {
            return Ok(());
        }
        Err(Status::forbidden(request.descriptor.group_resource(), &request.name, CANNOT_GROW))
    }
}

fn may_grow(class: &StorageClass) -> bool {
    class.allow_volume_expansion == Some(true)
}

/// An empty class is one: no class is wanted.
fn has_class(claim: &Value) -> bool {
    let old = claim.pointer("/metadata/annotations/volume.beta.kubernetes.io~1storage-class");
    let named = claim.pointer("/spec/storageClassName");
    [old, named].into_iter().flatten().any(|class| !class.is_null())
}

/// The youngest of the default classes; of those of one age the first by name.
fn default_class(classes: &[StorageClass]) -> Option<&str> {
    let age = |class: &StorageClass| class.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let mut defaults: Vec<&StorageClass> = classes.iter().filter(|class| volume::is_default(class)).collect();
    defaults.sort_by(|a, b| age(b).cmp(&age(a)).then_with(|| a.metadata.name.cmp(&b.metadata.name)));
    defaults.first()?.metadata.name.as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str, created: &str, default: bool) -> StorageClass {
        serde_json::from_value(json!({"metadata": {"name": name, "creationTimestamp": created,
            "annotations": {volume::IS_DEFAULT: default.to_string()}}, "provisioner": "a/b"}))
        .unwrap()
    }

    #[test]
    fn the_youngest_default_is_taken() {
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let all =
            [class("a", old, true), class("c", new, true), class("b", new, true), class("d", new, false)];
        assert_eq!(default_class(&all), Some("b"));
        assert_eq!(default_class(&[class("d", new, false)]), None);
    }

    #[test]
    fn a_class_that_is_empty_is_a_class() {
        assert!(!has_class(&json!({"spec": {"storageClassName": null}})));
        assert!(has_class(&json!({"spec": {"storageClassName": ""}})));
        let old = json!({"metadata": {"annotations": {"volume.beta.kubernetes.io/storage-class": "x"}}});
        assert!(has_class(&old));
    }
}
