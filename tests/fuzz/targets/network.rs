//! Packets and streams of the network: DNS questions, SPDY frames.
#![no_main]

use std::sync::Arc;

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for udp in [true, false] {
        if let Some(answer) = ketch_dns::testing::respond(Arc::default(), bytes, udp) {
            assert_eq!(answer.get(..2), bytes.get(..2), "an answer has its question's number");
        }
    }
    // Frames are the same however the bytes are cut.
    let (mut whole, mut cut) = (Decoder::default(), Decoder::default());
    whole.take(bytes);
    bytes.iter().for_each(|byte| cut.take(std::slice::from_ref(byte)));
    assert_eq!(whole.failed, cut.failed);
});

#[derive(Default)]
struct Decoder {
    inner: ketch_spdy::frame::Decoder,
    buffer: BytesMut,
    failed: bool,
}

impl Decoder {
    fn take(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        while !self.failed {
            match self.inner.decode(&mut self.buffer) {
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(_) => self.failed = true,
            }
        }
    }
}
