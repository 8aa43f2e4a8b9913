//! A full disk: what takes space is refused, as at the quota; reads go on, and so does all that frees space.
//!
//! The log finds out early, when the disk has no room for its *next* segment, and tells by [`Room`](wal::Room).
//! From then on the leader proposes nothing that takes space, and a follower takes no entry that may not fit:
//! its leader offers it again until there is room. So consensus never meets a log that is full, which would end
//! it. Nothing has to be cleared afterwards; with space on the disk the next segment is made and all goes on.

use std::time::Duration;

use bytes::Bytes;
use state_machine::{ApplyError, Envelope, Outcome};

use crate::quota;
use crate::store::Store;

/// Kept for what consensus itself writes: first entries of terms, changes of the membership.
const MARGIN_BYTES: u64 = 256 * 1024;
/// How often an entry looks whether the segment it waits for is made.
const SEGMENT_POLL: Duration = Duration::from_millis(2);

/// The answer to a write for which the disk has no room.
pub(crate) fn refusal() -> Outcome {
    Outcome::Rejected(ApplyError::NoSpace)
}

impl Store {
    /// Whether the leader's disk is too full for this command. One that takes no space may still use what is left
    /// of the log.
    pub(crate) fn disk_refuses(&self, command: &Bytes) -> bool {
        self.log().room().disk_full
            && Envelope::decode(command.clone()).is_ok_and(|envelope| quota::cost(&envelope.command) > 0)
    }

    /// Whether the log takes an entry of this size for certain. Waits while a segment for it is being made: the log
    /// sees to that before it comes so far.
    pub(crate) async fn log_takes(&self, bytes: usize) -> bool {
        loop {
            let room = self.log().room();
            if bytes as u64 + MARGIN_BYTES <= room.bytes {
                return true;
            }
            if room.disk_full {
                return false;
            }
            tokio::select! {
                () = self.stopping() => return false,
                () = tokio::time::sleep(SEGMENT_POLL) => {}
            }
        }
    }

    /// Whether a leader's entries of this size would meet a full log here.
    pub(crate) fn log_is_full_for(&self, bytes: usize) -> bool {
        let room = self.log().room();
        room.disk_full && bytes as u64 + MARGIN_BYTES > room.bytes
    }
}
