//! How many live keys lie in a range, without walking it.
//!
//! The key space is cut into chunks of at most so many live keys, each with its count. A range is then the
//! sum of the chunks within it and a walk through the two at its ends. A key that comes or goes costs one
//! search among the chunks; a write of a key that is there costs nothing. Chunks split when they grow too
//! large and join when they are nearly empty.
//!
//! ```text
//! chunks:  "" → 700      "pods/m" → 512      "svc/a" → 90
//!          [keys before "pods/m")            [keys from "svc/a" on)
//! ```

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::key_index::{KeyIndex, KeyVersions};
use crate::key_range::KeyRange;

/// Live keys of one chunk, at most: a count walks through twice as many at worst.
pub(crate) const CHUNK_KEYS_MAX: usize = 1024;

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Census {
    /// By the first key that may lie in the chunk. The first chunk begins with the empty key.
    chunks: BTreeMap<Box<[u8]>, usize>,
    keys_max: usize,
}

impl Census {
    pub(crate) fn new(keys_max: usize) -> Self {
        Self { chunks: BTreeMap::from([(Box::default(), 0)]), keys_max }
    }

    /// Counts an index anew.
    pub(crate) fn of(index: &KeyIndex) -> Self {
        let mut census = Self::new(CHUNK_KEYS_MAX);
        let (mut first, mut count): (Box<[u8]>, _) = (Box::default(), 0);
        for key in index.iter().filter(|versions| versions.is_live()) {
            // Half full, so that what comes next does not split them all.
            if count == census.keys_max / 2 {
                census.chunks.insert(std::mem::replace(&mut first, key.key().into()), count);
                count = 0;
            }
            count += 1;
        }
        census.chunks.insert(first, count);
        census
    }

    /// A key has come to life; it is in the index already.
    pub(crate) fn born(&mut self, key: &[u8], index: &KeyIndex) {
        let keys_max = self.keys_max;
        let Some((first, count)) = self.chunk_of(key) else { return };
        *count += 1;
        if *count > keys_max {
            let (first, count) = (first.into(), *count);
            self.split(first, count, index);
        }
    }

    /// A key has died.
    pub(crate) fn died(&mut self, key: &[u8]) {
        let keys_max = self.keys_max;
        let Some((first, count)) = self.chunk_of(key) else { return };
        *count -= 1;
        if *count < keys_max / 8 {
            let (first, count) = (first.to_vec(), *count);
            self.join(&first, count);
        }
    }

    /// Live keys in the range.
    pub(crate) fn count(&self, range: KeyRange<'_>, index: &KeyIndex) -> u64 {
        let (start, end) = match range {
            KeyRange::One(key) => return u64::from(index.get(key).is_some_and(KeyVersions::is_live)),
            KeyRange::Span(start, end) => (start, end),
            KeyRange::Nothing => return 0,
        };
        let within = |key: &[u8]| end.is_none_or(|end| key < end);
        let mut chunks = self
            .chunks
            .range::<[u8], _>((Bound::Excluded(start), Bound::Unbounded))
            .take_while(|(first, _)| within(first))
            .peekable();
        let Some((first, _)) = chunks.peek() else { return walk(index, start, end) };
        let mut count = walk(index, start, Some(first));
        while let Some((first, keys)) = chunks.next() {
            let whole = chunks.peek().is_some() || end.is_none();
            count += if whole { *keys as u64 } else { walk(index, first, end) };
        }
        count
    }

    fn chunk_of(&mut self, key: &[u8]) -> Option<(&[u8], &mut usize)> {
        let chunk = self.chunks.range_mut::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        chunk.map(|(first, count)| (first.as_ref(), count))
    }

    fn split(&mut self, first: Box<[u8]>, count: usize, index: &KeyIndex) {
        let half = count / 2;
        let from = (Bound::Included(first.as_ref()), Bound::Unbounded);
        let mut live = index.range(from).filter(|versions| versions.is_live());
        if let Some(middle) = live.nth(half) {
            self.chunks.insert(middle.key().into(), count - half);
            self.chunks.insert(first, half);
        }
    }

    fn join(&mut self, first: &[u8], count: usize) {
        let before = (Bound::Unbounded, Bound::Excluded(first));
        if let Some((_, keys)) = self.chunks.range_mut::<[u8], _>(before).next_back()
            && *keys + count <= self.keys_max / 2
        {
            *keys += count;
            self.chunks.remove(first);
        }
    }
}

fn walk(index: &KeyIndex, start: &[u8], end: Option<&[u8]>) -> u64 {
    let end = end.map_or(Bound::Unbounded, Bound::Excluded);
    let keys = index.range((Bound::Included(start), end));
    keys.filter(|versions| versions.is_live()).count() as u64
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::mvcc::{Keyspace, Write};

    fn key() -> impl Strategy<Value = Vec<u8>> {
        vec(0u8..6, 1..4)
    }

    proptest! {
        #[test]
        fn it_counts_as_a_walk_does(
            changes in vec((key(), any::<bool>()), 0..300),
            ranges in vec((key(), key()), 10),
        ) {
            let mut keyspace = Keyspace::new();
            keyspace.census = Census::new(8);
            for (main, (key, put)) in (2..).zip(&changes) {
                if *put {
                    keyspace.put(Write { main, key, value: Some(b""), lease: None });
                } else {
                    keyspace.delete(main, KeyRange::Span(key, None), |_| {});
                    // Only changes make revisions.
                    keyspace.put(Write { main, key: b"\x09", value: Some(b""), lease: None });
                }
                keyspace.revision = main;
            }
            let ranges = ranges.iter().map(|(key, end)| KeyRange::of(key, end));
            let open = [KeyRange::Span(b"", None), KeyRange::Span(b"\x02", None), KeyRange::One(b"\x09")];
            let anew = Census::of(&keyspace.index);
            for range in ranges.chain(open) {
                let expected = keyspace.live_in(range).count() as u64;
                prop_assert_eq!(keyspace.census.count(range, &keyspace.index), expected, "{:?}", range);
                prop_assert_eq!(anew.count(range, &keyspace.index), expected, "{:?}", range);
            }
            let sizes = keyspace.census.chunks.values();
            prop_assert!(sizes.clone().all(|keys| *keys <= 8), "{:?}", keyspace.census);
            prop_assert_eq!(sizes.sum::<usize>() as u64, walk(&keyspace.index, b"", None));
        }
    }
}
