//! What changed at each revision, for watches that catch up, for checkpoints, and for compaction.
//!
//! The history is dense: every revision from the first kept to the newest has at least one event. It lies in segments
//! of so many revisions, where an event takes eight bytes, and eight more if it superseded something. Beside
//! them each segment keeps what compactions before it make unreachable, so that a compaction changes the
//! state hash by looking at one segment, whenever the records themselves are trimmed.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::heap::{Heap, Slot};
use crate::record::{Record, RecordRef};
use crate::revision::{REVISION_INITIAL, Revision};

/// Revisions of one segment.
const SEGMENT_REVISIONS: usize = 256;

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
#[derive(Debug, Clone, Copy)]
pub struct RevisionEvents<'a> {
    revision: u64,
    /// At the compact revision the versions before are compacted, trimmed or not.
    hide_prev: bool,
    heap: &'a Heap,
    kvs: &'a [Slot],
    /// As many, or none.
    prevs: &'a [Slot],
}

impl<'a> RevisionEvents<'a> {
    /// The revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// How many changes there are.
    pub(crate) fn len(&self) -> usize {
        self.kvs.len()
    }

    /// The changes in order: the key after, and the key before if it existed.
    pub fn iter(&self) -> impl Iterator<Item = (RecordRef<'a>, Option<RecordRef<'a>>)> + use<'a> {
        let Self { hide_prev, heap, kvs, prevs, .. } = *self;
        kvs.iter().enumerate().map(move |(at, kv)| {
            let prev = prevs.get(at).filter(|prev| !hide_prev && **prev != Slot::NONE);
            (heap.view(*kv), prev.map(|prev| heap.view(*prev)))
        })
    }

    /// The keys after the changes, in order.
    pub(crate) fn records(&self) -> impl Iterator<Item = RecordRef<'a>> + use<'a> {
        let heap = self.heap;
        self.kvs.iter().map(|kv| heap.view(*kv))
    }

    /// The changes on their own.
    pub fn to_batch(&self) -> EventBatch {
        let copy = |(kv, prev): (RecordRef<'_>, Option<RecordRef<'_>>)| Event {
            kv: kv.to_record(),
            prev_kv: prev.map(|prev| prev.to_record()),
        };
        EventBatch { revision: self.revision, events: self.iter().map(copy).collect() }
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
    pub(crate) fn add(&mut self, record: &RecordRef<'_>) {
        *self = self.plus(Self { hash: record.hash, records: 1, bytes: record.bytes() });
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

/// The changes of so many revisions.
#[derive(Debug, Default)]
struct Segment {
    /// What compactions up to and including the revision before this segment make unreachable, with the tombstones
    /// of that revision; and what this segment's own revisions add and were already trimmed of.
    dead: Tally,
    kvs: Vec<Slot>,
    /// What each change superseded, [`Slot::NONE`] for nothing. Empty as long as all superseded nothing.
    prevs: Vec<Slot>,
    /// Where each revision's changes begin. Empty as long as each has one change.
    starts: Vec<u32>,
}

impl Segment {
    fn revisions(&self) -> usize {
        if self.starts.is_empty() { self.kvs.len() } else { self.starts.len() }
    }

    /// The changes of the segment's revision `at`, by their places.
    fn range(&self, at: usize) -> std::ops::Range<usize> {
        if self.starts.is_empty() {
            return at..at + 1;
        }
        let end = self.starts.get(at + 1).map_or(self.kvs.len(), |start| *start as usize);
        self.starts[at] as usize..end
    }

    fn push(&mut self, kv: Slot, prev: Slot, new_revision: bool) {
        if new_revision {
            if !self.starts.is_empty() {
                self.starts.push(self.kvs.len() as u32);
            }
        } else if self.starts.is_empty() {
            self.starts = (0..self.kvs.len() as u32).collect();
        }
        if prev != Slot::NONE && self.prevs.is_empty() {
            self.prevs = vec![Slot::NONE; self.kvs.len()];
        }
        self.kvs.push(kv);
        if prev != Slot::NONE || !self.prevs.is_empty() {
            self.prevs.push(prev);
        }
    }

    fn prev(&self, place: usize) -> Option<Slot> {
        self.prevs.get(place).copied().filter(|prev| *prev != Slot::NONE)
    }
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct History {
    /// The first revision that is kept.
    first_revision: u64,
    /// The first revision of the first segment.
    base_revision: u64,
    /// The revision after the newest that has events.
    next_revision: u64,
    segments: VecDeque<Segment>,
    /// What a compaction at the newest revision makes unreachable.
    newest_dead: Tally,
    /// Tombstones of the newest revision: a compaction at the next one takes them.
    newest_tombstones: Tally,
}

impl History {
    /// An empty history whose first revision will be `first_revision`.
    pub(crate) fn starting_at(first_revision: u64) -> Self {
        Self {
            first_revision,
            base_revision: first_revision,
            next_revision: first_revision,
            segments: VecDeque::new(),
            newest_dead: Tally::default(),
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
        self.next_revision
    }

    /// The place that the next change of `revision` has within it.
    pub(crate) fn next_sub(&self, revision: u64) -> u32 {
        match self.segments.back() {
            Some(segment) if revision + 1 == self.next_revision => {
                segment.range(segment.revisions() - 1).len() as u32
            }
            _ => 0,
        }
    }

    /// Adds a change of the newest revision or the one after it.
    pub(crate) fn push(&mut self, heap: &Heap, kv: Slot, prev: Option<Slot>) {
        let record = heap.view(kv);
        let new_revision = record.mod_revision == self.next_revision;
        if new_revision {
            self.newest_dead = self.newest_dead.plus(self.newest_tombstones);
            self.newest_tombstones = Tally::default();
            self.next_revision += 1;
            if self.segments.back().is_none_or(|segment| segment.revisions() == SEGMENT_REVISIONS) {
                self.segments.push_back(Segment { dead: self.newest_dead, ..Segment::default() });
            }
        }
        if let Some(prev) = prev {
            self.newest_dead.add(&heap.view(prev));
        }
        if record.is_tombstone() {
            self.newest_tombstones.add(&record);
        }
        let segment = self.segments.back_mut().expect("changes are pushed in order of their revisions");
        segment.push(kv, prev.unwrap_or(Slot::NONE), new_revision);
    }

    /// What a compaction at `revision` makes unreachable, counted from where this history began: versions
    /// superseded up to there, and tombstones from before there.
    pub(crate) fn dead_at(&self, heap: &Heap, revision: u64) -> Tally {
        let Some((segment, at)) = self.find(revision) else { return Tally::default() };
        let segment = &self.segments[segment];
        let first = self.first_in_segment_of(revision);
        let mut dead = segment.dead;
        for earlier in first..=at {
            for place in segment.range(earlier) {
                if let Some(prev) = segment.prev(place) {
                    dead.add(&heap.view(prev));
                }
                if earlier < at && segment.kvs[place].is_tombstone() {
                    dead.add(&heap.view(segment.kvs[place]));
                }
            }
        }
        dead
    }

    /// The revisions from `from` on; nothing before the first kept.
    pub(crate) fn since<'a>(
        &'a self,
        heap: &'a Heap,
        from: u64,
        compact_revision: u64,
    ) -> impl Iterator<Item = RevisionEvents<'a>> {
        (from.max(self.first_revision)..self.next_revision).filter_map(move |revision| {
            let (segment, at) = self.find(revision)?;
            let segment = &self.segments[segment];
            let range = segment.range(at);
            Some(RevisionEvents {
                revision,
                hide_prev: revision <= compact_revision,
                heap,
                kvs: &segment.kvs[range.clone()],
                prevs: segment.prevs.get(range).unwrap_or_default(),
            })
        })
    }

    /// The keys after the changes of a revision, in order; nothing for one that is not kept.
    pub(crate) fn events(&self, revision: u64) -> &[Slot] {
        self.find(revision).map_or(&[], |(segment, at)| {
            let segment = &self.segments[segment];
            &segment.kvs[segment.range(at)]
        })
    }

    /// Takes away what a change superseded, if it is still there.
    pub(crate) fn take_prev(&mut self, heap: &Heap, revision: u64, sub: usize) -> Option<Slot> {
        let (segment, at) = self.find(revision)?;
        let segment = &mut self.segments[segment];
        let place = segment.range(at).nth(sub)?;
        let prev = segment.prev(place)?;
        segment.prevs[place] = Slot::NONE;
        segment.dead.add(&heap.view(prev));
        Some(prev)
    }

    /// A record has another slot from now on; `after` is the version after it.
    pub(crate) fn replace(&mut self, heap: &Heap, original: Slot, copy: Slot, after: Option<Slot>) {
        let revision = heap.view(copy).revision();
        if let Some((segment, place)) = self.place(revision)
            && let Some(kv) = segment.kvs.get_mut(place).filter(|kv| **kv == original)
        {
            *kv = copy;
        }
        let Some(after) = after else { return };
        if let Some((segment, place)) = self.place(heap.view(after).revision())
            && let Some(prev) = segment.prevs.get_mut(place).filter(|prev| **prev == original)
        {
            *prev = copy;
        }
    }

    /// Drops the oldest revision. Its records must be there still.
    pub(crate) fn pop_front(&mut self, heap: &Heap) {
        if self.first_revision == self.next_revision {
            return;
        }
        let at = self.first_in_segment_of(self.first_revision);
        let Some(segment) = self.segments.front_mut() else { return };
        for place in segment.range(at) {
            let gone = segment
                .prev(place)
                .into_iter()
                .chain(Some(segment.kvs[place]).filter(|kv| kv.is_tombstone()));
            gone.for_each(|slot| segment.dead.add(&heap.view(slot)));
        }
        self.first_revision += 1;
        if at + 1 == SEGMENT_REVISIONS {
            self.segments.pop_front();
            self.base_revision += SEGMENT_REVISIONS as u64;
        }
    }

    /// The segment of a kept revision, and its number within that.
    fn find(&self, revision: u64) -> Option<(usize, usize)> {
        let kept = revision >= self.first_revision && revision < self.next_revision;
        let at = kept.then(|| (revision - self.base_revision) as usize)?;
        Some((at / SEGMENT_REVISIONS, at % SEGMENT_REVISIONS))
    }

    /// The number, within its segment, of the first kept revision that shares the segment with `revision`.
    fn first_in_segment_of(&self, revision: u64) -> usize {
        let segment = (revision - self.base_revision) as usize / SEGMENT_REVISIONS;
        if segment == 0 { (self.first_revision - self.base_revision) as usize } else { 0 }
    }

    fn place(&mut self, revision: Revision) -> Option<(&mut Segment, usize)> {
        let (segment, at) = self.find(revision.main)?;
        let segment = &mut self.segments[segment];
        let place = segment.range(at).nth(revision.sub as usize)?;
        Some((segment, place))
    }
}
