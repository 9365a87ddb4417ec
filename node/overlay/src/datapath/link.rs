//! One QUIC connection to a peer.

use std::{collections::HashMap, net::SocketAddr, time::Instant};

use bytes::{Bytes, BytesMut};
use ketch_net::Cidr;
use quinn_proto::{Connection, Dir, SendDatagramError, StreamId, VarInt};
use rustls::pki_types::CertificateDer;

use super::life::Life;
use crate::{
    identity::{Named, named},
    ranges::Id,
    socket::virtual_id,
    transport::STREAM_LIMIT,
};

/// A connection and what belongs to it.
pub(super) struct Link {
    pub(super) conn: Connection,
    /// Which socket it uses.
    pub(super) socket: usize,
    /// Whether this node dialed.
    pub(super) dialed: bool,
    /// Whose it is: known from the start when this node dialed, else from the certificate.
    pub(super) peer: Option<Id>,
    /// When the handshake was finished.
    pub(super) since: Option<Instant>,
    /// How long its certificates are good; `None` before the handshake.
    pub(super) life: Option<Life>,
    /// Inner sources that are let through.
    pub(super) sources: Vec<Cidr>,
    /// When it is closed in favour of a newer one.
    pub(super) retire: Option<Instant>,
    /// Next time its timers are to be looked at.
    pub(super) timer: Option<Instant>,
    /// Whether it waits to be driven.
    pub(super) queued: bool,
    /// Messages over streams that have not ended.
    partial: HashMap<StreamId, BytesMut>,
}

/// How a message that does not fit a datagram is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Oversize {
    /// It goes over a stream of its own.
    Stream,
    /// It is not sent.
    Refuse,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Datagram,
    Stream,
    /// It is too big; this many bytes fit.
    TooBig(usize),
    /// The queue is full, or the connection closed.
    Dropped,
}

// === impl Link ===

impl Link {
    /// A connection that this node has dialed, to a peer, or accepted from somebody.
    pub(super) fn new(conn: Connection, socket: usize, peer: Option<Id>) -> Self {
        Self {
            conn,
            socket,
            dialed: peer.is_some(),
            peer,
            since: None,
            life: None,
            sources: Vec::new(),
            retire: None,
            timer: None,
            queued: false,
            partial: HashMap::new(),
        }
    }

    /// Whether it goes through a relay.
    pub(super) fn is_relayed(&self) -> bool {
        virtual_id(self.conn.remote_address()).is_some()
    }

    pub(super) fn is_up(&self) -> bool {
        self.since.is_some() && !self.conn.is_closed()
    }

    pub(super) fn remote(&self) -> SocketAddr {
        let remote = self.conn.remote_address();
        SocketAddr::new(remote.ip().to_canonical(), remote.port())
    }

    /// Who the certificate says is on the other side.
    pub(super) fn identity(&self) -> Option<Named> {
        let chain = self.conn.crypto_session().peer_identity()?;
        let chain = chain.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        named(chain.first()?).ok()
    }

    /// Queues a message.
    pub(super) fn send(&mut self, message: Bytes, oversize: Oversize) -> Sent {
        let max = self.conn.datagrams().max_size().unwrap_or_default();
        if message.len() > max {
            return match oversize {
                Oversize::Refuse => Sent::TooBig(max),
                Oversize::Stream => self.send_stream(message),
            };
        }
        match self.conn.datagrams().send(message, false) {
            Ok(()) => Sent::Datagram,
            Err(SendDatagramError::TooLarge) => Sent::TooBig(max),
            Err(_) => Sent::Dropped,
        }
    }

    /// Queues a message that must arrive.
    pub(super) fn send_stream(&mut self, message: Bytes) -> Sent {
        let Some(id) = self.conn.streams().open(Dir::Uni) else { return Sent::Dropped };
        let mut stream = self.conn.send_stream(id);
        let whole = stream.write(&message).is_ok_and(|written| written == message.len());
        if whole && stream.finish().is_ok() {
            return Sent::Stream;
        }
        // Part of a packet is of no use.
        if let Err(error) = stream.reset(VarInt::from_u32(0)) {
            tracing::trace!(%error, "stream is gone already");
        }
        Sent::Dropped
    }

    /// Takes new streams and reads them.
    pub(super) fn accept(&mut self) -> Vec<Bytes> {
        let mut ready = Vec::new();
        while let Some(id) = self.conn.streams().accept(Dir::Uni) {
            ready.extend(self.read(id));
        }
        ready
    }

    /// Reads a stream as far as it has come: its message when that is whole.
    pub(super) fn read(&mut self, id: StreamId) -> Option<Bytes> {
        let mut message = self.partial.remove(&id).unwrap_or_default();
        let mut stream = self.conn.recv_stream(id);
        let Ok(mut chunks) = stream.read(true) else { return None };
        let ended = loop {
            match chunks.next(STREAM_LIMIT) {
                Ok(Some(chunk)) => message.extend_from_slice(&chunk.bytes),
                Ok(None) => break Some(true),
                Err(quinn_proto::ReadError::Blocked) => break Some(false),
                Err(quinn_proto::ReadError::Reset(_)) => break None,
            }
            if message.len() > STREAM_LIMIT {
                break None;
            }
        };
        let _ = chunks.finalize();
        match ended {
            Some(true) => return Some(message.freeze()),
            Some(false) => drop(self.partial.insert(id, message)),
            None => drop(self.conn.recv_stream(id).stop(VarInt::from_u32(0))),
        }
        None
    }
}
