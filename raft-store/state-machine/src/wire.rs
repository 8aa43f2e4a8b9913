//! The primitives of every encoding here: LEB128 varints, zigzag for signed numbers, length-prefixed bytes.
//!
//! [`Reader`] cuts byte strings out of the input without copying them. It never panics and never allocates
//! more than the input justifies, whatever the bytes.

use bytes::{BufMut, Bytes, BytesMut};

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The input ends in the middle.
    #[error("the input ends before the value does")]
    Truncated,
    /// Something follows the value.
    #[error("{bytes} bytes follow the value")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// Written by a newer version than this one.
    #[error("encoding version {version} is not known here (newest known: {newest}); upgrade this member")]
    UnknownVersion {
        /// What the input says.
        version: u8,
        /// What this code knows.
        newest: u8,
    },
    /// A variant that this version does not know.
    #[error("unknown {what} number {tag}; written by a newer version, or damaged")]
    UnknownTag {
        /// Which enumeration.
        what: &'static str,
        /// What the input says.
        tag: u8,
    },
    /// The cluster's version is beyond what this code supports.
    #[error(
        "the cluster is at version {cluster} and this member supports versions up to {supported}; upgrade this member"
    )]
    ClusterVersion {
        /// What the input says.
        cluster: u32,
        /// What this code knows.
        supported: u32,
    },
    /// A number out of its range.
    #[error("{what} is out of range")]
    OutOfRange {
        /// Which number.
        what: &'static str,
    },
    /// Transactions are nested too deeply.
    #[error("transactions are nested more than {depth_max} deep")]
    TooDeep {
        /// The limit.
        depth_max: usize,
    },
}

/// Elements for which a decoder reserves room on the word of a count alone.
const PREALLOCATED_MAX: usize = 256;

/// Builds an encoding.
#[derive(Debug)]
pub(crate) struct Writer {
    buffer: BytesMut,
}

impl Writer {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { buffer: BytesMut::with_capacity(capacity) }
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.buffer.put_u8(value);
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    pub(crate) fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.buffer.put_u8((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.buffer.put_u8(value as u8);
    }

    pub(crate) fn i64(&mut self, value: i64) {
        self.varint(((value << 1) ^ (value >> 63)).cast_unsigned());
    }

    pub(crate) fn u64_fixed(&mut self, value: u64) {
        self.buffer.put_u64_le(value);
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) {
        self.varint(value.len() as u64);
        self.buffer.put_slice(value);
    }

    /// Writes a count and then each element.
    pub(crate) fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.varint(items.len() as u64);
        for item in items {
            write(self, item);
        }
    }

    /// Writes whether there is a value, and the value.
    pub(crate) fn option<T>(&mut self, value: Option<&T>, write: impl FnOnce(&mut Self, &T)) {
        self.bool(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.buffer
    }

    /// Empties the writer and keeps its room.
    pub(crate) fn clear(&mut self) {
        self.buffer.clear();
    }

    pub(crate) fn finish(self) -> Bytes {
        self.buffer.freeze()
    }
}

/// Takes an encoding apart.
pub(crate) struct Reader {
    input: Bytes,
    at: usize,
}

impl Reader {
    pub(crate) fn new(input: Bytes) -> Self {
        Self { input, at: 0 }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.input.len() - self.at
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        let byte = *self.input.get(self.at).ok_or(DecodeError::Truncated)?;
        self.at += 1;
        Ok(byte)
    }

    /// The next byte, which stays.
    pub(crate) fn peek(&self) -> Result<u8, DecodeError> {
        self.input.get(self.at).copied().ok_or(DecodeError::Truncated)
    }

    pub(crate) fn bool(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            tag => Err(DecodeError::UnknownTag { what: "truth value", tag }),
        }
    }

    pub(crate) fn varint(&mut self) -> Result<u64, DecodeError> {
        self.look(SliceReader::varint)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.look(SliceReader::u32)
    }

    pub(crate) fn i64(&mut self) -> Result<i64, DecodeError> {
        self.look(SliceReader::i64)
    }

    /// Reads what is only looked at.
    fn look<'a, T>(
        &'a mut self,
        read: impl FnOnce(&mut SliceReader<'a>) -> Result<T, DecodeError>,
    ) -> Result<T, DecodeError> {
        let mut slice = SliceReader::new(&self.input[self.at..]);
        let value = read(&mut slice)?;
        self.at = self.input.len() - slice.remaining();
        Ok(value)
    }

    pub(crate) fn u64_fixed(&mut self) -> Result<u64, DecodeError> {
        let end = self.at + 8;
        let bytes = self.input.get(self.at..end).ok_or(DecodeError::Truncated)?;
        self.at = end;
        Ok(u64::from_le_bytes(bytes.try_into().expect("the slice is 8 bytes long")))
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let length = self.varint()?;
        if length > self.remaining() as u64 {
            return Err(DecodeError::Truncated);
        }
        let end = self.at + length as usize;
        let slice = self.input.slice(self.at..end);
        self.at = end;
        Ok(slice)
    }

    /// Reads a count and then each element.
    pub(crate) fn list<T>(
        &mut self,
        mut read: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count = self.varint()?;
        if count > self.remaining() as u64 {
            return Err(DecodeError::Truncated);
        }
        let mut items = Vec::with_capacity((count as usize).min(PREALLOCATED_MAX));
        for _ in 0..count {
            items.push(read(self)?);
        }
        Ok(items)
    }

    /// Reads whether there is a value, and the value.
    pub(crate) fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        if self.bool()? { read(self).map(Some) } else { Ok(None) }
    }

    /// Checks that nothing is left.
    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        match self.remaining() {
            0 => Ok(()),
            bytes => Err(DecodeError::Trailing { bytes }),
        }
    }
}

/// Takes an encoding apart that is only looked at.
pub(crate) struct SliceReader<'a> {
    input: &'a [u8],
}

impl<'a> SliceReader<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Self { input }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.input.len()
    }

    pub(crate) fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.input.split_first().ok_or(DecodeError::Truncated)?;
            self.input = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(DecodeError::OutOfRange { what: "a variable-length number" });
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::OutOfRange { what: "a variable-length number" })
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        u32::try_from(self.varint()?).map_err(|_| DecodeError::OutOfRange { what: "a 32-bit number" })
    }

    pub(crate) fn i64(&mut self) -> Result<i64, DecodeError> {
        let zigzag = self.varint()?;
        Ok((zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed())
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = usize::try_from(self.varint()?).map_err(|_| DecodeError::Truncated)?;
        let (bytes, rest) = self.input.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        self.input = rest;
        Ok(bytes)
    }

    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        match self.remaining() {
            0 => Ok(()),
            bytes => Err(DecodeError::Trailing { bytes }),
        }
    }
}
