//! The protobuf wire format: tags, lengths, numbers. No message knows its kind here.
//!
//! <https://protobuf.dev/programming-guides/encoding/>

/// Reads one message, field by field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'b> {
    rest: &'b [u8],
}

/// Value of a field, as far as the wire tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'b> {
    /// Numbers and truth values.
    Varint(u64),
    /// `double` and others of eight bytes.
    Fixed64(u64),
    /// Four bytes.
    Fixed32(u32),
    /// Text, bytes, messages, packed lists.
    Bytes(&'b [u8]),
}

/// What is wrong with the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("it ends in the middle of a field")]
    Truncated,
    #[error("a number is longer than ten bytes")]
    LongNumber,
    #[error("a field has the number zero or one that is too large")]
    Tag,
    #[error("a field has the unknown wire type {0}")]
    WireType(u8),
}

impl<'b> Reader<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next field's tag and value.
    pub(super) fn field(&mut self) -> Result<Option<(u32, Value<'b>)>, Fault> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let tag = u32::try_from(key >> 3).ok().filter(|tag| (1..1 << 29).contains(tag)).ok_or(Fault::Tag)?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Fault::Truncated)?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.array()?)),
            other => return Err(Fault::WireType(other as u8)),
        };
        Ok(Some((tag, value)))
    }

    /// A number of up to ten bytes of seven bits, the lowest first.
    pub(super) fn varint(&mut self) -> Result<u64, Fault> {
        let mut number = 0u64;
        for position in 0..10 {
            let (byte, rest) = self.rest.split_first().ok_or(Fault::Truncated)?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << (7 * position);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Fault::LongNumber)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn take(&mut self, length: usize) -> Result<&'b [u8], Fault> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Fault::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Fault::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_turn() {
        let mut reader = Reader::new(&[
            0x08, 0x96, 0x01, 0x12, 0x02, b'h', b'i', 0x1d, 1, 0, 0, 0, 0x21, 2, 0, 0, 0, 0, 0, 0, 0,
        ]);
        assert_eq!(reader.field(), Ok(Some((1, Value::Varint(150)))));
        assert_eq!(reader.field(), Ok(Some((2, Value::Bytes(b"hi")))));
        assert_eq!(reader.field(), Ok(Some((3, Value::Fixed32(1)))));
        assert_eq!(reader.field(), Ok(Some((4, Value::Fixed64(2)))));
        assert_eq!(reader.field(), Ok(None));
    }

    #[test]
    fn broken_bytes_are_told_apart() {
        for (bytes, fault) in [
            (&[0x80][..], Fault::Truncated),
            (&[0x12, 0x05, b'x'], Fault::Truncated),
            (&[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], Fault::Truncated),
            (&[0x0d, 1, 2], Fault::Truncated),
            (&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], Fault::LongNumber),
            (&[0x00, 1], Fault::Tag),
            (&[0x0b], Fault::WireType(3)),
        ] {
            assert_eq!(Reader::new(bytes).field(), Err(fault), "{bytes:?}");
        }
    }
}
