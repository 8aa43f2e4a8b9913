//! Making a state again from its header and its records, as snapshots and checkpoints hold them.
//!
//! [`Rebuild`] takes records in the order of their keys and revisions, or in any order. It passes over what does not
//! belong (records newer than the header, records that compaction had made unreachable) and checks everything
//! else: nothing leaves here that is not exactly the state which the header's hash names.

use bytes::Bytes;

use crate::auth::Auth;
use crate::census::Census;
use crate::checkpoint::CheckpointTracking;
use crate::command::Alarm;
use crate::command_codec::{read_alarm, write_alarm};
use crate::heap::{Heap, Slot};
use crate::history::History;
use crate::key_index::KeyIndex;
use crate::lease::{LEASE_NONE, LeaseState};
use crate::machine::StateMachine;
use crate::record::RecordRef;
use crate::requests::Requests;
use crate::revision::{Position, REVISION_INITIAL, Revision};
use crate::secret::Secret;
use crate::version::Versions;
use crate::wire::{DecodeError, Reader, Writer};

/// Version that `StateHeader::encode` writes, and the newest that `decode` reads.
const HEADER_VERSION: u8 = 2;

/// Of states without users, request ids and versions. Written by the first release.
const HEADER_VERSION_FIRST: u8 = 1;

/// Names a state and holds all of it that is not records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateHeader {
    /// The last log entry contained.
    pub applied: Option<Position>,
    /// The store's revision.
    pub revision: u64,
    /// The store's compact revision.
    pub compact_revision: u64,
    /// How many records the state has.
    pub records: u64,
    /// See [`StateMachine::state_hash`].
    pub state_hash: u64,
    /// All store leases.
    pub leases: Vec<LeaseState>,
    /// All alarms.
    pub alarms: Vec<Alarm>,
    /// Users, roles, kept outcomes and versions, encoded. Holds password hashes.
    pub secrets: Secret,
}

/// What [`StateHeader::secrets`] holds.
pub(crate) struct Secrets {
    pub(crate) auth: Auth,
    pub(crate) requests: Requests,
    pub(crate) versions: Versions,
}

impl Secrets {
    fn decode(bytes: &Secret) -> Result<Self, DecodeError> {
        if bytes.is_empty() {
            let (auth, requests, versions) = Default::default();
            return Ok(Self { auth, requests, versions });
        }
        let mut reader = Reader::new(bytes.expose().clone());
        // The version first: a member that is too old should hear just that.
        let versions = Versions::read(&mut reader)?;
        let auth = Auth::decode(reader.bytes()?)?;
        let requests = Requests::read(&mut reader)?;
        reader.finish()?;
        Ok(Self { auth, requests, versions })
    }

    pub(crate) fn encode(auth: &Auth, requests: &Requests, versions: &Versions) -> Secret {
        let mut writer = Writer::with_capacity(64 + auth.encoded.expose().len() + requests.bytes() as usize);
        versions.write(&mut writer);
        writer.bytes(auth.encoded.expose());
        requests.write(&mut writer);
        Secret::new(writer.finish())
    }
}

impl StateHeader {
    /// The header's bytes.
    pub fn encode(&self) -> Bytes {
        let mut writer = Writer::with_capacity(64 + self.leases.len() * 16);
        writer.u8(HEADER_VERSION);
        writer.option(self.applied.as_ref(), |writer, position| {
            writer.varint(position.log_index);
            writer.varint(position.term);
        });
        writer.varint(self.revision);
        writer.varint(self.compact_revision);
        writer.varint(self.records);
        writer.u64_fixed(self.state_hash);
        writer.list(&self.leases, |writer, lease| {
            writer.i64(lease.id);
            writer.i64(lease.ttl_seconds);
            writer.i64(lease.remaining_ttl_seconds);
        });
        writer.list(&self.alarms, write_alarm);
        writer.bytes(self.secrets.expose());
        writer.finish()
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// When the bytes are not a header that this version knows.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let version = reader.u8()?;
        match version {
            HEADER_VERSION | HEADER_VERSION_FIRST => {}
            version => return Err(DecodeError::UnknownVersion { version, newest: HEADER_VERSION }),
        }
        let header = Self {
            applied: reader
                .option(|reader| Ok(Position { log_index: reader.varint()?, term: reader.varint()? }))?,
            revision: reader.varint()?,
            compact_revision: reader.varint()?,
            records: reader.varint()?,
            state_hash: reader.u64_fixed()?,
            leases: reader.list(|reader| {
                Ok(LeaseState {
                    id: reader.i64()?,
                    ttl_seconds: reader.i64()?,
                    remaining_ttl_seconds: reader.i64()?,
                })
            })?,
            alarms: reader.list(read_alarm)?,
            secrets: match version {
                HEADER_VERSION_FIRST => Secret::default(),
                _ => Secret::new(reader.bytes()?),
            },
        };
        // Whether this member may start at all is decided here, not when the records are in.
        Secrets::decode(&header.secrets)?;
        reader.finish()?;
        Ok(header)
    }
}

/// Why records do not make the state that the header names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RebuildError {
    /// The header contradicts itself.
    #[error("the header is impossible: revision {revision}, compact revision {compact_revision}")]
    Header {
        /// What it says.
        revision: u64,
        /// What it says.
        compact_revision: u64,
    },
    /// Records must ascend by key and revision.
    #[error("record at revision {mod_revision} is out of order or doubled")]
    Order {
        /// Of the record.
        mod_revision: u64,
    },
    /// A revision has no record although every revision changes something.
    #[error("the records of revision {revision} are missing or doubled")]
    Gap {
        /// Of the gap.
        revision: u64,
    },
    /// Users, roles, kept outcomes or versions cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A key hangs on a lease that does not exist.
    #[error("a record hangs on lease {id}, which is not in the header")]
    LeaseMissing {
        /// The lease.
        id: i64,
    },
    /// The header counts otherwise.
    #[error("{found} records found, {expected} expected")]
    Count {
        /// By the header.
        expected: u64,
        /// What was there.
        found: u64,
    },
    /// The content is not the header's.
    #[error("state hash {found:016x} found, {expected:016x} expected")]
    Hash {
        /// By the header.
        expected: u64,
        /// Of what was there.
        found: u64,
    },
}

/// A change that the history is made of again.
struct Change {
    revision: Revision,
    kv: Slot,
    prev: Option<Slot>,
}

/// See the module's head.
#[derive(Debug)]
pub struct Rebuild {
    header: StateHeader,
    /// Holds the records.
    index: KeyIndex,
    slots: Vec<Slot>,
    in_order: bool,
    any_order: bool,
}

impl Rebuild {
    /// Begins with a header. Records must come in order.
    pub fn new(header: StateHeader) -> Self {
        Self { header, index: KeyIndex::default(), slots: Vec::new(), in_order: true, any_order: false }
    }

    /// Begins with a header. Records may come in any order, and one may come twice.
    pub fn in_any_order(header: StateHeader) -> Self {
        Self { any_order: true, ..Self::new(header) }
    }

    /// Adds a record.
    ///
    /// # Errors
    /// When it must be in order, of a greater key than the one before or a newer one of the same key, and is
    /// not.
    pub fn insert<'a>(&mut self, record: impl Into<RecordRef<'a>>) -> Result<(), RebuildError> {
        let record = record.into();
        if self.in_order
            && let Some(last) = self.slots.last()
        {
            let last = self.index.heap.view(*last);
            self.in_order = (last.key, last.mod_revision) < (record.key, record.mod_revision);
        }
        if !self.in_order && !self.any_order {
            return Err(RebuildError::Order { mod_revision: record.mod_revision });
        }
        // One that is newer than the header does not belong.
        if record.mod_revision <= self.header.revision {
            self.slots.push(self.index.heap.push(&record.hashed()));
        }
        Ok(())
    }

    /// The state, if it is the one that the header names. A checkpoint is taken to hold it already; see
    /// [`StateMachine::forget_checkpoint`].
    ///
    /// # Errors
    /// When anything is missing, doubled or changed.
    pub fn finish(mut self) -> Result<StateMachine, RebuildError> {
        let StateHeader { revision, compact_revision, .. } = self.header;
        if revision < REVISION_INITIAL || compact_revision > revision {
            return Err(RebuildError::Header { revision, compact_revision });
        }
        let mut machine = StateMachine::new();
        let Secrets { auth, requests, versions } = Secrets::decode(&self.header.secrets)?;
        (machine.auth, machine.requests, machine.versions) = (auth, requests, versions);
        self.header.leases.iter().for_each(|lease| machine.leases.insert(*lease));
        machine.alarms.extend(&self.header.alarms);
        if !self.in_order {
            self.sort();
        }
        let changes = self.take_over_keys(&mut machine)?;
        let header = self.header;
        machine.applied = header.applied;
        machine.drained_revision = revision;
        let keyspace = &mut machine.keyspace;
        keyspace.revision = revision;
        keyspace.compact_revision = compact_revision;
        keyspace.swept_revision = compact_revision;
        keyspace.index = self.index;
        keyspace.census = Census::of(&keyspace.index);
        keyspace.history = rebuild_history(&keyspace.index.heap, changes, &header)?;
        verify(&machine, &header)?;
        machine.checkpoint_holds_this();
        Ok(machine)
    }

    /// Puts the records in order, and drops those that came twice.
    fn sort(&mut self) {
        let heap = &self.index.heap;
        let Some(first) = self.slots.first().map(|slot| heap.key(*slot)) else { return };
        let common = self.slots.iter().fold(first.len(), |common, slot| {
            let both = heap.key(*slot).iter().zip(&first[..common]);
            both.take_while(|(one, other)| one == other).count()
        });
        // What follows the bytes that all keys share tells most of them apart without a look at the records.
        let head = |key: &[u8]| {
            let mut head = [0; 8];
            let rest = key[common..].iter().take(8);
            head.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
            u64::from_be_bytes(head)
        };
        let mut order: Vec<_> = self.slots.iter().map(|slot| (head(heap.key(*slot)), *slot)).collect();
        let rest = |slot: Slot| (heap.key(slot), heap.mod_revision(slot));
        order.sort_unstable_by(|(a, one), (b, other)| a.cmp(b).then_with(|| rest(*one).cmp(&rest(*other))));
        let mut twice = Vec::new();
        order.dedup_by(|(_, later), (_, kept)| {
            let same = rest(*later) == rest(*kept);
            twice.extend(same.then_some(*later));
            same
        });
        self.slots = order.into_iter().map(|(_, slot)| slot).collect();
        twice.into_iter().for_each(|slot| self.index.heap.free(slot));
    }

    /// Makes the index of the records that belong, and returns what the history has of them.
    fn take_over_keys(&mut self, machine: &mut StateMachine) -> Result<Vec<Change>, RebuildError> {
        let compact_revision = self.header.compact_revision;
        let mut changes = Vec::new();
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        let slots = std::mem::take(&mut self.slots);
        let mut rest = slots.as_slice();
        while let Some(first) = rest.first() {
            let heap = &self.index.heap;
            let key = heap.key(*first);
            let count = 1 + rest[1..].iter().take_while(|slot| heap.key(**slot) == key).count();
            let (versions, others) = rest.split_at(count);
            rest = others;
            kept.clear();
            gone.clear();
            for (at, slot) in versions.iter().enumerate() {
                let record = heap.view(*slot);
                let next = versions.get(at + 1).map(|next| heap.mod_revision(*next));
                let superseded = next.is_some_and(|next| next <= compact_revision);
                let forgotten = record.is_tombstone() && record.mod_revision < compact_revision;
                if superseded || forgotten {
                    gone.push(*slot);
                    continue;
                }
                machine.keyspace.all.add(&record);
                if record.mod_revision >= compact_revision {
                    let prev = kept.last().copied().filter(|prev: &Slot| !prev.is_tombstone());
                    changes.push(Change { revision: record.revision(), kv: *slot, prev });
                }
                kept.push(*slot);
            }
            if let Some(live) = kept.last().filter(|slot| !slot.is_tombstone()).map(|slot| heap.view(*slot))
                && live.lease != LEASE_NONE
                && !machine.leases.attach(live.lease, Bytes::copy_from_slice(live.key))
            {
                return Err(RebuildError::LeaseMissing { id: live.lease });
            }
            self.index.append(&kept);
            gone.iter().for_each(|slot| self.index.heap.free(*slot));
        }
        Ok(changes)
    }
}

fn rebuild_history(
    heap: &Heap,
    mut changes: Vec<Change>,
    header: &StateHeader,
) -> Result<History, RebuildError> {
    changes.sort_unstable_by_key(|change| change.revision);
    let mut history = History::starting_at(header.compact_revision.max(REVISION_INITIAL + 1));
    for Change { revision, kv, prev } in changes {
        let Revision { main, sub } = revision;
        let next = history.next_revision();
        // Within a revision the places count up from 0; between revisions nothing is left out.
        let in_turn = main == next || main + 1 == next;
        if !in_turn || sub != history.next_sub(main) {
            return Err(RebuildError::Gap { revision: main });
        }
        history.push(heap, kv, prev);
    }
    match history.next_revision() {
        next if next == header.revision + 1 => Ok(history),
        next => Err(RebuildError::Gap { revision: next }),
    }
}

fn verify(machine: &StateMachine, header: &StateHeader) -> Result<(), RebuildError> {
    if machine.records() != header.records {
        return Err(RebuildError::Count { expected: header.records, found: machine.records() });
    }
    if machine.state_hash() != header.state_hash {
        return Err(RebuildError::Hash { expected: header.state_hash, found: machine.state_hash() });
    }
    Ok(())
}

impl StateMachine {
    /// Says that no checkpoint holds this state: the next delta will be full.
    pub fn forget_checkpoint(&mut self) {
        self.tracking = CheckpointTracking::default();
    }
}
