//! Forgetting old versions, in two steps.
//!
//! `compact` moves the compact revision: from then on nothing older can be read, and the state hash no longer
//! counts it. That is O(1) and the only part that is replicated. `trim` later takes the unreachable records
//! out of memory, a bounded number of changes at a time, at whatever pace each member likes.

use crate::mvcc::Keyspace;
use crate::outcome::ReadError;
use crate::record::Record;

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
        Ok(())
    }

    /// Takes up to about `events_max` changes' worth of unreachable records out, none newer than revision
    /// `through`, handing each record to `dropped`. Returns whether more could be done.
    pub(crate) fn trim(&mut self, events_max: usize, through: u64, mut dropped: impl FnMut(&Record)) -> bool {
        // Tombstones and events of the compact revision itself stay: a watch may start there.
        let through = through.min(self.compact_revision);
        let mut events = 0;
        loop {
            let next = (self.swept_revision + 1).max(self.history.first_revision());
            if next > through {
                return false;
            }
            if events >= events_max {
                return true;
            }
            events += self.sweep(next, &mut dropped);
            self.swept_revision = next;
            while self.history.first_revision() < next {
                events += self.drop_first(&mut dropped);
            }
        }
    }

    /// Drops the versions that the changes of `revision` superseded.
    fn sweep(&mut self, revision: u64, dropped: &mut impl FnMut(&Record)) -> usize {
        let mut events = 0;
        for event in self.history.events_mut(revision) {
            events += 1;
            if event.prev_kv.take().is_some()
                && let Some(versions) = self.index.get_mut(&event.kv.key)
            {
                versions.forget_before(revision, |record| dropped(record));
            }
        }
        events
    }

    /// Drops the oldest revision's history, and the tombstones that it left.
    fn drop_first(&mut self, dropped: &mut impl FnMut(&Record)) -> usize {
        let revision = self.history.first_revision();
        let mut events = 0;
        for event in self.history.events_mut(revision) {
            events += 1;
            if !event.is_delete() {
                continue;
            }
            if let Some(versions) = self.index.get_mut(&event.kv.key)
                && versions.forget_before(revision + 1, |record| dropped(record))
            {
                self.index.remove(&event.kv.key);
            }
        }
        self.history.pop_front();
        events
    }
}
