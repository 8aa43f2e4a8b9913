//! The whole applied state, and how it is read.
//!
//! [`StateMachine`] is changed by `apply` and `skip` alone (module `applier`); everything here reads, or
//! manages what is not replicated: which changes the watch hub has fetched, and how much was trimmed.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::checkpoint::CheckpointTracking;
use crate::command::{Alarm, AlarmKind, RangeRequest};
use crate::hash;
use crate::history::{EventBatch, RevisionEvents};
use crate::lease::{LeaseState, Leases};
use crate::mvcc::Keyspace;
use crate::outcome::{RangeResponse, ReadError};
use crate::record::Record;
use crate::revision::{Position, REVISION_INITIAL};
use crate::snapshot::SnapshotPins;

/// Changes that one `drain_events` trims for each that it returns, and at least.
const TRIM_EVENTS_PER_DRAINED: usize = 4;
const TRIM_EVENTS_MIN: usize = 64;

const STATE_HASH_DOMAIN: u64 = 0x7374_6174_6500_0001;

/// The whole applied state, in memory. See the crate's head.
#[derive(Debug)]
pub struct StateMachine {
    pub(crate) applied: Option<Position>,
    pub(crate) keyspace: Keyspace,
    pub(crate) leases: Leases,
    pub(crate) alarms: BTreeSet<Alarm>,
    /// Changes up to this revision were returned by `drain_events`.
    pub(crate) drained_revision: u64,
    pub(crate) tracking: CheckpointTracking,
    pub(crate) pins: SnapshotPins,
}

impl Default for StateMachine {
    fn default() -> Self {
        Self::new()
    }
}

impl StateMachine {
    /// The state before the first log entry.
    pub fn new() -> Self {
        Self {
            applied: None,
            keyspace: Keyspace::new(),
            leases: Leases::default(),
            alarms: BTreeSet::new(),
            drained_revision: REVISION_INITIAL,
            tracking: CheckpointTracking::default(),
            pins: SnapshotPins::default(),
        }
    }

    /// The last log entry that the state contains.
    pub fn applied(&self) -> Option<Position> {
        self.applied
    }

    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.keyspace.revision
    }

    /// The oldest revision that can be read; 0: never compacted.
    pub fn compact_revision(&self) -> u64 {
        self.keyspace.compact_revision
    }

    /// Reads keys at one revision.
    ///
    /// # Errors
    /// When that revision is compacted or in the future.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, ReadError> {
        self.keyspace.check_revision(request.revision)?;
        Ok(self.keyspace.range(request, self.keyspace.revision))
    }

    /// The newest version of a key, if it exists.
    pub fn get(&self, key: &[u8]) -> Option<&Arc<Record>> {
        self.keyspace.get(key)
    }

    /// The changes from `revision` on, in order, until at least `events_max` events have been given; a
    /// revision is never split. Nothing while `revision` has not happened yet.
    ///
    /// # Errors
    /// When `revision` lies before the compact revision.
    pub fn events_since(
        &self,
        revision: u64,
        events_max: usize,
    ) -> Result<impl Iterator<Item = RevisionEvents<'_>>, ReadError> {
        let compact_revision = self.keyspace.compact_revision;
        if revision < compact_revision {
            return Err(ReadError::Compacted { requested: revision, compact_revision });
        }
        let mut given = 0;
        Ok(self.keyspace.history.since(revision, compact_revision).take_while(move |events| {
            let go_on = given < events_max;
            given += events.iter().count();
            go_on
        }))
    }

    /// The changes since the last call, for publication; then trims some of what compactions left behind.
    /// History is only trimmed up to what was drained, so somebody must call this (or `discard_events`).
    pub fn drain_events(&mut self) -> Vec<EventBatch> {
        let from = self.drained_revision + 1;
        // Not hidden by compaction: the subscriber followed up to here.
        let batches: Vec<_> = self.keyspace.history.since(from, 0).map(|events| events.to_batch()).collect();
        self.drained_revision = self.keyspace.revision;
        let drained: usize = batches.iter().map(|batch| batch.events.len()).sum();
        self.trim(TRIM_EVENTS_MIN.max(TRIM_EVENTS_PER_DRAINED * drained));
        batches
    }

    /// `drain_events` for a caller that has nobody to publish to.
    pub fn discard_events(&mut self) {
        let drained = self.keyspace.revision - self.drained_revision;
        self.drained_revision = self.keyspace.revision;
        self.trim(TRIM_EVENTS_MIN.max(TRIM_EVENTS_PER_DRAINED.saturating_mul(drained as usize)));
    }

    /// Takes up to about `events_max` changes' worth of compacted records out of memory; for idle moments.
    /// Returns whether there is more to do now.
    pub fn trim(&mut self, events_max: usize) -> bool {
        if self.pins.any() {
            return false;
        }
        let lag = self.keyspace.compact_revision;
        let through = self.tracking.trim_through(lag).min(self.drained_revision);
        let tracking = &mut self.tracking;
        self.keyspace.trim(events_max, through, |record| tracking.removed(record))
    }

    /// A hash of all replicated state but the applied position. Equal on all members at equal positions.
    pub fn state_hash(&self) -> u64 {
        let live = self.keyspace.live();
        let mut words = vec![
            live.hash,
            live.records,
            self.leases.hash(),
            self.keyspace.revision,
            self.keyspace.compact_revision,
        ];
        for alarm in &self.alarms {
            words.extend([u64::from(alarm.kind.number()), alarm.member_id]);
        }
        hash::words(STATE_HASH_DOMAIN, &words)
    }

    /// How many records (versions of keys) are live.
    pub fn records(&self) -> u64 {
        self.keyspace.live().records
    }

    /// Bytes of live records: keys, values, and a flat charge for each record.
    pub fn live_bytes(&self) -> u64 {
        self.keyspace.live().bytes
    }

    /// A lease, and the keys that hang on it in order.
    pub fn lease(&self, id: i64) -> Option<(LeaseState, &BTreeSet<Bytes>)> {
        self.leases.get(id)
    }

    /// All leases in the order of their ids.
    pub fn leases(&self) -> impl Iterator<Item = LeaseState> {
        self.leases.states()
    }

    /// The alarms that are raised.
    pub fn alarms(&self) -> impl Iterator<Item = Alarm> {
        self.alarms.iter().copied()
    }

    /// Whether an alarm for used-up space is raised: puts and lease grants are refused.
    pub fn is_out_of_space(&self) -> bool {
        self.alarms.iter().any(|alarm| alarm.kind == AlarmKind::NoSpace)
    }
}
