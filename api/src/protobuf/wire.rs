//! The encoding below messages: keys, variable-length numbers and delimited bytes.
//!
//! Promises to end and not to panic whatever the bytes are: each step takes at least one byte or fails.

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
    /// Four or eight bytes; no field that is read has this form.
    Fixed,
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
            1 => self.take(8).map(|_| Wire::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Problem::CutOff)?;
                Wire::Delimited(self.take(length)?)
            }
            5 => self.take(4).map(|_| Wire::Fixed)?,
            _ => return Err(Problem::WireType),
        };
        Ok((number, wire))
    }

    fn varint(&mut self) -> Result<u64, Problem> {
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
        assert_eq!(fields(b"\x09\0\0\0\0\0\0\0\0\x0d\0\0\0\0"), Ok(vec![(1, Wire::Fixed), (1, Wire::Fixed)]));
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
