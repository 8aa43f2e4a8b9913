//! What can go wrong when the store is asked for something.

/// Why a write, a read or a watch was not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No leader or no quorum within the time allowed. A write was **not** made; try again.
    #[error("the store is unavailable: {reason}")]
    Unavailable {
        /// Why, in a few words.
        reason: String,
    },
    /// The write may or may not be made: contact with the leader, or leadership, was lost while it waited.
    /// Read before trying again.
    #[error("the outcome of the write is unknown: {reason}")]
    Unknown {
        /// Why, in a few words.
        reason: String,
    },
    /// The request is larger than the configured limit.
    #[error("the request of {bytes} bytes is larger than the limit of {bytes_max}")]
    TooLarge {
        /// Size of the request.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The revision is compacted away. List again.
    #[error("revision {requested} is compacted; the oldest kept is {compact_revision}")]
    Compacted {
        /// What was asked.
        requested: u64,
        /// The oldest revision that can be read.
        compact_revision: u64,
    },
    /// The revision has not happened yet.
    #[error("revision {requested} is in the future; the newest is {newest}")]
    Future {
        /// What was asked.
        requested: u64,
        /// The newest revision of this member.
        newest: u64,
    },
    /// The state machine refused the command; nothing was changed.
    #[error("refused: {reason}")]
    Refused {
        /// Why, in a few words.
        reason: String,
    },
    /// This member is stopping, or has stopped because its storage failed.
    #[error("this member has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
}
