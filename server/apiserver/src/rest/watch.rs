//! Watch: changes of a collection as they happen, over chunked HTTP or a WebSocket.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::{
    body::Body,
    extract::{
        FromRequestParts,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    response::Response,
};
use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http::header::UPGRADE;
use ketch_api::{FieldError, Status};
use ketch_store::{Error, Event, ListOptions, Revision, Versioned, WatchEvent, WatchStream};
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::{
    Call, answer,
    filter::Filter,
    list::{reach, revision_of},
    transaction::failure,
};
use crate::{
    registry::Resource,
    respond,
    wire::{
        negotiate::{Encoding, Form, MetaVersion},
        set, stored,
        table::{self, Style},
    },
};

/// Shortest life of a watch without `timeoutSeconds`, in seconds; the longest is twice that. Upstream's
/// `--min-request-timeout`.
const LIFE: u64 = 1_800;
/// Time between bookmarks of a quiet watch.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Longest message that a client may send, who has nothing to say.
const MAX_MESSAGE: usize = 4 << 10;
/// Events put into one write.
const BATCH: usize = 64;

/// Answers a watch. Headers are sent at once.
pub(crate) async fn watch(call: &mut Call, resource: &Arc<Resource>) -> Result<Response, Status> {
    let upgrade = match call.parts.headers.contains_key(UPGRADE) {
        true => Some(
            WebSocketUpgrade::from_request_parts(&mut call.parts, &())
                .await
                .map_err(|e| Status::bad_request(e.body_text()))?,
        ),
        false => None,
    };
    let mut watcher = open(call, resource).await?;
    if let Some(upgrade) = upgrade {
        watcher.batch = 1;
        let upgrade = upgrade.max_message_size(MAX_MESSAGE).max_frame_size(MAX_MESSAGE);
        return Ok(upgrade.on_upgrade(move |socket| relay(socket, watcher)));
    }
    let stream = futures::stream::unfold(watcher, |mut watcher| async move {
        watcher.next().await.map(|bytes| (Ok::<_, std::convert::Infallible>(bytes), watcher))
    });
    let mut response = respond::bytes(200, "application/json;stream=watch", Bytes::new());
    *response.body_mut() = Body::from_stream(stream);
    Ok(response)
}

/// One event per text frame until either side ends.
async fn relay(mut socket: WebSocket, mut watcher: Watcher) {
    loop {
        tokio::select! {
            frame = watcher.next() => {
                let Some(frame) = frame else { break };
                let Ok(text) = String::from_utf8(frame.to_vec()) else { break };
                if socket.send(Message::Text(text.into())).await.is_err() {
                    return;
                }
            }
            received = socket.recv() => match received {
                // Clients have nothing to say; pings are answered by the library.
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            },
        }
    }
    // The client may be gone already, which is what was wanted.
    let _ = socket.send(Message::Close(None)).await;
}

/// What a watch begins with.
struct Start {
    initial: VecDeque<Versioned>,
    from: Revision,
    /// Bookmark that tells the end of the initial events.
    end_bookmark: bool,
}

async fn open(call: &Call, resource: &Arc<Resource>) -> Result<Watcher, Status> {
    let accepted = call.accepted()?;
    if accepted.encoding == Encoding::Yaml {
        return Err(Status::not_acceptable("application/json"));
    }
    let form = match accepted.form {
        Form::Object => Shape::Object,
        Form::Metadata(version) => Shape::Metadata(version),
        Form::Table(version) => Shape::Table { style: answer::style(call, version)?, header: true },
    };
    let filter = Filter::parse(call, resource)?;
    let prefix = resource.prefix(&call.info.namespace);
    let timeout = timeout(call)?;
    let start = start(call, &prefix).await?;
    let source = match call.server.storage.watch(&prefix, start.from).await {
        Ok(source) => source,
        // An error that belongs to the revision is told in the stream, where informers look for it.
        Err(error @ Error::Compacted { .. }) => futures::stream::iter([Err(error)]).boxed(),
        Err(error) => return Err(failure(error)),
    };
    Ok(Watcher {
        resource: resource.clone(),
        filter,
        form,
        source,
        initial: start.initial,
        end_bookmark: start.end_bookmark.then_some(start.from),
        bookmarks: call.query.flag("allowWatchBookmarks"),
        seen: start.from,
        next_bookmark: Instant::now() + BOOKMARK_EVERY,
        deadline: Box::pin(tokio::time::sleep(timeout)),
        stopping: call.server.stopping.clone(),
        batch: BATCH,
        ended: false,
    })
}

/// How long the watch lasts.
fn timeout(call: &Call) -> Result<Duration, Status> {
    match call.query.integer("timeoutSeconds")?.and_then(|seconds| u64::try_from(seconds).ok()) {
        Some(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => {
            // Spread, so that the watches of a restarted fleet do not end together for ever after.
            let mut bytes = [0_u8; 2];
            getrandom::fill(&mut bytes)
                .map_err(|e| Status::internal(format!("reading random bytes: {e}")))?;
            let spread = u64::from(u16::from_le_bytes(bytes)) * LIFE / u64::from(u16::MAX);
            Ok(Duration::from_secs(LIFE + spread))
        }
    }
}

async fn start(call: &Call, prefix: &str) -> Result<Start, Status> {
    check(call)?;
    let version = call.query.get("resourceVersion");
    let revision = revision_of(version)?;
    let initial = call.query.get("sendInitialEvents").map(|_| call.query.flag("sendInitialEvents"));
    match (initial, revision) {
        (None, Some(from)) => Ok(Start { initial: VecDeque::new(), from, end_bookmark: false }),
        (Some(false), _) => {
            let from = match revision {
                Some(from) => from,
                None => call.server.storage.revision().await.map_err(failure)?,
            };
            Ok(Start { initial: VecDeque::new(), from, end_bookmark: false })
        }
        (wanted, revision) => {
            reach(&call.server, revision.unwrap_or(0)).await?;
            let page = call.server.storage.list(prefix, ListOptions::default()).await.map_err(failure)?;
            let end_bookmark = wanted == Some(true) && call.query.flag("allowWatchBookmarks");
            Ok(Start { initial: page.items.into(), from: page.revision, end_bookmark })
        }
    }
}

/// Upstream's `validateWatchOptions`.
fn check(call: &Call) -> Result<(), Status> {
    let field = "resourceVersionMatch";
    let mut errors = Vec::new();
    let matching = call.query.get(field);
    let initial = call.query.get("sendInitialEvents").is_some();
    if initial && matching != Some("NotOlderThan") {
        let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        errors.push(FieldError::forbidden(field, why));
    }
    if matching.is_some() && !initial {
        let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
        errors.push(FieldError::forbidden(field, why));
    }
    if let Some(other) = matching.filter(|text| *text != "NotOlderThan") {
        errors.push(FieldError::not_supported(field, other, &["NotOlderThan"]));
    }
    if call.query.get("continue").is_some() {
        errors.push(FieldError::forbidden("continue", "continue is forbidden for watch"));
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors)),
    }
}

/// What the events' objects look like.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Object,
    Metadata(MetaVersion),
    /// `header`: the columns have not been sent yet.
    Table {
        style: Style,
        header: bool,
    },
}

struct Watcher {
    resource: Arc<Resource>,
    filter: Filter,
    form: Shape,
    source: WatchStream,
    initial: VecDeque<Versioned>,
    end_bookmark: Option<Revision>,
    bookmarks: bool,
    /// Everything up to here has been delivered.
    seen: Revision,
    next_bookmark: Instant,
    deadline: Pin<Box<Sleep>>,
    stopping: CancellationToken,
    batch: usize,
    ended: bool,
}

impl Watcher {
    /// The next events as JSON lines; `None` at the end. Cancel-safe.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = BytesMut::new();
        while !self.ended && out.is_empty() {
            if !self.initial.is_empty() || self.end_bookmark.is_some() {
                self.initial_events(&mut out);
                continue;
            }
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => self.ended = true,
                () = &mut self.deadline => {
                    self.ended = true;
                    if self.bookmarks {
                        self.bookmark(&mut out, false);
                    }
                }
                event = self.source.next() => self.take(event, &mut out),
            }
            self.take_ready(&mut out);
        }
        (!out.is_empty()).then(|| out.freeze())
    }

    fn initial_events(&mut self, out: &mut BytesMut) {
        for _ in 0..self.batch {
            let Some(object) = self.initial.pop_front() else { break };
            match self.filter.matches(&self.resource, &object) {
                Ok(true) => self.frame(out, "ADDED", &object.value, object.revision, &object.key),
                Ok(false) => {}
                Err(status) => return self.fail(out, &status),
            }
        }
        if self.initial.is_empty()
            && (out.is_empty() || self.batch > 1)
            && let Some(revision) = self.end_bookmark.take()
        {
            self.seen = revision;
            self.bookmark(out, true);
        }
    }

    /// Adds events that need no waiting.
    fn take_ready(&mut self, out: &mut BytesMut) {
        for _ in 1..self.batch {
            if self.ended || out.is_empty() {
                return;
            }
            let Some(event) = futures::FutureExt::now_or_never(self.source.next()) else { return };
            self.take(event, out);
        }
    }

    fn take(&mut self, event: Option<Result<WatchEvent, Error>>, out: &mut BytesMut) {
        match event {
            Some(Ok(WatchEvent::Change(event))) => {
                self.seen = event.revision;
                if let Err(status) = self.change(out, &event) {
                    self.fail(out, &status);
                }
            }
            Some(Ok(WatchEvent::Progress(revision))) => {
                self.seen = self.seen.max(revision);
                if self.bookmarks && Instant::now() >= self.next_bookmark {
                    self.bookmark(out, false);
                }
            }
            // The client reads too slowly: it watches again from the last event it has got.
            Some(Err(Error::Overflow | Error::Closed)) | None => self.ended = true,
            Some(Err(error)) => self.fail(out, &failure(error)),
        }
    }

    /// A change is an event only to those who see the object before or after it.
    fn change(&mut self, out: &mut BytesMut, event: &Event) -> Result<(), Status> {
        let sees = |object: &Option<Versioned>| match object {
            Some(object) => self.filter.matches(&self.resource, object),
            None => Ok(false),
        };
        let (before, after) = (sees(&event.previous)?, sees(&event.current)?);
        match (&event.previous, &event.current) {
            (_, Some(current)) if after => {
                let kind = if before { "MODIFIED" } else { "ADDED" };
                self.frame(out, kind, &current.value, event.revision, &event.key);
            }
            (Some(previous), _) if before => {
                self.frame(out, "DELETED", &previous.value, event.revision, &event.key);
            }
            _ => {}
        }
        Ok(())
    }

    fn frame(&mut self, out: &mut BytesMut, kind: &str, value: &[u8], revision: Revision, key: &str) {
        if let Shape::Object = self.form {
            out.reserve(value.len() + 96);
            out.put_slice(b"{\"type\":\"");
            out.put_slice(kind.as_bytes());
            out.put_slice(b"\",\"object\":");
            stored::splice(out, value, revision);
            out.put_slice(b"}\n");
            return;
        }
        match stored::decode_at(value, revision, key) {
            Ok(object) => {
                let object = self.shaped(object);
                put(out, kind, &object);
            }
            Err(status) => self.fail(out, &status),
        }
    }

    fn shaped(&mut self, object: Value) -> Value {
        match &mut self.form {
            Shape::Object => object,
            Shape::Metadata(version) => table::partial(&object, *version),
            Shape::Table { style, header } => {
                let header = std::mem::replace(header, false);
                let metadata = object.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
                let metadata = json!({"resourceVersion": metadata});
                table::table(self.resource.strategy(), *style, metadata, vec![object], header)
            }
        }
    }

    fn bookmark(&mut self, out: &mut BytesMut, initial_end: bool) {
        self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
        let descriptor = self.resource.descriptor();
        let mut metadata = json!({"resourceVersion": self.seen.to_string(), "creationTimestamp": null});
        if initial_end {
            set(&mut metadata, "annotations", json!({"k8s.io/initial-events-end": "true"}));
        }
        let object = match self.form {
            Shape::Object => {
                json!({"kind": descriptor.kind, "apiVersion": descriptor.api_version(), "metadata": metadata})
            }
            Shape::Metadata(version) => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": version.api_version(), "metadata": metadata})
            }
            Shape::Table { style, .. } => {
                let strategy = self.resource.strategy();
                let mut empty = table::table(strategy, style, metadata.clone(), Vec::new(), false);
                // Upstream's clients look for the annotation on the row's object.
                let partial = json!({"kind": "PartialObjectMetadata",
                    "apiVersion": style.version.api_version(), "metadata": metadata});
                set(&mut empty, "rows", json!([{"cells": [], "object": partial}]));
                empty
            }
        };
        put(out, "BOOKMARK", &object);
    }

    fn fail(&mut self, out: &mut BytesMut, status: &Status) {
        self.ended = true;
        put(out, "ERROR", &status.to_json());
    }
}

fn put(out: &mut BytesMut, kind: &str, object: &Value) {
    out.put_slice(json!({"type": kind, "object": object}).to_string().as_bytes());
    out.put_u8(b'\n');
}
