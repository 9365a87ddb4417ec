//! Header blocks: names and values, compressed over the whole connection with a preset dictionary.

use bytes::{Buf, BufMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::Malformed;
use crate::dictionary::DICTIONARY;

/// Most bytes of a block when decompressed.
const MAX_BLOCK: usize = 64 << 10;
/// Most headers in a block.
const MAX_HEADERS: usize = 256;

/// Headers of a stream: lower-case names with values. A repeated name has its values joined by NUL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// From names and values.
    pub fn new(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(name, value)| (name.to_ascii_lowercase(), (*value).to_owned())).collect())
    }

    /// The first value of a header; `name` in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(own, _)| own == name)?;
        value.split('\0').next()
    }
}

/// Decompresses blocks.
pub(super) struct Inflater(Decompress);

impl Inflater {
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// The headers of a compressed block.
    pub(super) fn headers(&mut self, block: &[u8]) -> Result<Headers, Malformed> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut out = Vec::with_capacity(1024);
        loop {
            if out.len() == out.capacity() {
                if out.len() >= MAX_BLOCK {
                    return Err(Malformed::Headers);
                }
                out.reserve(out.len());
            }
            let (before, made) = (self.0.total_in(), out.len());
            let result = self.0.decompress_vec(block, &mut out, FlushDecompress::Sync);
            let used = usize::try_from(self.0.total_in() - before).unwrap_or(usize::MAX);
            block = block.get(used..).unwrap_or_default();
            match result {
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(DICTIONARY).map_err(|_| Malformed::Headers)?;
                    continue;
                }
                Err(_) => return Err(Malformed::Headers),
            }
            let full = out.len() == out.capacity();
            if block.is_empty() && !full {
                return Ok(out);
            }
            if used == 0 && out.len() == made && !full {
                // The compressed stream has ended, or makes no progress.
                return Err(Malformed::Headers);
            }
        }
    }
}

fn parse(mut block: &[u8]) -> Result<Headers, Malformed> {
    let count = block.try_get_u32().map_err(|_| Malformed::Headers)? as usize;
    if count > MAX_HEADERS {
        return Err(Malformed::Headers);
    }
    let mut text = || -> Result<String, Malformed> {
        let length = block.try_get_u32().map_err(|_| Malformed::Headers)? as usize;
        let bytes = block.get(..length).ok_or(Malformed::Headers)?;
        let text = String::from_utf8(bytes.to_vec()).map_err(|_| Malformed::Headers)?;
        block.advance(length);
        Ok(text)
    };
    let mut headers = Vec::with_capacity(count);
    for _ in 0..count {
        headers.push((text()?.to_ascii_lowercase(), text()?));
    }
    Ok(Headers(headers))
}

/// Compresses blocks.
pub(super) struct Deflater {
    compress: Compress,
    begun: bool,
}

impl Deflater {
    pub(super) fn new() -> Self {
        Self { compress: Compress::new(Compression::best(), true), begun: false }
    }

    /// The compressed block of `headers`.
    pub(super) fn block(&mut self, headers: &Headers) -> Result<Vec<u8>, Malformed> {
        if !std::mem::replace(&mut self.begun, true) {
            self.compress.set_dictionary(DICTIONARY).map_err(|_| Malformed::Headers)?;
        }
        let mut plain = Vec::new();
        let number = |plain: &mut Vec<u8>, n: usize| {
            plain.put_u32(u32::try_from(n).unwrap_or(u32::MAX));
        };
        number(&mut plain, headers.0.len());
        for text in headers.0.iter().flat_map(|(name, value)| [name, value]) {
            number(&mut plain, text.len());
            plain.put_slice(text.as_bytes());
        }
        self.deflate(&plain)
    }

    fn deflate(&mut self, mut plain: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut out = Vec::with_capacity(plain.len() + 64);
        loop {
            let before = self.compress.total_in();
            self.compress
                .compress_vec(plain, &mut out, FlushCompress::Sync)
                .map_err(|_| Malformed::Headers)?;
            let used = usize::try_from(self.compress.total_in() - before).unwrap_or(usize::MAX);
            plain = plain.get(used..).unwrap_or_default();
            if plain.is_empty() && out.len() < out.capacity() {
                return Ok(out);
            }
            out.reserve(256);
        }
    }
}
