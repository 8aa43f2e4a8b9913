//! Records: the unit that is valid or not. Pure encoding; knows offsets, no files.
//!
//! ```text
//! offset  bytes
//!  0      4    CRC-32C over segment nonce, record offset, and bytes 4..40
//!  4      4    tag: low half of the segment's nonce
//!  8      4    payload length
//! 12      1    kind, then 3 zero bytes
//! 16      8    index
//! 24      8    term
//! 32      4    durable: every byte of this segment below it was on disk when this record was made
//! 36      4    CRC-32C of the payload
//! 40      …    payload, zero-padded to a multiple of 8
//! ```
//!
//! The CRC covers *where* the record stands, so a record that shows up anywhere else (another offset, another
//! segment, an earlier life of a recycled file) never validates.

/// Length of a record's header.
pub(super) const HEADER_BYTES: usize = 40;
/// Records begin at multiples of this.
pub(super) const ALIGN: usize = 8;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// All state but the entries; the first record of each segment.
    State,
    /// A log entry.
    Entry,
    /// The vote.
    Vote,
    /// The hint how far the log is committed.
    Committed,
    /// Entries with `index` and above are void.
    Truncate,
    /// Entries up to `index` are no longer needed.
    Purge,
    /// The log goes on in the next segment.
    End,
    /// Nothing but its `durable` field.
    Mark,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        use Kind::*;
        [State, Entry, Vote, Committed, Truncate, Purge, End, Mark]
            .into_iter()
            .find(|kind| kind.byte() == byte)
    }

    fn byte(self) -> u8 {
        match self {
            Self::State => 1,
            Self::Entry => 2,
            Self::Vote => 3,
            Self::Committed => 4,
            Self::Truncate => 5,
            Self::Purge => 6,
            Self::End => 7,
            Self::Mark => 8,
        }
    }
}

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) payload_bytes: usize,
    pub(super) index: u64,
    pub(super) term: u64,
    pub(super) durable: u64,
    payload_crc: u32,
}

/// A valid record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a> {
    pub(super) header: Header,
    pub(super) payload: &'a [u8],
    /// Offset in the segment.
    pub(super) offset: usize,
}

impl Record<'_> {
    pub(super) fn end(&self) -> usize {
        self.offset + record_bytes(self.header.payload_bytes)
    }
}

/// Bytes a record takes in the segment.
pub(super) const fn record_bytes(payload_bytes: usize) -> usize {
    HEADER_BYTES + payload_bytes.next_multiple_of(ALIGN)
}

/// Appends a record to `buffer`; it will stand at `offset` of the segment with `nonce`.
pub(super) fn encode(buffer: &mut Vec<u8>, place: Place, content: Content<'_>) {
    let mut header = [0_u8; HEADER_BYTES];
    let length = u32::try_from(content.payload.len()).expect("payloads are bounded by the segment size");
    let durable = u32::try_from(place.durable).expect("segments are smaller than 4 GiB");
    header[4..8].copy_from_slice(&tag(place.nonce).to_le_bytes());
    header[8..12].copy_from_slice(&length.to_le_bytes());
    header[12] = content.kind.byte();
    header[16..24].copy_from_slice(&content.index.to_le_bytes());
    header[24..32].copy_from_slice(&content.term.to_le_bytes());
    header[32..36].copy_from_slice(&durable.to_le_bytes());
    header[36..40].copy_from_slice(&crc32c::crc32c(content.payload).to_le_bytes());
    let crc = header_crc(place.nonce, place.offset, &header);
    header[0..4].copy_from_slice(&crc.to_le_bytes());
    buffer.extend_from_slice(&header);
    buffer.extend_from_slice(content.payload);
    let padding = content.payload.len().next_multiple_of(ALIGN) - content.payload.len();
    buffer.extend_from_slice(&[0; ALIGN][..padding]);
}

/// Where a record is going to stand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) nonce: u64,
    pub(super) offset: u64,
    pub(super) durable: u64,
}

/// What a record is going to say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Content<'a> {
    pub(super) kind: Kind,
    pub(super) index: u64,
    pub(super) term: u64,
    pub(super) payload: &'a [u8],
}

/// The record at `offset`, if a whole and valid one stands there.
pub(super) fn decode(segment: &[u8], nonce: u64, offset: usize) -> Option<Record<'_>> {
    let header = decode_header(segment, nonce, offset)?;
    let start = offset + HEADER_BYTES;
    let payload = segment.get(start..start + header.payload_bytes)?;
    let padding = segment.get(start + header.payload_bytes..offset + record_bytes(header.payload_bytes))?;
    if crc32c::crc32c(payload) != header.payload_crc || padding.iter().any(|byte| *byte != 0) {
        return None;
    }
    Some(Record { header, payload, offset })
}

/// The record header at `offset`, if a valid one stands there; its payload may be torn.
pub(super) fn decode_header(segment: &[u8], nonce: u64, offset: usize) -> Option<Header> {
    let header: &[u8; HEADER_BYTES] = segment.get(offset..offset + HEADER_BYTES)?.try_into().ok()?;
    if u32_at(header, 4) != tag(nonce) || header[13..16] != [0; 3] {
        return None;
    }
    if u32_at(header, 0) != header_crc(nonce, offset as u64, header) {
        return None;
    }
    Some(Header {
        kind: Kind::from_byte(header[12])?,
        payload_bytes: u32_at(header, 8) as usize,
        index: u64_at(header, 16),
        term: u64_at(header, 24),
        durable: u64::from(u32_at(header, 32)),
        payload_crc: u32_at(header, 36),
    })
}

/// Offset of the first valid record header at or after `from`, which may be any garbage.
pub(super) fn find_header(segment: &[u8], nonce: u64, from: usize) -> Option<(usize, Header)> {
    let tag = tag(nonce).to_le_bytes();
    let mut offset = from.next_multiple_of(ALIGN);
    while let Some(word) = segment.get(offset..offset + ALIGN) {
        if word[4..8] == tag
            && let Some(header) = decode_header(segment, nonce, offset)
        {
            return Some((offset, header));
        }
        offset += ALIGN;
    }
    None
}

/// Never zero, so that zero-filled space is never taken for a record.
fn tag(nonce: u64) -> u32 {
    (nonce as u32) | 1
}

fn header_crc(nonce: u64, offset: u64, header: &[u8; HEADER_BYTES]) -> u32 {
    let mut place = [0; 16];
    place[..8].copy_from_slice(&nonce.to_le_bytes());
    place[8..].copy_from_slice(&offset.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&place), &header[4..])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("a slice of four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("a slice of eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: u64 = 0x1122_3344_5566_7789;

    fn sample(offset: usize) -> Vec<u8> {
        let mut segment = vec![0; offset];
        let place = Place { nonce: NONCE, offset: offset as u64, durable: 64 };
        encode(&mut segment, place, Content { kind: Kind::Entry, index: 7, term: 3, payload: b"hello" });
        segment
    }

    #[test]
    fn round_trip() {
        let segment = sample(4096);
        let record = decode(&segment, NONCE, 4096).unwrap();
        assert_eq!((record.header.kind, record.header.index, record.header.term), (Kind::Entry, 7, 3));
        assert_eq!((record.payload, record.header.durable), (&b"hello"[..], 64));
        assert_eq!(record.end(), segment.len());
    }

    #[test]
    fn every_single_bit_flip_is_noticed() {
        let good = sample(512);
        for bit in 512 * 8..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad, NONCE, 512).is_none(), "flip of bit {bit} was not noticed");
        }
    }

    #[test]
    fn never_validates_elsewhere() {
        let segment = sample(512);
        assert!(decode(&segment, NONCE ^ (1 << 40), 512).is_none(), "another segment's nonce");
        let mut moved = vec![0; 64];
        moved.extend_from_slice(&segment[512..]);
        assert!(decode(&moved, NONCE, 64).is_none(), "another offset");
    }

    #[test]
    fn finds_a_header_behind_garbage() {
        let mut segment = sample(512);
        segment[100..400].fill(0xA5);
        assert_eq!(find_header(&segment, NONCE, 3).map(|found| found.0), Some(512));
        assert!(find_header(&segment, NONCE, 513).is_none());
    }
}
