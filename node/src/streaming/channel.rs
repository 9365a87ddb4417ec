//! One direction of one channel, whichever protocol carries it.

use bytes::Bytes;
use tokio::sync::mpsc;

use super::websocket::Outgoing;

/// What a client sends.
pub(super) enum Input {
    Spdy(ketch_spdy::Receiver),
    WebSocket(mpsc::Receiver<Bytes>),
}

impl Input {
    /// The next bytes; `None`: the client has finished. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        match self {
            Self::Spdy(receiver) => receiver.next().await,
            Self::WebSocket(receiver) => receiver.recv().await,
        }
    }
}

/// What is sent to a client.
pub(super) enum Output {
    Spdy(ketch_spdy::Sender),
    WebSocket { channel: u8, to: mpsc::Sender<Outgoing> },
}

impl Output {
    /// Queues bytes; waits while the client does not keep up. `Err`: it is gone.
    pub(super) async fn send(&mut self, bytes: Bytes) -> Result<(), ketch_spdy::Closed> {
        match self {
            Self::Spdy(sender) => sender.send(bytes).await,
            Self::WebSocket { channel, to } => {
                let sent = to.send(Outgoing::Data(*channel, bytes)).await;
                sent.map_err(|_| ketch_spdy::Closed)
            }
        }
    }

    /// Says that nothing follows. A channel of a WebSocket has no way to say so: it is silent.
    pub(super) async fn finish(self) {
        if let Self::Spdy(sender) = self {
            sender.finish().await;
        }
    }
}
