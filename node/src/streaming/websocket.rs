//! Channels over a WebSocket: the first byte of a message is the channel's number (upstream's `wsstream`).

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::{Bytes, BytesMut};
use futures::{Sink, SinkExt, Stream, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

/// Longest message taken. Clients that write a file at once send it as one.
const MAX_MESSAGE: usize = 4 << 20;
/// Messages waiting for the program, per channel, and for the client.
const QUEUE: usize = 4;
/// Since v5 this channel says which other one is finished.
const CLOSE: u8 = 255;
/// For the client to answer the closing of the connection.
const LINGER: Duration = Duration::from_secs(10);

/// What goes to a client.
pub(super) enum Outgoing {
    Data(u8, Bytes),
    Close,
}

/// How messages look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    /// Text: a digit and Base64.
    base64: bool,
    /// Whether [`CLOSE`] has its meaning.
    closes: bool,
}

impl Form {
    /// By the name of the protocol.
    pub(super) fn of(protocol: &str) -> Self {
        Self { base64: protocol.contains("base64"), closes: protocol.starts_with("v5.") }
    }

    pub(super) fn encode(self, channel: u8, bytes: &[u8]) -> Message {
        if self.base64 {
            let digit = char::from(b'0'.saturating_add(channel));
            return Message::text(format!("{digit}{}", BASE64_STANDARD.encode(bytes)));
        }
        let mut message = BytesMut::with_capacity(bytes.len() + 1);
        message.extend_from_slice(&[channel]);
        message.extend_from_slice(bytes);
        Message::binary(message.freeze())
    }

    /// Channel and bytes; `None`: nothing that has a meaning.
    pub(super) fn decode(self, mut message: Bytes) -> Option<(u8, Bytes)> {
        let first = *message.first()?;
        let rest = message.split_off(1);
        if !self.base64 {
            return Some((first, rest));
        }
        Some((first.checked_sub(b'0')?, BASE64_STANDARD.decode(&rest).ok()?.into()))
    }
}

/// A WebSocket on a connection whose handshake is done.
pub(super) async fn socket<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> WebSocketStream<T> {
    let config =
        WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// The client's side of the channels, by number.
pub(super) struct Inputs(Vec<Option<mpsc::Sender<Bytes>>>);

impl Inputs {
    /// None yet.
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    /// Takes what comes on a channel.
    pub(super) fn open(&mut self, channel: u8) -> mpsc::Receiver<Bytes> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let index = usize::from(channel);
        if self.0.len() <= index {
            self.0.resize_with(index + 1, || None);
        }
        if let Some(slot) = self.0.get_mut(index) {
            *slot = Some(sender);
        }
        receiver
    }

    async fn take(&mut self, form: Form, message: Bytes) {
        let Some((channel, bytes)) = form.decode(message) else { return };
        if channel == CLOSE && form.closes {
            if let Some(slot) = bytes.first().and_then(|closed| self.0.get_mut(usize::from(*closed))) {
                *slot = None;
            }
            return;
        }
        if let Some(Some(to)) = self.0.get(usize::from(channel)) {
            // Fails when the program does not read any more.
            let _ = to.send(bytes).await;
        }
    }
}

/// The way to a client, and what comes out of it: for [`serve`].
pub(super) fn outputs() -> (mpsc::Sender<Outgoing>, mpsc::Receiver<Outgoing>) {
    mpsc::channel(QUEUE)
}

/// Carries channels until the client goes, or [`Outgoing::Close`] and its answer.
pub(super) async fn serve<T: AsyncRead + AsyncWrite + Unpin>(
    socket: WebSocketStream<T>,
    form: Form,
    mut inputs: Inputs,
    mut outgoing: mpsc::Receiver<Outgoing>,
) {
    let (mut sink, mut stream) = socket.split();
    let read = async {
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(bytes) => inputs.take(form, bytes).await,
                Message::Text(text) => inputs.take(form, text.into()).await,
                Message::Close(_) => return,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    };
    let write = async {
        while let Some(message) = outgoing.recv().await {
            let sent = match message {
                Outgoing::Data(channel, bytes) => sink.send(form.encode(channel, &bytes)).await,
                Outgoing::Close => {
                    // Clients take any other code for a failure.
                    let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
                    let _ = sink.send(Message::Close(Some(normal))).await;
                    break;
                }
            };
            if sent.is_err() {
                return;
            }
        }
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        () = read => {}
        () = write => {}
    }
}

/// Bytes in the binary messages of a WebSocket.
pub(super) struct Tunnel<T> {
    socket: WebSocketStream<T>,
    /// Of the last message, not yet read.
    rest: Bytes,
}

impl<T> Tunnel<T> {
    pub(super) fn new(socket: WebSocketStream<T>) -> Self {
        Self { socket, rest: Bytes::new() }
    }
}

fn broken(error: tungstenite::Error) -> io::Error {
    io::Error::other(error)
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Tunnel<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes,
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let size = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest.split_to(size));
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tunnel<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(broken)?;
        let message = Message::binary(Bytes::copy_from_slice(bytes));
        Pin::new(&mut self.socket).start_send(message).map_err(broken)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_form_of_their_protocol() {
        let v5 = Form::of("v5.channel.k8s.io");
        assert_eq!(v5.encode(1, b"hi"), Message::binary(&b"\x01hi"[..]));
        assert_eq!(v5.decode(Bytes::from_static(b"\x00in")), Some((0, Bytes::from_static(b"in"))));
        assert_eq!(v5.decode(Bytes::new()), None);
        let text = Form::of("v4.base64.channel.k8s.io");
        assert_eq!(text.encode(3, b"hi"), Message::text("3aGk="));
        assert_eq!(text.decode(Bytes::from_static(b"0aGk=")), Some((0, Bytes::from_static(b"hi"))));
        for bad in [&b"0!"[..], b"\x00aGk=", b""] {
            assert_eq!(text.decode(Bytes::copy_from_slice(bad)), None);
        }
        assert!(v5.closes && !Form::of("v4.channel.k8s.io").closes && !Form::of("").base64);
    }
}
