//! Every key with its versions, in key order.
//!
//! A [`KeyHistory`] keeps the newest version apart and its revision inline, so that counting and skipping
//! keys at the newest revision touches no record. Versions that compaction made unreachable may still lie
//! here until they are trimmed; no read at an allowed revision sees them.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::record::Record;

/// All keys. A key stays as long as any version of it does, tombstones included.
pub(crate) type KeyIndex = BTreeMap<Bytes, KeyHistory>;

/// The versions of one key, of which there is at least one.
#[derive(Debug, Clone)]
pub(crate) struct KeyHistory {
    latest: Arc<Record>,
    latest_revision: u64,
    live: bool,
    /// A queue, as compaction takes from its front: one key may have a million versions. Boxed, as most keys
    /// have one version: 8 bytes instead of 32 for each.
    #[expect(clippy::box_collection, reason = "said above")]
    older: Option<Box<VecDeque<Arc<Record>>>>,
}

impl KeyHistory {
    pub(crate) fn new(record: Arc<Record>) -> Self {
        Self {
            latest_revision: record.mod_revision,
            live: !record.is_tombstone(),
            latest: record,
            older: None,
        }
    }

    /// Adds a version newer than all others.
    pub(crate) fn push(&mut self, record: Arc<Record>) {
        self.latest_revision = record.mod_revision;
        self.live = !record.is_tombstone();
        let before = std::mem::replace(&mut self.latest, record);
        self.older.get_or_insert_default().push_back(before);
    }

    /// The newest version, unless it is a tombstone.
    pub(crate) fn live(&self) -> Option<&Arc<Record>> {
        self.live.then_some(&self.latest)
    }

    /// The newest version.
    pub(crate) fn latest(&self) -> &Arc<Record> {
        &self.latest
    }

    /// The version that a read at `revision` sees.
    pub(crate) fn at(&self, revision: u64) -> Option<&Arc<Record>> {
        if self.latest_revision <= revision {
            return self.live();
        }
        let older = self.older.as_deref()?;
        let visible = older.partition_point(|record| record.mod_revision <= revision);
        older.get(visible.checked_sub(1)?).filter(|record| !record.is_tombstone())
    }

    /// Whether a read at `revision` sees a version.
    pub(crate) fn is_live_at(&self, revision: u64) -> bool {
        if self.latest_revision <= revision { self.live } else { self.at(revision).is_some() }
    }

    /// The versions that stand after a compaction at `compact_revision`: all newer ones, and the newest of
    /// the rest unless it is a tombstone from before that revision.
    pub(crate) fn versions_since(&self, compact_revision: u64) -> impl Iterator<Item = &Arc<Record>> {
        let reachable = self.older.as_deref().map_or(0, |older| {
            older.partition_point(|record| record.mod_revision <= compact_revision).saturating_sub(1)
        });
        // With the latest itself at or before the compact revision, nothing older stands.
        let first = if self.latest_revision <= compact_revision { usize::MAX } else { reachable };
        let older = self.older.as_deref().into_iter().flatten().skip(first);
        older
            .chain(std::iter::once(&self.latest))
            .filter(move |record| !record.is_tombstone() || record.mod_revision >= compact_revision)
    }

    /// Drops versions older than `revision`, handing each to `dropped`. Returns whether none is left.
    pub(crate) fn forget_before(&mut self, revision: u64, mut dropped: impl FnMut(&Arc<Record>)) -> bool {
        if let Some(older) = self.older.as_deref_mut() {
            let gone = older.partition_point(|record| record.mod_revision < revision);
            older.drain(..gone).for_each(|record| dropped(&record));
            if older.is_empty() {
                self.older = None;
            }
        }
        if self.latest_revision < revision {
            dropped(&self.latest);
            return true;
        }
        false
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
