//! What a checkpoint on disk needs: the changes since the last one, and the header that names the state.
//!
//! Nothing is kept aside for it while commands are applied: the changes are the history's own, which is not
//! trimmed past what the checkpoint has taken. A checkpoint that lags too far is given up and gets the whole
//! state with its next delta, so that it never holds memory without bound.

use std::sync::Arc;

use bytes::Bytes;

use crate::machine::StateMachine;
use crate::rebuild::{Secrets, StateHeader};
use crate::record::Record;

/// Revisions and removed records that are kept for a checkpoint that lags; beyond, the next delta is full.
const CHECKPOINT_LAG_MAX: u64 = 4_000_000;

/// Names one version of one key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordId {
    /// The key.
    pub key: Bytes,
    /// The version's revision.
    pub mod_revision: u64,
}

/// The way from the state that a checkpoint holds to the newest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointDelta {
    /// Describes the state that the checkpoint holds afterwards.
    pub header: StateHeader,
    /// `inserted` is the whole state: whatever the checkpoint held before is void.
    pub full: bool,
    /// The revision that the checkpoint must hold at least, if the delta is not full.
    pub base_revision: u64,
    /// Records to add, in the order of their revisions (full: of their keys).
    pub inserted: Vec<Arc<Record>>,
    /// Records that compaction took out: to be removed once the header is down. Some may be in `inserted`,
    /// some may never have been there.
    pub removed: Vec<RecordId>,
    /// Bytes of the state's live records, to judge the checkpoint's size on disk by.
    pub live_bytes: u64,
}

impl CheckpointDelta {
    /// Whether a checkpoint would change by it: something was applied since `applied`.
    pub fn is_news(&self, applied: Option<crate::Position>) -> bool {
        self.full || self.header.applied != applied
    }

    /// Puts an older delta, whose write failed, before this one.
    fn merge_after(&mut self, mut older: Self) {
        if self.full {
            return;
        }
        self.base_revision = older.base_revision;
        older.inserted.append(&mut self.inserted);
        older.removed.append(&mut self.removed);
        self.inserted = older.inserted;
        self.removed = older.removed;
    }
}

/// What the checkpoint has, as far as the state knows.
#[derive(Debug, Default)]
pub(crate) struct CheckpointTracking {
    /// Changes up to this revision were taken; `None`: nothing is known, the next delta is full.
    taken_revision: Option<u64>,
    /// Trimmed since the last delta.
    removed: Vec<RecordId>,
    /// A delta that could not be written.
    returned: Option<CheckpointDelta>,
}

impl CheckpointTracking {
    /// The checkpoint holds exactly the state at `revision`.
    pub(crate) fn at(revision: u64) -> Self {
        Self { taken_revision: Some(revision), ..Self::default() }
    }

    /// The newest revision whose history may be trimmed, for a store at `compact_revision`.
    pub(crate) fn trim_through(&mut self, compact_revision: u64) -> u64 {
        match self.taken_revision {
            Some(taken)
                if compact_revision.saturating_sub(taken) <= CHECKPOINT_LAG_MAX
                    && self.removed.len() as u64 <= CHECKPOINT_LAG_MAX =>
            {
                taken
            }
            Some(_) => {
                *self = Self::default();
                u64::MAX
            }
            None => u64::MAX,
        }
    }

    pub(crate) fn removed(&mut self, record: &Record) {
        if self.taken_revision.is_some() {
            self.removed.push(RecordId { key: record.key.clone(), mod_revision: record.mod_revision });
        }
    }
}

impl StateMachine {
    /// The changes since the last call; the whole state at the first call on a state that did not come from
    /// a checkpoint. Costs what it returns.
    pub fn take_dirty(&mut self) -> CheckpointDelta {
        let tracking = std::mem::take(&mut self.tracking);
        let mut delta = CheckpointDelta {
            header: self.header(),
            full: tracking.taken_revision.is_none(),
            base_revision: tracking.taken_revision.unwrap_or(0),
            inserted: Vec::new(),
            removed: tracking.removed,
            live_bytes: self.live_bytes(),
        };
        match tracking.taken_revision {
            Some(taken) => {
                let changes = self.keyspace.history.since(taken + 1, 0);
                delta.inserted.extend(changes.flat_map(|events| events.iter().map(|(kv, _)| kv.clone())));
            }
            None => {
                let compact_revision = self.keyspace.compact_revision;
                let keys = self.keyspace.index.values();
                delta.inserted.extend(keys.flat_map(|key| key.versions_since(compact_revision)).cloned());
            }
        }
        if let Some(returned) = tracking.returned {
            delta.merge_after(returned);
        }
        self.tracking = CheckpointTracking::at(self.keyspace.revision);
        delta
    }

    /// Takes back a delta that was not written; the next one contains it. Deltas must come back before the
    /// next is taken.
    pub fn put_back_dirty(&mut self, mut delta: CheckpointDelta) {
        if delta.full {
            self.tracking = CheckpointTracking::default();
            return;
        }
        if let Some(older) = self.tracking.returned.take() {
            delta.merge_after(older);
        }
        self.tracking.returned = Some(delta);
    }

    /// Describes the state as it is.
    pub fn header(&self) -> StateHeader {
        StateHeader {
            applied: self.applied,
            revision: self.keyspace.revision,
            compact_revision: self.keyspace.compact_revision,
            records: self.records(),
            state_hash: self.state_hash(),
            leases: self.leases.states().collect(),
            alarms: self.alarms.iter().copied().collect(),
            secrets: Secrets::encode(&self.auth, &self.requests, &self.versions),
        }
    }
}
