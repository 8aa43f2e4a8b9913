//! Watches: changes of a range of keys, from any revision that is not compacted away.
//!
//! There is one mechanism for watchers that keep up and for those that lag. The state machine keeps the
//! history of changes since the compact revision; a watcher remembers only how far it is. Applying an entry
//! marks the groups of watchers whose range it touched; a task of its own then tells each watcher the first
//! revision it has not seen; the watcher reads history from there, in bounded steps, under a read lock. So
//! nothing is queued per watcher, a slow one costs nothing, many cost apply nothing, and one that falls
//! behind compaction is told so.
//!
//! ```text
//! apply ──(1) changes state──▶ history
//!   └─────(2) Hub::publish: for each touched group: `pending = min(pending, revision)`
//! fan-out ─(3) for each watcher of the group: `pending = min(…)`, into its mailbox, wake
//! watcher ─(4) takes `pending`, reads history from there ─▶ a chunk, shared by all of its group
//! ```

mod chunk;
mod hub;
mod mailbox;
mod spans;

use std::sync::Arc;

use bytes::Bytes;
use state_machine::EventBatch;

use crate::error::Error;
use crate::raft::state_machine::Shared;
use crate::store::read_error;

pub(crate) use chunk::{Chunk, Encoded};
pub(crate) use hub::{Hub, fan_out};
pub(crate) use mailbox::Mailbox;

use hub::{Group, Range};
use mailbox::{NOTHING, Signal};

/// Follows the changes of one range. Dropping it ends the watch.
pub struct Watcher {
    cursor: Cursor,
    mailbox: Arc<Mailbox>,
}

impl Watcher {
    pub(crate) fn start(shared: Arc<Shared>, key: Bytes, range_end: Bytes, from: u64) -> Result<Self, Error> {
        let mailbox = Arc::new(Mailbox::default());
        let cursor = Cursor::start(shared, (key, range_end), from, (Arc::clone(&mailbox), 0));
        let compact_revision = cursor.shared.read().machine.compact_revision();
        if from != 0 && from < compact_revision {
            return Err(Error::Compacted { requested: from, compact_revision });
        }
        Ok(Self { cursor, mailbox })
    }

    /// Waits for changes and returns those of one or more whole revisions, in order.
    ///
    /// # Errors
    /// [`Error::Compacted`] when the next change was compacted away before this watcher came to it.
    pub async fn next(&mut self) -> Result<Vec<EventBatch>, Error> {
        loop {
            self.mailbox.clear();
            if let Some(chunk) = self.cursor.step()? {
                let batches = Arc::try_unwrap(chunk).map(|chunk| chunk.batches);
                return Ok(batches.unwrap_or_else(|shared| shared.batches.clone()));
            }
            self.mailbox.next().await;
        }
    }

    /// Everything up to this revision was returned by [`next`](Self::next); `None` while there is more.
    pub fn progress(&self) -> Option<u64> {
        let seen = self.cursor.next_revision.saturating_sub(1);
        self.cursor.synced().map(|published| published.max(seen))
    }
}

/// One watcher's place in history. Whoever owns it waits at its mailbox.
pub(crate) struct Cursor {
    shared: Arc<Shared>,
    group: Arc<Group>,
    signal: Arc<Signal>,
    signal_id: u64,
    next_revision: u64,
    /// The store's revision when it began.
    pub(crate) began_at: u64,
}

impl Cursor {
    /// Begins at revision `from` (0: after the newest). `token` is what the mailbox gets to say that there is
    /// something to look at.
    pub(crate) fn start(
        shared: Arc<Shared>,
        (start, end): (Bytes, Bytes),
        from: u64,
        (mailbox, token): (Arc<Mailbox>, u64),
    ) -> Self {
        let signal = Arc::new(Signal::new(mailbox, token));
        // Registered before looking, so that nothing falls between.
        let (group, signal_id) = shared.hub.register(Range { start, end }, Arc::clone(&signal));
        let revision = shared.read().machine.revision();
        let next_revision = if from == 0 { revision + 1 } else { from };
        if next_revision <= revision {
            signal.wake(next_revision);
        }
        Self { shared, group, signal, signal_id, next_revision, began_at: revision }
    }

    /// Reads one bounded step of history, if something is pending. When more is pending afterwards, the
    /// mailbox has been told.
    pub(crate) fn step(&mut self) -> Result<Option<Arc<Chunk>>, Error> {
        let pending = self.signal.take();
        if pending == NOTHING {
            return Ok(None);
        }
        let from = pending.max(self.next_revision);
        let shared = &self.shared;
        let chunk = self
            .group
            .chunk(from, &shared.hub, || Chunk::read(&shared.read().machine, self.group.range(), from));
        let Some(chunk) = chunk.map_err(read_error)? else {
            self.next_revision = from;
            return Ok(None);
        };
        self.next_revision = chunk.through + 1;
        if chunk.more || self.group.newest() > chunk.through {
            self.signal.wake(self.next_revision);
        }
        Ok((!chunk.batches.is_empty()).then_some(chunk))
    }

    /// With nothing pending: every change up to this revision was looked at.
    pub(crate) fn synced(&self) -> Option<u64> {
        let published = self.shared.hub.published();
        self.signal.is_quiet().then_some(published)
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.shared.hub.unregister(&self.group, self.signal_id);
    }
}
