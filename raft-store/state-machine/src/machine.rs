//! The whole applied state, and how it is read.
//!
//! [`StateMachine`] is changed by `apply` and `skip` alone (module `applier`); everything here reads, or
//! manages what is not replicated: which changes the watch hub has fetched, and how much was trimmed.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::auth::Auth;
use crate::auth_command::AuthError;
use crate::checkpoint::CheckpointTracking;
use crate::command::{Alarm, AlarmKind, Command, RangeRequest, TxnCommand};
use crate::envelope::Author;
use crate::hash;
use crate::history::{EventBatch, RevisionEvents};
use crate::lease::{LeaseState, Leases};
use crate::mvcc::Keyspace;
use crate::outcome::{ApplyError, RangeResponse, ReadError, TxnOutcome};
use crate::record::RecordRef;
use crate::requests::Requests;
use crate::revision::{Position, REVISION_INITIAL};
use crate::snapshot::SnapshotPins;
use crate::txn::{self, ReadTxn, Shape};
use crate::version::Versions;

/// Changes that one `drain_events` trims for each that it returns, and at least.
const TRIM_EVENTS_PER_DRAINED: usize = 4;
const TRIM_EVENTS_MIN: usize = 64;

const HASH_KV_DOMAIN: u64 = 0x6b76_0000_0000_0001;
const STATE_HASH_DOMAIN: u64 = 0x7374_6174_6500_0001;

/// See [`StateMachine::hash_kv`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashKv {
    /// The hash.
    pub hash: u64,
    /// The revision up to which it was taken.
    pub revision: u64,
    /// Versions that were superseded up to here are not in it.
    pub compact_revision: u64,
}

impl HashKv {
    /// The 32 bits that etcd's answer has room for.
    pub fn hash32(&self) -> u32 {
        (self.hash >> 32) as u32 ^ self.hash as u32
    }
}

/// The whole applied state, in memory. See the crate's head.
#[derive(Debug)]
pub struct StateMachine {
    pub(crate) applied: Option<Position>,
    pub(crate) keyspace: Keyspace,
    pub(crate) leases: Leases,
    pub(crate) alarms: BTreeSet<Alarm>,
    pub(crate) auth: Auth,
    pub(crate) requests: Requests,
    pub(crate) versions: Versions,
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
            auth: Auth::default(),
            requests: Requests::default(),
            versions: Versions::default(),
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

    /// Answers a transaction that only reads: what applying it would, and the state stays as it is.
    ///
    /// # Errors
    /// What applying it would.
    pub fn read_txn(&self, txn: &ReadTxn) -> Result<TxnOutcome, ApplyError> {
        Shape::of(txn.txn())?;
        self.must_be_sound()?;
        txn::read(&self.keyspace, &self.leases, txn)
    }

    /// The newest version of a key, if it exists.
    pub fn get(&self, key: &[u8]) -> Option<RecordRef<'_>> {
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
        Ok(self.keyspace.since(revision, compact_revision).take_while(move |events| {
            let go_on = given < events_max;
            given += events.len();
            go_on
        }))
    }

    /// The changes since the last call, for publication; then trims some of what compactions left behind.
    /// History is only trimmed up to what was drained, so somebody must call this (or `discard_events`).
    pub fn drain_events(&mut self) -> Vec<EventBatch> {
        let from = self.drained_revision + 1;
        // Not hidden by compaction: the subscriber followed up to here.
        let batches: Vec<_> = self.keyspace.since(from, 0).map(|events| events.to_batch()).collect();
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
        self.keyspace.trim(events_max, through)
    }

    /// Everything that compactions at or before this revision made unreachable is out of memory.
    pub fn trimmed_revision(&self) -> u64 {
        self.keyspace.swept_revision
    }

    /// Whether nothing that a compaction made unreachable is left in memory, nor much room where it was.
    pub fn is_trimmed(&self) -> bool {
        let swept = self.keyspace.swept_revision >= self.keyspace.compact_revision;
        swept && !self.keyspace.index.heap.has_sparse_block()
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
        // What a state of the first release does not have does not change its hash.
        let later = [
            if self.auth.is_initial() { 0 } else { self.auth.hash() },
            self.requests.hash(),
            self.versions.hash(),
        ];
        if later != [0; 3] {
            words.extend(later);
        }
        hash::words(STATE_HASH_DOMAIN, &words)
    }

    /// The hash of all versions of all keys up to a revision (0: the newest) that a read or a watch can still
    /// see. Equal on all members at the same compact revision, however much each has trimmed. Costs a walk
    /// over the changes since that revision.
    ///
    /// # Errors
    /// When that revision is compacted or in the future.
    pub fn hash_kv(&self, revision: u64) -> Result<HashKv, ReadError> {
        self.keyspace.check_revision(revision)?;
        let revision = if revision == 0 { self.keyspace.revision } else { revision };
        let later = self.keyspace.since(revision + 1, 0);
        let later = later.flat_map(|events| events.records().map(|kv| kv.hash));
        let hash = later.fold(self.keyspace.live().hash, u64::wrapping_sub);
        let compact_revision = self.keyspace.compact_revision;
        let hash = hash::words(HASH_KV_DOMAIN, &[hash, revision, compact_revision]);
        Ok(HashKv { hash, revision, compact_revision })
    }

    /// Bytes that the state takes of the quota, equal on all members: for each readable version of a key the
    /// key, the value and [`RECORD_OVERHEAD_BYTES`](crate::RECORD_OVERHEAD_BYTES); the same for each store lease and each key on one;
    /// users and roles as encoded; kept outcomes with as much each. Compaction alone gives space back.
    pub fn bytes_in_use(&self) -> u64 {
        self.live_bytes() + self.leases.bytes() + self.auth.bytes() + self.requests.bytes()
    }

    /// Users and roles.
    pub fn auth(&self) -> &Auth {
        &self.auth
    }

    /// The version whose commands may be proposed.
    pub fn cluster_version(&self) -> u32 {
        self.versions.cluster
    }

    /// What each member said it supports.
    pub fn supported_versions(&self) -> impl Iterator<Item = (u64, u32)> {
        self.versions.supported.iter().map(|(member, version)| (*member, *version))
    }

    /// Whether the author may do everything that the command could do.
    ///
    /// # Errors
    /// When not.
    pub fn authorize(&self, author: &Author, command: &Command) -> Result<(), AuthError> {
        self.auth.may(author, command, &self.leases)
    }

    /// How many records (versions of keys) are live.
    pub fn records(&self) -> u64 {
        self.keyspace.live().records
    }

    /// Bytes of live records: keys, values, and a flat charge for each record.
    pub fn live_bytes(&self) -> u64 {
        self.keyspace.live().bytes
    }

    /// Whether the author may do everything that the transaction could do.
    ///
    /// # Errors
    /// When not.
    pub fn authorize_txn(&self, author: &Author, txn: &TxnCommand) -> Result<(), AuthError> {
        self.auth.may_txn(author, txn, &self.leases)
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

    /// Whether an alarm for a damaged member is raised: reads and writes are refused.
    pub fn is_corrupt(&self) -> bool {
        self.alarms.iter().any(|alarm| alarm.kind == AlarmKind::Corrupt)
    }

    /// Whether an alarm for used-up space is raised: puts and lease grants are refused.
    pub fn is_out_of_space(&self) -> bool {
        self.alarms.iter().any(|alarm| alarm.kind == AlarmKind::NoSpace)
    }
}
