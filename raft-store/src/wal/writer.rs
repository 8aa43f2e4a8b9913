//! The writer: turns requests into records, records into one write and one flush, and then tells who asked.
//!
//! Synchronous and without a thread of its own, so that a simulation can drive it step by step. [`run`] is the loop
//! the writer thread executes.
//!
//! Once a write or a flush has failed, what the disk holds is unknown, and a second flush may claim success for
//! pages the kernel has dropped. So the first failure is final: every waiting and every later request gets it.
//! Only a full disk is not final, because it shows before anything is written: when the *next* segment is made.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::disk::DiskFile;
use super::error::Error;
use super::preparer::Order;
use super::queue::{Op, Queue, Request, Work};
use super::record::{self, Content, Kind, Place, record_bytes};
use super::recovery::{Found, Sealed};
use super::segment::{BLOCK_BYTES, HEADER_BYTES, Segment, segment_name};
use super::state::{LogState, Misplaced, Purged};
use super::stats::Counters;
use super::supply::Supply;
use super::{Done, Entry, Sizes};
use crate::mutants::{self, Mutant};

/// Encoded records are handed to the kernel at the latest when they are so many.
const WRITE_BYTES_MAX: usize = 4 << 20;
/// A buffer that grew beyond this is given back after use.
const BUFFER_BYTES_KEPT: usize = 1 << 20;
/// After so much quiet a mark is written which lets recovery tell a torn last write from a damaged one.
pub(super) const MARK_DELAY: Duration = Duration::from_millis(20);
/// The end mark always has room.
const END_BYTES: u64 = record_bytes(0) as u64;

/// Writes to the log.
pub(super) struct Writer<F, S> {
    dir: PathBuf,
    supply: S,
    sizes: Sizes,
    counters: Arc<Counters>,
    active: Segment<F>,
    /// Taken from the supply, not used yet.
    next: Option<Segment<F>>,
    next_ordered: bool,
    sealed: VecDeque<Sealed>,
    /// The highest index ever written to the active segment.
    index_max: Option<u64>,
    /// Offset of `buffer` in the active segment, on a block boundary.
    base: u64,
    /// From the last block boundary on: bytes written before, then encoded ones.
    buffer: Vec<u8>,
    /// How much of `buffer` the kernel has.
    written: usize,
    /// Everything below this offset of the active segment is durable.
    durable: u64,
    /// A record that nobody waits for was written since the last flush, or none after it at all.
    marked: bool,
    state: LogState,
    /// The hint to be written with the next batch.
    committed: Option<Bytes>,
    /// Encoded requests, in order; a refused one keeps its place.
    waiting: Vec<Waiting>,
    failed: Option<Arc<Error>>,
}

struct Waiting {
    done: Done,
    queue_bytes: u64,
    entries: u64,
    refused: Option<Error>,
}

impl<F: DiskFile, S: Supply<F>> Writer<F, S> {
    /// Continues a log as recovery left it. Writes and flushes a first record.
    pub(super) fn start(
        dir: PathBuf,
        found: Found<F>,
        supply: S,
        sizes: Sizes,
        counters: Arc<Counters>,
    ) -> Result<Self, Error> {
        let base = found.end - found.tail.len() as u64;
        let mut writer = Self {
            dir,
            supply,
            sizes,
            counters,
            next_ordered: found.next.is_some(),
            next: found.next,
            sealed: found.sealed,
            index_max: found.index_max,
            base,
            written: found.tail.len(),
            buffer: found.tail,
            durable: found.end,
            marked: false,
            state: found.state,
            committed: None,
            waiting: Vec::new(),
            failed: None,
            active: found.active,
        };
        writer.counters.next_ready.store(writer.next.is_some(), Relaxed);
        if writer.end() == HEADER_BYTES as u64 {
            writer.push_state();
        } else if writer.has_room_for(record_bytes(0), false) {
            writer.push(Kind::Mark, 0, 0, &[]);
        }
        writer.write()?;
        writer.sync()?;
        writer.marked = true;
        writer.retire_obsolete();
        writer.count_room();
        writer.order_next();
        Ok(writer)
    }

    /// Makes a batch durable and completes its requests in order.
    pub(super) fn process(&mut self, requests: Vec<Request>, committed: Option<Bytes>) {
        for Request { op, done, queue_bytes } in requests {
            let entries = if let Op::Append(entries) = &op { entries.len() as u64 } else { 0 };
            let mut refused = None;
            if self.failed.is_none()
                && let Err(error) = self.encode(op)
            {
                match error {
                    Error::OutOfOrder { .. } | Error::NoSpace { .. } => refused = Some(error),
                    fatal => self.fail(fatal),
                }
            }
            self.waiting.push(Waiting { done, queue_bytes, entries, refused });
        }
        self.hint_committed(committed);
        if self.failed.is_none() && self.end() > self.durable {
            self.push_committed();
            if let Err(error) = self.write().and_then(|()| self.sync()) {
                self.fail(error);
            }
        }
        self.count_room();
        self.complete();
        if self.failed.is_none() {
            self.retire_obsolete();
            self.order_next();
        }
    }

    /// Nothing was asked for some time: writes a record after the last flush, without one of its own, so that a
    /// later record testifies that everything before is durable.
    pub(super) fn idle(&mut self) {
        if self.failed.is_some() || self.marked && self.committed.is_none() {
            return;
        }
        if !self.push_committed() && self.has_room_for(record_bytes(0), false) {
            self.push(Kind::Mark, 0, 0, &[]);
        }
        self.marked = true;
        if let Err(error) = self.write() {
            self.fail(error);
        }
    }

    /// The hint that goes with the next record.
    pub(super) fn hint_committed(&mut self, committed: Option<Bytes>) {
        self.committed = committed.or(self.committed.take());
    }

    /// Whether [`Self::idle`] has something to do.
    pub(super) fn wants_idle(&self) -> bool {
        self.failed.is_none() && (!self.marked || self.committed.is_some())
    }

    /// The last act: like [`Self::idle`], but flushed.
    pub(super) fn close(&mut self) {
        self.idle();
        if self.failed.is_none()
            && let Err(error) = self.sync()
        {
            self.fail(error);
        }
    }

    /// The failure that ended the log.
    pub(super) fn failure(&self) -> Option<&Arc<Error>> {
        self.failed.as_ref()
    }

    fn encode(&mut self, op: Op) -> Result<(), Error> {
        match op {
            Op::Append(entries) => self.encode_entries(&entries),
            Op::Vote(vote) => {
                self.make_room(vote.len())?;
                self.push(Kind::Vote, 0, 0, &vote);
                self.state.vote = Some(vote);
                Ok(())
            }
            Op::Truncate { from } => {
                let mut state = self.state.clone();
                let misplaced = |Misplaced { expected }| Error::OutOfOrder { expected, found: from };
                if state.truncate(from).map_err(misplaced)? {
                    self.make_room(0)?;
                    self.push(Kind::Truncate, from, 0, &[]);
                    self.state = state;
                }
                Ok(())
            }
            Op::Purge(purged) => self.encode_purge(&purged),
        }
    }

    fn encode_purge(&mut self, purged: &Purged) -> Result<(), Error> {
        let mut state = self.state.clone();
        if state.purge(purged) {
            self.make_room(purged.position.len())?;
            self.push(Kind::Purge, purged.index, purged.term, &purged.position);
            self.state = state;
        }
        Ok(())
    }

    /// All entries of a request, or none: if the disk fills up half way, what was encoded of it is voided.
    fn encode_entries(&mut self, entries: &[Entry]) -> Result<(), Error> {
        let mut state = self.state.clone();
        let mut bytes = 0;
        for entry in entries {
            let misplaced = |Misplaced { expected }| Error::OutOfOrder { expected, found: entry.index };
            state.append(entry.index).map_err(misplaced)?;
            bytes += record_bytes(entry.payload.len());
        }
        if !self.has_room_for(bytes, true) {
            self.ensure_next()?;
        }
        for (at, entry) in entries.iter().enumerate() {
            if let Err(error) = self.encode_entry(entry) {
                if at > 0 && matches!(error, Error::NoSpace { .. }) {
                    // There is room: the segment was begun by this very request, which spares the reserve.
                    self.encode(Op::Truncate { from: entries[0].index })?;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn encode_entry(&mut self, entry: &Entry) -> Result<(), Error> {
        if !self.has_room_for(record_bytes(entry.payload.len()), true) {
            self.roll()?;
        }
        self.push(Kind::Entry, entry.index, entry.term, &entry.payload);
        self.state.next = Some(entry.index + 1);
        self.index_max = self.index_max.max(Some(entry.index));
        if self.buffer.len() - self.written >= WRITE_BYTES_MAX {
            self.write()?;
        }
        Ok(())
    }

    /// Room for a record that is not an entry. Such records may use the reserve: a purge must be possible when the
    /// disk is full, for it is what frees space.
    fn make_room(&mut self, payload_bytes: usize) -> Result<(), Error> {
        if self.has_room_for(record_bytes(payload_bytes), false) { Ok(()) } else { self.roll() }
    }

    fn has_room_for(&self, bytes: usize, spare_reserve: bool) -> bool {
        let segment_bytes = self.active.header.segment_bytes;
        let reserve = if spare_reserve { Sizes::reserve_bytes(segment_bytes) } else { 0 };
        self.end() + bytes as u64 + END_BYTES + reserve <= segment_bytes
    }

    /// Ends the active segment, makes it durable, and goes on in the next one. What has been encoded so far is
    /// completed: a segment is never written to before all of its predecessor is durable.
    fn roll(&mut self) -> Result<(), Error> {
        self.ensure_next()?;
        self.push(Kind::End, 0, 0, &[]);
        self.write()?;
        self.sync()?;
        self.complete();
        let next = self.next.take().expect("made sure of above");
        let full = std::mem::replace(&mut self.active, next);
        self.sealed.push_back(Sealed {
            sequence: full.header.sequence,
            segment_bytes: full.header.segment_bytes,
            index_max: self.index_max.take(),
        });
        self.next_ordered = false;
        self.counters.next_ready.store(false, Relaxed);
        self.base = HEADER_BYTES as u64;
        self.durable = self.base;
        self.buffer.clear();
        self.written = 0;
        self.push_state();
        Ok(())
    }

    fn ensure_next(&mut self) -> Result<(), Error> {
        if self.next.is_none() {
            self.next = Some(self.supply.take(self.order_for_next())?);
        }
        Ok(())
    }

    /// Has the next segment prepared when a quarter of the active one is used, or an entry may not fit any more.
    fn order_next(&mut self) {
        let segment_bytes = self.active.header.segment_bytes;
        let soon = self.end() > segment_bytes / 4
            || segment_bytes.saturating_sub(self.end()) < self.sizes.segment_bytes_min;
        if !self.next_ordered && soon {
            self.next_ordered = true;
            self.supply.order(self.order_for_next());
        }
        self.counters.segments.store(self.sealed.len() as u64 + 1, Relaxed);
    }

    /// Before anybody is told of a batch, and writes the next one by what is left.
    fn count_room(&self) {
        let segment_bytes = self.active.header.segment_bytes;
        let left = segment_bytes.saturating_sub(self.end());
        self.counters.segment_left_bytes.store(left, Relaxed);
        let kept = END_BYTES + Sizes::reserve_bytes(segment_bytes);
        self.counters.room_bytes.store(left.saturating_sub(kept), Relaxed);
    }

    fn order_for_next(&self) -> Order {
        Order {
            sequence: self.active.header.sequence + 1,
            previous_nonce: self.active.header.nonce,
            segment_bytes: self.sizes.next_segment_bytes(self.active.header.segment_bytes),
        }
    }

    /// Lets go of the oldest segments as long as they hold nothing but purged entries. All else that they say is
    /// repeated in the state at the head of each later segment, which is durable by now.
    fn retire_obsolete(&mut self) {
        let floor = self.state.floor();
        while let Some(oldest) = self.sealed.front().copied()
            && oldest.index_max.is_none_or(|index| index < floor)
        {
            self.sealed.pop_front();
            self.supply.retire(oldest.sequence, oldest.segment_bytes);
        }
    }

    fn push_state(&mut self) {
        let state = self.state.encode();
        self.push(Kind::State, 0, 0, &state);
    }

    fn push_committed(&mut self) -> bool {
        match self.committed.take() {
            Some(committed)
                if self.state.committed.as_ref() != Some(&committed)
                    && self.has_room_for(record_bytes(committed.len()), false) =>
            {
                self.push(Kind::Committed, 0, 0, &committed);
                self.state.committed = Some(committed);
                true
            }
            // The same again, or no room: it is only a hint.
            _ => false,
        }
    }

    fn push(&mut self, kind: Kind, index: u64, term: u64, payload: &[u8]) {
        let place = Place { nonce: self.active.header.nonce, offset: self.end(), durable: self.durable };
        record::encode(&mut self.buffer, place, Content { kind, index, term, payload });
    }

    /// Offset of the next record.
    fn end(&self) -> u64 {
        self.base + self.buffer.len() as u64
    }

    /// Hands what is encoded to the kernel, in whole blocks.
    fn write(&mut self) -> Result<(), Error> {
        let end = self.buffer.len();
        if self.written == end {
            return Ok(());
        }
        self.buffer.resize(end.next_multiple_of(BLOCK_BYTES), 0);
        self.active.file.write_at(self.base, &self.buffer).map_err(|e| self.io_error("write", e))?;
        self.counters.written_bytes.fetch_add(self.buffer.len() as u64, Relaxed);
        self.buffer.truncate(end);
        let whole_blocks = end / BLOCK_BYTES * BLOCK_BYTES;
        self.buffer.drain(..whole_blocks);
        self.buffer.shrink_to(BUFFER_BYTES_KEPT);
        self.base += whole_blocks as u64;
        self.written = self.buffer.len();
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Error> {
        let start = Instant::now();
        if !mutants::is(Mutant::AcknowledgeBeforeFsync) {
            self.active.file.sync_data().map_err(|e| self.io_error("sync", e))?;
        }
        self.counters.record_sync(start.elapsed());
        self.durable = self.end();
        self.marked = false;
        Ok(())
    }

    /// A failed write to the log itself is an i/o error, whatever its reason: the space was there.
    fn io_error(&self, operation: &'static str, source: std::io::Error) -> Error {
        Error::Io { operation, path: self.dir.join(segment_name(self.active.header.sequence)), source }
    }

    fn fail(&mut self, error: Error) {
        tracing::error!(%error, "the write-ahead log failed; nothing is acknowledged any more");
        self.counters.failed.store(true, Relaxed);
        self.failed.get_or_insert_with(|| Arc::new(Error::Failed { cause: Arc::new(error) }));
    }

    /// How long the log must be quiet until it wants to be told; `None`: it does not.
    pub(super) fn idle_after(&self) -> Option<Duration> {
        self.wants_idle().then_some(MARK_DELAY)
    }

    /// Does what there is to do; false when that was the end.
    pub(super) fn turn(&mut self, work: Work, queue: &Queue) -> bool {
        match work {
            Work::Batch { requests, committed } => self.process(requests, committed),
            Work::Idle { committed } => {
                self.hint_committed(committed);
                self.idle();
            }
            Work::Closed { committed } => {
                self.hint_committed(committed);
                self.close();
                return false;
            }
        }
        queue.after_batch(self.failure());
        true
    }

    fn complete(&mut self) {
        for waiting in self.waiting.drain(..) {
            self.counters.queued_bytes.fetch_sub(waiting.queue_bytes, Relaxed);
            let result = match (waiting.refused, &self.failed) {
                (Some(refused), _) => Err(Arc::new(refused)),
                (None, Some(failed)) => Err(Arc::clone(failed)),
                (None, None) => {
                    self.counters.entries.fetch_add(waiting.entries, Relaxed);
                    Ok(())
                }
            };
            (waiting.done)(result);
        }
    }
}

/// The writer thread: drains the queue until it is closed.
pub(super) fn run<F: DiskFile, S: Supply<F>>(mut writer: Writer<F, S>, queue: &Queue) {
    while writer.turn(queue.take(writer.idle_after()), queue) {}
}
