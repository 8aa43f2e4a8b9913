//! Opening a log: finding its segments, replaying their records, cutting a torn tail off, refusing damage.

use std::collections::VecDeque;
use std::path::PathBuf;

use bytes::Bytes;

use super::disk::{Disk, DiskFile};
use super::error::{Damage, Error};
use super::preparer::Spare;
use super::record::{Kind, Record};
use super::scan::{Tail, scan};
use super::segment::{
    self, BLOCK_BYTES, FileKind, HEADER_BYTES, Identity, Segment, SegmentHeader, classify, segment_name,
};
use super::state::{LogState, Misplaced, Purged};
use super::{Entry, Recovered};

/// A segment that is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sealed {
    pub(super) sequence: u64,
    pub(super) segment_bytes: u64,
    /// The highest index that was ever written to it.
    pub(super) index_max: Option<u64>,
}

/// What is in the directory.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) identity_written: bool,
    segments: Vec<u64>,
    spares: Vec<u64>,
    temporaries: Vec<u64>,
}

/// A log as it was found, ready to be written on.
#[derive(Debug)]
pub(super) struct Found<F> {
    pub(super) recovered: Recovered,
    pub(super) state: LogState,
    pub(super) sealed: VecDeque<Sealed>,
    pub(super) active: Segment<F>,
    pub(super) index_max: Option<u64>,
    /// Where the next record goes.
    pub(super) end: u64,
    /// The bytes from the block boundary below `end` up to `end`.
    pub(super) tail: Vec<u8>,
    /// The segment after the active one, if it is prepared already.
    pub(super) next: Option<Segment<F>>,
}

/// Lists the directory and checks whose it is.
pub(super) fn list<D: Disk>(disk: &D, identity: Identity) -> Result<Listing, Error> {
    let names = disk.list().map_err(|e| Error::io("list", disk.dir(), e))?;
    let mut listing =
        Listing { identity_written: segment::read_identity(disk, &names, identity)?, ..Listing::default() };
    for kind in names.iter().filter_map(|name| classify(name)) {
        match kind {
            FileKind::Segment(sequence) => listing.segments.push(sequence),
            FileKind::Spare(sequence) => listing.spares.push(sequence),
            FileKind::Temporary(sequence) => listing.temporaries.push(sequence),
        }
    }
    listing.segments.sort_unstable();
    listing.spares.sort_unstable();
    Ok(listing)
}

/// Keeps usable spares, removes the others and what an interrupted preparation left.
pub(super) fn adopt_spares<D: Disk>(
    disk: &D,
    listing: &Listing,
    spares_max: usize,
    spare_bytes_min: u64,
) -> Result<VecDeque<Spare>, Error> {
    let mut spares = VecDeque::new();
    let remove = |name: &str| disk.remove(name).map_err(|e| Error::io("remove", &disk.dir().join(name), e));
    for sequence in &listing.spares {
        let name = segment::spare_name(*sequence);
        let file_bytes = disk
            .open(&name)
            .and_then(|file| file.bytes())
            .map_err(|e| Error::io("open", &disk.dir().join(&name), e))?;
        if file_bytes >= spare_bytes_min && spares.len() < spares_max {
            spares.push_back(Spare { sequence: *sequence, file_bytes });
        } else {
            remove(&name)?;
        }
    }
    for sequence in &listing.temporaries {
        remove(&segment::temporary_name(*sequence))?;
    }
    Ok(spares)
}

/// Reads the log. `None`: there is none yet.
pub(super) fn recover<D: Disk>(
    disk: &D,
    listing: &Listing,
    identity: Identity,
) -> Result<Option<Found<D::File>>, Error> {
    let missing = |sequence, detail| Error::MissingSegment { dir: disk.dir().to_owned(), sequence, detail };
    let Some(first) = listing.segments.first() else {
        if listing.identity_written {
            return Err(missing(1, "the directory holds an identity, but no segment at all"));
        }
        return Ok(None);
    };
    for (sequence, present) in (*first..).zip(&listing.segments) {
        if sequence != *present {
            return Err(missing(sequence, "there are segments before and after it"));
        }
    }
    let segments = open_segments(disk, &listing.segments, identity)?;
    let mut replay = Replay::new(listing.identity_written || *first > 1);
    let last = replay_segments(disk, &segments, &mut replay)?;
    if last == segments.len() {
        return Err(missing(first + last as u64, "the segment before it ends with a mark that it follows"));
    }
    replay.check_complete(disk, &segments[0])?;
    replay.repair(disk, &segments)?;
    Ok(Some(replay.finish(segments, last)))
}

/// Opens all segments and checks that each continues the one before.
fn open_segments<D: Disk>(
    disk: &D,
    sequences: &[u64],
    identity: Identity,
) -> Result<Vec<Segment<D::File>>, Error> {
    let mut segments: Vec<Segment<D::File>> = Vec::with_capacity(sequences.len());
    for sequence in sequences {
        let name = segment_name(*sequence);
        let path = disk.dir().join(&name);
        let file = disk.open(&name).map_err(|e| Error::io("open", &path, e))?;
        let header = SegmentHeader::read(disk, &file, *sequence, identity)?;
        if let Some(previous) = segments.last()
            && previous.header.nonce != header.previous_nonce
        {
            let damage = Damage::Foreign { previous: previous.header.sequence };
            return Err(Error::Damaged { path, offset: 0, damage });
        }
        segments.push(Segment { header, file });
    }
    Ok(segments)
}

/// Replays segment after segment. Gives the position of the one to write on, or of the one that is not there.
fn replay_segments<D: Disk>(
    disk: &D,
    segments: &[Segment<D::File>],
    replay: &mut Replay,
) -> Result<usize, Error> {
    for (at, segment) in segments.iter().enumerate() {
        let tail = replay.segment(disk, segment, at)?;
        if tail.sealed {
            continue;
        }
        // A successor may have been prepared, but cannot have been used.
        if let Some(next) = segments.get(at + 1) {
            let bytes = read(disk, next)?;
            let path = path(disk, next);
            let used = scan(&path, &next.header, &bytes, |_| Ok(()))?.used;
            if used || segments.len() > at + 2 {
                let damage = Damage::Unsealed { next: next.header.sequence };
                let path = disk.dir().join(segment_name(segment.header.sequence));
                return Err(Error::Damaged { path, offset: tail.end as u64, damage });
            }
        }
        return Ok(at);
    }
    Ok(segments.len())
}

/// The log's content as it builds up during recovery.
struct Replay {
    entries: VecDeque<Entry>,
    state: LogState,
    /// Whether the first segment must begin with a state.
    state_required: bool,
    /// Entries below this index stood before the oldest segment.
    absent_end: u64,
    sealed: VecDeque<Sealed>,
    tail: Option<Tail>,
    tail_bytes: Vec<u8>,
    index_max: Option<u64>,
    /// Position of a segment, an offset in it, and the bytes there that no later record proves durable.
    unproven: Option<(usize, usize, Vec<u8>)>,
    torn_bytes: u64,
}

impl Replay {
    fn new(state_required: bool) -> Self {
        Self {
            entries: VecDeque::new(),
            state: LogState::default(),
            state_required,
            absent_end: 0,
            sealed: VecDeque::new(),
            tail: None,
            tail_bytes: Vec::new(),
            index_max: None,
            unproven: None,
            torn_bytes: 0,
        }
    }

    fn segment<D: Disk>(&mut self, disk: &D, segment: &Segment<D::File>, at: usize) -> Result<Tail, Error> {
        let bytes = read(disk, segment)?;
        let path = path(disk, segment);
        self.index_max = None;
        let tail = scan(&path, &segment.header, &bytes, |record| self.record(record, at == 0))?;
        if at == 0 && tail.end == HEADER_BYTES && self.state_required {
            return Err(Error::Damaged { path, offset: tail.end as u64, damage: Damage::NoState });
        }
        if tail.end > HEADER_BYTES {
            let from = floor_block(tail.durable);
            self.unproven = Some((at, from, bytes[from..tail.end].to_vec()));
        }
        if tail.sealed {
            self.sealed.push_back(Sealed {
                sequence: segment.header.sequence,
                segment_bytes: segment.header.segment_bytes,
                index_max: self.index_max,
            });
        } else {
            self.tail_bytes =
                bytes[floor_block(tail.end).min(bytes.len())..tail.end.min(bytes.len())].to_vec();
            self.torn_bytes = (tail.torn_end - tail.end) as u64;
        }
        self.tail = Some(tail);
        Ok(tail)
    }

    fn record(&mut self, record: &Record<'_>, first_segment: bool) -> Result<(), Damage> {
        let header = record.header;
        let payload = || Bytes::copy_from_slice(record.payload);
        if (record.offset == HEADER_BYTES) != (header.kind == Kind::State) {
            return Err(Damage::NoState);
        }
        match header.kind {
            Kind::State => {
                let state = LogState::decode(record.payload).ok_or(Damage::Content)?;
                if first_segment {
                    self.absent_end = state.next.unwrap_or(0);
                    self.state = state;
                } else if state != self.state {
                    return Err(Damage::StateMismatch);
                }
            }
            Kind::Entry => {
                let misplaced = |Misplaced { expected }| Damage::EntryOrder { expected, found: header.index };
                self.state.append(header.index).map_err(misplaced)?;
                self.index_max = self.index_max.max(Some(header.index));
                self.entries.push_back(Entry { index: header.index, term: header.term, payload: payload() });
            }
            Kind::Vote => self.state.vote = Some(payload()),
            Kind::Committed => self.state.committed = Some(payload()),
            Kind::Truncate => {
                self.state.truncate(header.index).map_err(|_| Damage::Content)?;
                self.absent_end = self.absent_end.min(header.index);
                while self.entries.back().is_some_and(|entry| entry.index >= header.index) {
                    self.entries.pop_back();
                }
            }
            Kind::Purge => {
                let purged = Purged { index: header.index, term: header.term, position: payload() };
                self.state.purge(&purged);
                while self.entries.front().is_some_and(|entry| entry.index <= purged.index) {
                    self.entries.pop_front();
                }
            }
            Kind::End | Kind::Mark => {}
        }
        Ok(())
    }

    /// All entries from the purge point to the end must be there.
    fn check_complete<D: Disk>(&mut self, disk: &D, oldest: &Segment<D::File>) -> Result<(), Error> {
        let floor = self.state.floor();
        while self.entries.front().is_some_and(|entry| entry.index < floor) {
            self.entries.pop_front();
        }
        // Entries are contiguous by themselves; what may be absent is what stood before the oldest segment.
        if self.absent_end <= floor {
            return Ok(());
        }
        let damage = Damage::EntriesMissing { expected: floor };
        let path = path(disk, oldest);
        Err(Error::Damaged { path, offset: HEADER_BYTES as u64, damage })
    }

    /// Makes durable what was found, and wipes the remains of a torn write, so that they can never be taken for
    /// records that follow the ones written from now on.
    ///
    /// The part that no later record proves durable is written again, not only synced: after a failed flush the
    /// kernel may hold it in memory, marked clean, without it being on the disk.
    fn repair<D: Disk>(&self, disk: &D, segments: &[Segment<D::File>]) -> Result<(), Error> {
        if let Some((at, offset, bytes)) = &self.unproven {
            write(disk, &segments[*at], *offset, bytes)?;
        }
        if let Some(tail) = self.tail.filter(|tail| !tail.sealed && tail.torn_end > tail.end)
            && let Some(segment) = segments.get(self.sealed.len())
        {
            write(disk, segment, tail.end, &vec![0; tail.torn_end - tail.end])?;
        }
        disk.sync_dir().map_err(|e| Error::io("sync the directory", disk.dir(), e))
    }

    fn finish<F>(self, segments: Vec<Segment<F>>, last: usize) -> Found<F> {
        let mut rest = segments.into_iter().skip(last);
        let active = rest.next().expect("`last` is the position of a segment");
        Found {
            recovered: Recovered {
                vote: self.state.vote.clone(),
                committed: self.state.committed.clone(),
                purged: self.state.purged.clone(),
                entries: self.entries.into(),
                truncated_tail_bytes: self.torn_bytes,
            },
            end: self.tail.map_or(HEADER_BYTES, |tail| tail.end) as u64,
            state: self.state,
            sealed: self.sealed,
            active,
            index_max: self.index_max,
            tail: self.tail_bytes,
            next: rest.next(),
        }
    }
}

fn read<D: Disk>(disk: &D, segment: &Segment<D::File>) -> Result<Vec<u8>, Error> {
    let path = path(disk, segment);
    let io = |e| Error::io("read", &path, e);
    let length = segment.file.bytes().map_err(io)?.min(segment.header.segment_bytes);
    let mut bytes = vec![0; usize::try_from(length).expect("segments are smaller than 4 GiB")];
    let filled = segment.file.read_at(0, &mut bytes).map_err(io)?;
    bytes.truncate(filled);
    Ok(bytes)
}

fn write<D: Disk>(disk: &D, segment: &Segment<D::File>, offset: usize, bytes: &[u8]) -> Result<(), Error> {
    let path = path(disk, segment);
    segment.file.write_at(offset as u64, bytes).map_err(|e| Error::io("write", &path, e))?;
    segment.file.sync_data().map_err(|e| Error::io("sync", &path, e))
}

fn path<D: Disk>(disk: &D, segment: &Segment<D::File>) -> PathBuf {
    disk.dir().join(segment_name(segment.header.sequence))
}

fn floor_block(offset: usize) -> usize {
    offset / BLOCK_BYTES * BLOCK_BYTES
}
