//! The key space and the header's bytes.
//!
//! ```text
//! "h"                        → header
//! "p" revision:be number:be  → a page: some of the records that the write to `revision` added
//! header = format:u8 crc32c:u32 length:u32 state-header extra     (crc over what follows it; little-endian)
//! page   = (key-length:u32 key mod-revision:u64 body-length:u32 body)…                     (little-endian)
//! ```

use bytes::{Buf, BufMut, Bytes};
use state_machine::{Record, RecordRef, StateHeader};

use super::Error;

/// Key of the header.
pub(super) const HEADER: &[u8] = b"h";

/// Prefix of all pages.
pub(super) const PAGES: &[u8] = b"p";

/// Written into the header; other forms are not read.
const FORMAT: u8 = 2;

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

pub(super) fn page_key(revision: u64, number: u32) -> Vec<u8> {
    let mut key = PAGES.to_vec();
    key.put_u64(revision);
    key.put_u32(number);
    key
}

/// Puts a record at the end of a page.
pub(super) fn append_record(page: &mut Vec<u8>, record: &Record) {
    let body = record.encode_body();
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("requests are far smaller than 4 GiB");
    page.put_u32_le(length(&record.key));
    page.put_slice(&record.key);
    page.put_u64_le(record.mod_revision);
    page.put_u32_le(length(&body));
    page.put_slice(&body);
}

/// Hands over each record of a page.
pub(super) fn read_page<'a>(
    mut page: &'a [u8],
    mut each: impl FnMut(RecordRef<'a>) -> Result<(), Error>,
) -> Result<(), Error> {
    let damaged = || Error::Damaged { what: "a page of records" };
    while !page.is_empty() {
        let key = take(&mut page).ok_or_else(damaged)?;
        let mod_revision = page.try_get_u64_le().map_err(|_| damaged())?;
        let body = take(&mut page).ok_or_else(damaged)?;
        each(RecordRef::decode_body(key, mod_revision, body)?)?;
    }
    Ok(())
}

fn take<'a>(page: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = page.try_get_u32_le().ok()?;
    let (taken, rest) = page.split_at_checked(length as usize)?;
    *page = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use state_machine::KeyValue;

    use super::*;

    proptest! {
        #[test]
        fn records_come_back_from_their_page(
            records in vec((vec(any::<u8>(), 1..6), 1..u64::MAX, vec(any::<u8>(), 0..40)), 0..20),
        ) {
            let record = |(key, mod_revision, value): (Vec<u8>, u64, Vec<u8>)| KeyValue {
                key: key.into(), value: value.into(), create_revision: 1, mod_revision, sub: 0, version: 1, lease: 0,
            };
            let records: Vec<_> = records.into_iter().map(record).collect();
            let mut page = Vec::new();
            records.iter().for_each(|kv| append_record(&mut page, &Record::detached(kv.clone())));
            let mut found = Vec::new();
            let copy = |record: RecordRef<'_>| {
                found.push((**record.to_record()).clone());
                Ok(())
            };
            read_page(&page, copy).unwrap();
            prop_assert_eq!(&found, &records);
        }

        #[test]
        fn any_bytes_are_a_page_and_a_header_or_an_error(bytes in vec(any::<u8>(), 0..40)) {
            let _ = read_page(&bytes, |_| Ok(()));
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
