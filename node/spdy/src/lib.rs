//! The server side of SPDY/3.1, as far as Kubernetes clients use it.
//!
//! `kubectl` before 1.30 speaks it for exec and attach, and every `kubectl` for port-forward: bare, or inside
//! a WebSocket. A [`Connection`] over any byte stream yields the [`Stream`]s its peer opens; [`frame`] is the
//! codec, without IO.
//!
//! Flow control is TCP's: the peers (moby/spdystream) neither send nor obey `WINDOW_UPDATE`, so honouring the
//! draft's windows would stall after 64 KiB. What a peer can make this side hold is bounded by [`Limits`].
//!
//! No panic is reachable from the peer's bytes. This crate may not import any other of the workspace.

mod connection;
mod dictionary;
pub mod frame;
mod stream;
mod table;

pub use connection::{Closer, Connection, Error, Incoming, Limits};
pub use stream::{Closed, Receiver, Sender, Stream};
