//! Blobs: reading, whole or in part, and deleting.

use super::{CONTENT_DIGEST, insert, respond};
use crate::{Digest, Error, Registry, Repository};
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::header::{self, HeaderMap};
use http::{Method, StatusCode};
use std::io::SeekFrom;
use std::ops::Range;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

/// Bytes read from disk at a time.
const CHUNK: usize = 64 << 10;

/// `GET` and `HEAD`.
pub(super) async fn read(
    State(registry): State<Registry>,
    Path((ns, name, digest)): Path<(String, String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let repository = Repository::new(&ns, &name)?;
    let digest: Digest = digest.parse()?;
    let (owner, blob) = (repository.clone(), digest.clone());
    let size = registry.blocking(move |inner| inner.disk.blob_size(&owner, &blob)).await?;
    let asked = headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let part = asked.filter(|_| method == Method::GET).map_or(Ok(None), |range| parse_range(range, size))?;
    let range = part.clone().unwrap_or(0..size);
    let body =
        if method == Method::HEAD { Body::empty() } else { content(&registry, &digest, &range).await? };
    let status = if part.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    insert(headers, header::CONTENT_LENGTH, &(range.end - range.start));
    insert(headers, header::CONTENT_TYPE, &"application/octet-stream");
    insert(headers, header::ACCEPT_RANGES, &"bytes");
    insert(headers, header::ETAG, &format!("\"{digest}\""));
    // A digest's content never changes; but who may read it can.
    insert(headers, header::CACHE_CONTROL, &"private, max-age=31536000, immutable");
    insert(headers, CONTENT_DIGEST, &digest);
    if part.is_some() {
        insert(headers, header::CONTENT_RANGE, &format!("bytes {}-{}/{size}", range.start, range.end - 1));
    }
    Ok(response)
}

async fn content(registry: &Registry, digest: &Digest, range: &Range<u64>) -> Result<Body, Error> {
    let path = registry.0.disk.blob_path(digest);
    let mut file = tokio::fs::File::open(&path).await.map_err(Error::on("opening", &path))?;
    file.seek(SeekFrom::Start(range.start)).await.map_err(Error::on("reading", &path))?;
    let part = file.take(range.end - range.start);
    Ok(Body::from_stream(ReaderStream::with_capacity(part, CHUNK)))
}

/// The one range of a `Range` header (RFC 9110, section 14.2). What is not understood is ignored, as the
/// standard has it; several ranges are answered with everything.
pub(crate) fn parse_range(header: &str, size: u64) -> Result<Option<Range<u64>>, Error> {
    let Some(spec) = header.strip_prefix("bytes=").map(str::trim) else { return Ok(None) };
    let Some((first, last)) = spec.split_once('-').filter(|_| !spec.contains(',')) else { return Ok(None) };
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) if last.is_empty() => first..size,
        (Err(_), Ok(suffix)) if first.is_empty() => size.saturating_sub(suffix)..size,
        _ => return Ok(None),
    };
    if range.is_empty() { Err(Error::RangeNotSatisfiable { size }) } else { Ok(Some(range)) }
}

/// `DELETE`: the repository gives the blob up; its file goes with the next garbage collection.
pub(super) async fn delete(
    State(registry): State<Registry>,
    Path((ns, name, digest)): Path<(String, String, String)>,
) -> Result<Response, Error> {
    let repository = Repository::new(&ns, &name)?;
    let digest: Digest = digest.parse()?;
    let _not_collecting = registry.0.collecting.read().await;
    registry
        .blocking(move |inner| match inner.disk.disclaim(&repository, &digest)? {
            true => Ok(()),
            false => Err(Error::BlobUnknown { repository, digest }),
        })
        .await?;
    Ok(respond(StatusCode::ACCEPTED, &[]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let part = |header: &str| parse_range(header, 10).unwrap();
        assert_eq!(part("bytes=0-3"), Some(0..4));
        assert_eq!(part("bytes=8-100"), Some(8..10));
        assert_eq!(part("bytes=4-"), Some(4..10));
        assert_eq!(part("bytes=-3"), Some(7..10));
        assert_eq!(part("bytes=-30"), Some(0..10));
        assert_eq!(part(&format!("bytes=2-{}", u64::MAX)), Some(2..10));
        for ignored in
            ["lines=1-2", "bytes=3-2", "bytes=a-b", "bytes=1-2,4-5", "bytes=-", "bytes=1", "bytes=1-x"]
        {
            assert_eq!(part(ignored), None, "{ignored}");
        }
        for outside in ["bytes=10-", "bytes=10-20", "bytes=-0"] {
            assert!(parse_range(outside, 10).is_err(), "{outside}");
        }
        assert!(parse_range("bytes=0-", 0).is_err());
    }
}
