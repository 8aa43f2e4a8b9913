//! What a checkpoint on disk needs: the changes since the last one, and the header that names the state.
//!
//! Nothing is kept aside for it while commands are applied: the changes are the history's own, which is not
//! trimmed past what the checkpoint has taken. A [`CheckpointDelta`] is a header and a cursor; its records are read
//! chunk by chunk from the state while that goes on being changed, and no second copy of them is ever in
//! memory. A checkpoint that lags too far is given up and gets the whole state with its next delta, so that it
//! never holds memory without bound.

use std::sync::Arc;

use crate::machine::StateMachine;
use crate::rebuild::{Secrets, StateHeader};
use crate::record::Record;
use crate::snapshot::{Snapshot, SnapshotError};

/// Revisions that are kept for a checkpoint that lags; beyond, the next delta is full.
const CHECKPOINT_LAG_MAX: u64 = 4_000_000;

/// The way from the state that a checkpoint holds to the newest. Drop it when done: it holds trimming back.
#[derive(Debug)]
pub struct CheckpointDelta {
    /// Describes the state that the checkpoint holds afterwards.
    pub header: StateHeader,
    /// The records are the whole state: whatever the checkpoint held before is void.
    pub full: bool,
    /// The revision that the checkpoint must hold at least, if the delta is not full.
    pub base_revision: u64,
    /// Keys and values of the records, with the flat charge for each.
    pub bytes: u64,
    /// The same of all live records of the state, to judge the checkpoint's size on disk by.
    pub live_bytes: u64,
    base: Option<Taken>,
    next_revision: u64,
    state: Snapshot,
}

/// A place in the history, and all bytes ever written up to there.
#[derive(Debug, Clone, Copy)]
struct Taken {
    revision: u64,
    written_bytes: u64,
}

/// What the checkpoint has, as far as the state knows.
#[derive(Debug, Default)]
pub(crate) struct CheckpointTracking {
    /// Changes up to there were taken; `None`: nothing is known, the next delta is full.
    taken: Option<Taken>,
}

impl CheckpointTracking {
    /// The newest revision whose history may be trimmed, for a store at `compact_revision`.
    pub(crate) fn trim_through(&mut self, compact_revision: u64) -> u64 {
        match self.taken {
            Some(taken) if compact_revision.saturating_sub(taken.revision) <= CHECKPOINT_LAG_MAX => {
                taken.revision
            }
            _ => {
                self.taken = None;
                u64::MAX
            }
        }
    }
}

impl StateMachine {
    /// The changes since the last call; the whole state at the first call on a state that did not come from
    /// a checkpoint. Costs next to nothing; the records are read by [`read_dirty`](Self::read_dirty).
    pub fn take_dirty(&mut self) -> CheckpointDelta {
        let base = self.tracking.taken;
        self.checkpoint_holds_this();
        let state = self.snapshot();
        let (live_bytes, written_bytes) = (self.live_bytes(), self.keyspace.all.bytes);
        CheckpointDelta {
            header: state.header().clone(),
            full: base.is_none(),
            base_revision: base.map_or(0, |base| base.revision),
            bytes: base.map_or(live_bytes, |base| written_bytes.wrapping_sub(base.written_bytes)),
            live_bytes,
            base,
            next_revision: base.map_or(0, |base| base.revision + 1),
            state,
        }
    }

    /// The next records of a delta that was taken of this state, of about so many bytes, in the order of their revisions
    /// (full: of their keys); `None` when there are no more. The state may have changed since.
    ///
    /// # Errors
    /// When this is another state.
    pub fn read_dirty(
        &self,
        delta: &mut CheckpointDelta,
        bytes_max: u64,
    ) -> Result<Option<Vec<Arc<Record>>>, SnapshotError> {
        if delta.full {
            return delta.state.read_bytes(self, bytes_max);
        }
        delta.state.check_origin(self)?;
        let (mut records, mut bytes) = (Vec::new(), 0);
        let changes = self.keyspace.since(delta.next_revision, 0);
        for events in changes.take_while(|events| events.revision() <= delta.header.revision) {
            for record in events.records() {
                bytes += record.bytes();
                records.push(record.to_record());
            }
            delta.next_revision = events.revision() + 1;
            if bytes >= bytes_max {
                break;
            }
        }
        Ok((!records.is_empty()).then_some(records))
    }

    /// Takes back a delta that was not written; the next one contains it. Deltas must come back before the
    /// next is taken. One that was taken of another state is dropped.
    pub fn put_back_dirty(&mut self, delta: CheckpointDelta) {
        if delta.state.check_origin(self).is_ok() {
            self.tracking.taken = delta.base;
        }
    }

    /// Says that a checkpoint holds this very state.
    pub(crate) fn checkpoint_holds_this(&mut self) {
        let (revision, written_bytes) = (self.keyspace.revision, self.keyspace.all.bytes);
        self.tracking.taken = Some(Taken { revision, written_bytes });
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
