//! Reading one segment: its valid records, and what the bytes behind them prove. The head comment of the module
//! `wal` says why.

use std::path::Path;

use super::error::{Damage, Error};
use super::record::{self, ALIGN, Kind, Record};
use super::segment::{BLOCK_BYTES, HEADER_BYTES, SegmentHeader};

/// Where the valid records of a segment end, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tail {
    /// Offset behind the last valid record.
    pub(super) end: usize,
    /// Everything below is known to have been durable.
    pub(super) durable: usize,
    /// The last record is the end mark.
    pub(super) sealed: bool,
    /// Remains of a torn write reach up to here; `end` if there are none.
    pub(super) torn_end: usize,
    /// Whether there is any record, be it a torn one.
    pub(super) used: bool,
}

/// Visits the valid records of a segment in order and judges what follows them.
pub(super) fn scan(
    path: &Path,
    header: &SegmentHeader,
    bytes: &[u8],
    mut visit: impl FnMut(&Record<'_>) -> Result<(), Damage>,
) -> Result<Tail, Error> {
    let damaged =
        |offset: usize, damage| Error::Damaged { path: path.to_owned(), offset: offset as u64, damage };
    let (mut end, mut durable, mut sealed) = (HEADER_BYTES, HEADER_BYTES, false);
    while let Some(record) = record::decode(bytes, header.nonce, end) {
        let claim = record.header.durable as usize;
        if claim > end || claim < durable {
            return Err(damaged(end, Damage::Content));
        }
        visit(&record).map_err(|damage| damaged(end, damage))?;
        durable = claim;
        end = record.end();
        if record.header.kind == Kind::End {
            sealed = true;
            break;
        }
    }
    let mut tail = Tail { end, durable, sealed, torn_end: end, used: end > HEADER_BYTES };
    if !sealed {
        judge(header, bytes, &mut tail).map_err(|damage| damaged(end, damage))?;
    }
    Ok(tail)
}

/// Looks for records behind the first bad one. One of them that was made when everything up to it was durable
/// already proves damage; without such a one, the write was torn.
fn judge(header: &SegmentHeader, bytes: &[u8], tail: &mut Tail) -> Result<(), Damage> {
    let mut from = tail.end;
    while let Some((offset, found)) = record::find_header(bytes, header.nonce, from) {
        if found.durable as usize > tail.end {
            return Err(Damage::Record { evidence: offset as u64, durable: found.durable });
        }
        tail.used = true;
        tail.torn_end = (offset + record::record_bytes(found.payload_bytes)).min(bytes.len());
        from = offset + ALIGN;
    }
    if !header.recycled {
        // All that is not zero was written in this life of the file.
        tail.torn_end = tail.torn_end.max(tail.end + used_bytes(&bytes[tail.end.min(bytes.len())..]));
    }
    Ok(())
}

/// Length without trailing zeros.
fn used_bytes(bytes: &[u8]) -> usize {
    let zeros = [0; BLOCK_BYTES];
    let mut length = bytes.len();
    for block in bytes.rchunks(BLOCK_BYTES) {
        if *block != zeros[..block.len()] {
            break;
        }
        length -= block.len();
    }
    bytes[..length].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}
