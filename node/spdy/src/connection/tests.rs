//! A connection against a peer made of frames.

use bytes::Bytes;
use tokio::{io::DuplexStream, task::JoinSet};

use super::*;
use crate::Closed;

const PATIENCE: Duration = Duration::from_secs(20);

struct Peer {
    io: DuplexStream,
    encoder: Encoder,
    decoder: Decoder,
    buffer: BytesMut,
    run: JoinSet<Result<(), Error>>,
}

fn connect(limits: Limits) -> (Peer, Incoming, Closer) {
    let (io, far) = tokio::io::duplex(4096);
    let (connection, incoming, closer) = Connection::new(far, limits);
    let mut run = JoinSet::new();
    run.spawn(connection.run());
    let peer = Peer { io, encoder: Encoder::new(), decoder: Decoder::new(), buffer: BytesMut::new(), run };
    (peer, incoming, closer)
}

impl Peer {
    async fn send(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        self.encoder.encode(&frame, &mut bytes).unwrap();
        self.io.write_all(&bytes).await.unwrap();
    }

    async fn open(&mut self, stream: u32, kind: &str) {
        let headers = Headers::new(&[("streamType", kind)]);
        self.send(Frame::SynStream { stream, fin: false, headers }).await;
    }

    async fn data(&mut self, stream: u32, text: &'static str, fin: bool) {
        self.send(Frame::Data { stream, fin, bytes: Bytes::from_static(text.as_bytes()) }).await;
    }

    async fn next(&mut self) -> Option<Frame> {
        let next = async {
            loop {
                if let Some(frame) = self.decoder.decode(&mut self.buffer).unwrap() {
                    return Some(frame);
                }
                if self.io.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
                    return None;
                }
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("a frame comes")
    }
}

fn reply(stream: u32) -> Option<Frame> {
    Some(Frame::SynReply { stream, fin: false, headers: Headers::default() })
}

fn data(stream: u32, text: &'static str, fin: bool) -> Option<Frame> {
    Some(Frame::Data { stream, fin, bytes: Bytes::from_static(text.as_bytes()) })
}

#[tokio::test]
async fn a_stream_carries_bytes_both_ways() {
    let (mut peer, mut incoming, closer) = connect(Limits::default());
    peer.open(1, "stdin").await;
    let mut stream = incoming.next().await.unwrap();
    assert_eq!(stream.headers.get("streamtype"), Some("stdin"));
    assert_eq!(peer.next().await, reply(1));
    peer.data(1, "one", false).await;
    peer.data(1, "two", true).await;
    assert_eq!(stream.receiver.next().await.unwrap(), "one");
    assert_eq!(stream.receiver.next().await.unwrap(), "two");
    assert_eq!(stream.receiver.next().await, None);
    stream.sender.send(Bytes::from_static(b"answer")).await.unwrap();
    stream.sender.finish().await;
    closer.close().await;
    assert_eq!(peer.next().await, data(1, "answer", false));
    assert_eq!(peer.next().await, data(1, "", true));
    assert_eq!(peer.next().await, Some(Frame::GoAway { last: 1, status: 0 }));
    drop(peer.io);
    peer.run.join_next().await.unwrap().unwrap().unwrap();
    assert!(incoming.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_stays_is_left_in_the_end() {
    let (mut peer, _incoming, closer) = connect(Limits::default());
    closer.close().await;
    assert_eq!(peer.next().await, Some(Frame::GoAway { last: 0, status: 0 }));
    assert_eq!(peer.next().await, None);
    peer.run.join_next().await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn pings_come_back() {
    let (mut peer, _incoming, _closer) = connect(Limits::default());
    peer.send(Frame::Ping(2)).await;
    peer.send(Frame::Ping(1)).await;
    assert_eq!(peer.next().await, Some(Frame::Ping(1)));
}

#[tokio::test]
async fn resets_end_streams() {
    let (mut peer, mut incoming, _closer) = connect(Limits::default());
    peer.open(1, "a").await;
    let mut first = incoming.next().await.unwrap();
    assert_eq!(peer.next().await, reply(1));
    peer.send(Frame::RstStream { stream: 1, status: 5 }).await;
    assert_eq!(first.receiver.next().await, None);
    assert!(first.gone.is_cancelled());
    assert_eq!(first.sender.send(Bytes::from_static(b"x")).await, Err(Closed));
    peer.open(3, "b").await;
    drop(incoming.next().await.unwrap());
    assert_eq!(peer.next().await, reply(3));
    assert_eq!(peer.next().await, Some(Frame::RstStream { stream: 3, status: 5 }));
}

#[tokio::test]
async fn bad_and_too_many_streams_are_refused() {
    let (mut peer, mut incoming, _closer) = connect(Limits { streams: 1, held: 1 << 20 });
    peer.open(2, "even").await;
    assert_eq!(peer.next().await, Some(Frame::RstStream { stream: 2, status: 1 }));
    peer.open(5, "a").await;
    let _first = incoming.next().await.unwrap();
    assert_eq!(peer.next().await, reply(5));
    peer.open(7, "one too many").await;
    assert_eq!(peer.next().await, Some(Frame::RstStream { stream: 7, status: 3 }));
    peer.open(3, "backwards").await;
    assert_eq!(peer.next().await, Some(Frame::RstStream { stream: 3, status: 1 }));
}

#[tokio::test]
async fn what_is_not_taken_is_bounded() {
    let (mut peer, mut incoming, _closer) = connect(Limits { streams: 4, held: 8 << 10 });
    peer.open(1, "slow").await;
    let mut stream = incoming.next().await.unwrap();
    let mut sent = 0;
    // Writes until nothing more is taken: the limit, and what the pipe and one read hold.
    let piece = Frame::Data { stream: 1, fin: false, bytes: Bytes::from(vec![0; 1024]) };
    while tokio::time::timeout(Duration::from_millis(50), peer.send(piece.clone())).await.is_ok() {
        sent += 1;
        assert!(sent < 64, "it takes everything");
    }
    // A share comes free with each piece taken.
    let mut taken = 0;
    while taken < sent * 1024 {
        taken += tokio::time::timeout(PATIENCE, stream.receiver.next()).await.unwrap().unwrap().len();
    }
}

#[tokio::test]
async fn no_spdy_ends_the_connection() {
    let (mut peer, mut incoming, _closer) = connect(Limits::default());
    peer.io.write_all(b"\x80\x02\x00\x01\x00\x00\x00\x00").await.unwrap();
    assert!(incoming.next().await.is_none());
    assert!(matches!(
        peer.run.join_next().await.unwrap().unwrap(),
        Err(Error::Malformed(Malformed::Version(2)))
    ));
}

#[tokio::test]
async fn a_peer_that_only_makes_work_is_left() {
    let (mut peer, mut incoming, _closer) = connect(Limits { streams: 2, held: 1 << 20 });
    let mut drain = JoinSet::new();
    drain.spawn(async move { while incoming.next().await.is_some() {} });
    let flood = async {
        let mut bytes = BytesMut::new();
        for id in (1..200_000).step_by(2) {
            let headers = Headers::default();
            peer.encoder.encode(&Frame::SynStream { stream: id, fin: false, headers }, &mut bytes).unwrap();
            peer.encoder.encode(&Frame::RstStream { stream: id, status: 5 }, &mut bytes).unwrap();
            if peer.io.write_all_buf(&mut bytes).await.is_err() {
                return;
            }
        }
        panic!("it takes everything");
    };
    tokio::time::timeout(PATIENCE, flood).await.unwrap();
    assert!(matches!(peer.run.join_next().await.unwrap().unwrap(), Err(Error::Flooded)));
    drain.join_next().await.unwrap().unwrap();
}
