//! The codec against itself, against known bytes, and against any bytes.

use proptest::prelude::*;

use super::*;

fn encoded(frames: &[Frame]) -> BytesMut {
    let (mut encoder, mut bytes) = (Encoder::new(), BytesMut::new());
    for frame in frames {
        encoder.encode(frame, &mut bytes).unwrap();
    }
    bytes
}

fn decoded(mut bytes: BytesMut) -> Result<Vec<Frame>, Malformed> {
    let (mut decoder, mut frames) = (Decoder::new(), Vec::new());
    while let Some(frame) = decoder.decode(&mut bytes)? {
        frames.push(frame);
    }
    Ok(frames)
}

fn some_frames() -> Vec<Frame> {
    let headers = Headers::new(&[("streamType", "stdout"), ("port", "8080"), ("requestID", "0")]);
    vec![
        Frame::SynStream { stream: 1, fin: false, headers: headers.clone() },
        Frame::SynReply { stream: 1, fin: true, headers: Headers::default() },
        Frame::SynStream { stream: 3, fin: true, headers: headers.clone() },
        Frame::Headers { stream: 3, fin: false, headers },
        Frame::Data { stream: 1, fin: false, bytes: Bytes::from_static(b"hello") },
        Frame::Data { stream: 1, fin: true, bytes: Bytes::new() },
        Frame::RstStream { stream: 3, status: Reset::Cancel as u32 },
        Frame::Ping(7),
        Frame::GoAway { last: 3, status: 0 },
    ]
}

#[test]
fn frames_come_back() {
    assert_eq!(decoded(encoded(&some_frames())).unwrap(), some_frames());
}

#[test]
fn frames_come_back_byte_by_byte() {
    let (mut decoder, mut buffer, mut frames) = (Decoder::new(), BytesMut::new(), Vec::new());
    for byte in encoded(&some_frames()) {
        buffer.put_u8(byte);
        while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
            frames.push(frame);
        }
    }
    // Data comes as it arrives; everything else is as it was.
    let (data, other): (Vec<_>, Vec<_>) = frames.into_iter().partition(|f| matches!(f, Frame::Data { .. }));
    let text: Vec<u8> = data
        .iter()
        .flat_map(|f| match f {
            Frame::Data { bytes, .. } => bytes.to_vec(),
            _ => Vec::new(),
        })
        .collect();
    assert_eq!(text, b"hello");
    assert!(matches!(data.last(), Some(Frame::Data { stream: 1, fin: true, .. })));
    assert_eq!(other.len(), some_frames().len() - 2);
}

/// What moby/spdystream sends first for `kubectl exec`: the shape of the head, and zlib with the dictionary.
#[test]
fn the_bytes_are_those_of_the_draft() {
    let bytes = encoded(&some_frames()[..1]);
    assert_eq!(bytes[..5], [0x80, 3, 0, 1, 0]);
    let length = u32::from_be_bytes([0, bytes[5], bytes[6], bytes[7]]) as usize;
    assert_eq!(bytes.len(), 8 + length);
    // The zlib head names a preset dictionary, and the dictionary by its Adler-32.
    assert_eq!(bytes[19] & 0x20, 0x20);
    assert_eq!(bytes[20..24], [0xe3, 0xc6, 0xa7, 0xc2]);
    assert_eq!(encoded(&[Frame::Ping(1)])[..], [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]);
    let data = Frame::Data { stream: 5, fin: true, bytes: Bytes::from_static(b"x") };
    assert_eq!(encoded(&[data])[..], [0, 0, 0, 5, 1, 0, 0, 1, b'x']);
}

#[test]
fn what_is_no_spdy_is_refused() {
    let refuse = |bytes: &[u8]| decoded(BytesMut::from(bytes)).unwrap_err();
    assert_eq!(refuse(&[0x80, 2, 0, 1, 0, 0, 0, 0]), Malformed::Version(2));
    assert_eq!(refuse(&[0x80, 3, 0, 1, 0, 1, 0, 1]), Malformed::TooLong(65537));
    assert_eq!(refuse(&[0x80, 3, 0, 6, 0, 0, 0, 2, 1, 1]), Malformed::TooShort(6));
    assert_eq!(refuse(&[0x80, 3, 0, 2, 0, 0, 0, 8, 0, 0, 0, 1, 1, 2, 3, 4]), Malformed::Headers);
    // Settings and window updates are nobody's business.
    let settings = decoded(BytesMut::from(&[0x80, 3, 0, 4, 0, 0, 0, 1, 9][..])).unwrap();
    assert_eq!(settings, [Frame::Other(4)]);
}

#[test]
fn a_header_bomb_is_refused() {
    let bomb = Headers(vec![("a".into(), "x".repeat(1 << 20))]);
    let bytes = encoded(&[Frame::SynReply { stream: 1, fin: false, headers: bomb }]);
    assert!(bytes.len() < 4096, "{}", bytes.len());
    assert_eq!(decoded(bytes).unwrap_err(), Malformed::Headers);
    let many = Headers((0..300).map(|n| (n.to_string(), String::new())).collect());
    let bytes = encoded(&[Frame::SynReply { stream: 1, fin: false, headers: many }]);
    assert_eq!(decoded(bytes).unwrap_err(), Malformed::Headers);
    let large = Headers(vec![("a".into(), "xy".repeat(20_000))]);
    let frame = Frame::SynReply { stream: 1, fin: false, headers: large };
    assert_eq!(decoded(encoded(std::slice::from_ref(&frame))).unwrap(), [frame]);
}

fn any_headers() -> impl Strategy<Value = Headers> {
    proptest::collection::vec(("[a-z:-]{1,12}", "[ -~]{0,40}"), 0..8).prop_map(Headers)
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let stream = || 0..=LOW;
    prop_oneof![
        (stream(), any::<bool>(), any_headers()).prop_map(|(stream, fin, headers)| Frame::SynStream {
            stream,
            fin,
            headers
        }),
        (stream(), any::<bool>(), any_headers()).prop_map(|(stream, fin, headers)| Frame::SynReply {
            stream,
            fin,
            headers
        }),
        (stream(), any::<bool>(), any_headers()).prop_map(|(stream, fin, headers)| Frame::Headers {
            stream,
            fin,
            headers
        }),
        (stream(), any::<u32>()).prop_map(|(stream, status)| Frame::RstStream { stream, status }),
        any::<u32>().prop_map(Frame::Ping),
        (stream(), any::<u32>()).prop_map(|(last, status)| Frame::GoAway { last, status }),
        (stream(), any::<bool>(), proptest::collection::vec(any::<u8>(), 0..600))
            .prop_map(|(stream, fin, bytes)| Frame::Data { stream, fin, bytes: bytes.into() }),
    ]
}

proptest! {
    #[test]
    fn any_frames_come_back(frames in proptest::collection::vec(any_frame(), 0..12)) {
        prop_assert_eq!(decoded(encoded(&frames)).unwrap(), frames);
    }

    #[test]
    fn no_bytes_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let _ = decoded(BytesMut::from(&bytes[..]));
    }

    #[test]
    fn no_control_frame_breaks_it(kind in 0_u16..12, body in proptest::collection::vec(any::<u8>(), 0..256)) {
        let mut bytes = BytesMut::new();
        control(&mut bytes, kind, false, body.len());
        bytes.put_slice(&body);
        let _ = decoded(bytes);
    }

    #[test]
    fn no_flipped_byte_breaks_it(
        frames in proptest::collection::vec(any_frame(), 1..6), at in any::<prop::sample::Index>(), to in any::<u8>()
    ) {
        let mut bytes = encoded(&frames);
        let at = at.index(bytes.len());
        bytes[at] = to;
        let _ = decoded(bytes);
    }
}
