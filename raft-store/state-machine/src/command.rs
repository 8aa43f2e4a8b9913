//! What can be proposed to the replicated log. Types only; their bytes are in `command_codec`.
//!
//! The shapes follow etcd's requests: a `range_end` that is empty means the one key, `"\0"` means every key
//! from `key` on, anything else the half-open range.

use std::cmp::Ordering;

use bytes::Bytes;

use crate::auth_command::AuthCommand;
use crate::outcome::ApplyError;
use crate::txn::TXN_DEPTH_MAX;
use crate::version::VersionCommand;

/// An entry of the replicated log, as far as the state is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// One transaction. A plain put, range or delete is a transaction without compares.
    Txn(TxnCommand),
    /// Independent transactions in one entry: each gets a revision of its own and succeeds or fails alone.
    Batch(Vec<TxnCommand>),
    /// Forget versions that were superseded at or before this revision.
    Compact {
        /// The new compact revision.
        revision: u64,
    },
    /// Create a store lease.
    LeaseGrant {
        /// The lease's id, chosen by the proposer; not 0.
        id: i64,
        /// Its time to live.
        ttl_seconds: i64,
    },
    /// End a store lease and delete its keys.
    LeaseRevoke {
        /// The lease.
        id: i64,
        /// Set when a leader revokes on expiry, so that a deposed leader's clock deletes nothing.
        fence: Option<Fence>,
    },
    /// Record how much time leases have left, for the next leader.
    LeaseCheckpoint {
        /// As for `LeaseRevoke`.
        fence: Option<Fence>,
        /// Leases that are gone meanwhile are passed over.
        remaining: Vec<LeaseRemaining>,
    },
    /// Raise or clear an alarm.
    Alarm {
        /// Which way.
        action: AlarmAction,
        /// The alarm.
        alarm: Alarm,
    },
    /// Change users, roles, or whether they count.
    Auth(AuthCommand),
    /// Agree on which commands may be proposed.
    Version(VersionCommand),
}

/// Binds a write to one leader's term: it takes effect only in a log entry of this very term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    /// The raft term under which the proposer led.
    pub term: u64,
}

/// A transaction at the top level.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TxnCommand {
    /// See [`Fence`].
    pub fence: Option<Fence>,
    /// All must hold for `success` to run; otherwise `failure` runs.
    pub compares: Vec<Compare>,
    /// Operations when every compare holds.
    pub success: Vec<Op>,
    /// Operations otherwise.
    pub failure: Vec<Op>,
}

impl Command {
    /// Refuses transactions that nest deeper than an entry of the log can: no member could read it back.
    ///
    /// # Errors
    /// What applying it would give, could it be applied.
    pub fn check_depth(&self) -> Result<(), ApplyError> {
        fn check(branches: [&Vec<Op>; 2], depth: usize) -> Result<(), ApplyError> {
            if depth > TXN_DEPTH_MAX {
                return Err(ApplyError::TooDeep { depth_max: TXN_DEPTH_MAX });
            }
            branches.into_iter().flatten().try_for_each(|op| match op {
                Op::Txn(txn) => check([&txn.success, &txn.failure], depth + 1),
                Op::Put(_) | Op::Range(_) | Op::DeleteRange(_) => Ok(()),
            })
        }
        let txns = match self {
            Self::Txn(txn) => std::slice::from_ref(txn),
            Self::Batch(txns) => txns,
            _ => return Ok(()),
        };
        txns.iter().try_for_each(|txn| check([&txn.success, &txn.failure], 1))
    }
}

impl TxnCommand {
    /// One unconditional operation.
    pub fn of(op: Op) -> Self {
        Self { success: vec![op], ..Self::default() }
    }
}

/// A transaction within a transaction. Its compares look at the state before the outer one began, as in etcd.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NestedTxn {
    /// All must hold for `success` to run; otherwise `failure` runs.
    pub compares: Vec<Compare>,
    /// Operations when every compare holds.
    pub success: Vec<Op>,
    /// Operations otherwise.
    pub failure: Vec<Op>,
}

/// A condition on a key, or on every key of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key, or the first of the range.
    pub key: Bytes,
    /// See the module's head.
    pub range_end: Bytes,
    /// How the key's property must stand to the target's operand.
    pub result: CompareResult,
    /// Which property, and the operand.
    pub target: CompareTarget,
}

/// How the left side (the key's) must stand to the right side (the operand).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompareResult {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `>`
    Greater,
    /// `<`
    Less,
}

impl CompareResult {
    /// Whether an ordering of left to right satisfies this.
    pub fn holds(self, left_to_right: Ordering) -> bool {
        match self {
            Self::Equal => left_to_right.is_eq(),
            Self::NotEqual => left_to_right.is_ne(),
            Self::Greater => left_to_right.is_gt(),
            Self::Less => left_to_right.is_lt(),
        }
    }
}

/// The property compared, with the operand. A key that is absent has 0 for every number; a compare of its
/// value never holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompareTarget {
    /// Number of writes since creation.
    Version(u64),
    /// Revision of creation.
    CreateRevision(u64),
    /// Revision of the newest write.
    ModRevision(u64),
    /// The value.
    Value(Bytes),
    /// The attached store lease.
    Lease(i64),
}

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Write a key.
    Put(PutRequest),
    /// Read keys.
    Range(RangeRequest),
    /// Delete keys.
    DeleteRange(DeleteRangeRequest),
    /// A transaction within.
    Txn(NestedTxn),
}

/// Write a key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PutRequest {
    /// The key; not empty.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// Store lease to attach the key to; 0: none.
    pub lease: i64,
    /// Return the version before.
    pub prev_kv: bool,
    /// Keep the value that the key has; it must exist.
    pub ignore_value: bool,
    /// Keep the lease that the key has; it must exist.
    pub ignore_lease: bool,
}

/// Delete a key or a range.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteRangeRequest {
    /// The key, or the first of the range.
    pub key: Bytes,
    /// See the module's head.
    pub range_end: Bytes,
    /// Return what was deleted.
    pub prev_kv: bool,
}

/// Read a key or a range.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeRequest {
    /// The key, or the first of the range.
    pub key: Bytes,
    /// See the module's head.
    pub range_end: Bytes,
    /// At most this many; 0: all.
    pub limit: u64,
    /// Read at this revision; 0: the newest.
    pub revision: u64,
    /// Order of the result.
    pub sort_order: SortOrder,
    /// Property to order by.
    pub sort_target: SortTarget,
    /// Leave the values out.
    pub keys_only: bool,
    /// Leave everything but the count out.
    pub count_only: bool,
    /// Leave out keys modified before this; 0: no bound.
    pub min_mod_revision: u64,
    /// Leave out keys modified after this; 0: no bound.
    pub max_mod_revision: u64,
    /// Leave out keys created before this; 0: no bound.
    pub min_create_revision: u64,
    /// Leave out keys created after this; 0: no bound.
    pub max_create_revision: u64,
}

/// Order of a range's result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SortOrder {
    /// By key, ascending; or ascending by the target if that is not the key.
    #[default]
    None,
    /// Ascending.
    Ascend,
    /// Descending.
    Descend,
}

/// What a range's result is ordered by. Equals stay in key order (descending: reverse key order).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SortTarget {
    /// The key.
    #[default]
    Key,
    /// Number of writes.
    Version,
    /// Revision of creation.
    CreateRevision,
    /// Revision of the newest write.
    ModRevision,
    /// The value.
    Value,
}

/// The time that a store lease had left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseRemaining {
    /// The lease.
    pub id: i64,
    /// 0: the full time to live.
    pub remaining_ttl_seconds: i64,
}

/// Raise or clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlarmAction {
    /// Raise.
    Activate,
    /// Clear.
    Deactivate,
}

/// An alarm that a member raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alarm {
    /// What is wrong.
    pub kind: AlarmKind,
    /// At which member.
    pub member_id: u64,
}

/// What an alarm says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlarmKind {
    /// Space is used up: puts and lease grants are refused, deletions are not.
    NoSpace,
    /// The member's state differs from the others'.
    Corrupt,
}
