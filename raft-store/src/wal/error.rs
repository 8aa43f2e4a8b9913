//! What can go wrong with the log, by what the caller can do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An error of the write-ahead log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options contradict each other.
    #[error("the options of the write-ahead log are not usable: {reason}")]
    InvalidOptions {
        /// Which rule they break.
        reason: &'static str,
    },

    /// The operating system refused an operation on a file or directory of the log.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// Another process has the directory open.
    #[error(
        "the log directory {} is in use by another process; two processes on one log would destroy it: stop the \
         other one, or give this member a data directory of its own",
        dir.display()
    )]
    Locked {
        /// The log's directory.
        dir: PathBuf,
    },

    /// The directory belongs to another cluster or member.
    #[error(
        "{} belongs to member {found_member} of cluster {found_cluster}, but this process is member \
         {expected_member} of cluster {expected_cluster}: check the configured data directory and identity; nothing \
         was changed",
        path.display()
    )]
    WrongIdentity {
        /// The file that says so.
        path: PathBuf,
        /// Cluster id that was configured, in hex.
        expected_cluster: String,
        /// Member id that was configured.
        expected_member: u64,
        /// Cluster id that was found, in hex.
        found_cluster: String,
        /// Member id that was found.
        found_member: u64,
    },

    /// The file was written by a version with another format.
    #[error(
        "{} has log format version {found}, this program reads version {supported}: start the version of barque \
         that wrote it; nothing was changed",
        path.display()
    )]
    UnsupportedVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The version this program reads and writes.
        supported: u32,
    },

    /// A segment of the log is not there.
    #[error(
        "log segment {sequence} is missing from {}: {detail}. Acknowledged entries or a vote may be gone, so this \
         member must not go on as if nothing happened. Put the file back if it was moved; otherwise remove this \
         member from the cluster, wipe its data directory and join it anew: its peers hold the data",
        dir.display()
    )]
    MissingSegment {
        /// The log's directory.
        dir: PathBuf,
        /// Number of the segment that should be there.
        sequence: u64,
        /// How this is known.
        detail: &'static str,
    },

    /// Bytes that had been made durable read back as something else.
    #[error(
        "{} is damaged at byte {offset}: {damage}. This is not a torn write: acknowledged entries or a vote may be \
         lost, so this member refuses to serve from it. Check the disk, and restore the file if a healthy copy \
         exists. Do not start this member with an empty directory: it could vote twice. Its peers hold the data and \
         go on without it as long as they are a majority",
        path.display()
    )]
    Damaged {
        /// The segment file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What was found.
        damage: Damage,
    },

    /// No space for the next segment. The log goes on by itself when space returns.
    #[error(
        "no space left for a log segment in {}: free some disk space; the log goes on by itself once there is room",
        dir.display()
    )]
    NoSpace {
        /// The log's directory.
        dir: PathBuf,
    },

    /// A write or a device flush failed earlier. Nothing is acknowledged any more.
    #[error(
        "the write-ahead log stopped for good after a failed write, because what the disk holds is no longer \
         known: {cause}. Check the disk, then start this member again"
    )]
    Failed {
        /// The first failure.
        cause: Arc<Error>,
    },

    /// The writer thread is gone, which only a panic in a completion callback can do.
    #[error("the write-ahead log's writer stopped unexpectedly (a completion callback panicked)")]
    WriterGone,

    /// The log was closed.
    #[error("the write-ahead log is closed")]
    Closed,

    /// Too much is queued already. The caller may try again when there is room.
    #[error("the write-ahead log's queue is full ({queued_bytes} of {queue_bytes_max} bytes)")]
    Busy {
        /// Bytes accepted and not yet durable.
        queued_bytes: u64,
        /// The bound.
        queue_bytes_max: u64,
    },

    /// An entry, a vote or a position is larger than the log takes.
    #[error("{what} of {bytes} bytes exceeds the write-ahead log's limit of {bytes_max} bytes")]
    TooLarge {
        /// What it was.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },

    /// An entry that does not follow the last one, or a truncation below the purge point.
    #[error("log index {found} cannot follow: the next index is {expected}")]
    OutOfOrder {
        /// The index that would have been right.
        expected: u64,
        /// The index that was given.
        found: u64,
    },
}

/// What is wrong with a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The header block does not validate.
    #[error("the segment header does not validate")]
    Header,
    /// The header names another sequence number than the file name.
    #[error("its header says that it is segment {found}, so files were renamed or swapped")]
    Renamed {
        /// Number in the header.
        found: u64,
    },
    /// The header does not continue the segment before it.
    #[error("it does not continue segment {previous}: one of the two comes from another copy of this log")]
    Foreign {
        /// Number of the segment before.
        previous: u64,
    },
    /// A record does not validate although a later one shows that it had been durable.
    #[error(
        "the record there does not validate, yet the one at byte {evidence} was written after everything up to \
         byte {durable} had reached the disk"
    )]
    Record {
        /// Where the later record is.
        evidence: u64,
        /// Up to which byte it declares the segment durable.
        durable: u64,
    },
    /// A segment that has successors breaks off.
    #[error("the records end there without the end mark, yet segment {next} follows")]
    Unsealed {
        /// The segment that follows.
        next: u64,
    },
    /// The first record of a segment is not the log's state.
    #[error("the segment does not begin with the state of the log")]
    NoState,
    /// The state at the head of a segment differs from what the segments before it say.
    #[error("the state at the head of the segment contradicts the segments before it")]
    StateMismatch,
    /// A valid record with content that this program would never write.
    #[error("the record is valid but its content makes no sense")]
    Content,
    /// An entry that does not follow its predecessor.
    #[error("entry {found} stands where entry {expected} belongs")]
    EntryOrder {
        /// The index that belongs there.
        expected: u64,
        /// The index that stands there.
        found: u64,
    },
    /// Entries behind the purge point are not in any segment.
    #[error("the entries from {expected} on should be in the log, but are not in any of its segments")]
    EntriesMissing {
        /// The first index that should be there.
        expected: u64,
    },
}

impl Error {
    /// Wraps an operating system error; the ones that mean "disk full" become [`Error::NoSpace`].
    pub(super) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        let full = matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        match (full, path.parent()) {
            (true, Some(dir)) => Self::NoSpace { dir: dir.to_owned() },
            _ => Self::Io { operation, path: path.to_owned(), source },
        }
    }
}
