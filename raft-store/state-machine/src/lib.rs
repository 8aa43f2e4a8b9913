//! The replicated state of the store as a pure value: MVCC keyspace, transactions, store leases, alarms.
//!
//! A log entry's command goes in through [`StateMachine::apply`], an [`Outcome`] comes out; reads, watches,
//! snapshots and checkpoints look at what is there. Semantics are etcd v3's.
//!
//! Promises:
//! - **Deterministic.** No clock, no randomness, no unordered iteration: the same entries give the same
//!   outcomes, the same [state hash](StateMachine::state_hash) and the same bytes everywhere.
//! - **No panics.** Any bytes decode to a value or an error; any command applies to an outcome.
//! - **Bounded work.** A command costs what it reads and writes. Compaction is O(1) when applied; its
//!   garbage is trimmed in small steps. Snapshots and checkpoints are read in chunks, beside apply.
//!
//! It does no input or output, starts no thread, and knows nothing of raft beyond an entry's [`Position`].
//! Store leases do not run out here: the leader's lessor decides that and proposes the revocation.
//!
//! Memory: a version of a key takes its bytes and about forty more. Nothing of a command or of an answer is kept.

mod advance;
mod applier;
mod auth;
mod auth_codec;
mod auth_command;
mod census;
mod checkpoint;
mod command;
mod command_codec;
mod compaction;
mod envelope;
mod hash;
mod heap;
mod history;
mod key_index;
mod key_range;
mod lease;
mod machine;
mod mvcc;
mod outcome;
mod outcome_codec;
mod permission;
mod rebuild;
mod record;
mod requests;
mod revision;
mod secret;
mod snapshot;
mod txn;
mod version;
mod wire;

pub use auth::{AUTH_REVISION_INITIAL, Auth, ROOT_ROLE, ROOT_USER, User};
pub use auth_command::{AuthCommand, AuthError};
pub use checkpoint::CheckpointDelta;
pub use command::{
    Alarm, AlarmAction, AlarmKind, Command, Compare, CompareResult, CompareTarget, DeleteRangeRequest, Fence,
    LeaseRemaining, NestedTxn, Op, PutRequest, RangeRequest, SortOrder, SortTarget, TxnCommand,
};
pub use envelope::{Author, Envelope, RequestId};
pub use history::{Event, EventBatch, RevisionEvents};
pub use lease::{LEASE_NONE, LEASE_TTL_SECONDS_MAX, LeaseState};
pub use machine::{HashKv, StateMachine};
pub use outcome::{ApplyError, OpResult, Outcome, RangeResponse, ReadError, TxnOutcome};
pub use permission::{Permission, PermissionKind};
pub use rebuild::{Rebuild, RebuildError, StateHeader};
pub use record::{KeyValue, RECORD_OVERHEAD_BYTES, Record, RecordRef};
pub use requests::{
    REQUEST_AGE_ENTRIES_MAX, REQUEST_BYTES_MAX, REQUEST_CLIENTS_MAX, REQUEST_OUTCOME_BYTES_MAX,
    REQUESTS_PER_CLIENT,
};
pub use revision::{Position, REVISION_INITIAL, Revision};
pub use secret::Secret;
pub use snapshot::{Snapshot, SnapshotError, SnapshotWriter};
pub use txn::{ReadTxn, TXN_DEPTH_MAX, TXN_OPS_MAX};
pub use version::{CLUSTER_VERSION_INITIAL, CLUSTER_VERSION_SUPPORTED, VersionCommand};
pub use wire::DecodeError;
