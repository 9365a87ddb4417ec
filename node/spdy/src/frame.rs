//! Frames of SPDY/3.1 (draft 3.1, section 2.6), without IO.

mod headers;

use bytes::{Buf, BufMut, Bytes, BytesMut};
pub use headers::Headers;
use headers::{Deflater, Inflater};

/// Longest control frame taken, in bytes after its eight of head.
pub const MAX_CONTROL: usize = 64 << 10;
/// Most bytes of a peer's data frame in one [`Frame::Data`].
const PIECE: usize = 32 << 10;

const HEAD: usize = 8;
const VERSION: u16 = 3;
const FIN: u8 = 1;
/// Stream ids and the like have 31 bits.
const LOW: u32 = 0x7fff_ffff;

/// `RST_STREAM` status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reset {
    /// The peer broke the protocol on this stream.
    ProtocolError = 1,
    /// There is no such stream.
    InvalidStream = 2,
    /// The stream was not looked at; there are too many.
    RefusedStream = 3,
    /// Not wanted any more.
    Cancel = 5,
}

/// One frame, or a piece of a data frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    SynStream {
        /// The stream.
        stream: u32,
        /// Nothing follows from the sender.
        fin: bool,
        /// Its headers.
        headers: Headers,
    },
    /// Accepts a stream.
    SynReply {
        /// The stream.
        stream: u32,
        /// Nothing follows from the sender.
        fin: bool,
        /// Its headers.
        headers: Headers,
    },
    /// Ends a stream at once, both ways.
    RstStream {
        /// The stream.
        stream: u32,
        /// Why: [`Reset`] as a number.
        status: u32,
    },
    /// To be sent back, when the id is the peer's.
    Ping(u32),
    /// No more streams will be taken.
    GoAway {
        /// The last one taken.
        last: u32,
        /// 0: fine.
        status: u32,
    },
    /// Further headers of a stream.
    Headers {
        /// The stream.
        stream: u32,
        /// Nothing follows from the sender.
        fin: bool,
        /// The headers.
        headers: Headers,
    },
    /// Bytes of a stream. A peer's frame may come in several, the last with its `fin`.
    Data {
        /// The stream.
        stream: u32,
        /// Nothing follows from the sender.
        fin: bool,
        /// The bytes.
        bytes: Bytes,
    },
    /// A control frame of another type, to be ignored: settings, window updates, credentials.
    Other(u16),
}

/// Why a peer's bytes are no SPDY. The connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not version 3.
    #[error("SPDY version {0} is not supported")]
    Version(u16),
    /// A control frame longer than [`MAX_CONTROL`].
    #[error("a control frame of {0} bytes is too long")]
    TooLong(usize),
    /// A frame shorter than its type needs.
    #[error("a frame of type {0} is too short")]
    TooShort(u16),
    /// Headers that do not decompress, or to more than is taken.
    #[error("a header block is broken or too large")]
    Headers,
}

/// Frames from a peer's bytes.
pub struct Decoder {
    inflater: Inflater,
    /// Stream, rest and `fin` of a data frame that has begun.
    data: Option<(u32, usize, bool)>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// For a new connection.
    pub fn new() -> Self {
        Self { inflater: Inflater::new(), data: None }
    }

    /// Takes the next frame from `buffer`; `None`: more bytes are needed.
    ///
    /// # Errors
    /// When the bytes are no SPDY.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, Malformed> {
        if let Some((stream, rest, fin)) = self.data.take() {
            return Ok(self.piece(buffer, stream, rest, fin));
        }
        let Some(mut head) = buffer.get(..HEAD) else { return Ok(None) };
        let (first, second) = (head.get_u32(), head.get_u32());
        let (flags, length) = ((second >> 24) as u8, (second & 0x00ff_ffff) as usize);
        if first >> 31 == 0 {
            buffer.advance(HEAD);
            return Ok(self.piece(buffer, first & LOW, length, flags & FIN != 0));
        }
        let (version, kind) = ((first >> 16) as u16 & 0x7fff, first as u16);
        if version != VERSION {
            return Err(Malformed::Version(version));
        }
        if length > MAX_CONTROL {
            return Err(Malformed::TooLong(length));
        }
        if buffer.len() < HEAD + length {
            return Ok(None);
        }
        buffer.advance(HEAD);
        self.control(kind, flags & FIN != 0, buffer.split_to(length)).map(Some)
    }

    /// What there is of a data frame's `rest`.
    fn piece(&mut self, buffer: &mut BytesMut, stream: u32, rest: usize, fin: bool) -> Option<Frame> {
        let size = rest.min(buffer.len()).min(PIECE);
        if size == 0 && rest > 0 {
            self.data = Some((stream, rest, fin));
            return None;
        }
        let last = size == rest;
        if !last {
            self.data = Some((stream, rest - size, fin));
        }
        Some(Frame::Data { stream, fin: fin && last, bytes: buffer.split_to(size).freeze() })
    }

    fn control(&mut self, kind: u16, fin: bool, mut body: BytesMut) -> Result<Frame, Malformed> {
        let short = |_| Malformed::TooShort(kind);
        let number = |body: &mut BytesMut| body.try_get_u32().map_err(short);
        match kind {
            1 => {
                let stream = number(&mut body)? & LOW;
                number(&mut body)?;
                body.try_get_u16().map_err(short)?;
                Ok(Frame::SynStream { stream, fin, headers: self.inflater.headers(&body)? })
            }
            2 | 8 => {
                let stream = number(&mut body)? & LOW;
                let headers = self.inflater.headers(&body)?;
                Ok(match kind {
                    2 => Frame::SynReply { stream, fin, headers },
                    _ => Frame::Headers { stream, fin, headers },
                })
            }
            3 => Ok(Frame::RstStream { stream: number(&mut body)? & LOW, status: number(&mut body)? }),
            6 => Ok(Frame::Ping(number(&mut body)?)),
            7 => Ok(Frame::GoAway { last: number(&mut body)? & LOW, status: number(&mut body)? }),
            other => Ok(Frame::Other(other)),
        }
    }
}

/// A peer's bytes from frames.
pub struct Encoder {
    deflater: Deflater,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// For a new connection.
    pub fn new() -> Self {
        Self { deflater: Deflater::new() }
    }

    /// Appends `frame` to `to`. Data of more than 2^24 - 1 bytes becomes several frames;
    /// [`Frame::Other`] becomes nothing.
    ///
    /// # Errors
    /// When headers cannot be compressed.
    pub fn encode(&mut self, frame: &Frame, to: &mut BytesMut) -> Result<(), Malformed> {
        match frame {
            Frame::Data { stream, fin, bytes } => data(*stream, *fin, bytes, to),
            Frame::SynStream { stream, fin, headers } => {
                let block = self.deflater.block(headers)?;
                control(to, 1, *fin, 10 + block.len());
                to.put_u32(*stream);
                to.put_u32(0);
                to.put_u16(0);
                to.put_slice(&block);
            }
            Frame::SynReply { stream, fin, headers } => self.block(2, *stream, *fin, headers, to)?,
            Frame::Headers { stream, fin, headers } => self.block(8, *stream, *fin, headers, to)?,
            Frame::RstStream { stream, status } => pair(to, 3, *stream, *status),
            Frame::GoAway { last, status } => pair(to, 7, *last, *status),
            Frame::Ping(id) => {
                control(to, 6, false, 4);
                to.put_u32(*id);
            }
            Frame::Other(_) => {}
        }
        Ok(())
    }

    fn block(
        &mut self,
        kind: u16,
        stream: u32,
        fin: bool,
        headers: &Headers,
        to: &mut BytesMut,
    ) -> Result<(), Malformed> {
        let block = self.deflater.block(headers)?;
        control(to, kind, fin, 4 + block.len());
        to.put_u32(stream);
        to.put_slice(&block);
        Ok(())
    }
}

fn head(to: &mut BytesMut, first: u32, fin: bool, length: usize) {
    to.put_u32(first);
    to.put_u8(if fin { FIN } else { 0 });
    // Three bytes: callers keep to less.
    to.put_uint(length as u64 & 0x00ff_ffff, 3);
}

fn control(to: &mut BytesMut, kind: u16, fin: bool, length: usize) {
    head(to, 1 << 31 | u32::from(VERSION) << 16 | u32::from(kind), fin, length);
}

fn pair(to: &mut BytesMut, kind: u16, one: u32, two: u32) {
    control(to, kind, false, 8);
    to.put_u32(one);
    to.put_u32(two);
}

fn data(stream: u32, fin: bool, bytes: &Bytes, to: &mut BytesMut) {
    const MOST: usize = 0x00ff_ffff;
    let mut rest = bytes.as_ref();
    loop {
        let (piece, tail) = rest.split_at(rest.len().min(MOST));
        head(to, stream & LOW, fin && tail.is_empty(), piece.len());
        to.put_slice(piece);
        rest = tail;
        if rest.is_empty() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
