//! The one door from the control plane to the store.
//!
//! Owns the trait [`ObjectStore`]: bytes by key, conditional writes, list, watch, consistent read. It says
//! nothing about objects, kinds or JSON (that is `registry`), and nothing about raft beyond who leads.
//! The replica's own store implements it in process; tests use a store in memory.

pub mod memory;
pub mod raft;
pub mod sealed;
mod shared;

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;

pub use self::shared::SharedStore;

/// A key's value together with the revisions that etcd's `KeyValue` carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredObject {
    /// The full key, for example `/registry/core/pods/default/hello`.
    pub key: Bytes,
    /// The stored bytes.
    pub value: Bytes,
    /// Revision of the write that created the key.
    pub create_revision: u64,
    /// Revision of the newest write.
    pub mod_revision: u64,
}

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every write that was acknowledged before the read began, at any replica (read index).
    Linearizable,
    /// What this replica has applied; may be stale.
    Serializable,
}

/// What a list asks for.
#[derive(Debug, Clone)]
pub struct ListRequest {
    /// Every key returned begins with this.
    pub prefix: Bytes,
    /// Return only keys strictly greater than this one (the last key of the page before).
    pub after: Option<Bytes>,
    /// At most this many items; `None`: all.
    pub limit: Option<usize>,
    /// Read at exactly this revision; `None`: the newest.
    pub revision: Option<u64>,
    /// Freshness, when `revision` is `None`.
    pub consistency: Consistency,
}

/// What a list gives.
#[derive(Debug, Clone)]
pub struct Listing {
    /// In key order.
    pub items: Vec<StoredObject>,
    /// The revision that all items were read at.
    pub revision: u64,
    /// How many further keys match after the last item.
    pub remaining: u64,
}

/// A condition of a [`Transaction`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The key must not exist.
    Absent {
        /// The key looked at.
        key: Bytes,
    },
    /// The key must exist with exactly this `mod_revision`.
    Unchanged {
        /// The key looked at.
        key: Bytes,
        /// The version that the writer saw.
        mod_revision: u64,
    },
}

/// A change that a [`Transaction`] makes when every condition holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mutation {
    /// Write the value.
    Put {
        /// The key written.
        key: Bytes,
        /// Its new value.
        value: Bytes,
    },
    /// Remove the key.
    Delete {
        /// The key removed.
        key: Bytes,
    },
}

/// A conditional write: all mutations or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// Applied in one revision.
    pub mutations: Vec<Mutation>,
    /// The raft term under which the writer leads, if the write is only valid from that leader.
    /// Checked inside the log against the term of the entry itself, so a deposed leader's write loses.
    pub fence: Option<u64>,
}

/// How a [`Transaction`] ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransactionOutcome {
    /// Every condition held; the mutations carry this revision.
    Committed {
        /// The `mod_revision` of every key written.
        revision: u64,
    },
    /// A condition did not hold. Nothing was changed.
    ConditionFailed {
        /// The current state of each condition's key, in order.
        current: Vec<Option<StoredObject>>,
    },
    /// The fence named another term than the entry's. Nothing was changed.
    Fenced,
}

/// One change seen by a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchEvent {
    /// The object after the change; for a deletion: the object as it last was, `mod_revision` being the
    /// revision of the deletion.
    pub object: StoredObject,
    /// The object before the change, if there was one.
    pub previous: Option<StoredObject>,
    /// Whether the change removed the key.
    pub deleted: bool,
}

/// An element of a watch stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchItem {
    /// Changes of one or more revisions, in order; a revision is never split over two items.
    Events(Vec<WatchEvent>),
    /// Nothing more up to and including this revision (a bookmark).
    Progress {
        /// The revision reached.
        revision: u64,
    },
}

/// A watch: ends with an error item when it cannot go on, for example [`Error::Compacted`].
pub type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchItem, Error>> + Send>>;

/// Who leads the consensus group, as this replica knows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The raft term.
    pub term: u64,
    /// The leader's member id, if known.
    pub leader: Option<u64>,
    /// Whether this replica is the leader, and has applied everything of earlier terms.
    pub is_self: bool,
}

/// Why the store did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The revision asked for is compacted away; list again.
    #[error("revision {requested} has been compacted; the oldest kept is {compact_revision}")]
    Compacted {
        /// What was asked.
        requested: u64,
        /// What is left.
        compact_revision: u64,
    },
    /// The revision asked for has not happened yet.
    #[error("revision {requested} is in the future; the newest is {newest}")]
    Future {
        /// What was asked.
        requested: u64,
        /// The newest revision here.
        newest: u64,
    },
    /// No quorum or no leader within the time allowed. A write was **not** made.
    #[error("the store is unavailable: {reason}")]
    Unavailable {
        /// Why, in a sentence.
        reason: String,
    },
    /// Leadership was lost while the write waited: it may or may not have been made.
    #[error("the outcome of the write is unknown: {reason}")]
    Unknown {
        /// Why, in a sentence.
        reason: String,
    },
    /// The request is larger than the store takes.
    #[error("request of {bytes} bytes is larger than the limit of {bytes_max}")]
    TooLarge {
        /// Size of the request.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The store's disk is full: only deletions are taken.
    #[error("the store has no space left on disk; delete objects or free disk space")]
    NoSpace,
    /// A value that cannot be decrypted, or not be encrypted.
    #[error("unable to transform key {key:?}: {reason}")]
    Sealed {
        /// Where it lies.
        key: String,
        /// Why, in a sentence.
        reason: String,
    },
    /// The replica is stopping.
    #[error("the store is stopping")]
    Stopping,
}

/// Bytes by key, conditional writes, list, watch, consistent read.
pub trait ObjectStore: Send + Sync + 'static {
    /// Reads one key. The revision is the store's at the time of the read.
    fn get(
        &self,
        key: Bytes,
        consistency: Consistency,
    ) -> impl Future<Output = Result<(Option<StoredObject>, u64), Error>> + Send;

    /// Reads the keys under a prefix at one revision.
    fn list(&self, request: ListRequest) -> impl Future<Output = Result<Listing, Error>> + Send;

    /// Performs one conditional write.
    fn transact(
        &self,
        transaction: Transaction,
    ) -> impl Future<Output = Result<TransactionOutcome, Error>> + Send;

    /// Performs many independent conditional writes as one log entry.
    fn transact_all(
        &self,
        transactions: Vec<Transaction>,
    ) -> impl Future<Output = Result<Vec<TransactionOutcome>, Error>> + Send;

    /// Streams changes of keys under `prefix` with a revision of at least `from_revision`.
    fn watch(
        &self,
        prefix: Bytes,
        from_revision: u64,
    ) -> impl Future<Output = Result<WatchStream, Error>> + Send;

    /// Who leads, now and whenever it changes.
    fn leadership(&self) -> tokio::sync::watch::Receiver<Leadership>;
}
