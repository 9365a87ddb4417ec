//! The audit trail: who did what to which object, and how it ended. Metadata only, never a body.
//!
//! Entries are tracing events of the target `ketch::audit`, so where they go (a file, the journal) is
//! decided where tracing is set up. Reads are told at a lower level than writes.

use std::time::Instant;

use ketch_api::request::RequestInfo;

use crate::auth::User;

/// One request on its way.
pub(crate) struct Entry {
    user: String,
    verb: String,
    path: String,
    is_write: bool,
    begun: Instant,
}

impl Entry {
    pub(crate) fn new(user: &User, info: &RequestInfo) -> Self {
        Self {
            user: user.name.clone(),
            verb: info.verb.clone(),
            path: info.path.clone(),
            is_write: info.is_resource && !matches!(info.verb.as_str(), "get" | "list" | "watch"),
            begun: Instant::now(),
        }
    }

    /// Tells the end; `reason` is the `Status` reason of a refusal.
    pub(crate) fn end(self, code: u16, reason: &str) {
        let Self { user, verb, path, is_write, begun } = self;
        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        if is_write || code == 401 || code == 403 {
            tracing::info!(target: "ketch::audit", user, verb, path, code, reason, micros);
        } else {
            tracing::debug!(target: "ketch::audit", user, verb, path, code, reason, micros);
        }
    }
}
