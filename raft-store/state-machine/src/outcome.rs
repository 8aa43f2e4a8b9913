//! What applying a command gave, and why a command or a read was refused. Types only; the bytes of an
//! [`Outcome`] are in `outcome_codec`.

use std::sync::Arc;

use crate::auth_command::AuthError;
use crate::command::Alarm;
use crate::record::Record;

/// What applying a command gave. Equal on every member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Of `Command::Txn`.
    Txn(TxnOutcome),
    /// Of `Command::Batch`: one for each transaction, in order.
    Batch(Vec<Result<TxnOutcome, ApplyError>>),
    /// Of `Command::Compact`.
    Compacted {
        /// The new compact revision.
        compact_revision: u64,
        /// The store's revision.
        revision: u64,
    },
    /// Of `Command::LeaseGrant`.
    LeaseGranted {
        /// The lease.
        id: i64,
        /// Its time to live.
        ttl_seconds: i64,
        /// The store's revision.
        revision: u64,
    },
    /// Of `Command::LeaseRevoke`.
    LeaseRevoked {
        /// The store's revision afterwards; the keys' deletion carries it, if there was any.
        revision: u64,
        /// How many keys went with the lease.
        deleted: u64,
    },
    /// Of `Command::LeaseCheckpoint`.
    LeaseCheckpointed,
    /// Of `Command::Alarm`: the alarms that are raised afterwards.
    Alarms(Vec<Alarm>),
    /// Of `Command::Auth`.
    AuthChanged {
        /// The store's revision.
        revision: u64,
        /// The auth revision afterwards.
        auth_revision: u64,
    },
    /// Of `Command::Version`.
    Version {
        /// The cluster's version afterwards.
        cluster: u32,
    },
    /// The command had no effect.
    Rejected(ApplyError),
}

/// How a transaction ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TxnOutcome {
    /// The store's revision afterwards: the transaction's own, if it changed anything.
    pub revision: u64,
    /// Whether every compare held.
    pub succeeded: bool,
    /// The fence named another term than the entry's: nothing was looked at or done.
    pub fenced: bool,
    /// One for each operation that ran, in order.
    pub results: Vec<OpResult>,
}

/// What one operation gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpResult {
    /// Of a put.
    Put {
        /// The version before, if asked for and there was one.
        prev_kv: Option<Arc<Record>>,
    },
    /// Of a range.
    Range(RangeResponse),
    /// Of a deletion.
    DeleteRange {
        /// How many keys were deleted.
        deleted: u64,
        /// What they were, if asked for.
        prev_kvs: Vec<Arc<Record>>,
    },
    /// Of a nested transaction.
    Txn {
        /// Whether every compare held.
        succeeded: bool,
        /// One for each operation that ran, in order.
        results: Vec<OpResult>,
    },
}

/// What a range found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeResponse {
    /// The store's revision at the time of the read (not the one read at).
    pub revision: u64,
    /// How many keys lie in the range, whatever limit and bounds say.
    pub count: u64,
    /// Whether the limit cut the result off.
    pub more: bool,
    /// The result.
    pub kvs: Vec<Arc<Record>>,
}

/// Why a read cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The revision is compacted away.
    #[error("revision {requested} has been compacted; the oldest that can be read is {compact_revision}")]
    Compacted {
        /// What was asked.
        requested: u64,
        /// The oldest left.
        compact_revision: u64,
    },
    /// The revision has not happened yet.
    #[error("revision {requested} is in the future; the newest is {revision}")]
    Future {
        /// What was asked.
        requested: u64,
        /// The newest.
        revision: u64,
    },
}

/// Why a command had no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// A range inside a transaction, or a compaction, names a revision that cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A put without a key.
    #[error("a key must not be empty")]
    EmptyKey,
    /// A key is written more than once in one transaction.
    #[error("a key is written more than once in one transaction")]
    DuplicateKey,
    /// `ignore_value` or `ignore_lease` on a key that does not exist.
    #[error("the key to take the value or lease from does not exist")]
    KeyNotFound,
    /// A value was given together with `ignore_value`.
    #[error("a value was given although the put asks to keep the one there")]
    ValueProvided,
    /// A lease was given together with `ignore_lease`.
    #[error("a lease was given although the put asks to keep the one there")]
    LeaseProvided,
    /// No such lease.
    #[error("lease {id} does not exist")]
    LeaseNotFound {
        /// The id.
        id: i64,
    },
    /// The id is taken.
    #[error("lease {id} exists already")]
    LeaseExists {
        /// The id.
        id: i64,
    },
    /// The time to live is beyond what a lease can have, or not positive.
    #[error("a lease's time to live of {ttl_seconds} s is outside 1 to {ttl_seconds_max} s")]
    LeaseTtl {
        /// What was asked.
        ttl_seconds: i64,
        /// The limit.
        ttl_seconds_max: i64,
    },
    /// More operations than a transaction may have.
    #[error("the transaction has more than {ops_max} operations and compares")]
    TooManyOps {
        /// The limit.
        ops_max: usize,
    },
    /// Transactions are nested too deeply.
    #[error("transactions are nested more than {depth_max} deep")]
    TooDeep {
        /// The limit.
        depth_max: usize,
    },
    /// The alarm for used-up space is raised.
    #[error("the store's space is used up: only deletions and reads are taken until the alarm is cleared")]
    NoSpace,
    /// An alarm says that a member's state is damaged.
    #[error("a member's state differs from the others': nothing is written until the alarm is cleared")]
    Corrupt,
    /// The author may not, or the auth command cannot be carried out.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The request was perhaps carried out before; its outcome is not kept any more. It was not now.
    #[error("the outcome of request {sequence} is not known any more; it was not carried out again")]
    RequestForgotten {
        /// The request's sequence.
        sequence: u64,
    },
    /// The fence named another term than the entry's.
    #[error("the command was proposed under term {fence_term} and landed in term {entry_term}")]
    Fenced {
        /// The proposer's.
        fence_term: u64,
        /// The entry's.
        entry_term: u64,
    },
    /// The entry was applied before.
    #[error("log entry {log_index} is already applied (applied up to {applied_index})")]
    AlreadyApplied {
        /// The entry.
        log_index: u64,
        /// How far the state is.
        applied_index: u64,
    },
}
