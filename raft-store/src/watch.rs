//! Watches: changes of a range of keys, from any revision that is not compacted away.
//!
//! There is one mechanism for watchers that keep up and for those that lag. The state machine keeps the
//! history of changes since the compact revision; a watcher remembers only how far it is. Applying an entry
//! wakes the watchers whose range it touched and tells each the first revision it has not seen; the watcher
//! then reads history from there, in bounded steps, under a read lock. So nothing is queued per watcher, a
//! slow one costs nothing, and one that falls behind compaction is told so.
//!
//! ```text
//! apply ──(1) changes state──▶ history
//!   └─────(2) Hub::publish: for each touched range: `pending_from = min(pending_from, revision)`, wake
//! watcher ─(3) takes `pending_from`, reads history from there, filters by its range
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use bytes::Bytes;
use state_machine::{Event, EventBatch, ReadError, StateMachine};
use tokio::sync::Notify;

use crate::error::Error;
use crate::raft::state_machine::Shared;

/// Changes that one step of a watcher looks at while it holds the read lock.
const EVENTS_PER_STEP_MAX: usize = 512;
/// "Nothing new" in [`Signal::pending_from`].
const NOTHING: u64 = u64::MAX;

/// A range of keys, as in etcd: an empty `end` means the one key, `"\0"` every key from `start` on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    start: Bytes,
    end: Bytes,
}

impl Range {
    fn contains(&self, key: &[u8]) -> bool {
        match &*self.end {
            [] => *key == *self.start,
            [0] => *key >= *self.start,
            end => *key >= *self.start && key < end,
        }
    }
}

/// Where a watcher hears that there is something for it.
#[derive(Debug)]
struct Signal {
    /// First revision that touches the range and was not yet looked at; [`NOTHING`]: none.
    pending_from: AtomicU64,
    wake: Notify,
}

/// All watchers of one member, by range.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    watchers: Mutex<BTreeMap<Range, Vec<Weak<Signal>>>>,
    /// Every watcher was told of every change up to here.
    published: AtomicU64,
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Range, Vec<Weak<Signal>>>> {
        self.watchers.lock().expect("no code panics while it holds the watchers' lock")
    }

    /// Tells watchers of the changes that `machine` made after `before`. Called by the one who applies,
    /// after each batch, in order.
    pub(crate) fn publish(&self, machine: &StateMachine, before: u64) {
        let revision = machine.revision();
        if revision != before {
            self.wake_touched(machine, before + 1);
        }
        self.published.store(revision, Ordering::Release);
    }

    fn wake_touched(&self, machine: &StateMachine, from: u64) {
        let mut watchers = self.lock();
        if watchers.is_empty() {
            return;
        }
        let Ok(history) = machine.events_since(from, usize::MAX) else {
            // Compacted in the same batch: let everybody look, and find that out.
            wake_all(&mut watchers, from);
            return;
        };
        for changes in history {
            for (kv, _) in changes.iter() {
                watchers.retain(|range, signals| {
                    if range.contains(&kv.key) {
                        signals.retain(|signal| wake(signal, changes.revision()));
                    }
                    !signals.is_empty()
                });
            }
        }
    }

    /// Wakes every watcher to look at everything from `revision` on: the state was replaced.
    pub(crate) fn publish_all(&self, revision: u64) {
        wake_all(&mut self.lock(), 0);
        self.published.store(revision, Ordering::Release);
    }

    fn register(&self, range: Range, from: u64) -> Arc<Signal> {
        let signal = Arc::new(Signal { pending_from: AtomicU64::new(from), wake: Notify::new() });
        self.lock().entry(range).or_default().push(Arc::downgrade(&signal));
        signal
    }
}

fn wake_all(watchers: &mut BTreeMap<Range, Vec<Weak<Signal>>>, from: u64) {
    watchers.retain(|_, signals| {
        signals.retain(|signal| wake(signal, from));
        !signals.is_empty()
    });
}

/// Whether the watcher still exists.
fn wake(signal: &Weak<Signal>, revision: u64) -> bool {
    let Some(signal) = signal.upgrade() else { return false };
    signal.pending_from.fetch_min(revision, Ordering::AcqRel);
    signal.wake.notify_one();
    true
}

/// Follows the changes of one range. Dropping it ends the watch.
pub struct Watcher {
    shared: Arc<Shared>,
    range: Range,
    signal: Arc<Signal>,
    next_revision: u64,
}

impl Watcher {
    pub(crate) fn start(shared: Arc<Shared>, key: Bytes, range_end: Bytes, from: u64) -> Result<Self, Error> {
        let range = Range { start: key, end: range_end };
        // Registered before looking, so that nothing falls between.
        let signal = shared.hub.register(range.clone(), from.max(1));
        let (revision, compact_revision) = {
            let state = shared.read();
            (state.machine.revision(), state.machine.compact_revision())
        };
        if from != 0 && from < compact_revision {
            return Err(Error::Compacted { requested: from, compact_revision });
        }
        let next_revision = if from == 0 { revision + 1 } else { from };
        Ok(Self { shared, range, signal, next_revision })
    }

    /// Waits for changes and returns those of one or more whole revisions, in order.
    ///
    /// # Errors
    /// [`Error::Compacted`] when the next change was compacted away before this watcher came to it.
    pub async fn next(&mut self) -> Result<Vec<EventBatch>, Error> {
        loop {
            let pending = self.signal.pending_from.swap(NOTHING, Ordering::AcqRel);
            if pending == NOTHING {
                self.signal.wake.notified().await;
                continue;
            }
            let found = self.look(pending.max(self.next_revision))?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
    }

    /// Everything up to this revision was returned by [`next`](Self::next); `None` while there is more.
    pub fn progress(&self) -> Option<u64> {
        let published = self.shared.hub.published.load(Ordering::Acquire);
        let pending = self.signal.pending_from.load(Ordering::Acquire);
        (pending == NOTHING).then_some(published.max(self.next_revision.saturating_sub(1)))
    }

    /// Reads one bounded step of history.
    fn look(&mut self, from: u64) -> Result<Vec<EventBatch>, Error> {
        let state = self.shared.read();
        let machine = &state.machine;
        if from > machine.revision() {
            self.next_revision = self.next_revision.max(from);
            return Ok(Vec::new());
        }
        let history = machine.events_since(from, EVENTS_PER_STEP_MAX).map_err(|error| match error {
            ReadError::Compacted { requested, compact_revision } => {
                Error::Compacted { requested, compact_revision }
            }
            ReadError::Future { requested, revision } => Error::Future { requested, newest: revision },
        })?;
        let mut found = Vec::new();
        for changes in history {
            self.next_revision = changes.revision() + 1;
            let touched = changes.iter().filter(|(kv, _)| self.range.contains(&kv.key));
            let events: Vec<Event> =
                touched.map(|(kv, prev)| Event { kv: kv.clone(), prev_kv: prev.cloned() }).collect();
            if !events.is_empty() {
                found.push(EventBatch { revision: changes.revision(), events });
            }
        }
        if self.next_revision <= machine.revision() {
            self.signal.pending_from.fetch_min(self.next_revision, Ordering::AcqRel);
        }
        Ok(found)
    }
}
