//! The two coordinates of replicated state: where in the log ([`Position`]), and which version of the
//! keyspace ([`Revision`]). Plain values; no behaviour beyond order.

/// The place of an entry in the replicated log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// Index of the entry, from 1 (0 for an initial entry where the log has one).
    pub log_index: u64,
    /// Raft term of the entry.
    pub term: u64,
}

/// The version of one change: the store's global revision, and the change's place within it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// The store's revision: one per transaction that changes something.
    pub main: u64,
    /// The change's place within the transaction, from 0.
    pub sub: u32,
}

/// The revision of a store that nothing was ever written to, as in etcd: the first write is revision 2.
pub const REVISION_INITIAL: u64 = 1;
