//! The write-ahead log: raft log entries and the vote, durable before anyone is told.
//!
//! It owns one directory, one writer thread and one helper thread. It is synchronous at heart, knows nothing of
//! openraft, and keeps no entries in memory: an entry is an index, a term and bytes, and is read back only by
//! [`Wal::open`].
//!
//! # What it promises
//!
//! - A completion callback gets `Ok` only after `fdatasync` returned. Callbacks run on the writer thread, in the
//!   order in which the requests were accepted. All requests that queued up while the disk was busy share one flush.
//! - After a crash or power cut, every entry, truncation, purge and vote that was acknowledged is there again, in
//!   order. Requests that were not acknowledged may be there or not, but only as a prefix.
//! - What is damaged is refused with an [`Error`] that says what to do; it is never served, and never skipped.
//! - After a failed write or flush nothing is acknowledged any more, ever, by this [`Wal`] ([`Error::Failed`]).
//! - A full disk ([`Error::NoSpace`]) refuses entries as long as it lasts. It shows first in [`Stats::no_space`],
//!   while the current segment still has room; votes and purges have a reserve of their own.
//!
//! # How it is laid out
//!
//! ```text
//! LOCK  IDENTITY                  whose log it is; no two processes on it
//! 00000000000000000007.wal        sealed: ends with an end mark
//! 00000000000000000008.wal        active: records, then zeros or what a former life of the file left
//! 00000000000000000009.wal        prepared by the helper thread; header only
//! 00000000000000000005.spare      recycled, to be used as 10
//! ```
//!
//! A segment is zero-filled once, when it is made, so that appending changes no file metadata and a flush is one
//! device flush; a recycled one is overwritten as it is. The first segment of a log is small and each next one four
//! times as large, up to [`Options::segment_bytes`], so that a young log starts at once and takes little space.
//! Each segment begins with a header block (random nonce, the predecessor's nonce) and a state record (vote,
//! committed, purge point, next index), so older segments can go as soon as their entries are purged.
//!
//! # Torn or damaged?
//!
//! A record's CRC covers its segment's nonce and its offset, so nothing but this very record in this life of the
//! file validates there. Recovery reads records until one does not validate. Either the write of that record was
//! cut short, and then it was never acknowledged and is dropped; or it was durable once and is damaged now. What
//! follows tells:
//!
//! - Each record says up to where its segment had been *durable* when it was made. Disks may write the blocks of an
//!   unfinished batch in any order, so valid records behind a bad one are no proof of damage by themselves. One
//!   which says that the bad one's place was durable is.
//! - A segment is written to only when all of its predecessor, end mark included, is durable. So a segment without
//!   an end mark before one with records is damaged, and so is an end mark without a successor.
//! - When the log falls idle for 20 ms, and when it is closed or opened, a mark is written, so that the last batch
//!   too has a witness.
//!
//! What cannot be told apart: damage to the last batch before a crash, if its mark had not reached the disk yet, or
//! was destroyed together with it, looks like a torn write of that batch. The same goes for a disk that lied about
//! its last flush, and for an older copy of the whole directory put back. The store above finds these out where a
//! peer knows better.

mod disk;
mod error;
mod preparer;
mod queue;
mod record;
mod recovery;
mod scan;
mod segment;
#[cfg(any(test, feature = "simulation"))]
mod sim_disk;
#[cfg(feature = "simulation")]
mod simulated;
mod state;
mod stats;
mod supply;
mod writer;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use bytes::Bytes;

pub use error::{Damage, Error};
pub use segment::{Identity, identity_in};
#[cfg(any(test, feature = "simulation"))]
pub use sim_disk::SimDisk;
pub use state::Purged;
pub use stats::{Latency, Room, Stats};

use disk::{Disk, OsDisk};
use preparer::{Order, Preparer};
use queue::{Op, Queue};
use recovery::Found;
use segment::BLOCK_BYTES;
use state::{CONTROL_BYTES_MAX, LogState, STATE_BYTES_MAX};
use stats::Counters;
use supply::{HelperThread, Supply};
use writer::Writer;

/// Size of the first segment.
const FIRST_SEGMENT_BYTES: u64 = 1 << 20;
/// Each segment is so many times as large as the one before, up to the configured size.
const GROWTH: u64 = 4;
/// Room in each segment that entries leave to votes, truncations and purges.
const RESERVE_BYTES_MAX: u64 = 64 << 10;
/// Offsets in a segment are 32 bits in records; this is far below.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// Called on the writer thread when a request is durable, or with the reason why it is not. It should be quick: all
/// others wait behind it. A request that is refused outright (busy, too large, closed, failed) is completed on the
/// caller's thread before the call returns.
pub type Done = Box<dyn FnOnce(Result<(), Arc<Error>>) + Send>;

/// An entry of the raft log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the log.
    pub index: u64,
    /// The term it was proposed in.
    pub term: u64,
    /// Opaque to the log.
    pub payload: Bytes,
}

/// How to open a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The log's directory; made if it is not there.
    pub dir: PathBuf,
    /// Cluster the log belongs to. A directory of another one is refused.
    pub cluster_id: [u8; 16],
    /// Member the log belongs to. A directory of another one is refused.
    pub member_id: u64,
    /// Size that segments grow to.
    pub segment_bytes: u64,
    /// Longest payload of an entry.
    pub entry_bytes_max: usize,
    /// Bytes accepted and not yet durable. Beyond it, appends are refused with [`Error::Busy`].
    pub queue_bytes_max: u64,
    /// So many recycled segments are kept for reuse.
    pub spare_segments_max: usize,
}

impl Options {
    /// The usual sizes: segments of 16 MiB, entries of up to 4 MiB, 64 MiB queued, two spare segments.
    pub fn new(dir: impl Into<PathBuf>, cluster_id: [u8; 16], member_id: u64) -> Self {
        Self {
            dir: dir.into(),
            cluster_id,
            member_id,
            segment_bytes: 16 << 20,
            entry_bytes_max: 4 << 20,
            queue_bytes_max: 64 << 20,
            spare_segments_max: 2,
        }
    }
}

/// What an opened log held.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The last vote.
    pub vote: Option<Bytes>,
    /// All entries behind the purge point, without a gap.
    pub entries: Vec<Entry>,
    /// The purge point.
    pub purged: Option<Purged>,
    /// The last hint that made it to the disk.
    pub committed: Option<Bytes>,
    /// Length of a torn write that was cut off. It can only be told where it left recognisable traces.
    pub truncated_tail_bytes: u64,
}

/// A handle to an open log. Clones share it; when the last one is dropped, what was accepted is written, and the
/// threads end.
#[derive(Clone)]
pub struct Wal {
    inner: Arc<Inner>,
}

struct Inner {
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    entry_bytes_max: usize,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Wal {
    /// Opens the log in a directory, or makes it. Blocks until all of it is read, checked and durable.
    pub fn open(options: &Options) -> Result<(Self, Recovered), Error> {
        let disk = OsDisk::open(&options.dir)?;
        Self::open_on(disk, options)
    }

    fn open_on<D: Disk>(disk: D, options: &Options) -> Result<(Self, Recovered), Error> {
        let counters = Arc::new(Counters::default());
        let (writer, recovered) = open_writer(&disk, options, &counters, HelperThread::spawn)?;
        let queue = Arc::new(Queue::new(options.queue_bytes_max, Arc::clone(&counters)));
        let shared = Arc::clone(&queue);
        let thread = thread::Builder::new()
            .name("wal-writer".to_owned())
            .spawn(move || {
                let ended = WriterEnded { queue: &shared, _disk: disk };
                writer::run(writer, ended.queue);
            })
            .map_err(|e| Error::io("start the writer thread of", &options.dir, e))?;
        let writer = Mutex::new(Some(thread));
        let inner = Inner { queue, counters, entry_bytes_max: options.entry_bytes_max, writer };
        Ok((Self { inner: Arc::new(inner) }, recovered))
    }

    /// Appends entries; the first must follow the last one in the log. All of them are taken or none.
    pub fn append(&self, entries: Vec<Entry>, done: Done) {
        let bytes_max = self.inner.entry_bytes_max;
        match entries.iter().map(|entry| entry.payload.len()).find(|bytes| *bytes > bytes_max) {
            Some(bytes) => done(Err(Arc::new(Error::TooLarge { what: "an entry", bytes, bytes_max }))),
            None => self.inner.queue.push(Op::Append(entries), done),
        }
    }

    /// Replaces the vote, at most 1 KiB.
    pub fn save_vote(&self, vote: Bytes, done: Done) {
        self.push_control("a vote", vote.len(), Op::Vote(vote), done);
    }

    /// Remembers how far the log is committed, at most 1 KiB. A hint: it is written with the next batch or when the
    /// log falls idle, the newest replaces older ones, and an oversized one is ignored.
    pub fn save_committed(&self, committed: Bytes) {
        if committed.len() <= CONTROL_BYTES_MAX {
            self.inner.queue.hint_committed(committed);
        }
    }

    /// Voids all entries above `index` (all of them with `None`), which conflict with the leader's log.
    pub fn truncate_after(&self, index: Option<u64>, done: Done) {
        match index.map_or(Some(0), |index| index.checked_add(1)) {
            Some(from) => self.inner.queue.push(Op::Truncate { from }, done),
            // Nothing lies above the highest index, but the order of completions holds all the same.
            None => self.inner.queue.push(Op::Append(Vec::new()), done),
        }
    }

    /// Drops all entries up to the purge point, which may lie beyond the last entry (a snapshot took their place).
    /// Segments without other entries are recycled in the background.
    pub fn purge_through(&self, purged: Purged, done: Done) {
        self.push_control("a purge position", purged.position.len(), Op::Purge(purged), done);
    }

    /// Calls back, once, as soon as the queue is at most half full: the way to wait after [`Error::Busy`].
    pub fn when_room(&self, room: Box<dyn FnOnce() + Send>) {
        self.inner.queue.when_room(room);
    }

    /// A picture of the log's counters.
    pub fn stats(&self) -> Stats {
        self.inner.counters.snapshot()
    }

    /// How much the log is sure to take: what is more may meet a full disk, and then be refused.
    pub fn room(&self) -> Room {
        self.inner.counters.room()
    }

    fn push_control(&self, what: &'static str, bytes: usize, op: Op, done: Done) {
        if bytes > CONTROL_BYTES_MAX {
            done(Err(Arc::new(Error::TooLarge { what, bytes, bytes_max: CONTROL_BYTES_MAX })));
        } else {
            self.inner.queue.push(op, done);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.close();
        let thread = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // A callback may hold the last handle; the writer cannot wait for itself.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != thread::current().id()) {
            // It fails only after a panic in a callback, which has been reported by then.
            let _ = thread.join();
        }
    }
}

/// Answers what is left when the writer thread ends, by whatever way, and only then lets go of the disk.
struct WriterEnded<'a, D> {
    queue: &'a Queue,
    _disk: D,
}

impl<D> Drop for WriterEnded<'_, D> {
    fn drop(&mut self) {
        let error = if thread::panicking() { Error::WriterGone } else { Error::Closed };
        self.queue.writer_ended(error);
    }
}

/// Sizes the writer goes by.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    segment_bytes: u64,
    /// Takes the longest entry.
    segment_bytes_min: u64,
}

impl Sizes {
    fn new(options: &Options) -> Result<Self, Error> {
        let invalid = |reason| Err(Error::InvalidOptions { reason });
        if options.segment_bytes > SEGMENT_BYTES_MAX
            || !options.segment_bytes.is_multiple_of(BLOCK_BYTES as u64)
        {
            return invalid("segment_bytes must be a multiple of 4096 and at most 1 GiB");
        }
        let content = segment::HEADER_BYTES
            + record::record_bytes(STATE_BYTES_MAX)
            + record::record_bytes(options.entry_bytes_max)
            + record::record_bytes(0);
        // An eighth is the reserve.
        let needed = (content as u64 * 8).div_ceil(7).min(content as u64 + RESERVE_BYTES_MAX);
        let segment_bytes_min = needed.next_multiple_of(BLOCK_BYTES as u64);
        if segment_bytes_min > options.segment_bytes {
            return invalid("segment_bytes is too small for entries of entry_bytes_max");
        }
        Ok(Self { segment_bytes: options.segment_bytes, segment_bytes_min })
    }

    fn first_segment_bytes(self) -> u64 {
        self.segment_bytes.min(FIRST_SEGMENT_BYTES)
    }

    fn next_segment_bytes(self, current: u64) -> u64 {
        (current * GROWTH).clamp(self.segment_bytes_min, self.segment_bytes)
    }

    fn reserve_bytes(segment_bytes: u64) -> u64 {
        (segment_bytes / 8).min(RESERVE_BYTES_MAX)
    }
}

/// Recovers the log, or makes it, and starts writing to it.
fn open_writer<D: Disk, S: Supply<D::File>>(
    disk: &D,
    options: &Options,
    counters: &Arc<Counters>,
    supply: impl FnOnce(Preparer<D>) -> Result<S, Error>,
) -> Result<(Writer<D::File, S>, Recovered), Error> {
    let sizes = Sizes::new(options)?;
    let identity = Identity { cluster_id: options.cluster_id, member_id: options.member_id };
    let listing = recovery::list(disk, identity)?;
    let found = recovery::recover(disk, &listing, identity)?;
    let mut preparer = Preparer {
        disk: disk.clone(),
        identity,
        spares: recovery::adopt_spares(disk, &listing, options.spare_segments_max, sizes.segment_bytes)?,
        spares_max: options.spare_segments_max,
        spare_bytes_min: sizes.segment_bytes,
        counters: Arc::clone(counters),
    };
    let mut found = match found {
        Some(found) => found,
        None => first_segment(&mut preparer, sizes)?,
    };
    // Made when entries were bound to be shorter.
    if let Some(next) = found.next.take_if(|next| next.header.segment_bytes < sizes.segment_bytes_min) {
        preparer.retire(next.header.sequence, 0)?;
    }
    let recovered = std::mem::take(&mut found.recovered);
    let supply = supply(preparer)?;
    let writer = Writer::start(disk.dir().to_owned(), found, supply, sizes, Arc::clone(counters))?;
    if !listing.identity_written {
        segment::write_identity(disk, identity)?;
    }
    Ok((writer, recovered))
}

/// The beginning of a log.
fn first_segment<D: Disk>(preparer: &mut Preparer<D>, sizes: Sizes) -> Result<Found<D::File>, Error> {
    let order = Order { sequence: 1, previous_nonce: 0, segment_bytes: sizes.first_segment_bytes() };
    let active = preparer.prepare(order, || true)?;
    Ok(Found {
        recovered: Recovered::default(),
        state: LogState::default(),
        sealed: std::collections::VecDeque::new(),
        active,
        index_max: None,
        end: segment::HEADER_BYTES as u64,
        tail: Vec::new(),
        next: None,
    })
}
