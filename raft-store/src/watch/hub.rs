//! All watchers of one member, in groups of the same range.
//!
//! Promises: [`Hub::publish`], which is called under the state's lock, costs what the changes touch in groups,
//! however many watchers these have; telling the watchers is [`fan_out`]'s, a task. What the watchers of a
//! group read is read and encoded once, as long as they are about equally far.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use bytes::Bytes;
use state_machine::{ReadError, StateMachine};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::chunk::Chunk;
use super::mailbox::{NOTHING, Signal};
use super::spans::Spans;
use crate::mutants::{self, Mutant};
use crate::raft::state_machine::Shared;

/// Chunks that are kept for the next watcher of the same group: of one group…
const CHUNKS_PER_GROUP_MAX: usize = 4;
/// …and of all, in number and in bytes.
const CHUNKS_MAX: usize = 64;
const CHUNKS_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Watchers that are told before the others on this thread get a turn.
const FAN_OUT_STEP: usize = 256;

/// A range of keys, as in etcd: an empty `end` means the one key, `"\0"` every key from `start` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: Bytes,
    pub(super) end: Bytes,
}

impl Range {
    pub(super) fn contains(&self, key: &[u8]) -> bool {
        match &*self.end {
            [] => *key == *self.start,
            [0] => *key >= *self.start,
            end => *key >= *self.start && key < end,
        }
    }

    /// The end as the index has it; for a range that is more than one key.
    fn bound(&self) -> Option<&Bytes> {
        (*self.end != [0]).then_some(&self.end)
    }
}

/// The watchers of one range.
#[derive(Debug)]
pub(crate) struct Group {
    range: Range,
    /// First change that the watchers were not yet told of; [`NOTHING`]: none.
    pending: AtomicU64,
    /// Newest change.
    newest: AtomicU64,
    members: AtomicUsize,
    signals: Mutex<HashMap<u64, Arc<Signal>>>,
    recent: Mutex<VecDeque<Weak<Chunk>>>,
}

impl Group {
    fn new(range: Range) -> Self {
        Self {
            range,
            pending: AtomicU64::new(NOTHING),
            newest: AtomicU64::new(0),
            members: AtomicUsize::new(0),
            signals: Mutex::default(),
            recent: Mutex::default(),
        }
    }

    pub(super) fn range(&self) -> &Range {
        &self.range
    }

    /// The newest change of the range that was published.
    pub(super) fn newest(&self) -> u64 {
        self.newest.load(Ordering::Acquire)
    }

    fn signals(&self) -> MutexGuard<'_, HashMap<u64, Arc<Signal>>> {
        self.signals.lock().expect("no code panics while it holds a group's lock")
    }

    /// The chunk that begins at `from`: one that another watcher has read, or a new one.
    pub(super) fn chunk(
        &self,
        from: u64,
        hub: &Hub,
        read: impl FnOnce() -> Result<Option<Chunk>, ReadError>,
    ) -> Result<Option<Arc<Chunk>>, ReadError> {
        if self.members.load(Ordering::Relaxed) <= 1 {
            return Ok(read()?.map(Arc::new));
        }
        // Held while reading: of many that come at once, one reads.
        let mut recent = self.recent.lock().expect("no code panics while it holds a group's lock");
        recent.retain(|chunk| chunk.strong_count() > 0);
        if let Some(chunk) = recent.iter().filter_map(Weak::upgrade).find(|chunk| chunk.from == from) {
            return Ok(Some(chunk));
        }
        let Some(chunk) = read()?.map(Arc::new) else { return Ok(None) };
        recent.truncate(CHUNKS_PER_GROUP_MAX - 1);
        recent.push_front(Arc::downgrade(&chunk));
        hub.keep(Arc::clone(&chunk));
        Ok(Some(chunk))
    }
}

#[derive(Debug, Default)]
struct Index {
    keys: HashMap<Bytes, Arc<Group>>,
    spans: Spans<Arc<Group>>,
    signals: u64,
}

/// Groups whose watchers are to be told.
#[derive(Debug, Default)]
struct Touched {
    groups: Vec<Arc<Group>>,
    /// Everything up to here touched these groups at most.
    revision: u64,
    /// The task is telling others.
    under_way: bool,
}

#[derive(Debug, Default)]
struct Kept {
    chunks: VecDeque<Arc<Chunk>>,
    bytes: usize,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Hub {
    index: Mutex<Index>,
    touched: Mutex<Touched>,
    work: Notify,
    /// Every watcher was told of every change up to here.
    published: watch::Sender<u64>,
    kept: Mutex<Kept>,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            index: Mutex::default(),
            touched: Mutex::default(),
            work: Notify::new(),
            published: watch::channel(0).0,
            kept: Mutex::default(),
        }
    }
}

impl Hub {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().expect("no code panics while it holds the watchers' lock")
    }

    fn touched(&self) -> MutexGuard<'_, Touched> {
        self.touched.lock().expect("no code panics while it holds the lock of what was touched")
    }

    /// Tells watchers of the changes that `machine` made after `before`. Called by the one who applies,
    /// after each batch, in order.
    pub(crate) fn publish(&self, machine: &StateMachine, before: u64) {
        let revision = machine.revision();
        if revision == before {
            return;
        }
        let index = self.index();
        let mut touched = self.touched();
        match machine.events_since(before + 1, usize::MAX) {
            Ok(history) if !index.keys.is_empty() || index.spans.all().next().is_some() => {
                for changes in history {
                    if mutants::is(Mutant::DropWatchEvent) && changes.revision() % 16 == 0 {
                        continue;
                    }
                    for (kv, _) in changes.iter() {
                        let mut touch =
                            |group: &Arc<Group>| touched.add(group, changes.revision(), changes.revision());
                        index.keys.get(kv.key).into_iter().for_each(&mut touch);
                        index.spans.holding(kv.key, &mut touch);
                    }
                }
            }
            Ok(_) => {}
            // Compacted in the same batch: let everybody look, and find that out.
            Err(_) => touch_all(&index, &mut touched, before + 1, revision),
        }
        self.finish(touched, revision);
    }

    /// Wakes every watcher to look at everything from where it is: the state was replaced.
    pub(crate) fn publish_all(&self, revision: u64) {
        let index = self.index();
        let mut touched = self.touched();
        touch_all(&index, &mut touched, 0, revision);
        self.finish(touched, revision);
    }

    fn finish(&self, mut touched: MutexGuard<'_, Touched>, revision: u64) {
        touched.revision = revision;
        if touched.groups.is_empty() && !touched.under_way {
            self.published.send_replace(revision);
        } else {
            self.work.notify_one();
        }
    }

    /// Every watcher was told of every change up to here.
    pub(crate) fn published(&self) -> u64 {
        *self.published.borrow()
    }

    pub(crate) fn watch_published(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
    }

    /// Adds a watcher; returns its group, and its number for [`unregister`](Self::unregister).
    pub(super) fn register(&self, range: Range, signal: Arc<Signal>) -> (Arc<Group>, u64) {
        let mut index = self.index();
        index.signals += 1;
        let id = index.signals;
        let group = if range.end.is_empty() {
            let new = || Arc::new(Group::new(range.clone()));
            Arc::clone(index.keys.entry(range.start.clone()).or_insert_with(new))
        } else if let Some(group) = index.spans.get(&range.start, range.bound()) {
            Arc::clone(group)
        } else {
            let group = Arc::new(Group::new(range.clone()));
            index.spans.insert(range.start.clone(), range.bound().cloned(), Arc::clone(&group));
            group
        };
        group.members.fetch_add(1, Ordering::Relaxed);
        group.signals().insert(id, signal);
        (group, id)
    }

    pub(super) fn unregister(&self, group: &Group, id: u64) {
        let mut index = self.index();
        group.signals().remove(&id);
        if group.members.fetch_sub(1, Ordering::Relaxed) > 1 {
            return;
        }
        let range = &group.range;
        if range.end.is_empty() {
            index.keys.remove(&range.start);
        } else {
            index.spans.remove(&range.start, range.bound());
        }
    }

    /// Keeps a chunk for a while, for those who come to the same place.
    fn keep(&self, chunk: Arc<Chunk>) {
        let mut kept = self.kept.lock().expect("no code panics while it holds the chunks' lock");
        kept.bytes += chunk.bytes;
        kept.chunks.push_back(chunk);
        while kept.chunks.len() > CHUNKS_MAX || kept.bytes > CHUNKS_BYTES_MAX {
            let Some(oldest) = kept.chunks.pop_front() else { break };
            kept.bytes -= oldest.bytes;
        }
    }

    /// Tells the watchers of what was touched; returns whether there was anything.
    async fn tell(&self) -> bool {
        let (groups, revision) = {
            let mut touched = self.touched();
            touched.under_way = !touched.groups.is_empty() || *self.published.borrow() < touched.revision;
            if !touched.under_way {
                return false;
            }
            (std::mem::take(&mut touched.groups), touched.revision)
        };
        let mut told = 0;
        for group in groups {
            let from = group.pending.swap(NOTHING, Ordering::AcqRel);
            let signals: Vec<Arc<Signal>> = group.signals().values().cloned().collect();
            for signal in signals {
                signal.wake(from);
                told += 1;
                if told % FAN_OUT_STEP == 0 {
                    tokio::task::yield_now().await;
                }
            }
        }
        self.published.send_replace(revision);
        true
    }
}

impl Touched {
    /// There are changes of the group from one revision to another.
    fn add(&mut self, group: &Arc<Group>, from: u64, newest: u64) {
        group.newest.fetch_max(newest, Ordering::AcqRel);
        if group.pending.fetch_min(from, Ordering::AcqRel) == NOTHING {
            self.groups.push(Arc::clone(group));
        }
    }
}

fn touch_all(index: &Index, touched: &mut Touched, from: u64, newest: u64) {
    index.keys.values().chain(index.spans.all()).for_each(|group| touched.add(group, from, newest));
}

/// Tells watchers of what [`Hub::publish`] noted, until the store stops.
pub(crate) async fn fan_out(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        if !shared.hub.tell().await {
            tokio::select! {
                () = stop.cancelled() => return,
                () = shared.hub.work.notified() => {}
            }
        }
    }
}
