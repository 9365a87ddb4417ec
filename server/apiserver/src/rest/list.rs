//! GET of an object or of a collection. Stored bytes are served as they are unless a selector or a form
//! needs to see inside.

use std::time::Duration;

use axum::response::Response;
use bytes::{BufMut, BytesMut};
use ketch_api::{FieldError, Status};
use ketch_store::{ListOptions, Revision, Versioned};
use serde_json::{Value, json};

use super::{Call, answer, filter::Filter, page_token::PageToken, transaction::failure};
use crate::{
    registry::Resource,
    respond,
    server::ApiServer,
    wire::{
        negotiate::{Accepted, Form},
        set, stored, table,
    },
};

/// How long a read waits for a revision that has not happened yet; upstream's watch cache waits as long.
const FUTURE_WAIT: Duration = Duration::from_secs(3);
/// Keys examined at a time when a selector discards some.
const SCAN: usize = 500;

/// Which state a list is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Latest,
    NotOlderThan(Revision),
    Exact(Revision),
}

/// The objects of a list.
pub(crate) struct Selected {
    pub(crate) items: Vec<Versioned>,
    pub(crate) revision: Revision,
    /// Where the next page begins.
    pub(crate) token: Option<String>,
    /// How many objects the next pages hold, where that is known.
    pub(crate) remaining: Option<usize>,
}

/// Answers a get.
pub(crate) async fn get(call: &Call, resource: &Resource) -> Result<Response, Status> {
    let name = &call.info.name;
    if let Some(revision) = revision_of(call.query.get("resourceVersion"))? {
        reach(&call.server, revision).await?;
    }
    let key = resource.key(&call.info.namespace, name);
    let found = call.server.storage.get(&key).await.map_err(failure)?;
    let object = found.ok_or_else(|| Status::not_found(resource.group_resource(), name))?;
    answer::object(call, resource, 200, &object.value, object.revision)
}

/// Answers a list.
pub(crate) async fn list(call: &Call, resource: &Resource) -> Result<Response, Status> {
    call.accepted()?;
    match select(call, resource).await {
        Ok(selected) => answer(call, resource, selected),
        Err(status) if status.code == 410 => Ok(expired(call, &status)),
        Err(status) => Err(status),
    }
}

/// 410; with a token to go on from, if inconsistently, when a page was asked for.
fn expired(call: &Call, status: &Status) -> Response {
    let mut value = status.to_json();
    let token = call.query.get("continue").and_then(|text| PageToken::decode(text).ok());
    let message = match token {
        Some(token) => {
            let fresh = PageToken::new(-1, &token.after).encode();
            set(&mut value, "metadata", json!({"continue": fresh}));
            "The provided continue parameter is too old to display a consistent list result. You can start a \
             new list without the continue parameter, or use the continue token in this response to retrieve \
             the remainder of the results. Continuing with the provided token results in an inconsistent list \
             - objects that were created, modified, or deleted between the time the first chunk was returned \
             and now may show up in the list."
        }
        None => "The resourceVersion for the provided list is too old.",
    };
    set(&mut value, "message", message);
    respond::json(410, &value)
}

/// Reads what the request's parameters select.
pub(crate) async fn select(call: &Call, resource: &Resource) -> Result<Selected, Status> {
    let filter = Filter::parse(call, resource)?;
    let limit = usize::try_from(call.query.integer("limit")?.unwrap_or(0).max(0)).unwrap_or(0);
    let token = call.query.get("continue").map(PageToken::decode).transpose()?;
    let prefix = resource.prefix(&call.info.namespace);
    let state = state(call, limit, token.as_ref())?;
    let at = match state {
        State::Latest => None,
        State::Exact(revision) => {
            reach(&call.server, revision).await?;
            Some(revision)
        }
        State::NotOlderThan(revision) => {
            reach(&call.server, revision).await?;
            None
        }
    };
    let after = token.map(|token| format!("{prefix}{}", token.after));
    scan(&call.server, resource, &filter, &prefix, ListOptions { after, limit, at }).await
}

/// Reads pages until `limit` objects pass the filter.
async fn scan(
    server: &ApiServer,
    resource: &Resource,
    filter: &Filter,
    prefix: &str,
    wanted: ListOptions,
) -> Result<Selected, Status> {
    let ListOptions { mut after, limit, mut at } = wanted;
    let everything = filter.is_everything();
    let step = if limit == 0 || everything { limit } else { limit.max(SCAN) };
    let mut items = Vec::new();
    loop {
        let options = ListOptions { after: after.clone(), limit: step, at };
        let page = server.storage.list(prefix, options).await.map_err(failure)?;
        at = Some(page.revision);
        let (revision, left, count) = (page.revision, page.remaining, page.items.len());
        for (index, item) in page.items.into_iter().enumerate() {
            after = Some(item.key.to_string());
            if everything || filter.matches(resource, &item)? {
                items.push(item);
            }
            let more = left > 0 || index + 1 < count;
            if limit > 0 && items.len() == limit && more {
                return Ok(page_of(items, revision, prefix, after, everything.then_some(left)));
            }
        }
        if left == 0 || limit == 0 {
            return Ok(Selected { items, revision, token: None, remaining: None });
        }
    }
}

fn page_of(
    items: Vec<Versioned>,
    revision: Revision,
    prefix: &str,
    after: Option<String>,
    remaining: Option<usize>,
) -> Selected {
    let after = after.unwrap_or_default();
    let start = after.strip_prefix(prefix).unwrap_or(&after);
    let token = PageToken::new(i64::try_from(revision).unwrap_or(i64::MAX), start).encode();
    Selected { items, revision, token: Some(token), remaining }
}

/// Parses a `resourceVersion` parameter; absent and 0 ask for nothing.
pub(crate) fn revision_of(text: Option<&str>) -> Result<Option<Revision>, Status> {
    match text {
        None | Some("0") => Ok(None),
        Some(text) => match text.parse() {
            Ok(revision) => Ok(Some(revision)),
            Err(_) => {
                let error = FieldError::invalid("resourceVersion", text, "must be a whole number");
                Err(invalid(&[error]))
            }
        },
    }
}

fn invalid(errors: &[FieldError]) -> Status {
    Status::invalid("meta.k8s.io", "ListOptions", "", errors)
}

/// Upstream's reading of `resourceVersion`, `resourceVersionMatch`, `limit` and `continue`
/// (`apimachinery/pkg/apis/meta/internalversion/validation`).
fn state(call: &Call, limit: usize, token: Option<&PageToken>) -> Result<State, Status> {
    let (version, matching) = (call.query.get("resourceVersion"), call.query.get("resourceVersionMatch"));
    let mut errors = Vec::new();
    let mut forbid = |field: &str, why: &str| errors.push(FieldError::forbidden(field, why));
    if let Some(matching) = matching {
        if version.is_none() {
            forbid(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            );
        }
        if token.is_some() {
            forbid("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided");
        }
        if matching == "Exact" && version == Some("0") {
            let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            forbid("resourceVersionMatch", why);
        }
    }
    if call.query.get("sendInitialEvents").is_some() {
        forbid("sendInitialEvents", "sendInitialEvents is forbidden for list");
    }
    if let Some(other) = matching.filter(|text| !matches!(*text, "Exact" | "NotOlderThan")) {
        errors.push(FieldError::not_supported("resourceVersionMatch", other, &["", "Exact", "NotOlderThan"]));
    }
    if !errors.is_empty() {
        return Err(invalid(&errors));
    }
    let revision = revision_of(version)?;
    match (token, revision, matching) {
        (Some(_), Some(_), _) => {
            Err(Status::bad_request("specifying resource version is not allowed when using continue"))
        }
        (Some(token), None, _) => Ok(Revision::try_from(token.revision).map_or(State::Latest, State::Exact)),
        (None, None, _) => Ok(State::Latest),
        (None, Some(revision), Some("Exact")) => Ok(State::Exact(revision)),
        (None, Some(revision), None) if limit > 0 => Ok(State::Exact(revision)),
        (None, Some(revision), _) => Ok(State::NotOlderThan(revision)),
    }
}

/// Waits until the store has reached `revision`; 504 when that takes too long.
pub(crate) async fn reach(server: &ApiServer, revision: Revision) -> Result<(), Status> {
    let current = server.storage.revision().await.map_err(failure)?;
    if current >= revision {
        return Ok(());
    }
    match tokio::time::timeout(FUTURE_WAIT, server.storage.wait_for(revision)).await {
        Ok(result) => result.map_err(failure),
        Err(_) => Err(Status::revision_too_large(revision, current)),
    }
}

/// Renders a list in the form the client asked for.
pub(crate) fn answer(call: &Call, resource: &Resource, selected: Selected) -> Result<Response, Status> {
    let accepted = call.accepted()?;
    let metadata = metadata_of(&selected);
    if accepted == Accepted::default() {
        return Ok(assembled(resource, &metadata, &selected.items));
    }
    let objects = selected.items.iter().map(stored::decode).collect::<Result<Vec<_>, _>>()?;
    let descriptor = resource.descriptor();
    let value = match accepted.form {
        Form::Object => json!({"kind": format!("{}List", descriptor.kind),
            "apiVersion": descriptor.api_version(), "metadata": metadata, "items": objects}),
        Form::Metadata(version) => {
            let items = objects.iter().map(|object| table::partial(object, version)).collect::<Vec<_>>();
            json!({"kind": "PartialObjectMetadataList", "apiVersion": version.api_version(),
                "metadata": metadata, "items": items})
        }
        Form::Table(version) => {
            table::table(resource.strategy(), answer::style(call, version)?, metadata, objects, true)
        }
    };
    answer::encoded(200, accepted.encoding, &value)
}

fn metadata_of(selected: &Selected) -> Value {
    let mut metadata = json!({"resourceVersion": selected.revision.to_string()});
    if let Some(token) = &selected.token {
        set(&mut metadata, "continue", token.as_str());
    }
    if let Some(remaining) = selected.remaining.filter(|remaining| *remaining > 0) {
        set(&mut metadata, "remainingItemCount", remaining);
    }
    metadata
}

/// The JSON list, put together from stored bytes.
fn assembled(resource: &Resource, metadata: &Value, items: &[Versioned]) -> Response {
    let descriptor = resource.descriptor();
    let size = items.iter().map(|item| item.value.len() + 48).sum::<usize>();
    let mut out = BytesMut::with_capacity(size + 256);
    out.put_slice(
        format!(
            "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
            descriptor.kind,
            descriptor.api_version()
        )
        .as_bytes(),
    );
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.put_u8(b',');
        }
        stored::splice(&mut out, &item.value, item.revision);
    }
    out.put_slice(b"]}\n");
    respond::bytes(200, "application/json", out.freeze())
}
