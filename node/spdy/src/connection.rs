//! A connection: reads and writes until one side ends it.

use std::{io, sync::Arc, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{Semaphore, mpsc},
};
use tokio_util::sync::CancellationToken;

use crate::{
    frame::{Decoder, Encoder, Frame, Headers, Malformed, Reset},
    stream::{Outgoing, Receiver, Sender, Stream, Urgent},
    table::{Opened, Piece, Table},
};

/// What one peer may occupy.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Streams at a time.
    pub streams: usize,
    /// Bytes received and not yet taken, over all streams. When they are reached nothing more is read: the
    /// protocol as spoken has no way to hold back one stream alone.
    pub held: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { streams: 256, held: 1 << 20 }
    }
}

/// Frames waiting to be sent.
const QUEUE: usize = 16;
/// Bytes read at a time.
const READ: usize = 16 << 10;
/// What a piece costs beside its bytes.
const OVERHEAD: usize = 128;
/// For the peer to end the connection after it was told `GOAWAY`. Peers drop what they have not handled when
/// the connection ends, so this side is not the first to end it.
const LINGER: Duration = Duration::from_secs(10);

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The peer does not speak SPDY/3.1.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// The peer makes work and does not read the answers.
    #[error("the peer does not read")]
    Flooded,
}

/// Streams that the peer opens.
pub struct Incoming(mpsc::Receiver<Stream>);

impl Incoming {
    /// The next stream; `None`: the connection is over. Cancel-safe.
    pub async fn next(&mut self) -> Option<Stream> {
        self.0.recv().await
    }
}

/// Ends a connection from this side.
#[derive(Clone)]
pub struct Closer(mpsc::Sender<Outgoing>);

impl Closer {
    /// Tells the peer, after all that was sent before, that it is over. [`Connection::run`] returns when the
    /// peer has ended the connection, or some seconds later.
    pub async fn close(&self) {
        // Fails only when the connection is over already.
        let _ = self.0.send(Outgoing::GoAway).await;
    }
}

/// The server's side of a connection. Does nothing until [`Connection::run`] is polled.
pub struct Connection<T> {
    io: T,
    limits: Limits,
    incoming: mpsc::Sender<Stream>,
    outgoing: (mpsc::Sender<Outgoing>, mpsc::Receiver<Outgoing>),
    urgent: (mpsc::Sender<Urgent>, mpsc::Receiver<Urgent>),
}

impl<T: AsyncRead + AsyncWrite> Connection<T> {
    /// Over `io`, whose upgrade is done.
    pub fn new(io: T, limits: Limits) -> (Self, Incoming, Closer) {
        let (incoming, streams) = mpsc::channel(limits.streams.max(1));
        let outgoing = mpsc::channel(QUEUE);
        // A reply and a reset for each stream, twice over.
        let urgent = mpsc::channel(4 * limits.streams.max(1));
        let closer = Closer(outgoing.0.clone());
        (Self { io, limits, incoming, outgoing, urgent }, Incoming(streams), closer)
    }

    /// Serves the connection until it ends. Dropping the future ends it at once.
    ///
    /// # Errors
    /// When the peer broke the protocol or the connection broke.
    pub async fn run(self) -> Result<(), Error> {
        let Self { io, limits, incoming, outgoing, urgent } = self;
        let (reader, writer) = tokio::io::split(io);
        let table = Arc::new(Table::default());
        let closing = CancellationToken::new();
        let read = Reading {
            table: Arc::clone(&table),
            limits,
            held: Arc::new(Semaphore::new(limits.held)),
            incoming,
            outgoing: outgoing.0,
            urgent: urgent.0,
        };
        let write = Writing {
            writer,
            table: Arc::clone(&table),
            encoder: Encoder::new(),
            buffer: BytesMut::new(),
            closing: closing.clone(),
        };
        let over = async {
            closing.cancelled().await;
            tokio::time::sleep(LINGER).await;
        };
        let result = tokio::select! {
            result = read.run(reader) => result,
            result = write.run(outgoing.1, urgent.1) => result,
            () = over => Ok(()),
        };
        table.clear();
        result
    }
}

struct Reading {
    table: Arc<Table>,
    limits: Limits,
    held: Arc<Semaphore>,
    incoming: mpsc::Sender<Stream>,
    outgoing: mpsc::Sender<Outgoing>,
    urgent: mpsc::Sender<Urgent>,
}

// === impl Reading ===

impl Reading {
    async fn run(mut self, mut reader: impl AsyncRead + Unpin) -> Result<(), Error> {
        let (mut decoder, mut buffer) = (Decoder::new(), BytesMut::with_capacity(READ));
        loop {
            while let Some(frame) = decoder.decode(&mut buffer)? {
                self.frame(frame).await?;
            }
            buffer.reserve(READ);
            if reader.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn frame(&mut self, frame: Frame) -> Result<(), Error> {
        match frame {
            Frame::SynStream { stream, fin, headers } => self.open(stream, fin, headers)?,
            Frame::Data { stream, fin, bytes } => {
                if let Some(to) = self.table.receiver(stream).filter(|to| !to.is_closed()) {
                    let size = (bytes.len() + OVERHEAD).min(self.limits.held);
                    let size = u32::try_from(size).unwrap_or(u32::MAX);
                    // The semaphore is never closed.
                    if let Ok(held) = Arc::clone(&self.held).acquire_many_owned(size).await
                        && !bytes.is_empty()
                    {
                        let _ = to.send(Piece { bytes, _held: held });
                    }
                }
                if fin {
                    self.table.end(stream);
                }
            }
            Frame::RstStream { stream, .. } => {
                self.table.remove(stream);
            }
            Frame::SynReply { stream, fin: true, .. } | Frame::Headers { stream, fin: true, .. } => {
                self.table.end(stream);
            }
            // Ours would be even; the answers to those are not waited for.
            Frame::Ping(id) if id % 2 == 1 => self.answer(Outgoing::Pong(id))?,
            Frame::Ping(_)
            | Frame::GoAway { .. }
            | Frame::SynReply { .. }
            | Frame::Headers { .. }
            | Frame::Other(_) => {}
        }
        Ok(())
    }

    fn open(&mut self, id: u32, fin: bool, headers: Headers) -> Result<(), Error> {
        let (to, receiver) = mpsc::unbounded_channel();
        let gone = CancellationToken::new();
        match self.table.open(id, fin, self.limits.streams, to, gone.clone()) {
            Opened::Yes => {}
            Opened::Invalid => return self.answer(Outgoing::Refuse(id, Reset::ProtocolError)),
            Opened::Refused => return self.answer(Outgoing::Refuse(id, Reset::RefusedStream)),
        }
        // A peer that opens and resets streams and never reads must not fill the queue.
        self.urgent.try_send(Urgent::Reply(id)).map_err(|_| Error::Flooded)?;
        let sender = Sender {
            id,
            table: Arc::clone(&self.table),
            outgoing: self.outgoing.clone(),
            urgent: self.urgent.clone(),
            finished: false,
        };
        // Nobody takes streams, or not in time: dropping the sender resets it.
        let _ = self.incoming.try_send(Stream { headers, receiver: Receiver(receiver), sender, gone });
        Ok(())
    }

    /// Answers without waiting: reading must go on for the peer to take what it was sent.
    fn answer(&self, frame: Outgoing) -> Result<(), Error> {
        match self.outgoing.try_send(frame) {
            Err(mpsc::error::TrySendError::Full(Outgoing::Pong(_))) | Ok(()) => Ok(()),
            Err(_) => Err(Error::Flooded),
        }
    }
}

struct Writing<W> {
    writer: W,
    table: Arc<Table>,
    encoder: Encoder,
    buffer: BytesMut,
    closing: CancellationToken,
}

// === impl Writing ===

impl<W: AsyncWrite + Unpin> Writing<W> {
    async fn run(
        mut self,
        mut outgoing: mpsc::Receiver<Outgoing>,
        mut urgent: mpsc::Receiver<Urgent>,
    ) -> Result<(), Error> {
        loop {
            let frame = tokio::select! {
                biased;
                Some(what) = urgent.recv() => self.urgent(&what),
                Some(what) = outgoing.recv() => self.outgoing(what),
                else => return Ok(()),
            };
            if let Some(frame) = frame {
                self.encoder.encode(&frame, &mut self.buffer)?;
                self.writer.write_all_buf(&mut self.buffer).await?;
            }
            if outgoing.is_empty() && urgent.is_empty() {
                self.writer.flush().await?;
            }
        }
    }

    fn urgent(&self, what: &Urgent) -> Option<Frame> {
        match *what {
            Urgent::Reply(stream) => {
                Some(Frame::SynReply { stream, fin: false, headers: Headers::default() })
            }
            Urgent::Reset(stream, reset) => {
                self.table.remove(stream).then_some(Frame::RstStream { stream, status: reset as u32 })
            }
        }
    }

    fn outgoing(&self, what: Outgoing) -> Option<Frame> {
        match what {
            Outgoing::Data(stream, bytes) => {
                self.table.may_send(stream).then_some(Frame::Data { stream, fin: false, bytes })
            }
            Outgoing::Fin(stream) => self.table.finish(stream).then_some(Frame::Data {
                stream,
                fin: true,
                bytes: bytes::Bytes::new(),
            }),
            Outgoing::Refuse(stream, reset) => Some(Frame::RstStream { stream, status: reset as u32 }),
            Outgoing::Pong(id) => Some(Frame::Ping(id)),
            Outgoing::GoAway => {
                self.closing.cancel();
                Some(Frame::GoAway { last: self.table.last(), status: 0 })
            }
        }
    }
}

#[cfg(test)]
mod tests;
