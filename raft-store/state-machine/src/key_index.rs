//! Every key with its versions, in key order.
//!
//! Keys lie in chunks, each a sorted list of eight bytes for each key: the [`Slot`] of its newest version, whose bytes
//! in the [`Heap`] hold the key itself; or, where there are older versions, the number of a list of all. Beside it lie
//! four bytes of the key, those after what all keys of the chunk have in common: a search looks at one or two
//! records. Counting and skipping keys at the newest revision looks at none. Versions that compaction made unreachable may
//! still lie here until they are trimmed; no read at an allowed revision sees them.
//!
//! ```text
//! chunks:  "" → [a, b, c…]      "pods/m" → [pods/m3, …]      at most CHUNK_KEYS_MAX keys each
//! ```

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque, btree_map};
use std::ops::Bound;

use crate::heap::{Heap, Slot};
use crate::key_range::KeyBounds;
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

/// Some keys that follow each other.
#[derive(Debug, Default)]
struct Chunk {
    /// So many bytes of the chunk's first possible key are those of every key in it.
    common: usize,
    /// What follows these bytes in each key.
    heads: Vec<u32>,
    entries: Vec<Entry>,
}

impl Chunk {
    /// Where the key is, or belongs. `first` is the first key that may lie in the chunk.
    fn search(&self, first: &[u8], key: &[u8], heap: &Heap, lists: &Lists) -> Result<usize, usize> {
        match key[..self.common.min(key.len())].cmp(&first[..self.common]) {
            Ordering::Less => return Err(0),
            Ordering::Greater => return Err(self.entries.len()),
            Ordering::Equal => {}
        }
        let head = head(key, self.common);
        let start = self.heads.partition_point(|other| *other < head);
        let alike = self.heads[start..].partition_point(|other| *other == head);
        let found = self.entries[start..start + alike]
            .binary_search_by(|entry| heap.key(lists.latest(*entry)).cmp(key));
        found.map(|at| start + at).map_err(|at| start + at)
    }

    /// `at` is where the key belongs.
    fn insert(&mut self, at: usize, entry: Entry, first: &[u8], heap: &Heap, lists: &Lists) {
        let key = heap.key(lists.latest(entry));
        if self.entries.is_empty() {
            self.common = common(first, key);
        }
        self.entries.insert(at, entry);
        if key.starts_with(&first[..self.common]) {
            self.heads.insert(at, head(key, self.common));
        } else {
            self.renew(first, heap, lists);
        }
    }

    fn remove(&mut self, at: usize) {
        self.entries.remove(at);
        self.heads.remove(at);
    }

    /// Finds out anew what the keys have in common.
    fn renew(&mut self, first: &[u8], heap: &Heap, lists: &Lists) {
        let key = |entry: &Entry| heap.key(lists.latest(*entry));
        // The keys are in order: what the first and the last have in common, all have.
        let ends = [self.entries.first(), self.entries.last()];
        self.common = ends.into_iter().flatten().map(|entry| common(first, key(entry))).min().unwrap_or(0);
        self.heads.clear();
        self.heads.extend(self.entries.iter().map(|entry| head(key(entry), self.common)));
    }
}

/// How many bytes two keys begin with alike.
fn common(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

/// Four bytes of a key, in an order that never contradicts that of the keys.
fn head(key: &[u8], common: usize) -> u32 {
    let rest = &key[common..];
    match rest.first_chunk::<4>() {
        Some(head) => u32::from_be_bytes(*head),
        None => rest.iter().enumerate().fold(0, |head, (at, byte)| head | u32::from(*byte) << (24 - 8 * at)),
    }
}

/// All keys, and the records of their versions. A key stays as long as any version of it does, tombstones
/// included.
#[derive(Debug)]
pub(crate) struct KeyIndex {
    pub(crate) heap: Heap,
    /// By the first key that may lie in the chunk. The first chunk begins with the empty key.
    chunks: BTreeMap<Box<[u8]>, Chunk>,
    lists: Lists,
}

impl Default for KeyIndex {
    fn default() -> Self {
        Self {
            heap: Heap::default(),
            chunks: BTreeMap::from([(Box::default(), Chunk::default())]),
            lists: Lists::default(),
        }
    }
}

impl KeyIndex {
    /// A key's versions.
    pub(crate) fn get(&self, key: &[u8]) -> Option<KeyVersions<'_>> {
        let chunk = self.chunks.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        let (first, chunk) = chunk?;
        let at = chunk.search(first, key, &self.heap, &self.lists).ok()?;
        Some(KeyVersions { index: self, entry: chunk.entries[at] })
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
        let Some((first, chunk)) = first else { return keys };
        keys.chunks = self.chunks.range::<[u8], _>((Bound::Excluded(first.as_ref()), Bound::Unbounded));
        let skipped = match (start, chunk.search(first, start_key, &self.heap, &self.lists)) {
            (Bound::Unbounded, _) => 0,
            (Bound::Excluded(_), Ok(at)) => at + 1,
            (_, Ok(at) | Err(at)) => at,
        };
        keys.enter(&chunk.entries[skipped..]);
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
        let (first, chunk) = chunk.expect("the first chunk begins with the empty key");
        let at = chunk.search(first, key, heap, lists);
        Place { heap, lists, first, chunk, at }
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
        let Some((lower_first, lower)) = chunk.filter(|(_, chunk)| chunk.entries.len() > CHUNK_KEYS_MAX)
        else {
            return;
        };
        // Keys that come in order leave full chunks behind.
        let added_last = lower.entries.last().is_some_and(|last| heap.key(lists.latest(*last)) == key);
        let at = if added_last { lower.entries.len() - 1 } else { lower.entries.len() / 2 };
        let mut upper = Chunk { entries: lower.entries.split_off(at), ..Chunk::default() };
        let first: Box<[u8]> = heap.key(lists.latest(upper.entries[0])).into();
        lower.renew(lower_first, heap, lists);
        upper.renew(&first, heap, lists);
        chunks.insert(first, upper);
    }

    /// Adds a key greater than all others, with its versions, oldest first, of which there is at least one.
    pub(crate) fn append(&mut self, versions: &[Slot]) {
        let Some(latest) = versions.last().copied() else { return };
        let entry = match versions {
            [_] => Entry::alone(latest),
            _ => Entry::listed(self.lists.add(versions.iter().copied().collect()), latest),
        };
        if let Some((first, chunk)) = self.chunks.range_mut::<[u8], _>(..).next_back()
            && chunk.entries.len() < CHUNK_KEYS_MAX
        {
            chunk.insert(chunk.entries.len(), entry, first, &self.heap, &self.lists);
            return;
        }
        let (entries, heads) =
            (Vec::with_capacity(CHUNK_KEYS_MAX + 1), Vec::with_capacity(CHUNK_KEYS_MAX + 1));
        let mut chunk = Chunk { common: 0, heads, entries };
        let first: Box<[u8]> = self.heap.key(latest).into();
        chunk.insert(0, entry, &first, &self.heap, &self.lists);
        self.chunks.insert(first, chunk);
    }

    /// Drops a key's versions older than `revision`. Without versions the key is gone.
    pub(crate) fn forget_before(&mut self, key: &[u8], revision: u64) {
        let Self { heap, chunks, lists } = self;
        let chunk = chunks.range_mut::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        let Some((first, chunk)) = chunk else { return };
        let Ok(at) = chunk.search(first, key, heap, lists) else { return };
        let entries = &mut chunk.entries;
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
            chunk.remove(at);
            let crumb = (chunk.entries.len() < CHUNK_KEYS_MIN).then(|| first.clone());
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
        let Some((first, chunk)) = chunks.range_mut::<[u8], _>(bounds).next_back() else { return };
        let Ok(at) = chunk.search(first, record.key, heap, lists) else { return };
        let entries = &mut chunk.entries;
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
        let few = self.chunks.get(first).map_or(0, |chunk| chunk.entries.len());
        if room.entries.len() + few <= CHUNK_KEYS_MAX / 2 || few == 0 {
            let chunk = self.chunks.remove(first).unwrap_or_default();
            let before = (Bound::Unbounded, Bound::Excluded(first));
            if let Some((first, room)) = self.chunks.range_mut::<[u8], _>(before).next_back() {
                room.entries.extend(chunk.entries);
                room.renew(first, &self.heap, &self.lists);
            }
        }
    }
}

/// Where a key is, or belongs.
pub(crate) struct Place<'a> {
    heap: &'a mut Heap,
    lists: &'a mut Lists,
    first: &'a [u8],
    chunk: &'a mut Chunk,
    at: Result<usize, usize>,
}

impl Place<'_> {
    /// The newest version, unless it is a tombstone.
    pub(crate) fn live(&self) -> Option<(Slot, RecordRef<'_>)> {
        let entry = self.chunk.entries[self.at.ok()?];
        let latest = self.lists.latest(entry);
        entry.is_live().then(|| (latest, self.heap.view(latest)))
    }

    /// Writes a version, newer than all others, and says whether the chunk is to be split.
    pub(crate) fn push(self, record: &RecordRef<'_>) -> (Slot, bool) {
        let Self { heap, lists, first, chunk, at } = self;
        let slot = heap.push(record);
        match at {
            Err(at) => chunk.insert(at, Entry::alone(slot), first, heap, lists),
            Ok(at) => {
                let entries = &mut chunk.entries;
                let number = entries[at].list().unwrap_or_else(|| {
                    let mut versions = VecDeque::with_capacity(2);
                    versions.push_back(Slot::from_bits(entries[at].0));
                    lists.add(versions)
                });
                lists.lists[number].push_back(slot);
                entries[at] = Entry::listed(number, slot);
            }
        }
        (slot, chunk.entries.len() > CHUNK_KEYS_MAX)
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
    chunks: btree_map::Range<'a, Box<[u8]>, Chunk>,
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
            let (_, chunk) = self.chunks.next()?;
            self.enter(&chunk.entries);
        }
    }
}
