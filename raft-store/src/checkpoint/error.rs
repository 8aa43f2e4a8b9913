//! What can go wrong with a checkpoint, told apart by who can help: the operator, or a rebuild.

use std::io;
use std::path::{Path, PathBuf};

use state_machine::{DecodeError, RebuildError, SnapshotError};

/// Why the checkpoint could not be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("checkpoint: {operation} {}: {source}", path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The delta leads on from a state that this checkpoint does not hold.
    #[error(
        "checkpoint: the changes begin at revision {base_revision}, the checkpoint holds {held_revision}; \
         it needs the whole state"
    )]
    NeedsFull {
        /// What is on disk; 0: nothing.
        held_revision: u64,
        /// What the delta begins at.
        base_revision: u64,
    },
    /// Another process has the directory.
    #[error("checkpoint directory {} is in use by another process; stop that one first", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The disk is too full to begin.
    #[error(
        "checkpoint: {} has {free_bytes} bytes of space left, and {needed_bytes} may be needed; free some disk space",
        path.display()
    )]
    NoRoom {
        /// The directory.
        path: PathBuf,
        /// What may be needed.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// sled refused.
    #[error("checkpoint: {operation}: {source}")]
    Sled {
        /// What was being done.
        operation: &'static str,
        /// The cause.
        source: sled::Error,
    },
    /// sled panicked. Its state in memory is not to be trusted any more.
    #[error("checkpoint: {operation}: sled panicked: {message}")]
    Panicked {
        /// What was being done.
        operation: &'static str,
        /// What it said.
        message: String,
    },
    /// The generation in charge is named, but it is not there, or not named in a way that was ever written.
    #[error("checkpoint: the file CURRENT is damaged or names files that do not exist")]
    Current,
    /// The header or a key is not as it was written.
    #[error("checkpoint: {what} is damaged")]
    Damaged {
        /// Which part.
        what: &'static str,
    },
    /// Written by a version that keeps checkpoints in another form.
    #[error("checkpoint: format {version} is not known here")]
    Format {
        /// What the header says.
        version: u8,
    },
    /// The state whose changes were being written is no more; a write of the one in its place is full.
    #[error("checkpoint: {0}")]
    Superseded(#[from] SnapshotError),
    /// A record or the header cannot be read.
    #[error("checkpoint: {0}")]
    Decode(#[from] DecodeError),
    /// The records are not the state that the header names.
    #[error("checkpoint: {0}")]
    Rebuild(#[from] RebuildError),
}

impl Error {
    pub(super) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { operation, path, source }
    }

    /// Whether the content is at fault, so that it is to be set aside and rebuilt; otherwise the surroundings
    /// are, and setting aside what may be good would help nobody.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Io { .. } | Self::Locked { .. } | Self::NoRoom { .. } => false,
            Self::NeedsFull { .. } | Self::Superseded(_) => false,
            Self::Sled { source: sled::Error::Io(source), .. } => matches!(
                source.kind(),
                // sled reports damage in these clothes, too.
                io::ErrorKind::NotFound
                    | io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::InvalidData
                    | io::ErrorKind::InvalidInput
                    | io::ErrorKind::Other
            ),
            Self::Sled { .. }
            | Self::Panicked { .. }
            | Self::Current
            | Self::Damaged { .. }
            | Self::Format { .. }
            | Self::Decode(_)
            | Self::Rebuild(_) => true,
        }
    }
}
