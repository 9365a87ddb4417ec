//! A stream as its user has it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    frame::{Headers, Reset},
    table::{Piece, Table},
};

/// What a stream's user has to say to the peer, in order.
pub(crate) enum Outgoing {
    Data(u32, Bytes),
    Fin(u32),
    /// A reset of a stream that is not in the table.
    Refuse(u32, Reset),
    Pong(u32),
    GoAway,
}

/// What goes out before anything in that order.
pub(crate) enum Urgent {
    Reply(u32),
    Reset(u32, Reset),
}

/// The stream, or the connection, is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream is closed")]
pub struct Closed;

/// A stream that the peer has opened.
pub struct Stream {
    /// With which headers.
    pub headers: Headers,
    /// What the peer sends on it.
    pub receiver: Receiver,
    /// What is sent to the peer.
    pub sender: Sender,
    /// Cancelled when the stream is reset or the connection is over, unless both sides had finished.
    pub gone: CancellationToken,
}

/// The peer's bytes of one stream. Dropping it throws the rest away.
pub struct Receiver(pub(crate) mpsc::UnboundedReceiver<Piece>);

impl Receiver {
    /// The next bytes; `None`: the peer has finished or reset the stream, or the connection is over.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.0.recv().await.map(|piece| piece.bytes)
    }
}

/// This side of one stream. Dropped before [`Sender::finish`] it resets the stream.
pub struct Sender {
    pub(crate) id: u32,
    pub(crate) table: Arc<Table>,
    pub(crate) outgoing: mpsc::Sender<Outgoing>,
    pub(crate) urgent: mpsc::Sender<Urgent>,
    pub(crate) finished: bool,
}

impl Sender {
    /// Queues bytes for the peer; waits while it does not keep up.
    ///
    /// # Errors
    /// When the stream or the connection is over.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), Closed> {
        if !self.table.may_send(self.id) {
            return Err(Closed);
        }
        self.outgoing.send(Outgoing::Data(self.id, bytes)).await.map_err(|_| Closed)
    }

    /// Says that nothing follows. What the peer sends may still be received.
    pub async fn finish(mut self) {
        // Fails only when the connection is over.
        self.finished = self.outgoing.send(Outgoing::Fin(self.id)).await.is_ok();
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if !self.finished && self.table.may_send(self.id) {
            // Full only when the peer does not read: the connection ends over that.
            let _ = self.urgent.try_send(Urgent::Reset(self.id, Reset::Cancel));
        }
    }
}
