//! Forgetting old versions, in two steps.
//!
//! `compact` moves the compact revision: from then on nothing older can be read, and the state hash no longer
//! counts it. That is O(1) and the only part that is replicated. `trim` later takes the unreachable records
//! out of memory, a bounded number of changes at a time, at whatever pace each member likes, and moves the records
//! that are left out of blocks which became half empty.

use crate::heap::Slot;
use crate::mvcc::Keyspace;
use crate::outcome::ReadError;

/// Blocks that one step may empty, beside one for so many changes.
const CHANGES_PER_BLOCK: usize = 128;

impl Keyspace {
    /// Moves the compact revision.
    pub(crate) fn compact(&mut self, revision: u64) -> Result<(), ReadError> {
        if revision <= self.compact_revision {
            let compact_revision = self.compact_revision;
            return Err(ReadError::Compacted { requested: revision, compact_revision });
        }
        if revision > self.revision {
            return Err(ReadError::Future { requested: revision, revision: self.revision });
        }
        self.compact_revision = revision;
        self.dead = self.history.dead_at(&self.index.heap, revision);
        Ok(())
    }

    /// Takes up to about `events_max` changes' worth of unreachable records out, none newer than revision
    /// `through`. Returns whether more could be done.
    pub(crate) fn trim(&mut self, events_max: usize, through: u64) -> bool {
        // Tombstones and events of the compact revision itself stay: a watch may start there.
        let through = through.min(self.compact_revision);
        let mut events = 0;
        let more = loop {
            let next = (self.swept_revision + 1).max(self.history.first_revision());
            if next > through {
                break false;
            }
            if events >= events_max {
                break true;
            }
            events += self.sweep(next);
            self.swept_revision = next;
            while self.history.first_revision() < next {
                events += self.drop_first();
            }
        };
        for _ in 0..=events / CHANGES_PER_BLOCK {
            let Some(block) = self.index.heap.sparse_block() else { break };
            self.empty(block);
        }
        more || self.index.heap.has_sparse_block()
    }

    /// Drops the versions that the changes of `revision` superseded.
    fn sweep(&mut self, revision: u64) -> usize {
        let events = self.history.events(revision).len();
        let mut key = Vec::new();
        for sub in 0..events {
            if let Some(prev) = self.history.take_prev(&self.index.heap, revision, sub) {
                key.clear();
                key.extend_from_slice(self.index.heap.key(prev));
                self.index.forget_before(&key, revision);
            }
        }
        events
    }

    /// Drops the oldest revision's history, and the tombstones that it left.
    fn drop_first(&mut self) -> usize {
        let revision = self.history.first_revision();
        let events = self.history.events(revision);
        let count = events.len();
        let deleted: Vec<Slot> = events.iter().copied().filter(|slot| slot.is_tombstone()).collect();
        self.history.pop_front(&self.index.heap);
        for slot in deleted {
            let key = self.index.heap.key(slot).to_vec();
            self.index.forget_before(&key, revision + 1);
        }
        count
    }

    /// Moves what is left in a block to others, and gives the block back.
    fn empty(&mut self, block: u32) {
        let mut offset = 0;
        while let Some((slot, next)) = self.index.heap.at(block, offset) {
            offset = next;
            if let Some(after) = self.index.version_after(slot) {
                let copy = self.index.heap.copy(slot);
                self.index.replace(slot, copy);
                self.history.replace(&self.index.heap, slot, copy, after);
            }
        }
        self.index.heap.release(block);
    }
}
