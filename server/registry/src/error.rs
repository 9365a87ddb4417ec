//! What can go wrong, as the distribution specification's error body tells it.

use crate::inspect::InspectError;
use crate::{Digest, Reference, Repository};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use std::io;
use std::path::Path;

/// Why the registry refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a repository name.
    #[error(
        "`{name}` is not a repository name: it is NAMESPACE/NAME in lower-case letters, digits, `-`, `_` and `.`"
    )]
    NameInvalid {
        /// As sent.
        name: String,
    },
    /// Nothing was ever pushed there.
    #[error("repository {repository} does not exist")]
    NameUnknown {
        /// Asked for.
        repository: Repository,
    },
    /// Not a tag.
    #[error("`{tag}` is not a tag: up to 128 letters, digits, `_`, `.` and `-`, the first not `.` or `-`")]
    TagInvalid {
        /// As sent.
        tag: String,
    },
    /// Not a digest, or not that of the content.
    #[error("{reason}")]
    DigestInvalid {
        /// What is wrong with it.
        reason: String,
    },
    /// The repository has no such blob.
    #[error("blob {digest} is not in repository {repository}")]
    BlobUnknown {
        /// Asked in.
        repository: Repository,
        /// Asked for.
        digest: Digest,
    },
    /// The repository has no such manifest.
    #[error("manifest {reference} is not in repository {repository}")]
    ManifestUnknown {
        /// Asked in.
        repository: Repository,
        /// Asked for.
        reference: Reference,
    },
    /// Not a manifest this registry understands.
    #[error("the manifest is not valid: {reason}")]
    ManifestInvalid {
        /// What is wrong with it.
        reason: String,
    },
    /// A manifest names content that was not pushed before it.
    #[error("the manifest names {digest}, which is not in repository {repository}: push it first")]
    ManifestBlobUnknown {
        /// Pushed to.
        repository: Repository,
        /// Missing.
        digest: Digest,
    },
    /// No such upload; it may have expired.
    #[error("there is no such upload in repository {repository}: it ended or expired, start a new one")]
    UploadUnknown {
        /// Asked in.
        repository: Repository,
    },
    /// A chunk that does not follow the last one.
    #[error("the upload has {received} bytes, the chunk must start there")]
    ChunkOutOfOrder {
        /// Path of the upload.
        location: String,
        /// Bytes so far.
        received: u64,
    },
    /// A request that makes no sense.
    #[error("{reason}")]
    BadRequest {
        /// What is wrong with it.
        reason: String,
    },
    /// The part of a blob asked for does not exist.
    #[error("the range is outside the blob of {size} bytes")]
    RangeNotSatisfiable {
        /// Bytes of the blob.
        size: u64,
    },
    /// More than is allowed.
    #[error("the {what} is larger than the {limit} bytes this registry accepts")]
    TooLarge {
        /// Blob, manifest.
        what: &'static str,
        /// Most bytes.
        limit: u64,
    },
    /// Too much at once.
    #[error("{limit} uploads are under way, which is the most: finish or cancel one, or try again later")]
    TooManyUploads {
        /// Most uploads.
        limit: usize,
    },
    /// The sender went away.
    #[error("the upload was cut off after {received} bytes, it can be resumed from there")]
    Interrupted {
        /// Bytes so far.
        received: u64,
    },
    /// The blob is not a Wasm binary that can be inspected.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// No space.
    #[error("no space left on the disk of the registry: free some, or delete images and collect garbage")]
    Full,
    /// The file system failed.
    #[error("{context}")]
    Io {
        /// What was being done.
        context: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// An IO error in `context`.
    pub(crate) fn io(context: impl Into<String>, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::Full,
            _ => Error::Io { context: context.into(), source },
        }
    }

    /// For `map_err`: an IO error while doing `what` to `path`.
    pub(crate) fn on<'a>(what: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Error::io(format!("{what} {}", path.display()), source)
    }

    /// Status and code of the specification's error table; codes of our own where it has none.
    fn kind(&self) -> (StatusCode, &'static str) {
        match self {
            Error::NameInvalid { .. } => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
            Error::NameUnknown { .. } => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
            Error::TagInvalid { .. } => (StatusCode::BAD_REQUEST, "TAG_INVALID"),
            Error::DigestInvalid { .. } => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
            Error::BlobUnknown { .. } => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            Error::ManifestUnknown { .. } => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            Error::ManifestInvalid { .. } => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
            Error::ManifestBlobUnknown { .. } => (StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN"),
            Error::UploadUnknown { .. } => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            Error::ChunkOutOfOrder { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID"),
            Error::BadRequest { .. } => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
            Error::Interrupted { .. } => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
            Error::RangeNotSatisfiable { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID"),
            Error::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
            Error::TooManyUploads { .. } => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
            Error::Inspect(InspectError::TooLarge { .. }) => {
                (StatusCode::PAYLOAD_TOO_LARGE, "WASM_TOO_LARGE")
            }
            Error::Inspect(_) => (StatusCode::UNPROCESSABLE_ENTITY, "WASM_INVALID"),
            Error::Full => (StatusCode::INSUFFICIENT_STORAGE, "INSUFFICIENT_STORAGE"),
            Error::Io { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, code) = self.kind();
        if let Error::Io { context, source } = &self {
            // The client is told what failed, the operator also why and where.
            tracing::error!(error = %source, "{context}");
        }
        let message = match &self {
            Error::Io { .. } => "the registry could not use its disk, its log has the details".to_owned(),
            error => error.to_string(),
        };
        let body = serde_json::json!({ "errors": [{ "code": code, "message": message, "detail": null }] });
        let mut response = (status, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        match &self {
            Error::ChunkOutOfOrder { location, received } => {
                crate::http::insert(headers, header::LOCATION, location);
                crate::http::insert(headers, header::RANGE, &crate::http::received_range(*received));
            }
            Error::RangeNotSatisfiable { size } => {
                crate::http::insert(headers, header::CONTENT_RANGE, &format!("bytes */{size}"));
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart() {
        let full = Error::io("writing", io::ErrorKind::StorageFull.into());
        assert_eq!(full.into_response().status(), StatusCode::INSUFFICIENT_STORAGE);
        let other = Error::io("writing", io::ErrorKind::PermissionDenied.into());
        assert_eq!(other.into_response().status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
