//! What every write does between its decoded object and the store: admission, strategy, metadata.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use ketch_api::{FieldError, Status, strategy::Context};
use ketch_store::{Update, Versioned};
use serde_json::Value;

use super::{delete, meta};
use crate::{
    admission::{Admission, Request},
    registry::Resource,
    server::ApiServer,
    wire::{
        body::{self, FieldValidation},
        stored,
    },
};

/// Which part of an object an update may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Everything but the status, where the kind has a status of its own.
    Main,
    /// The status, labels and annotations.
    Status,
    /// `spec.finalizers` of a namespace.
    Finalize,
}

/// A write: its kind, its request and the hooks it passes.
#[derive(Clone)]
pub(crate) struct Write {
    pub(crate) resource: Arc<Resource>,
    pub(crate) request: Request,
    pub(crate) cx: Context,
    hooks: Arc<[Arc<dyn Admission>]>,
}

/// What a write ended with.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The object as it is to be shown; also when the write removed it.
    pub(crate) value: Bytes,
    /// For `Warning` headers.
    pub(crate) warnings: Vec<String>,
}

/// A client's object, decoded.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) object: Value,
    pub(crate) warnings: Vec<String>,
}

impl Write {
    pub(crate) fn new(server: &ApiServer, resource: Arc<Resource>, request: Request, now: Timestamp) -> Self {
        let cx = Context { now, user: request.user.name.clone() };
        Self { resource, request, cx, hooks: server.admission.clone() }
    }

    /// Types and defaults what a client sent; complains about fields the kind does not have.
    pub(crate) fn decode(
        &self,
        mut raw: Value,
        duplicates: &[String],
        validation: FieldValidation,
    ) -> Result<Incoming, Status> {
        let descriptor = self.resource.descriptor();
        body::check_type(&mut raw, &descriptor.api_version(), descriptor.kind)?;
        let decoded = self.resource.strategy().decode(raw).map_err(Status::bad_request)?;
        let complaints = body::complaints(&decoded.unknown, duplicates);
        match validation {
            FieldValidation::Strict if !complaints.is_empty() => Err(Status::bad_request(format!(
                "{kind} in version \"{}\" cannot be handled as a {kind}: strict decoding error: {}",
                descriptor.version,
                complaints.join(", "),
                kind = descriptor.kind,
            ))),
            FieldValidation::Warn => Ok(Incoming { object: decoded.object, warnings: complaints }),
            _ => Ok(Incoming { object: decoded.object, warnings: Vec::new() }),
        }
    }

    /// The hooks' phase before the transaction.
    pub(crate) async fn review(&self, mut object: Option<&mut Value>) -> Result<(), Status> {
        for hook in self.hooks.iter() {
            hook.review(&self.request, object.as_deref_mut()).await?;
        }
        Ok(())
    }

    /// The hooks' phase after the transaction: what the object `uid` is now; `None`: nothing.
    pub(crate) fn settled(&self, uid: &str, stored: Option<&[u8]>) {
        if !self.request.dry_run {
            self.hooks.iter().for_each(|hook| hook.settled(&self.request, uid, stored));
        }
    }

    /// The hooks' last word; also for deletes.
    pub(crate) fn admit(&self, object: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
        self.hooks.iter().try_for_each(|hook| hook.validate(&self.request, object, old))
    }

    fn mutate(&self, object: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        self.hooks.iter().try_for_each(|hook| hook.mutate(&self.request, object, old))
    }

    /// A new object, ready for the store. Its metadata is initialised.
    pub(crate) fn creation(&self, mut object: Value) -> Result<Outcome, Status> {
        self.mutate(&mut object, None)?;
        let errors = ketch_api::meta::validate(self.resource.descriptor(), &object);
        self.refuse(&object, &errors)?;
        let prepared = self.resource.strategy().create(&self.cx, object)?;
        self.admit(Some(&prepared.object), None)?;
        Ok(Outcome { value: stored::encode(&prepared.object)?, warnings: prepared.warnings })
    }

    /// A changed object, ready for the store, and what to do with it. `new` is decoded and complete.
    pub(crate) fn change(
        &self,
        current: &Versioned,
        new: Value,
        part: Part,
    ) -> Result<(Update, Outcome), Status> {
        let old = stored::decode(current)?;
        self.check_identity(current, &new, &old)?;
        let (object, warnings) = match part {
            Part::Main => self.change_main(new, &old)?,
            Part::Status => (self.change_part(status_of(&new, &old)?, &old)?, Vec::new()),
            Part::Finalize => (self.change_part(finalizers_of(&new, &old)?, &old)?, Vec::new()),
        };
        let (update, value) = self.conclude(current, &object, &old)?;
        Ok((update, Outcome { value, warnings }))
    }

    /// Admission's last word on a changed object, and what becomes of it: an object whose deletion waited
    /// for nothing but this change goes; one that did not change is left alone.
    pub(crate) fn conclude(
        &self,
        current: &Versioned,
        object: &Value,
        old: &Value,
    ) -> Result<(Update, Bytes), Status> {
        self.admit(Some(object), Some(old))?;
        let value = stored::encode(object)?;
        let update = if meta::deleting(object) && !delete::pinned(object) {
            Update::Delete
        } else if value == current.value {
            Update::Keep
        } else {
            Update::Put(value.clone())
        };
        Ok((update, value))
    }

    fn change_main(&self, mut new: Value, old: &Value) -> Result<(Value, Vec<String>), Status> {
        let descriptor = self.resource.descriptor();
        meta::carry_over(&mut new, old)?;
        if descriptor.status {
            replace(&mut new, old, "status");
        }
        self.mutate(&mut new, Some(old))?;
        self.check_metadata(&new, old)?;
        let mut prepared = self.resource.strategy().update(&self.cx, new, old)?;
        if descriptor.generation && meta::spec_differs(&prepared.object, old) {
            meta::bump_generation(&mut prepared.object)?;
        }
        Ok((prepared.object, prepared.warnings))
    }

    fn change_part(&self, mut new: Value, old: &Value) -> Result<Value, Status> {
        self.mutate(&mut new, Some(old))?;
        self.check_metadata(&new, old)?;
        Ok(new)
    }

    fn check_metadata(&self, new: &Value, old: &Value) -> Result<(), Status> {
        let mut errors = ketch_api::meta::validate(self.resource.descriptor(), new);
        errors.extend(ketch_api::meta::validate_update(new, old));
        self.refuse(new, &errors)
    }

    fn refuse(&self, object: &Value, errors: &[FieldError]) -> Result<(), Status> {
        if errors.is_empty() {
            return Ok(());
        }
        let descriptor = self.resource.descriptor();
        Err(Status::invalid(descriptor.group, descriptor.kind, meta::text(object, "name"), errors))
    }

    /// The object in the body must be the one in the path, and the version the client has seen.
    pub(crate) fn check_identity(&self, current: &Versioned, new: &Value, old: &Value) -> Result<(), Status> {
        let gr = self.resource.group_resource();
        let name = meta::text(old, "name");
        check_names(new, meta::text(old, "namespace"), name)?;
        let (uid, old_uid) = (meta::text(new, "uid"), meta::text(old, "uid"));
        if !uid.is_empty() && uid != old_uid {
            let why =
                format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}");
            return Err(Status::conflict(gr, name, why));
        }
        match meta::text(new, "resourceVersion") {
            // Every built-in kind allows an unconditional update.
            "" | "0" => Ok(()),
            version if version == current.revision.to_string() => Ok(()),
            version if version.parse::<u64>().is_ok() => Err(Status::stale(gr, name)),
            version => {
                let error =
                    FieldError::invalid("metadata.resourceVersion", version, "must be a whole number");
                self.refuse(new, &[error])
            }
        }
    }
}

/// Name and namespace in the body must agree with the path; absent is fine.
pub(crate) fn check_names(object: &Value, namespace: &str, name: &str) -> Result<(), Status> {
    let own = meta::text(object, "name");
    if !own.is_empty() && own != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({own}) does not match the name on the URL ({name})"
        )));
    }
    let own = meta::text(object, "namespace");
    if !own.is_empty() && own != namespace {
        return Err(Status::bad_request(format!(
            "the namespace of the object ({own}) does not match the namespace on the URL ({namespace})"
        )));
    }
    Ok(())
}

/// Sets `field` of `target` to what `source` has.
fn replace(target: &mut Value, source: &Value, field: &str) {
    if let Some(map) = target.as_object_mut() {
        match source.get(field) {
            Some(value) => map.insert(field.to_owned(), value.clone()),
            None => map.remove(field),
        };
    }
}

/// `old` with the status, labels and annotations of `new`.
fn status_of(new: &Value, old: &Value) -> Result<Value, Status> {
    let mut object = old.clone();
    replace(&mut object, new, "status");
    let metadata = meta::of_mut(&mut object)?;
    for field in ["labels", "annotations"] {
        match new.get("metadata").and_then(|m| m.get(field)) {
            Some(value) => metadata.insert(field.to_owned(), value.clone()),
            None => metadata.remove(field),
        };
    }
    Ok(object)
}

/// `old` with the `spec.finalizers` of `new`.
fn finalizers_of(new: &Value, old: &Value) -> Result<Value, Status> {
    let mut object = old.clone();
    let finalizers = new.pointer("/spec/finalizers").cloned().unwrap_or_else(|| Value::Array(Vec::new()));
    let map = object.as_object_mut().ok_or_else(|| Status::internal("a stored object is not an object"))?;
    let spec = map.entry("spec").or_insert_with(|| Value::Object(serde_json::Map::new()));
    if let Some(spec) = spec.as_object_mut() {
        spec.insert("finalizers".to_owned(), finalizers);
    }
    Ok(object)
}
