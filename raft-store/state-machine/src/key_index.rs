//! Every key with its versions, in key order.
//!
//! Keys lie in chunks, each a sorted list of eight bytes for each key: the [`Slot`] of its newest version, whose bytes
//! in the [`Heap`] hold the key itself; or, where there are older versions, the number of a list of all. Counting and
//! skipping keys at the newest revision touches no record. Versions that compaction made unreachable may
//! still lie here until they are trimmed; no read at an allowed revision sees them.
//!
//! ```text
//! chunks:  "" → [a, b, c…]      "pods/m" → [pods/m3, …]      at most CHUNK_KEYS_MAX keys each
//! ```

use std::collections::{BTreeMap, VecDeque, btree_map};
use std::ops::Bound;

use crate::heap::{Heap, Slot};
use crate::record::RecordRef;

/// Keys of a chunk, at most. With one more, for the moment before it is split, it fills its allocation.
const CHUNK_KEYS_MAX: usize = 127;

/// A chunk with fewer keys joins the one before if that has room.
const CHUNK_KEYS_MIN: usize = CHUNK_KEYS_MAX / 8;

/// Marks an entry that is the number of a list; it is no slot then.
const LISTED: u64 = 1 << 62;

/// A key: see the module's head. In either case it says whether the newest version is a tombstone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    fn alone(slot: Slot) -> Self {
        Self(slot.bits())
    }

    fn listed(number: usize, latest: Slot) -> Self {
        Self(number as u64 | LISTED | latest.tombstone_bit())
    }

    fn list(self) -> Option<usize> {
        (self.0 & LISTED != 0).then_some(self.0 as u32 as usize)
    }

    fn is_live(self) -> bool {
        // Lists carry the flag at the same place.
        !Slot::from_bits(self.0).is_tombstone()
    }
}

/// The versions of the keys that have several, oldest first. Queues, as compaction takes from their fronts: one
/// key may have a million versions.
#[derive(Debug, Default)]
struct Lists {
    lists: Vec<VecDeque<Slot>>,
    unused: Vec<usize>,
}

impl Lists {
    fn add(&mut self, versions: VecDeque<Slot>) -> usize {
        if let Some(number) = self.unused.pop() {
            self.lists[number] = versions;
            return number;
        }
        self.lists.push(versions);
        self.lists.len() - 1
    }

    fn remove(&mut self, number: usize) {
        self.lists[number] = VecDeque::new();
        self.unused.push(number);
    }

    fn latest(&self, entry: Entry) -> Slot {
        match entry.list() {
            None => Slot::from_bits(entry.0),
            Some(number) => *self.lists[number].back().expect("a list of versions is not empty"),
        }
    }
}

/// All keys, and the records of their versions. A key stays as long as any version of it does, tombstones
/// included.
#[derive(Debug)]
pub(crate) struct KeyIndex {
    pub(crate) heap: Heap,
    /// By the first key that may lie in the chunk. The first chunk begins with the empty key.
    chunks: BTreeMap<Box<[u8]>, Vec<Entry>>,
    lists: Lists,
}

impl Default for KeyIndex {
    fn default() -> Self {
        Self {
            heap: Heap::default(),
            chunks: BTreeMap::from([(Box::default(), Vec::new())]),
            lists: Lists::default(),
        }
    }
}

impl KeyIndex {
    /// A key's versions.
    pub(crate) fn get(&self, key: &[u8]) -> Option<KeyVersions<'_>> {
        let (_, entries) =
            self.chunks.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        let at = search(&self.heap, &self.lists, entries, key).ok()?;
        Some(KeyVersions { index: self, entry: entries[at] })
    }

    /// The keys within bounds, in order.
    pub(crate) fn range<'a>(&'a self, bounds: KeyBounds<'a>) -> Keys<'a> {
        let (start, end) = bounds;
        let mut keys = Keys { index: self, chunks: Default::default(), current: [].iter(), end, done: false };
        let start_key = match start {
            Bound::Included(key) | Bound::Excluded(key) => key,
            Bound::Unbounded => &[],
        };
        let first = self.chunks.range::<[u8], _>((Bound::Unbounded, Bound::Included(start_key))).next_back();
        let Some((first, entries)) = first else { return keys };
        keys.chunks = self.chunks.range::<[u8], _>((Bound::Excluded(first.as_ref()), Bound::Unbounded));
        let skipped = match (start, search(&self.heap, &self.lists, entries, start_key)) {
            (Bound::Unbounded, _) => 0,
            (Bound::Excluded(_), Ok(at)) => at + 1,
            (_, Ok(at) | Err(at)) => at,
        };
        keys.enter(&entries[skipped..]);
        keys
    }

    /// All keys, in order.
    pub(crate) fn iter(&self) -> Keys<'_> {
        self.range((Bound::Unbounded, Bound::Unbounded))
    }

    /// Where a key is, or belongs.
    pub(crate) fn place(&mut self, key: &[u8]) -> Place<'_> {
        let Self { heap, chunks, lists } = self;
        let chunk = chunks.range_mut::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        let (_, entries) = chunk.expect("the first chunk begins with the empty key");
        let at = search(heap, lists, entries, key);
        Place { heap, lists, entries, at }
    }

    /// Writes a version that is newer than all others of its key.
    pub(crate) fn push(&mut self, record: &RecordRef<'_>) -> Slot {
        let (slot, crowded) = self.place(record.key).push(record);
        if crowded {
            self.split(record.key);
        }
        slot
    }

    /// Splits the chunk of a key that was just added.
    pub(crate) fn split(&mut self, key: &[u8]) {
        let Self { heap, chunks, lists } = self;
        let chunk = chunks.range_mut::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        let Some((_, entries)) = chunk.filter(|(_, entries)| entries.len() > CHUNK_KEYS_MAX) else { return };
        // Keys that come in order leave full chunks behind.
        let added_last = entries.last().is_some_and(|last| heap.key(lists.latest(*last)) == key);
        let at = if added_last { entries.len() - 1 } else { entries.len() / 2 };
        let upper = entries.split_off(at);
        let first = heap.key(lists.latest(upper[0])).into();
        chunks.insert(first, upper);
    }

    /// Adds a key greater than all others, with its versions, oldest first, of which there is at least one.
    pub(crate) fn append(&mut self, versions: &[Slot]) {
        let Some(latest) = versions.last().copied() else { return };
        let entry = match versions {
            [_] => Entry::alone(latest),
            _ => Entry::listed(self.lists.add(versions.iter().copied().collect()), latest),
        };
        match self.chunks.last_entry() {
            Some(mut chunk) if chunk.get().len() < CHUNK_KEYS_MAX => chunk.get_mut().push(entry),
            _ => {
                let mut entries = Vec::with_capacity(CHUNK_KEYS_MAX + 1);
                entries.push(entry);
                self.chunks.insert(self.heap.key(latest).into(), entries);
            }
        }
    }

    /// Drops a key's versions older than `revision`. Without versions the key is gone.
    pub(crate) fn forget_before(&mut self, key: &[u8], revision: u64) {
        let Self { heap, chunks, lists } = self;
        let chunk = chunks.range_mut::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        let Some((first, entries)) = chunk else { return };
        let Ok(at) = search(heap, lists, entries, key) else { return };
        let latest = lists.latest(entries[at]);
        if let Some(number) = entries[at].list() {
            let versions = &mut lists.lists[number];
            let gone = versions.partition_point(|slot| heap.mod_revision(*slot) < revision);
            // The latest goes last, below.
            versions.drain(..gone.min(versions.len() - 1)).for_each(|slot| heap.free(slot));
            if versions.len() == 1 {
                lists.remove(number);
                entries[at] = Entry::alone(latest);
            } else if versions.capacity() > 4 * versions.len() {
                versions.shrink_to(2 * versions.len());
            }
        }
        if heap.mod_revision(latest) < revision {
            entries.remove(at);
            let crumb = (entries.len() < CHUNK_KEYS_MIN).then(|| first.clone());
            heap.free(latest);
            if let Some(first) = crumb {
                self.join(&first);
            }
        }
    }

    /// For a version that is there, the one after it: `Some(None)` for the latest.
    pub(crate) fn version_after(&self, slot: Slot) -> Option<Option<Slot>> {
        let record = self.heap.view(slot);
        let entry = self.get(record.key)?.entry;
        match entry.list() {
            None => (Slot::from_bits(entry.0) == slot).then_some(None),
            Some(number) => {
                let versions = &self.lists.lists[number];
                let at = versions.partition_point(|at| self.heap.mod_revision(*at) < record.mod_revision);
                (versions.get(at) == Some(&slot)).then(|| versions.get(at + 1).copied())
            }
        }
    }

    /// Puts the copy of a version in the place of the original.
    pub(crate) fn replace(&mut self, original: Slot, copy: Slot) {
        let Self { heap, chunks, lists } = self;
        let record = heap.view(copy);
        let bounds = (Bound::Unbounded, Bound::Included(record.key));
        let Some((_, entries)) = chunks.range_mut::<[u8], _>(bounds).next_back() else { return };
        let Ok(at) = search(heap, lists, entries, record.key) else { return };
        match entries[at].list() {
            None => entries[at] = Entry::alone(copy),
            Some(number) => {
                let versions = &mut lists.lists[number];
                let at = versions.partition_point(|at| heap.mod_revision(*at) < record.mod_revision);
                if let Some(version) = versions.get_mut(at).filter(|version| **version == original) {
                    *version = copy;
                }
            }
        }
    }

    /// Puts the few keys of a chunk to those before.
    fn join(&mut self, first: &[u8]) {
        // The first chunk stays, empty or not.
        let before = (Bound::Unbounded, Bound::Excluded(first));
        let Some((_, room)) = self.chunks.range::<[u8], _>(before).next_back() else { return };
        let few = self.chunks.get(first).map_or(0, Vec::len);
        if room.len() + few <= CHUNK_KEYS_MAX / 2 || few == 0 {
            let entries = self.chunks.remove(first).unwrap_or_default();
            let before = (Bound::Unbounded, Bound::Excluded(first));
            if let Some((_, room)) = self.chunks.range_mut::<[u8], _>(before).next_back() {
                room.extend(entries);
            }
        }
    }
}

fn search(heap: &Heap, lists: &Lists, entries: &[Entry], key: &[u8]) -> Result<usize, usize> {
    entries.binary_search_by(|entry| heap.key(lists.latest(*entry)).cmp(key))
}

/// Where a key is, or belongs.
pub(crate) struct Place<'a> {
    heap: &'a mut Heap,
    lists: &'a mut Lists,
    entries: &'a mut Vec<Entry>,
    at: Result<usize, usize>,
}

impl Place<'_> {
    /// The newest version, unless it is a tombstone.
    pub(crate) fn live(&self) -> Option<(Slot, RecordRef<'_>)> {
        let entry = self.entries[self.at.ok()?];
        let latest = self.lists.latest(entry);
        entry.is_live().then(|| (latest, self.heap.view(latest)))
    }

    /// Writes a version, newer than all others, and says whether the chunk is to be split.
    pub(crate) fn push(self, record: &RecordRef<'_>) -> (Slot, bool) {
        let Self { heap, lists, entries, at } = self;
        let slot = heap.push(record);
        match at {
            Err(at) => entries.insert(at, Entry::alone(slot)),
            Ok(at) => {
                let number = entries[at].list().unwrap_or_else(|| {
                    let mut versions = VecDeque::with_capacity(2);
                    versions.push_back(Slot::from_bits(entries[at].0));
                    lists.add(versions)
                });
                lists.lists[number].push_back(slot);
                entries[at] = Entry::listed(number, slot);
            }
        }
        (slot, entries.len() > CHUNK_KEYS_MAX)
    }
}

/// The versions of one key, of which there is at least one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyVersions<'a> {
    index: &'a KeyIndex,
    entry: Entry,
}

impl<'a> KeyVersions<'a> {
    pub(crate) fn key(self) -> &'a [u8] {
        self.index.heap.key(self.latest())
    }

    /// Whether the newest version is no tombstone.
    pub(crate) fn is_live(self) -> bool {
        self.entry.is_live()
    }

    /// The newest version, unless it is a tombstone.
    pub(crate) fn live(self) -> Option<RecordRef<'a>> {
        self.is_live().then(|| self.index.heap.view(self.latest()))
    }

    /// The newest version.
    pub(crate) fn latest(self) -> Slot {
        self.index.lists.latest(self.entry)
    }

    /// The version that a read at `revision` sees.
    pub(crate) fn at(self, revision: u64) -> Option<RecordRef<'a>> {
        let heap = &self.index.heap;
        let slot = if revision == u64::MAX || heap.mod_revision(self.latest()) <= revision {
            self.latest()
        } else {
            let versions = &self.index.lists.lists[self.entry.list()?];
            let visible = versions.partition_point(|slot| heap.mod_revision(*slot) <= revision);
            versions[visible.checked_sub(1)?]
        };
        (!slot.is_tombstone()).then(|| heap.view(slot))
    }

    /// The versions that stand after a compaction at `compact_revision`: all newer ones, and the newest of
    /// the rest unless it is a tombstone from before that revision.
    pub(crate) fn versions_since(self, compact_revision: u64) -> impl Iterator<Item = RecordRef<'a>> {
        let heap = &self.index.heap;
        let older = self.entry.list().map(|number| &self.index.lists.lists[number]);
        let first = older.map_or(0, |versions| {
            versions.partition_point(|slot| heap.mod_revision(*slot) <= compact_revision).saturating_sub(1)
        });
        let alone = older.is_none().then(|| self.latest());
        let versions = older.into_iter().flat_map(move |versions| versions.range(first..).copied());
        versions
            .chain(alone)
            .map(|slot| heap.view(slot))
            .filter(move |record| !record.is_tombstone() || record.mod_revision >= compact_revision)
    }
}

/// Keys in order.
#[derive(Debug)]
pub(crate) struct Keys<'a> {
    index: &'a KeyIndex,
    chunks: btree_map::Range<'a, Box<[u8]>, Vec<Entry>>,
    current: std::slice::Iter<'a, Entry>,
    end: Bound<&'a [u8]>,
    done: bool,
}

impl<'a> Keys<'a> {
    /// Goes on with the keys of a chunk, up to the end.
    fn enter(&mut self, entries: &'a [Entry]) {
        let KeyIndex { heap, lists, .. } = self.index;
        let key = |entry: &Entry| heap.key(lists.latest(*entry));
        let within = |key: &[u8]| match self.end {
            Bound::Included(end) => key <= end,
            Bound::Excluded(end) => key < end,
            Bound::Unbounded => true,
        };
        let whole =
            matches!(self.end, Bound::Unbounded) || entries.last().is_none_or(|last| within(key(last)));
        let entries = if whole { entries } else { &entries[..entries.partition_point(|e| within(key(e)))] };
        self.done = !whole;
        self.current = entries.iter();
    }
}

impl<'a> Iterator for Keys<'a> {
    type Item = KeyVersions<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.current.next() {
                return Some(KeyVersions { index: self.index, entry: *entry });
            }
            if self.done {
                return None;
            }
            let (_, entries) = self.chunks.next()?;
            self.enter(entries);
        }
    }
}

/// Bounds for a map's `range`.
pub(crate) type KeyBounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// The keys that a request's `key` and `range_end` name, as etcd reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyRange<'a> {
    /// Exactly this key.
    One(&'a [u8]),
    /// From the first on, to before the second if there is one. Not empty.
    Span(&'a [u8], Option<&'a [u8]>),
    /// No key can match.
    Nothing,
}

impl<'a> KeyRange<'a> {
    pub(crate) fn of(key: &'a [u8], range_end: &'a [u8]) -> Self {
        match range_end {
            [] => Self::One(key),
            [0] => Self::Span(key, None),
            end if end > key => Self::Span(key, Some(end)),
            _ => Self::Nothing,
        }
    }

    /// Whether the key is one of them.
    pub(crate) fn contains(self, key: &[u8]) -> bool {
        match self {
            Self::One(one) => key == one,
            Self::Span(start, end) => key >= start && end.is_none_or(|end| key < end),
            Self::Nothing => false,
        }
    }

    /// `None` when nothing can match.
    pub(crate) fn bounds(self) -> Option<KeyBounds<'a>> {
        match self {
            Self::One(key) => Some((Bound::Included(key), Bound::Included(key))),
            Self::Span(key, Some(end)) => Some((Bound::Included(key), Bound::Excluded(end))),
            Self::Span(key, None) => Some((Bound::Included(key), Bound::Unbounded)),
            Self::Nothing => None,
        }
    }
}
