//! Which streams a connection has, and how far each is.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

/// Bytes of a stream with their share of what a connection may hold.
pub(crate) struct Piece {
    pub(crate) bytes: Bytes,
    pub(crate) _held: OwnedSemaphorePermit,
}

/// One stream.
struct Entry {
    /// To the receiver; `None`: the peer has finished.
    to: Option<mpsc::UnboundedSender<Piece>>,
    /// Whether this side has finished.
    finished: bool,
    /// Cancelled when the stream is cut off.
    gone: CancellationToken,
}

/// What becomes of a new stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    Yes,
    /// Its number is not the peer's to give.
    Invalid,
    /// There are too many.
    Refused,
}

#[derive(Default)]
struct State {
    streams: HashMap<u32, Entry>,
    last: u32,
}

/// The streams of a connection.
#[derive(Default)]
pub(crate) struct Table(Mutex<State>);

impl Table {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a stream on. A client's ids are odd and grow.
    pub(crate) fn open(
        &self,
        id: u32,
        fin: bool,
        most: usize,
        to: mpsc::UnboundedSender<Piece>,
        gone: CancellationToken,
    ) -> Opened {
        let mut state = self.state();
        if id.is_multiple_of(2) || id <= state.last {
            return Opened::Invalid;
        }
        state.last = id;
        if state.streams.len() >= most {
            return Opened::Refused;
        }
        state.streams.insert(id, Entry { to: (!fin).then_some(to), finished: false, gone });
        Opened::Yes
    }

    /// The last stream taken.
    pub(crate) fn last(&self) -> u32 {
        self.state().last
    }

    /// Where a stream's bytes go; `None`: nowhere.
    pub(crate) fn receiver(&self, id: u32) -> Option<mpsc::UnboundedSender<Piece>> {
        self.state().streams.get(&id)?.to.clone()
    }

    /// The peer has finished a stream.
    pub(crate) fn end(&self, id: u32) {
        let mut state = self.state();
        if let Some(entry) = state.streams.get_mut(&id) {
            entry.to = None;
            if entry.finished {
                state.streams.remove(&id);
            }
        }
    }

    /// This side has finished a stream. Whether it had not before.
    pub(crate) fn finish(&self, id: u32) -> bool {
        let mut state = self.state();
        let Some(entry) = state.streams.get_mut(&id) else { return false };
        let first = !std::mem::replace(&mut entry.finished, true);
        if entry.to.is_none() {
            state.streams.remove(&id);
        }
        first
    }

    /// Whether this side may send on a stream.
    pub(crate) fn may_send(&self, id: u32) -> bool {
        self.state().streams.get(&id).is_some_and(|entry| !entry.finished)
    }

    /// A stream is over both ways. Whether there was one.
    pub(crate) fn remove(&self, id: u32) -> bool {
        let entry = self.state().streams.remove(&id);
        if let Some(entry) = &entry {
            entry.gone.cancel();
        }
        entry.is_some()
    }

    /// The connection is over.
    pub(crate) fn clear(&self) {
        for (_, entry) in self.state().streams.drain() {
            entry.gone.cancel();
        }
    }
}
