//! What changed at each revision, for watches that catch up, for checkpoints, and for compaction.
//!
//! The history is dense: every revision from the first kept to the newest has at least one event. Beside its
//! events, each revision keeps a running total of what a compaction at that revision makes unreachable, so
//! that compaction changes the state hash in O(1), whenever the records themselves are trimmed.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::record::Record;
use crate::revision::REVISION_INITIAL;

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The key after the change; a tombstone if it was deleted.
    pub kv: Arc<Record>,
    /// The key before the change, if it existed. Missing, too, for changes at the compact revision itself.
    pub prev_kv: Option<Arc<Record>>,
}

impl Event {
    /// Whether the change removed the key.
    pub fn is_delete(&self) -> bool {
        self.kv.is_tombstone()
    }
}

/// All changes of one revision, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventBatch {
    /// The revision.
    pub revision: u64,
    /// Its changes; at least one.
    pub events: Vec<Event>,
}

/// A revision's changes as they lie in the history, for looking without copying.
#[derive(Debug, Clone)]
pub struct RevisionEvents<'a> {
    revision: u64,
    /// At the compact revision the versions before are compacted, trimmed or not.
    hide_prev: bool,
    events: std::collections::vec_deque::Iter<'a, Event>,
}

impl<'a> RevisionEvents<'a> {
    /// The revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The changes in order: the key after, and the key before if it existed.
    pub fn iter(&self) -> impl Iterator<Item = (&'a Arc<Record>, Option<&'a Arc<Record>>)> + use<'a> {
        let hide_prev = self.hide_prev;
        self.events.clone().map(move |event| (&event.kv, event.prev_kv.as_ref().filter(|_| !hide_prev)))
    }

    /// The keys after the changes, in order.
    pub(crate) fn into_records(self) -> impl Iterator<Item = &'a Arc<Record>> {
        self.events.map(|event| &event.kv)
    }

    /// The changes on their own.
    pub fn to_batch(&self) -> EventBatch {
        let events = self.iter().map(|(kv, prev)| Event { kv: kv.clone(), prev_kv: prev.cloned() });
        EventBatch { revision: self.revision, events: events.collect() }
    }
}

/// A sum over records: their hashes, their number, their bytes. Wraps; only differences mean something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) hash: u64,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, record: &Record) {
        *self = self.plus(Self { hash: record.hash(), records: 1, bytes: record.bytes() });
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            hash: self.hash.wrapping_add(other.hash),
            records: self.records.wrapping_add(other.records),
            bytes: self.bytes.wrapping_add(other.bytes),
        }
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        Self {
            hash: self.hash.wrapping_sub(other.hash),
            records: self.records.wrapping_sub(other.records),
            bytes: self.bytes.wrapping_sub(other.bytes),
        }
    }
}

#[derive(Debug)]
struct RevisionEntry {
    /// Sequence number of the revision's first event.
    first_event: u64,
    /// What compactions up to and including this revision make unreachable: versions superseded up to here,
    /// and tombstones from before here.
    dead: Tally,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct History {
    /// Of the front of `revisions`.
    first_revision: u64,
    revisions: VecDeque<RevisionEntry>,
    /// Sequence number of the front of `events`.
    first_event: u64,
    events: VecDeque<Event>,
    /// Tombstones of the newest revision: a compaction at the next one takes them.
    newest_tombstones: Tally,
}

impl History {
    /// An empty history whose first revision will be `first_revision`.
    pub(crate) fn starting_at(first_revision: u64) -> Self {
        Self {
            first_revision,
            revisions: VecDeque::new(),
            first_event: 0,
            events: VecDeque::new(),
            newest_tombstones: Tally::default(),
        }
    }

    pub(crate) fn new() -> Self {
        Self::starting_at(REVISION_INITIAL + 1)
    }

    pub(crate) fn first_revision(&self) -> u64 {
        self.first_revision
    }

    /// The revision after the newest that has events.
    pub(crate) fn next_revision(&self) -> u64 {
        self.first_revision + self.revisions.len() as u64
    }

    /// The place that the next change of `revision` has within it.
    pub(crate) fn next_sub(&self, revision: u64) -> u32 {
        match self.revisions.back() {
            Some(entry) if revision + 1 == self.next_revision() => {
                (self.first_event + self.events.len() as u64 - entry.first_event) as u32
            }
            _ => 0,
        }
    }

    /// Adds a change of the newest revision or the one after it.
    pub(crate) fn push(&mut self, event: Event) {
        if event.kv.mod_revision == self.next_revision() {
            let before = self.revisions.back().map_or(Tally::default(), |entry| entry.dead);
            let dead = before.plus(self.newest_tombstones);
            self.newest_tombstones = Tally::default();
            let first_event = self.first_event + self.events.len() as u64;
            self.revisions.push_back(RevisionEntry { first_event, dead });
        }
        let entry = self.revisions.back_mut().expect("changes are pushed in order of their revisions");
        if let Some(prev) = &event.prev_kv {
            entry.dead.add(prev);
        }
        if event.is_delete() {
            self.newest_tombstones.add(&event.kv);
        }
        self.events.push_back(event);
    }

    /// What a compaction at `revision` makes unreachable, counted from where this history began.
    pub(crate) fn dead_at(&self, revision: u64) -> Tally {
        let entry = revision.checked_sub(self.first_revision).and_then(|at| self.revisions.get(at as usize));
        entry.map_or(Tally::default(), |entry| entry.dead)
    }

    /// The revisions from `from` on; nothing before the first kept.
    pub(crate) fn since(&self, from: u64, compact_revision: u64) -> impl Iterator<Item = RevisionEvents<'_>> {
        let from = from.max(self.first_revision);
        (from..self.next_revision()).map(move |revision| {
            let at = (revision - self.first_revision) as usize;
            RevisionEvents {
                revision,
                hide_prev: revision <= compact_revision,
                events: self.events.range(self.event_range(at)),
            }
        })
    }

    /// The changes of one kept revision, to take their `prev_kv` away.
    pub(crate) fn events_mut(&mut self, revision: u64) -> impl Iterator<Item = &mut Event> {
        let range = match revision.checked_sub(self.first_revision) {
            Some(at) if (at as usize) < self.revisions.len() => self.event_range(at as usize),
            _ => 0..0,
        };
        self.events.range_mut(range)
    }

    /// Drops the oldest revision.
    pub(crate) fn pop_front(&mut self) {
        if self.revisions.is_empty() {
            return;
        }
        let events = self.event_range(0);
        self.first_event += events.len() as u64;
        self.events.drain(events);
        self.revisions.pop_front();
        self.first_revision += 1;
    }

    fn event_range(&self, at: usize) -> std::ops::Range<usize> {
        let start = self.revisions[at].first_event - self.first_event;
        let end = match self.revisions.get(at + 1) {
            Some(next) => next.first_event - self.first_event,
            None => self.events.len() as u64,
        };
        start as usize..end as usize
    }
}
