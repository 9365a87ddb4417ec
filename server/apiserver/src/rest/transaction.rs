//! One write to the store, with decisions that are [`Status`] when they refuse.

use std::sync::{Arc, Mutex, PoisonError};

use ketch_api::Status;
use ketch_store::{Abort, Error, Storage, Update, Versioned, Written};

/// Reads, decides and writes `key` as one atomic step, and returns what `decide` said besides. `decide` can
/// run more than once. A dry run decides on the current value and writes nothing.
pub(crate) async fn transact<T, F>(
    storage: &Arc<dyn Storage>,
    key: &str,
    dry_run: bool,
    mut decide: F,
) -> Result<(Written, T), Status>
where
    T: Send + 'static,
    F: FnMut(Option<&Versioned>) -> Result<(Update, T), Status> + Send + 'static,
{
    if dry_run {
        let current = storage.get(key).await.map_err(failure)?;
        let (update, said) = decide(current.as_ref())?;
        return Ok((pretend(key, current, update), said));
    }
    let slot = Arc::new(Mutex::new(None));
    let result = slot.clone();
    let callback = move |current: Option<&Versioned>| match decide(current) {
        Ok((update, said)) => {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
            Ok(update)
        }
        Err(status) => Err(Box::new(status) as Abort),
    };
    let written = storage.update(key, Box::new(callback)).await.map_err(failure)?;
    let said = result.lock().unwrap_or_else(PoisonError::into_inner).take();
    let said = said.ok_or_else(|| Status::internal("the store wrote without asking"))?;
    Ok((written, said))
}

/// What a write would have done. A new object has revision 0: it has none.
fn pretend(key: &str, current: Option<Versioned>, update: Update) -> Written {
    let revision = current.as_ref().map_or(0, |value| value.revision);
    let created = current.as_ref().map_or(0, |value| value.created);
    let after = match update {
        Update::Put(value) => Some(Versioned { key: key.into(), value, revision, created }),
        Update::Delete => None,
        Update::Keep => current.clone(),
    };
    Written { current: after, previous: current, revision }
}

/// A store's error in the API's words.
pub(crate) fn failure(error: Error) -> Status {
    match error {
        Error::Aborted(abort) => match abort.downcast::<Status>() {
            Ok(status) => *status,
            Err(_) => Status::internal("the write was refused for an unknown reason"),
        },
        Error::Compacted { requested, oldest } => {
            Status::expired(format!("too old resource version: {requested} ({oldest})"))
        }
        Error::Future { requested, current } => Status::revision_too_large(requested, current),
        Error::Full => Status::new(
            507,
            "InsufficientStorage",
            "no space left on the device that holds the store: free some space on the server and try again",
        ),
        Error::Closed => Status::unavailable("the server is shutting down"),
        other => {
            tracing::error!(error = &other as &dyn std::error::Error, "the store failed");
            Status::internal(format!("the store could not serve the request: {other}"))
        }
    }
}
