//! Errors of redb, in a form that can be told to everyone whose write was in the batch.

use crate::Error;
use std::io;

/// Why the file could not be read or written.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    context: String,
    message: String,
    full: bool,
}

impl Failure {
    pub(super) fn new(context: impl Into<String>, source: impl Into<redb::Error>) -> Self {
        let source = source.into();
        let full = matches!(&source, redb::Error::Io(error) if is_full(error));
        Failure { context: context.into(), message: source.to_string(), full }
    }

    /// The content of the file is not what this program wrote.
    pub(super) fn corrupt(context: impl Into<String>, message: impl Into<String>) -> Self {
        Failure { context: context.into(), message: message.into(), full: false }
    }

    /// As the error of one request.
    pub(super) fn error(&self) -> Error {
        if self.full {
            return Error::Full;
        }
        Error::Backend { context: self.context.clone(), source: self.message.clone().into() }
    }
}

/// An error of opening the file.
pub(super) fn opening(error: redb::DatabaseError) -> Error {
    match error {
        redb::DatabaseError::DatabaseAlreadyOpen => Error::InUse,
        error => Failure::new("opening the store's file", error).error(),
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
