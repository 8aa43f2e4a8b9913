//! The write-ahead log as the consensus library wants to see it.
//!
//! Owns the entries in memory (every entry that is not purged, so that replication never reads the disk)
//! and hands each change to the [`Wal`], which orders them and answers once they are on disk. Promises: an
//! entry is readable as soon as `append` returns; a callback is called only after fdatasync returned.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use tokio::sync::{Semaphore, oneshot};

use super::codec;
use super::types::{Entry, LogId, Payload, TypeConfig, Vote, log_id};
use crate::mutants::{self, Mutant};
use crate::wal::{self, Wal};

/// Bytes handed to the write-ahead log and not yet on disk; appending waits beyond that.
const IN_FLIGHT_KIB_MAX: u32 = 32 * 1024;
/// Commands sent to a peer in one AppendEntries request.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// The newest entries of the log, from just after the purge point, and the vote.
#[derive(Debug, Default)]
struct Cache {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: VecDeque<Entry>,
}

impl Cache {
    /// Index of the first entry in memory; of the next one, if there is none.
    fn first_index(&self) -> u64 {
        let after_purged = self.purged.map_or(0, |id| id.index + 1);
        self.entries.front().map_or(after_purged, |entry| entry.log_id.index)
    }

    fn next_index(&self) -> u64 {
        self.first_index() + self.entries.len() as u64
    }

    fn last_log_id(&self) -> Option<LogId> {
        self.entries.back().map(|entry| entry.log_id).or(self.purged)
    }
}

/// The log of one member. Clones share the same log.
#[derive(Clone)]
pub(crate) struct LogStore {
    wal: Wal,
    cache: Arc<Mutex<Cache>>,
    /// One permit for each KiB in flight.
    in_flight: Arc<Semaphore>,
}

impl LogStore {
    /// Takes over what recovery found.
    pub(crate) fn new(wal: Wal, recovered: wal::Recovered) -> Result<Self, codec::DecodeError> {
        let entries = recovered
            .entries
            .into_iter()
            .map(|entry| codec::entry_from_record(entry.term, entry.index, entry.payload))
            .collect::<Result<VecDeque<_>, _>>()?;
        let cache = Cache {
            vote: recovered.vote.map(codec::vote_from_record).transpose()?,
            committed: recovered.committed.map(codec::log_id_from_record).transpose()?,
            purged: recovered.purged.map(|purged| log_id(purged.term, purged.index)),
            entries,
        };
        let in_flight = Arc::new(Semaphore::new(IN_FLIGHT_KIB_MAX as usize));
        Ok(Self { wal, cache: Arc::new(Mutex::new(cache)), in_flight })
    }

    /// Whether this member holds any entry, or ever did, or has voted.
    pub(crate) fn is_blank(&self) -> bool {
        let cache = self.lock();
        cache.vote.is_none() && cache.last_log_id().is_none()
    }

    /// Index of the newest entry that is no longer in the log.
    pub(crate) fn purged_index(&self) -> Option<u64> {
        self.lock().purged.map(|id| id.index)
    }

    /// The newest entry.
    pub(crate) fn last_log_id(&self) -> Option<LogId> {
        self.lock().last_log_id()
    }

    /// Bytes of the commands in entries newer than `index`.
    pub(crate) fn bytes_after(&self, index: u64) -> usize {
        let cache = self.lock();
        let known = (index + 1).saturating_sub(cache.first_index()) as usize;
        cache.entries.iter().skip(known).map(payload_bytes).sum()
    }

    /// The newest entry of those that lie before the last `bytes` of commands, if any does.
    pub(crate) fn index_before_last(&self, bytes: usize) -> Option<u64> {
        let cache = self.lock();
        let mut seen = 0;
        let before = cache.entries.iter().rev().find(|entry| {
            let before = seen;
            seen += payload_bytes(entry);
            before >= bytes
        });
        before.map(|entry| entry.log_id.index)
    }

    /// The write-ahead log's counters.
    pub(crate) fn stats(&self) -> wal::Stats {
        self.wal.stats()
    }

    /// How much the write-ahead log is sure to take.
    pub(crate) fn room(&self) -> wal::Room {
        self.wal.room()
    }

    fn lock(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().expect("no code panics while it holds the log's lock")
    }
}

/// Turns a write-ahead log error into the error type that the library's storage traits use.
fn to_io(error: Arc<wal::Error>) -> io::Error {
    io::Error::other(error)
}

/// Waits for a change of the log to be on disk.
async fn durable(
    submit: impl FnOnce(Box<dyn FnOnce(Result<(), Arc<wal::Error>>) + Send>),
) -> Result<(), io::Error> {
    let (tx, rx) = oneshot::channel();
    submit(Box::new(move |result| {
        // The receiver is gone only if this member is stopping.
        let _ = tx.send(result);
    }));
    match rx.await {
        Ok(result) => result.map_err(to_io),
        Err(_) => Err(io::Error::other("the write-ahead log has stopped")),
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let cache = self.lock();
        let first = cache.first_index();
        let start = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => index + 1,
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        let (start, end) = (start.max(first), end.min(cache.next_index()));
        if start >= end {
            return Ok(Vec::new());
        }
        let (from, to) = ((start - first) as usize, (end - first) as usize);
        Ok(cache.entries.range(from..to).cloned().collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.lock().vote)
    }

    /// One request's worth: at least one entry, and no more bytes than a peer takes in one message.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let mut entries = self.try_get_log_entries(start..end).await?;
        let mut bytes = 0;
        let fits = entries.iter().take_while(|entry| {
            let before = bytes;
            bytes += payload_bytes(entry);
            before == 0 || bytes <= REQUEST_BYTES_MAX
        });
        let count = fits.count();
        entries.truncate(count);
        Ok(entries)
    }
}

fn payload_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        Payload::Normal(proposal) => proposal.0.len(),
        Payload::Blank | Payload::Membership(_) => 0,
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let cache = self.lock();
        Ok(LogState { last_purged_log_id: cache.purged, last_log_id: cache.last_log_id() })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        if !mutants::is(Mutant::ForgetVote) {
            durable(|done| self.wal.save_vote(codec::vote_to_record(vote), done)).await?;
        }
        self.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(id) = committed {
            self.wal.save_committed(codec::log_id_to_record(&id));
        }
        self.lock().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut records = Vec::new();
        {
            let mut cache = self.lock();
            for entry in entries {
                debug_assert!(
                    cache.last_log_id().is_none_or(|last| last.index + 1 == entry.log_id.index),
                    "the log has no holes"
                );
                records.push(wal::Entry {
                    index: entry.log_id.index,
                    term: entry.log_id.leader_id.term,
                    payload: codec::entry_to_record(&entry),
                });
                cache.entries.push_back(entry);
            }
        }
        let bytes: usize = records.iter().map(|record| record.payload.len()).sum();
        let kib = u32::try_from(bytes / 1024 + 1).map_or(IN_FLIGHT_KIB_MAX, |kib| kib.min(IN_FLIGHT_KIB_MAX));
        let permit = Arc::clone(&self.in_flight).acquire_many_owned(kib).await.map_err(io::Error::other)?;
        self.wal.append(
            records,
            Box::new(move |result| {
                drop(permit);
                callback.io_completed(result.map_err(to_io));
            }),
        );
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        {
            let mut cache = self.lock();
            let keep = last_log_id.map_or(0, |id| id.index + 1).saturating_sub(cache.first_index());
            cache.entries.truncate(keep as usize);
        }
        durable(|done| self.wal.truncate_after(last_log_id.map(|id| id.index), done)).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        {
            let mut cache = self.lock();
            let drop = (upto.index + 1).saturating_sub(cache.first_index()) as usize;
            let drop = drop.min(cache.entries.len());
            cache.entries.drain(..drop);
            cache.purged = cache.purged.max(Some(upto));
        }
        let (index, term) = (upto.index, upto.leader_id.term);
        let purged = wal::Purged { index, term, position: Bytes::new() };
        durable(|done| self.wal.purge_through(purged, done)).await
    }
}
