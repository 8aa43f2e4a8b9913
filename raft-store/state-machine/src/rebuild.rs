//! Making a state again from its header and its records, as snapshots and checkpoints hold them.
//!
//! [`Rebuild`] takes records in the order of their keys and revisions. It passes over what does not belong
//! (records newer than the header, records that compaction had made unreachable) and checks everything else:
//! nothing leaves here that is not exactly the state which the header's hash names.

use std::sync::Arc;

use bytes::Bytes;

use crate::auth::Auth;
use crate::checkpoint::{CheckpointTracking, RecordId};
use crate::command::Alarm;
use crate::command_codec::{read_alarm, write_alarm};
use crate::history::{Event, History, Tally};
use crate::key_index::KeyHistory;
use crate::lease::{LEASE_NONE, LeaseState};
use crate::machine::StateMachine;
use crate::record::{KeyValue, Record};
use crate::requests::Requests;
use crate::revision::{Position, REVISION_INITIAL};
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

/// A state that was made again.
#[derive(Debug)]
pub struct Rebuilt {
    /// The state. A checkpoint of it is taken to hold it already; see [`StateMachine::forget_checkpoint`].
    pub machine: StateMachine,
    /// Records that were given but do not belong.
    pub discarded: Vec<RecordId>,
}

/// See the module's head.
#[derive(Debug)]
pub struct Rebuild {
    header: StateHeader,
    keys: Vec<(Bytes, KeyHistory)>,
    /// Versions of the key that records arrive for.
    versions: Vec<Arc<Record>>,
    newest_seen: u64,
    all: Tally,
    events: Vec<Event>,
    discarded: Vec<RecordId>,
}

impl Rebuild {
    /// Begins with a header.
    pub fn new(header: StateHeader) -> Self {
        Self {
            header,
            keys: Vec::new(),
            versions: Vec::new(),
            newest_seen: 0,
            all: Tally::default(),
            events: Vec::new(),
            discarded: Vec::new(),
        }
    }

    /// Adds the next record: of a greater key than the one before, or a newer one of the same key. The value
    /// is kept as it is, so it should not be a slice of a large buffer.
    ///
    /// # Errors
    /// When the record is out of order.
    pub fn insert(&mut self, mut kv: KeyValue) -> Result<(), RebuildError> {
        let out_of_order = RebuildError::Order { mod_revision: kv.mod_revision };
        let same_key = match self.versions.last() {
            Some(last) if last.key > kv.key => return Err(out_of_order),
            Some(last) if last.key == kv.key => {
                kv.key = last.key.clone();
                true
            }
            _ => false,
        };
        if !same_key {
            self.finish_key();
            // A copy, for the reason given at `Keyspace::put`.
            kv.key = Bytes::copy_from_slice(&kv.key);
        } else if kv.mod_revision <= self.newest_seen {
            return Err(out_of_order);
        }
        self.newest_seen = kv.mod_revision;
        self.versions.push(Arc::new(Record::new(kv)));
        Ok(())
    }

    /// The state, if it is the one that the header names.
    ///
    /// # Errors
    /// When anything is missing, doubled or changed.
    pub fn finish(mut self) -> Result<Rebuilt, RebuildError> {
        self.finish_key();
        let header = self.header;
        if header.revision < REVISION_INITIAL || header.compact_revision > header.revision {
            let (revision, compact_revision) = (header.revision, header.compact_revision);
            return Err(RebuildError::Header { revision, compact_revision });
        }
        let mut machine = StateMachine::new();
        machine.applied = header.applied;
        machine.keyspace.revision = header.revision;
        machine.keyspace.compact_revision = header.compact_revision;
        machine.keyspace.swept_revision = header.compact_revision;
        machine.keyspace.all = self.all;
        machine.drained_revision = header.revision;
        machine.alarms.extend(&header.alarms);
        let Secrets { auth, requests, versions } = Secrets::decode(&header.secrets)?;
        (machine.auth, machine.requests, machine.versions) = (auth, requests, versions);
        header.leases.iter().for_each(|lease| machine.leases.insert(*lease));
        for (key, versions) in &self.keys {
            if let Some(live) = versions.live().filter(|live| live.lease != LEASE_NONE)
                && !machine.leases.attach(live.lease, key.clone())
            {
                return Err(RebuildError::LeaseMissing { id: live.lease });
            }
        }
        // In ascending order already, so the map is built in bulk.
        machine.keyspace.index = self.keys.into_iter().collect();
        machine.keyspace.history = rebuild_history(self.events, header.compact_revision, header.revision)?;
        verify(&machine, &header)?;
        machine.tracking = CheckpointTracking::at(header.revision);
        Ok(Rebuilt { machine, discarded: self.discarded })
    }

    /// Takes over the versions collected for a key, but for those that do not belong.
    fn finish_key(&mut self) {
        let StateHeader { revision, compact_revision, .. } = self.header;
        let mut kept: Option<KeyHistory> = None;
        let versions = std::mem::take(&mut self.versions);
        for (at, record) in versions.iter().enumerate() {
            let superseded = versions.get(at + 1).is_some_and(|next| next.mod_revision <= compact_revision);
            let forgotten = record.is_tombstone() && record.mod_revision < compact_revision;
            if record.mod_revision > revision || superseded || forgotten {
                let (key, mod_revision) = (record.key.clone(), record.mod_revision);
                self.discarded.push(RecordId { key, mod_revision });
                continue;
            }
            self.all.add(record);
            if record.mod_revision >= compact_revision {
                let prev_kv = kept.as_ref().and_then(KeyHistory::live).cloned();
                self.events.push(Event { kv: record.clone(), prev_kv });
            }
            match &mut kept {
                Some(versions) => versions.push(record.clone()),
                None => kept = Some(KeyHistory::new(record.clone())),
            }
        }
        if let Some(versions) = kept {
            self.keys.push((versions.latest().key.clone(), versions));
        }
        // The allocation serves the next key.
        self.versions = versions;
        self.versions.clear();
    }
}

fn rebuild_history(
    mut events: Vec<Event>,
    compact_revision: u64,
    revision: u64,
) -> Result<History, RebuildError> {
    events.sort_unstable_by_key(|event| event.kv.revision());
    let mut history = History::starting_at(compact_revision.max(REVISION_INITIAL + 1));
    for event in events {
        let main = event.kv.mod_revision;
        let next = history.next_revision();
        // Within a revision the places count up from 0; between revisions nothing is left out.
        let in_turn = main == next || main + 1 == next;
        if !in_turn || event.kv.sub != history.next_sub(main) {
            return Err(RebuildError::Gap { revision: main });
        }
        history.push(event);
    }
    match history.next_revision() {
        next if next == revision + 1 => Ok(history),
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
