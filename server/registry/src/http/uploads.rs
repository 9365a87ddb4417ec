//! Uploads: begun, appended to, finished. The body goes to disk as it comes and is hashed on the way.

use super::{CONTENT_DIGEST, received_range, respond};
use crate::upload::Session;
use crate::{Digest, Error, Registry, Repository};
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use bytes::BytesMut;
use futures::StreamExt;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName};
use serde::Deserialize;
use std::fmt::Display;
use std::sync::PoisonError;

const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");
/// Bytes gathered before they are hashed and written on a blocking thread.
const CHUNK: usize = 1 << 20;

/// Query of a `POST`.
#[derive(Deserialize)]
pub(super) struct Begin {
    digest: Option<String>,
    mount: Option<String>,
    from: Option<String>,
}

/// Query of a `PUT`.
#[derive(Deserialize)]
pub(super) struct Finish {
    digest: Option<String>,
}

/// `POST`: begins an upload; or does it all at once; or takes a blob over from another repository.
pub(super) async fn begin(
    State(registry): State<Registry>,
    Path((ns, name)): Path<(String, String)>,
    Query(query): Query<Begin>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let repository = Repository::new(&ns, &name)?;
    if let (Some(digest), Some(from)) = (&query.mount, &query.from)
        && let Some(digest) = mount(&registry, &repository, digest, from).await?
    {
        return Ok(created(&repository, &digest));
    }
    let whole = query.digest.as_deref().map(str::parse::<Digest>).transpose()?;
    check_length(&registry, &headers, 0)?;
    let session = registry.begin_upload(&repository).await?;
    let Some(digest) = whole else { return Ok(accepted(StatusCode::ACCEPTED, &session)) };
    receive_and_store(&registry, &session, body, &digest).await.inspect_err(|_| {
        // Nobody has been told its id.
        registry.0.sessions.remove(&session.id);
    })
}

/// Takes over a blob of another repository of the same namespace. Of others it is not known here whether
/// the caller may read them; then, as for a blob that is not there, an ordinary upload begins.
async fn mount(
    registry: &Registry,
    repository: &Repository,
    digest: &str,
    from: &str,
) -> Result<Option<Digest>, Error> {
    let digest: Digest = digest.parse()?;
    let Some(from) = from.parse().ok().filter(|from: &Repository| from.namespace() == repository.namespace())
    else {
        return Ok(None);
    };
    let _not_collecting = registry.0.collecting.read().await;
    let repository = repository.clone();
    registry
        .blocking(move |inner| match inner.disk.blob_size(&from, &digest) {
            Ok(_) => inner.disk.claim(&repository, &digest).map(|()| Some(digest)),
            Err(Error::BlobUnknown { .. }) => Ok(None),
            Err(error) => Err(error),
        })
        .await
}

/// `PATCH`: appends a chunk. With a `Content-Range` it must start where the last one ended.
pub(super) async fn append(
    State(registry): State<Registry>,
    Path((ns, name, id)): Path<(String, String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let session = registry.0.sessions.get(&Repository::new(&ns, &name)?, &id)?;
    let _turn = session.turn.clone().lock_owned().await;
    check_start(&session, &headers)?;
    check_length(&registry, &headers, session.received())?;
    receive(&registry, &session, body).await?;
    Ok(accepted(StatusCode::ACCEPTED, &session))
}

/// `PUT`: appends what it carries, if anything, and stores the whole as `digest`.
pub(super) async fn finish(
    State(registry): State<Registry>,
    Path((ns, name, id)): Path<(String, String, String)>,
    Query(query): Query<Finish>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let session = registry.0.sessions.get(&Repository::new(&ns, &name)?, &id)?;
    let reason = "finishing an upload needs the parameter `digest`".to_owned();
    let digest: Digest = query.digest.ok_or(Error::DigestInvalid { reason })?.parse()?;
    let _turn = session.turn.clone().lock_owned().await;
    check_start(&session, &headers)?;
    check_length(&registry, &headers, session.received())?;
    receive_and_store(&registry, &session, body, &digest).await
}

/// `GET`: how far the upload is.
pub(super) async fn status(
    State(registry): State<Registry>,
    Path((ns, name, id)): Path<(String, String, String)>,
) -> Result<Response, Error> {
    let session = registry.0.sessions.get(&Repository::new(&ns, &name)?, &id)?;
    Ok(accepted(StatusCode::NO_CONTENT, &session))
}

/// `DELETE`: forgets the upload.
pub(super) async fn cancel(
    State(registry): State<Registry>,
    Path((ns, name, id)): Path<(String, String, String)>,
) -> Result<Response, Error> {
    let session = registry.0.sessions.get(&Repository::new(&ns, &name)?, &id)?;
    registry.0.sessions.remove(&session.id);
    Ok(respond(StatusCode::NO_CONTENT, &[]))
}

async fn receive_and_store(
    registry: &Registry,
    session: &Session,
    body: Body,
    digest: &Digest,
) -> Result<Response, Error> {
    receive(registry, session, body).await?;
    let _not_collecting = registry.0.collecting.read().await;
    let (upload, repository, id) = (session.upload.clone(), session.repository.clone(), session.id.clone());
    let expected = digest.clone();
    registry
        .blocking(move |inner| {
            let mut upload = upload.lock().unwrap_or_else(PoisonError::into_inner);
            let stored = upload.finish(&inner.disk, &repository, &expected);
            // Also after a wrong digest: appending to wrong content cannot make it right.
            inner.sessions.remove(&id);
            stored
        })
        .await?;
    Ok(created(&session.repository, digest))
}

/// Appends a body. What has arrived when the connection breaks is kept: the client asks how far it came
/// and goes on there.
async fn receive(registry: &Registry, session: &Session, body: Body) -> Result<(), Error> {
    let mut body = body.into_data_stream();
    let mut gathered = BytesMut::new();
    let mut interrupted = false;
    while let Some(chunk) = body.next().await {
        let Ok(chunk) = chunk else {
            interrupted = true;
            break;
        };
        gathered.extend_from_slice(&chunk);
        if gathered.len() >= CHUNK {
            write(registry, session, gathered.split()).await?;
        }
    }
    write(registry, session, gathered).await?;
    if interrupted { Err(Error::Interrupted { received: session.received() }) } else { Ok(()) }
}

async fn write(registry: &Registry, session: &Session, bytes: BytesMut) -> Result<(), Error> {
    if bytes.is_empty() {
        return Ok(());
    }
    let (upload, id) = (session.upload.clone(), session.id.clone());
    registry
        .blocking(move |inner| {
            let appended = upload.lock().unwrap_or_else(PoisonError::into_inner).append(&bytes);
            if appended.is_err() {
                // Too large, or no space: it cannot be finished, so its space is given back at once.
                inner.sessions.remove(&id);
            }
            appended
        })
        .await
}

/// A chunk's `Content-Range` is `START-END`, without the unit other uses of the header have.
fn check_start(session: &Session, headers: &HeaderMap) -> Result<(), Error> {
    let Some(range) = headers.get(header::CONTENT_RANGE) else { return Ok(()) };
    let Some(start) = range.to_str().ok().and_then(start_of) else {
        return Err(Error::BadRequest { reason: "Content-Range is not START-END".to_owned() });
    };
    let received = session.received();
    if start == received {
        return Ok(());
    }
    Err(Error::ChunkOutOfOrder { location: location(session), received })
}

/// Where a chunk begins, when it ends no earlier.
pub(crate) fn start_of(range: &str) -> Option<u64> {
    let (start, end) = range.trim_start_matches("bytes ").split_once('-')?;
    let end = end.split('/').next()?.trim().parse::<u64>().ok()?;
    start.trim().parse().ok().filter(|start| *start <= end)
}

/// Refuses what says it will be too large, before it is sent.
fn check_length(registry: &Registry, headers: &HeaderMap, received: u64) -> Result<(), Error> {
    let limit = registry.0.options.max_blob_bytes;
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    match length {
        Some(length) if received.saturating_add(length) > limit => {
            Err(Error::TooLarge { what: "blob", limit })
        }
        _ => Ok(()),
    }
}

fn location(session: &Session) -> String {
    format!("/v2/{}/blobs/uploads/{}", session.repository, session.id)
}

fn accepted(status: StatusCode, session: &Session) -> Response {
    let (location, range) = (location(session), received_range(session.received()));
    let headers: [(_, &dyn Display); 3] =
        [(header::LOCATION, &location), (header::RANGE, &range), (UPLOAD_ID, &session.id)];
    respond(status, &headers)
}

fn created(repository: &Repository, digest: &Digest) -> Response {
    let location = format!("/v2/{repository}/blobs/{digest}");
    respond(StatusCode::CREATED, &[(header::LOCATION, &location), (CONTENT_DIGEST, digest)])
}
