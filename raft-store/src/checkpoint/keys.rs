//! The key space and the header's bytes.
//!
//! ```text
//! "h"                                    → header
//! "r" escape(user key) 00 01 revision:be → the record's body
//! header = format:u8 crc32c:u32 length:u32 state-header extra     (crc over what follows it; little-endian)
//! ```
//!
//! `escape` writes 00 as 00 FF, so that records lie in the order of their keys, then revisions, whatever
//! bytes the keys have.

use bytes::Bytes;
use state_machine::StateHeader;

use super::Error;

/// Key of the header.
pub(super) const HEADER: &[u8] = b"h";

/// Prefix of all records.
pub(super) const RECORDS: &[u8] = b"r";

/// Written into the header; other forms are not read.
const FORMAT: u8 = 1;

const ESCAPED_ZERO: u8 = 0xff;
const END: u8 = 0x01;

/// What the header says.
pub(super) struct Header {
    pub(super) state: StateHeader,
    pub(super) extra: Bytes,
}

pub(super) fn encode_header(state: &StateHeader, extra: &[u8]) -> Vec<u8> {
    let state = state.encode();
    // A header of 4 GiB would mean hundreds of millions of leases.
    let length = u32::try_from(state.len()).expect("a state header is far smaller than 4 GiB");
    let mut checked = length.to_le_bytes().to_vec();
    checked.extend_from_slice(&state);
    checked.extend_from_slice(extra);
    let mut bytes = vec![FORMAT];
    bytes.extend_from_slice(&crc32c::crc32c(&checked).to_le_bytes());
    bytes.extend_from_slice(&checked);
    bytes
}

pub(super) fn decode_header(bytes: &[u8]) -> Result<Header, Error> {
    let damaged = Error::Damaged { what: "the header" };
    let Some((&format, rest)) = bytes.split_first() else { return Err(damaged) };
    if format != FORMAT {
        return Err(Error::Format { version: format });
    }
    let Some((crc, checked)) = rest.split_first_chunk::<4>() else { return Err(damaged) };
    if crc32c::crc32c(checked) != u32::from_le_bytes(*crc) {
        return Err(damaged);
    }
    let Some((length, rest)) = checked.split_first_chunk::<4>() else { return Err(damaged) };
    let Some((state, extra)) = rest.split_at_checked(u32::from_le_bytes(*length) as usize) else {
        return Err(damaged);
    };
    let state = StateHeader::decode(Bytes::copy_from_slice(state))?;
    Ok(Header { state, extra: Bytes::copy_from_slice(extra) })
}

pub(super) fn record_key(key: &[u8], mod_revision: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(RECORDS.len() + key.len() + 10);
    bytes.extend_from_slice(RECORDS);
    for &byte in key {
        bytes.push(byte);
        if byte == 0 {
            bytes.push(ESCAPED_ZERO);
        }
    }
    bytes.extend_from_slice(&[0, END]);
    bytes.extend_from_slice(&mod_revision.to_be_bytes());
    bytes
}

pub(super) fn parse_record_key(bytes: &[u8]) -> Result<(Bytes, u64), Error> {
    let damaged = || Error::Damaged { what: "a record's key" };
    let (escaped, revision) = bytes.split_last_chunk::<8>().ok_or_else(damaged)?;
    let escaped = escaped.strip_prefix(RECORDS).and_then(|rest| rest.strip_suffix(&[0, END]));
    let mut rest = escaped.ok_or_else(damaged)?.iter();
    let mut key = Vec::with_capacity(bytes.len());
    while let Some(&byte) = rest.next() {
        key.push(byte);
        if byte == 0 && rest.next() != Some(&ESCAPED_ZERO) {
            return Err(damaged());
        }
    }
    Ok((key.into(), u64::from_be_bytes(*revision)))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        vec(prop_oneof![Just(0u8), Just(1), Just(0xff), any::<u8>()], 0..6)
    }

    proptest! {
        #[test]
        fn records_lie_in_the_order_of_keys_then_revisions(
            one in key(), other in key(), revisions: (u64, u64),
        ) {
            let (a, b) = (record_key(&one, revisions.0), record_key(&other, revisions.1));
            prop_assert_eq!(a.cmp(&b), (&one, revisions.0).cmp(&(&other, revisions.1)));
            prop_assert_eq!(parse_record_key(&a).unwrap(), (Bytes::from(one), revisions.0));
        }

        #[test]
        fn any_bytes_are_a_key_and_a_header_or_an_error(bytes in vec(any::<u8>(), 0..40)) {
            let _ = parse_record_key(&bytes);
            let _ = decode_header(&bytes);
        }
    }

    #[test]
    fn a_header_is_checked_to_the_last_bit() {
        let state = state_machine::StateMachine::new().header();
        let bytes = encode_header(&state, b"extra");
        let header = decode_header(&bytes).unwrap();
        assert_eq!((header.state, &header.extra[..]), (state, &b"extra"[..]));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_header(&damaged).is_err(), "bit {bit}");
        }
    }
}
