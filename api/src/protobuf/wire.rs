//! The encoding below messages: keys, variable-length numbers and delimited bytes, read and written.
//!
//! The reader promises to end and not to panic whatever the bytes are: each step takes at least one byte or
//! fails. The writer knows a message's length only when it is closed, and makes room for it then.

use serde_json::value::RawValue;

use super::Problem;

/// Largest field number that the format allows.
const FIELD_MAX: u64 = (1 << 29) - 1;
/// A varint of 64 bits has no more bytes.
const VARINT_BYTES_MAX: usize = 10;

/// The value of one field, as far as the bytes alone tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Delimited(&'a [u8]),
    /// Four or eight bytes.
    Fixed(u64),
}

/// The fields of an encoded message in the order in which they stand; ends at the first error.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Wire<'a>), Problem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u32, Wire<'a>), Problem> {
        let key = self.varint()?;
        let number = key >> 3;
        if number == 0 || number > FIELD_MAX {
            return Err(Problem::FieldNumber);
        }
        let number = u32::try_from(number).map_err(|_| Problem::FieldNumber)?;
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed(little_endian(self.take(8)?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Problem::CutOff)?;
                Wire::Delimited(self.take(length)?)
            }
            5 => Wire::Fixed(little_endian(self.take(4)?)),
            _ => return Err(Problem::WireType),
        };
        Ok((number, wire))
    }

    /// Takes a number of variable length.
    pub(super) fn varint(&mut self) -> Result<u64, Problem> {
        let mut value = 0;
        for (index, byte) in self.0.iter().copied().enumerate().take(VARINT_BYTES_MAX) {
            if index == VARINT_BYTES_MAX - 1 && byte > 1 {
                return Err(Problem::Varint);
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                self.0 = &self.0[index + 1..];
                return Ok(value);
            }
        }
        Err(Problem::CutOff)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Problem> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Problem::CutOff)?;
        self.0 = rest;
        Ok(taken)
    }
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A number of variable length, and how many bytes it has.
fn varint(mut number: u64) -> ([u8; VARINT_BYTES_MAX], usize) {
    let mut encoded = [0; VARINT_BYTES_MAX];
    let mut last = 0;
    while number >= 0x80 {
        encoded[last] = number.to_le_bytes()[0] | 0x80;
        number >>= 7;
        last += 1;
    }
    encoded[last] = number.to_le_bytes()[0];
    (encoded, last + 1)
}

/// An encoded message that grows.
#[derive(Debug, Default)]
pub(super) struct Writer {
    pub(super) out: Vec<u8>,
}

impl Writer {
    fn varint(&mut self, number: u64) {
        let (encoded, bytes) = varint(number);
        self.out.extend_from_slice(&encoded[..bytes]);
    }

    fn key(&mut self, field: u32, wire_type: u64) {
        self.varint(u64::from(field) << 3 | wire_type);
    }

    /// Writes an integer or a bool.
    pub(super) fn number(&mut self, field: u32, value: i64) {
        self.key(field, 0);
        self.varint(value.cast_unsigned());
    }

    pub(super) fn double(&mut self, field: u32, value: f64) {
        self.key(field, 1);
        self.out.extend_from_slice(&value.to_bits().to_le_bytes());
    }

    pub(super) fn bytes(&mut self, field: u32, value: &[u8]) {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.out.extend_from_slice(value);
    }

    /// Writes a message that holds nothing but bytes.
    pub(super) fn wrapped(&mut self, field: u32, inner: u32, value: &[u8]) {
        let at = self.open(field);
        self.bytes(inner, value);
        self.close(at);
    }

    /// Begins a message; what is written until [`Writer::close`] is its content.
    pub(super) fn open(&mut self, field: u32) -> usize {
        self.key(field, 2);
        // Most messages are shorter than 128 bytes.
        self.out.push(0);
        self.out.len()
    }

    /// Ends the message that begins at `at`.
    pub(super) fn close(&mut self, at: usize) {
        let length = self.out.len() - at;
        let (prefix, bytes) = varint(length as u64);
        let room = bytes - 1;
        if room > 0 {
            self.out.resize(at + length + room, 0);
            self.out.copy_within(at..at + length, at + room);
        }
        self.out[at - 1..at + room].copy_from_slice(&prefix[..bytes]);
    }

    /// Writes a JSON object without key or length.
    pub(super) fn json_object(&mut self, members: &[(String, Box<RawValue>)]) -> serde_json::Result<()> {
        self.out.push(b'{');
        for (index, (name, value)) in members.iter().enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            serde_json::to_writer(&mut self.out, name)?;
            self.out.push(b':');
            self.out.extend_from_slice(value.get().as_bytes());
        }
        self.out.push(b'}');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(bytes: &[u8]) -> Result<Vec<(u32, Wire<'_>)>, Problem> {
        Fields(bytes).collect()
    }

    #[test]
    fn every_form_is_read_or_refused() {
        assert_eq!(fields(&[0x08, 0xac, 0x02]), Ok(vec![(1, Wire::Varint(300))]));
        assert_eq!(
            fields(b"\x12\x01x\x12\x00"),
            Ok(vec![(2, Wire::Delimited(b"x")), (2, Wire::Delimited(b""))])
        );
        assert_eq!(
            fields(b"\x09\0\0\0\0\0\0\0\0\x0d\0\0\0\0"),
            Ok(vec![(1, Wire::Fixed(0)), (1, Wire::Fixed(0))])
        );
        let all_ones = [&[0x08][..], &[0xff; 9], &[0x01]].concat();
        assert_eq!(fields(&all_ones), Ok(vec![(1, Wire::Varint(u64::MAX))]));
        let too_large = [&[0x08][..], &[0xff; 9], &[0x02]].concat();
        assert_eq!(fields(&too_large), Err(Problem::Varint));
        for (bytes, problem) in [
            (&b"\x12\x02x"[..], Problem::CutOff),
            (b"\x08", Problem::CutOff),
            (b"\x0d\0\0", Problem::CutOff),
            (b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f", Problem::CutOff),
            (b"\x00\x00", Problem::FieldNumber),
            (b"\x80\x80\x80\x80\x10\x00", Problem::FieldNumber),
            (b"\x0b\x0c", Problem::WireType),
            (b"\x0e", Problem::WireType),
        ] {
            assert_eq!(fields(bytes), Err(problem), "{bytes:?}");
        }
    }
}
