//! How much memory a layer takes to unpack, when it is compressed with zstd. Pure but for reading.
//!
//! A frame says how far back its bytes refer, and whoever unpacks it keeps that much: containerd would keep any
//! amount. Format: RFC 8878, 3.1.

use std::io::{self, BufRead, Read, Seek};

/// Most that is kept: what zstd itself takes without being told to take more.
pub(crate) const MAX_WINDOW: u64 = 128 << 20;

const FRAME: u32 = 0xFD2F_B528;
/// The last four bits are free.
const SKIPPABLE: u32 = 0x184D_2A50;

/// The largest window of the frames of `layer`; 0 when it is not compressed with zstd. What is broken is not looked at
/// any further: nobody can unpack it either.
pub(crate) fn window(layer: &mut (impl BufRead + Seek)) -> io::Result<u64> {
    let mut largest = 0;
    loop {
        match frame(layer) {
            Ok(Some(window)) => largest = largest.max(window),
            Ok(None) => return Ok(largest),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(largest),
            Err(error) => return Err(error),
        }
    }
}

/// Reads past one frame. `None`: there is none.
fn frame(layer: &mut (impl BufRead + Seek)) -> io::Result<Option<u64>> {
    let magic = u32::try_from(number(layer, 4)?).unwrap_or_default();
    if magic & !0xF == SKIPPABLE {
        let size = number(layer, 4)?;
        skip(layer, size)?;
        return Ok(Some(0));
    }
    if magic != FRAME {
        return Ok(None);
    }
    let descriptor = number(layer, 1)?;
    let (single, checked) = (descriptor & 0x20 != 0, descriptor & 0x04 != 0);
    let mut window = 0;
    if !single {
        let text = number(layer, 1)?;
        let base = 1_u64 << (10 + (text >> 3));
        window = base + base / 8 * (text & 7);
    }
    let dictionary = if descriptor & 3 == 3 { 4 } else { descriptor & 3 };
    number(layer, dictionary)?;
    let content = match descriptor >> 6 {
        0 => u64::from(single),
        power => 1 << power,
    };
    let content = number(layer, content)?;
    if single {
        window = content;
    }
    loop {
        let block = number(layer, 3)?;
        // A run is one byte and how often.
        let size = if block >> 1 & 3 == 1 { 1 } else { block >> 3 };
        skip(layer, size)?;
        if block & 1 == 1 {
            break;
        }
    }
    number(layer, if checked { 4 } else { 0 })?;
    Ok(Some(window))
}

/// A number of up to eight bytes, the lowest first.
fn number(layer: &mut impl Read, bytes: u64) -> io::Result<u64> {
    let mut all = [0; 8];
    let part = usize::try_from(bytes).ok().and_then(|bytes| all.get_mut(..bytes)).unwrap_or_default();
    layer.read_exact(part)?;
    Ok(u64::from_le_bytes(all))
}

fn skip(layer: &mut (impl BufRead + Seek), bytes: u64) -> io::Result<()> {
    layer.seek_relative(i64::try_from(bytes).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn frames(parts: &[&[u8]]) -> u64 {
        window(&mut Cursor::new(parts.concat())).unwrap()
    }

    #[test]
    fn the_largest_window_counts() {
        let magic = FRAME.to_le_bytes();
        // A window of 1 KiB, with one raw block of two bytes.
        let small = [&magic[..], &[0x00, 0x00], &[0x11, 0, 0], b"ab"].concat();
        // 2 GiB and a quarter, with a run of 128 KiB and a checksum.
        let large = [&magic[..], &[0x04, 21 << 3 | 1], &[0x03, 0, 0x10], b"a", &[1, 2, 3, 4]].concat();
        // All of its 300 bytes, which it says in two bytes and 256 less.
        let single = [&magic[..], &[0x60], &[44, 0], &[0x01, 0, 0]].concat();
        let skipped = [&(SKIPPABLE | 3).to_le_bytes()[..], &[2, 0, 0, 0], b"xx"].concat();
        assert_eq!(frames(&[&small]), 1 << 10);
        assert_eq!(frames(&[&skipped, &small, &large, &small]), (2 << 30) + (256 << 20));
        assert_eq!(frames(&[&single]), 44);
        assert_eq!(frames(&[&large[..9]]), 0, "it cannot be unpacked either");
        assert_eq!(frames(&[b"\x1f\x8b\x08 is gzip"]), 0);
        assert_eq!(frames(&[b""]), 0);
    }
}
