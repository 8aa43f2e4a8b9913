//! A full disk: what takes space is refused, as at the quota; reads go on, and so does all that frees space.
//!
//! The log finds out early, when the disk has no room for its *next* segment, and tells by [`Room`].
//! From then on the leader proposes nothing that takes space, and a follower takes no entry that may not fit:
//! its leader offers it again until there is room. So consensus never meets a log that is full, which would end
//! it. Nothing has to be cleared afterwards; with space on the disk the next segment is made and all goes on.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use proto::raft as wire;
use state_machine::Envelope;

use crate::quota;
use crate::store::Store;
use crate::wal::Room;

/// Kept for what consensus itself writes: first entries of terms, changes of the membership.
const MARGIN_BYTES: u64 = 256 * 1024;
/// How often an entry looks whether the segment it waits for is made.
const SEGMENT_POLL: Duration = Duration::from_millis(2);

/// Whether an entry fits for certain.
fn fits(room: Room, bytes: usize) -> bool {
    bytes as u64 + MARGIN_BYTES <= room.bytes
}

/// Whether a command is one that a full disk refuses. One that takes no space may still use what is left of the log.
pub(crate) fn takes_space(command: &Bytes) -> bool {
    Envelope::decode(command.clone()).is_ok_and(|envelope| quota::cost(&envelope.command) > 0)
}

impl Store {
    /// Whether this member's disk has no room for the log's next segment.
    pub(crate) fn is_disk_full(&self) -> bool {
        self.log().room().disk_full
    }

    /// Whether the log takes an entry of this size. Waits while a segment for it is being made: the log sees to that
    /// before it comes so far.
    pub(crate) async fn log_takes(&self, bytes: usize) -> bool {
        loop {
            let room = self.log().room();
            if fits(room, bytes) || room.disk_full {
                return fits(room, bytes);
            }
            tokio::select! {
                // Consensus itself says what becomes of it.
                () = self.stopping() => return true,
                () = tokio::time::sleep(SEGMENT_POLL) => {}
            }
        }
    }

    /// Whether a leader's entries would meet a full log here.
    pub(crate) fn log_is_full_for(&self, request: &wire::AppendEntriesRequest) -> bool {
        let room = self.log().room();
        room.disk_full && !request.entries.is_empty() && !fits(room, request.encoded_len())
    }
}
