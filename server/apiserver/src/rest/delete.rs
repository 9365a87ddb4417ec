//! DELETE, of one object or of a collection: preconditions, finalizers, grace.

use std::sync::Arc;

use axum::{body::Body, response::Response};
use bytes::Bytes;
use ketch_api::{FieldError, Status};
use ketch_store::{Revision, Update, Versioned};
use serde::Deserialize;
use serde_json::Value;

use super::{Call, answer, list, meta, transaction::transact, write::Write};
use crate::{
    admission::Operation,
    registry::Resource,
    route::query::Query,
    server::ApiServer,
    wire::{body, stored},
};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// `metav1.DeleteOptions`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Options {
    grace_period_seconds: Option<i64>,
    preconditions: Option<Preconditions>,
    orphan_dependents: Option<bool>,
    propagation_policy: Option<String>,
    dry_run: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Preconditions {
    uid: Option<String>,
    resource_version: Option<String>,
}

/// What a delete did.
#[derive(Debug)]
pub(crate) enum Deleted {
    /// The object is gone.
    Removed { uid: String, value: Bytes },
    /// The object goes when its finalizers or its grace period are over.
    Marked(Bytes),
}

impl Options {
    /// Reads them from the body, or from the query where the body is empty.
    pub(crate) fn parse(call: &Call, bytes: &[u8]) -> Result<Self, Status> {
        let options = match bytes {
            [] => Self::from_query(&call.query)?,
            _ => {
                let parsed = body::parse(body::media(&call.parts.headers)?, bytes)?;
                Self::from_value(parsed.value)?
            }
        };
        options.check()?;
        Ok(options)
    }

    /// Reads them from a decoded `DeleteOptions`.
    pub(crate) fn from_value(value: Value) -> Result<Self, Status> {
        if let Some(kind) = value.get("kind").and_then(Value::as_str)
            && kind != "DeleteOptions"
        {
            return Err(Status::bad_request(format!(
                "the body of a delete is a DeleteOptions, not a {kind}"
            )));
        }
        serde_json::from_value(value).map_err(|e| Status::bad_request(format!("DeleteOptions: {e}")))
    }

    /// Whether nothing is to be stored.
    pub(crate) fn dry_run(&self) -> bool {
        !self.dry_run.is_empty()
    }

    fn from_query(query: &Query) -> Result<Self, Status> {
        Ok(Self {
            grace_period_seconds: query.integer("gracePeriodSeconds")?,
            orphan_dependents: query.get("orphanDependents").map(|_| query.flag("orphanDependents")),
            propagation_policy: query.get("propagationPolicy").map(str::to_owned),
            ..Self::default()
        })
    }

    fn check(&self) -> Result<(), Status> {
        let mut errors = Vec::new();
        if self.orphan_dependents.is_some() && self.propagation_policy.is_some() {
            let detail = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(FieldError::invalid("propagationPolicy", &self.propagation_policy, detail));
        }
        if let Some(policy) = self.propagation_policy.as_deref()
            && !matches!(policy, "Foreground" | "Background" | "Orphan")
        {
            let supported = ["Background", "Foreground", "Orphan"];
            errors.push(FieldError::not_supported("propagationPolicy", policy, &supported));
        }
        if let Some(other) = self.dry_run.iter().find(|value| *value != "All") {
            errors.push(FieldError::not_supported("dryRun", other, &["All"]));
        }
        match errors.is_empty() {
            true => Ok(()),
            false => Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &errors)),
        }
    }

    fn check_preconditions(&self, write: &Write, current: &Versioned, old: &Value) -> Result<(), Status> {
        let Some(wanted) = &self.preconditions else { return Ok(()) };
        let uid = meta::text(old, "uid");
        let why = match (&wanted.uid, &wanted.resource_version) {
            (Some(own), _) if own != uid => {
                format!("Precondition failed: UID in precondition: {own}, UID in object meta: {uid}")
            }
            (_, Some(own)) if *own != current.revision.to_string() => format!(
                "Precondition failed: ResourceVersion in precondition: {own}, ResourceVersion in object meta: {}",
                current.revision
            ),
            _ => return Ok(()),
        };
        Err(Status::conflict(write.resource.group_resource(), meta::text(old, "name"), why))
    }

    /// The finalizers that carry out the propagation policy; `None` when the request names no policy.
    fn finalizers(&self, old: &Value) -> Option<Vec<String>> {
        let wanted = match (self.propagation_policy.as_deref(), self.orphan_dependents) {
            (Some("Foreground"), _) => Some(FOREGROUND),
            (Some("Orphan"), _) | (None, Some(true)) => Some(ORPHAN),
            (Some(_), _) | (None, Some(false)) => None,
            (None, None) => return None,
        };
        let kept = meta::finalizers(old).into_iter().filter(|name| ![FOREGROUND, ORPHAN].contains(name));
        Some(kept.chain(wanted).map(str::to_owned).collect())
    }
}

/// Whether something holds back the removal of an object whose deletion has begun.
pub(crate) fn pinned(object: &Value) -> bool {
    let namespace = object.get("kind").and_then(Value::as_str) == Some("Namespace")
        && object.get("apiVersion").and_then(Value::as_str) == Some("v1")
        && object.pointer("/spec/finalizers").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    namespace
        || !meta::finalizers(object).is_empty()
        || meta::integer(object, "deletionGracePeriodSeconds").is_some_and(|seconds| seconds > 0)
}

/// Deletes one object.
pub(crate) async fn delete(call: &Call, resource: &Arc<Resource>, payload: Body) -> Result<Response, Status> {
    call.accepted()?;
    let options = Options::parse(call, &body::read(payload).await?)?;
    let mut write = call.write(resource, Operation::Delete)?;
    write.request.dry_run |= options.dry_run();
    let foreground = options.propagation_policy.as_deref() == Some("Foreground");
    match remove(&call.server, &write, options).await? {
        (_, Deleted::Removed { uid, .. }) => {
            answer::value(call, 200, &answer::success(resource, &call.info.name, &uid))
        }
        (revision, Deleted::Marked(value)) => {
            answer::object(call, resource, if foreground { 202 } else { 200 }, &value, revision)
        }
    }
}

/// Deletes the object of `write`, or begins to.
pub(crate) async fn remove(
    server: &ApiServer,
    write: &Write,
    options: Options,
) -> Result<(Revision, Deleted), Status> {
    write.review(None).await?;
    let transaction = write.clone();
    let key = write.resource.key(&write.request.namespace, &write.request.name);
    let decide = move |current: Option<&Versioned>| decide(&transaction, &options, current);
    let (written, deleted) = transact(&server.storage, &key, write.request.dry_run, decide).await?;
    if let Deleted::Removed { uid, .. } = &deleted {
        write.settled(uid, None);
    }
    Ok((written.current.map_or(written.revision, |current| current.revision), deleted))
}

fn decide(
    write: &Write,
    options: &Options,
    current: Option<&Versioned>,
) -> Result<(Update, Deleted), Status> {
    let gr = write.resource.group_resource();
    let current = current.ok_or_else(|| Status::not_found(gr, &write.request.name))?;
    let old = stored::decode(current)?;
    options.check_preconditions(write, current, &old)?;
    write.admit(None, Some(&old))?;
    let marked = mark(write, options, &old)?;
    if meta::deleting(&marked) && pinned(&marked) {
        let value = stored::encode(&marked)?;
        let update = if value == current.value { Update::Keep } else { Update::Put(value.clone()) };
        return Ok((update, Deleted::Marked(value)));
    }
    let uid = meta::text(&old, "uid").to_owned();
    Ok((Update::Delete, Deleted::Removed { uid, value: stored::encode(&marked)? }))
}

/// `old` as its deletion leaves it: with the time of its end, and the finalizers of the policy.
fn mark(write: &Write, options: &Options, old: &Value) -> Result<Value, Status> {
    let mut object = old.clone();
    if let Some(finalizers) = options.finalizers(old) {
        let metadata = meta::of_mut(&mut object)?;
        match finalizers.is_empty() {
            true => metadata.remove("finalizers"),
            false => metadata.insert("finalizers".into(), finalizers.into()),
        };
    }
    let grace = grace(write, options, old);
    let running = meta::integer(old, "deletionGracePeriodSeconds").unwrap_or(0);
    // A later request can only shorten the period.
    if meta::deleting(old) && grace >= running {
        return Ok(object);
    }
    let begun = meta::deleting(old);
    let metadata = meta::of_mut(&mut object)?;
    let end = write.cx.now.saturating_add(jiff::SignedDuration::from_secs(grace));
    metadata.insert("deletionTimestamp".into(), meta::timestamp(end.unwrap_or(write.cx.now)));
    metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
    if !begun && metadata.contains_key("generation") {
        meta::bump_generation(&mut object)?;
    }
    if object.get("kind").and_then(Value::as_str) == Some("Namespace")
        && let Some(map) = object.as_object_mut()
    {
        let status = map.entry("status").or_insert_with(|| Value::Object(serde_json::Map::new()));
        if let Some(status) = status.as_object_mut() {
            status.insert("phase".into(), "Terminating".into());
        }
    }
    Ok(object)
}

/// Seconds until the removal. A kind without a period of its own is removed at once, whatever was asked;
/// so is an object whose period is 0 (a pod that never ran).
fn grace(write: &Write, options: &Options, old: &Value) -> i64 {
    match (write.resource.strategy().grace_seconds(old), options.grace_period_seconds) {
        (None | Some(0), _) => 0,
        (Some(own), None) => own.max(0),
        // Upstream's reading of a negative period.
        (Some(_), Some(asked)) if asked < 0 => 1,
        (Some(_), Some(asked)) => asked,
    }
}

/// Deletes what a list with the same parameters would return.
pub(crate) async fn delete_collection(
    call: &Call,
    resource: &Arc<Resource>,
    payload: Body,
) -> Result<Response, Status> {
    call.accepted()?;
    let options = Options::parse(call, &body::read(payload).await?)?;
    let mut write = call.write(resource, Operation::Delete)?;
    write.request.dry_run |= options.dry_run();
    let page = list::select(call, resource).await?;
    let mut values = Vec::new();
    for item in page.items {
        let own = stored::decode(&item)?;
        write.request.name = meta::text(&own, "name").to_owned();
        match remove(&call.server, &write, options.clone()).await {
            Ok((_, Deleted::Removed { value, .. } | Deleted::Marked(value))) => {
                values.push(Versioned { value, ..item });
            }
            // Somebody else was quicker, which is what was asked for.
            Err(status) if status.code == 404 => {}
            Err(status) => return Err(status),
        }
    }
    list::answer(call, resource, list::Selected { items: values, ..page })
}
