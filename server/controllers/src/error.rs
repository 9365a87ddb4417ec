//! Why a round of reconciling failed.

use ketch_client::{is_conflict, status_text};

/// Why a reconcile failed; it is tried again with a back-off.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request failed.
    #[error("{doing}: {}", status_text(.source))]
    Request {
        /// What was being done, for instance `scaling replicaset a/web-5d`.
        doing: String,
        /// Why it failed.
        source: kube::Error,
    },
    /// The object cannot be handled as it is.
    #[error("{0}")]
    Object(String),
}

impl Error {
    /// Whether somebody else was faster: trying again with what they wrote is all there is to do.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Request { source, .. } if is_conflict(source))
    }
}

/// Adds what was being done to a failed request.
pub(crate) trait Doing<T> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Doing<T> for Result<T, kube::Error> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Request { doing: doing(), source })
    }
}
