//! An index of key ranges that answers "which ranges hold this key" in logarithmic time.
//!
//! Spans are kept sorted by start in an array that is also a balanced tree: the middle of every part is the
//! part's root, and knows the furthest end within the part. What is added waits in a short list until it is
//! worth sorting again, so that adding costs little on average; what is removed leaves a hole until then.

use bytes::Bytes;

/// Added spans that wait unsorted, at least; beyond that, a share of all.
const UNSORTED_MIN: usize = 32;
const UNSORTED_SHARE: usize = 8;

#[derive(Debug)]
struct Span<T> {
    start: Bytes,
    /// `None`: to the end of all keys.
    end: Option<Bytes>,
    /// `None`: removed.
    value: Option<T>,
}

impl<T> Span<T> {
    fn ends_after(&self, key: &[u8]) -> bool {
        self.end.as_ref().is_none_or(|end| end > key)
    }

    fn is(&self, start: &Bytes, end: Option<&Bytes>) -> bool {
        self.value.is_some() && self.start == *start && self.end.as_ref() == end
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Spans<T> {
    sorted: Vec<Span<T>>,
    /// For each place in `sorted`: where in the part it is the root of the span with the furthest end is.
    furthest: Vec<usize>,
    unsorted: Vec<Span<T>>,
    holes: usize,
}

impl<T> Default for Spans<T> {
    fn default() -> Self {
        Self { sorted: Vec::new(), furthest: Vec::new(), unsorted: Vec::new(), holes: 0 }
    }
}

impl<T> Spans<T> {
    /// Adds a span; the caller sees to it that it is not there yet.
    pub(super) fn insert(&mut self, start: Bytes, end: Option<Bytes>, value: T) {
        self.unsorted.push(Span { start, end, value: Some(value) });
        if self.unsorted.len() > UNSORTED_MIN + self.sorted.len() / UNSORTED_SHARE {
            self.rebuild();
        }
    }

    pub(super) fn get(&self, start: &Bytes, end: Option<&Bytes>) -> Option<&T> {
        let first = self.sorted.partition_point(|span| span.start < *start);
        let sorted = self.sorted[first..].iter().take_while(|span| span.start == *start);
        let mut found = sorted.chain(&self.unsorted).filter(|span| span.is(start, end));
        found.next().and_then(|span| span.value.as_ref())
    }

    pub(super) fn remove(&mut self, start: &Bytes, end: Option<&Bytes>) {
        if let Some(at) = self.unsorted.iter().position(|span| span.is(start, end)) {
            self.unsorted.swap_remove(at);
            return;
        }
        let first = self.sorted.partition_point(|span| span.start < *start);
        let same_start = self.sorted[first..].iter_mut().take_while(|span| span.start == *start);
        for span in same_start.filter(|span| span.is(start, end)) {
            span.value = None;
            self.holes += 1;
        }
        if self.holes > UNSORTED_MIN && self.holes > self.sorted.len() / 2 {
            self.rebuild();
        }
    }

    /// Hands over every span that holds `key`.
    pub(super) fn holding(&self, key: &[u8], mut found: impl FnMut(&T)) {
        for span in &self.unsorted {
            if span.start <= key && span.ends_after(key) {
                span.value.iter().for_each(&mut found);
            }
        }
        self.visit((0, self.sorted.len()), key, &mut found);
    }

    /// Hands over every span.
    pub(super) fn all(&self) -> impl Iterator<Item = &T> {
        self.sorted.iter().chain(&self.unsorted).filter_map(|span| span.value.as_ref())
    }

    fn visit(&self, (low, high): (usize, usize), key: &[u8], found: &mut impl FnMut(&T)) {
        if low >= high {
            return;
        }
        let root = low + (high - low) / 2;
        if !self.sorted[self.furthest[root]].ends_after(key) {
            return;
        }
        self.visit((low, root), key, found);
        let span = &self.sorted[root];
        if span.start <= key {
            if span.ends_after(key) {
                span.value.iter().for_each(&mut *found);
            }
            self.visit((root + 1, high), key, found);
        }
    }

    fn rebuild(&mut self) {
        self.sorted.append(&mut self.unsorted);
        self.sorted.retain(|span| span.value.is_some());
        self.sorted.sort_by(|left, right| left.start.cmp(&right.start));
        self.holes = 0;
        self.furthest = vec![0; self.sorted.len()];
        self.find_furthest(0, self.sorted.len());
    }

    fn find_furthest(&mut self, low: usize, high: usize) -> Option<usize> {
        if low >= high {
            return None;
        }
        let root = low + (high - low) / 2;
        let mut furthest = root;
        for part in [self.find_furthest(low, root), self.find_furthest(root + 1, high)].into_iter().flatten()
        {
            let (best, other) = (&self.sorted[furthest].end, &self.sorted[part].end);
            if best.is_some() && (other.is_none() || other > best) {
                furthest = part;
            }
        }
        self.furthest[root] = furthest;
        Some(furthest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(0_u8..4, 0..4).prop_map(Bytes::from)
    }

    proptest! {
        #[test]
        fn finds_what_a_plain_list_finds(
            spans in proptest::collection::vec((key(), proptest::option::of(key())), 0..300),
            removed in proptest::collection::vec(any::<proptest::sample::Index>(), 0..200),
            keys in proptest::collection::vec(key(), 1..20),
        ) {
            let mut index = Spans::default();
            let mut list = Vec::new();
            for (n, (start, end)) in spans.into_iter().enumerate() {
                if index.get(&start, end.as_ref()).is_none() {
                    index.insert(start.clone(), end.clone(), n);
                    list.push((start, end, n));
                }
            }
            for at in removed {
                if !list.is_empty() {
                    let (start, end, n) = list.swap_remove(at.index(list.len()));
                    prop_assert_eq!(index.get(&start, end.as_ref()), Some(&n));
                    index.remove(&start, end.as_ref());
                    prop_assert_eq!(index.get(&start, end.as_ref()), None);
                }
            }
            for key in keys {
                let mut found = Vec::new();
                index.holding(&key, |n| found.push(*n));
                found.sort_unstable();
                let holds = |start: &Bytes, end: &Option<Bytes>| *start <= key && end.as_ref().is_none_or(|end| *end > key);
                let mut expected: Vec<_> =
                    list.iter().filter(|(start, end, _)| holds(start, end)).map(|(.., n)| *n).collect();
                expected.sort_unstable();
                prop_assert_eq!(found, expected);
            }
            prop_assert_eq!(index.all().count(), list.len());
        }
    }
}
