//! The keyspace: keys with all their versions since the compact revision, and the history of changes.
//!
//! Promises: a read at a revision between the compact revision and the newest sees exactly what the keys
//! were then; the tally of live records (hash, number, bytes) is exact after every change and compaction.
//! It does not judge requests (that is `txn`) and knows no leases beyond the number in each record.

use std::borrow::Cow;
use std::sync::Arc;

use crate::census::{CHUNK_KEYS_MAX, Census};
use crate::command::{RangeRequest, SortOrder, SortTarget};
use crate::heap::Slot;
use crate::history::{History, RevisionEvents, Tally};
use crate::key_index::{KeyIndex, KeyVersions};
use crate::key_range::KeyRange;
use crate::outcome::{RangeResponse, ReadError};
use crate::record::{Record, RecordRef};
use crate::revision::{REVISION_INITIAL, Revision};

/// The revision that stands for "the newest, including what the running transaction wrote".
pub(crate) const NEWEST: u64 = u64::MAX;

/// Revisions that a count at an old revision looks through; beyond, it walks the range.
const COUNT_BACK_REVISIONS_MAX: u64 = 10_000;

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Keyspace {
    pub(crate) index: KeyIndex,
    pub(crate) census: Census,
    pub(crate) history: History,
    pub(crate) revision: u64,
    pub(crate) compact_revision: u64,
    /// What that made unreachable since `history` began.
    pub(crate) dead: Tally,
    /// Revisions up to here had their superseded versions trimmed.
    pub(crate) swept_revision: u64,
    /// Every record ever put in since `history` began, dead or not.
    pub(crate) all: Tally,
}

/// A write of one key.
#[derive(Debug)]
pub(crate) struct Write<'a> {
    /// The running transaction's revision.
    pub(crate) main: u64,
    pub(crate) key: &'a [u8],
    /// `None`: keep the one there.
    pub(crate) value: Option<&'a [u8]>,
    /// `None`: keep the one there.
    pub(crate) lease: Option<i64>,
}

/// A version that a write superseded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Superseded {
    pub(crate) slot: Slot,
    pub(crate) lease: i64,
}

impl Keyspace {
    pub(crate) fn new() -> Self {
        Self {
            index: KeyIndex::default(),
            census: Census::new(CHUNK_KEYS_MAX),
            history: History::new(),
            revision: REVISION_INITIAL,
            compact_revision: 0,
            dead: Tally::default(),
            swept_revision: 0,
            all: Tally::default(),
        }
    }

    /// The tally of records that a read at an allowed revision, or a watch from one, can see.
    pub(crate) fn live(&self) -> Tally {
        self.all.minus(self.dead)
    }

    /// The newest version of `key`, if it exists.
    pub(crate) fn get(&self, key: &[u8]) -> Option<RecordRef<'_>> {
        self.index.get(key).and_then(KeyVersions::live)
    }

    /// The newest versions of the keys in a range.
    pub(crate) fn live_in<'a>(&'a self, range: KeyRange<'a>) -> impl Iterator<Item = RecordRef<'a>> {
        let keys = range.bounds().map(|bounds| self.index.range(bounds));
        keys.into_iter().flatten().filter_map(KeyVersions::live)
    }

    /// The changes from a revision on; see [`History::since`].
    pub(crate) fn since(&self, from: u64, compact_revision: u64) -> impl Iterator<Item = RevisionEvents<'_>> {
        self.history.since(&self.index.heap, from, compact_revision)
    }

    /// Writes a key and returns the version before, if it existed.
    pub(crate) fn put(&mut self, write: Write<'_>) -> Option<Superseded> {
        let place = self.index.place(write.key);
        let before = place.live();
        let value = match (write.value, before) {
            (Some(value), _) => Cow::Borrowed(value),
            // It lies where the new version will lie.
            (None, Some((_, prev))) => Cow::Owned(prev.value.to_vec()),
            (None, None) => Cow::default(),
        };
        let record = RecordRef {
            key: write.key,
            value: &value,
            create_revision: before.map_or(write.main, |(_, prev)| prev.create_revision),
            mod_revision: write.main,
            sub: self.history.next_sub(write.main),
            version: before.map_or(0, |(_, prev)| prev.version) + 1,
            lease: write.lease.or(before.map(|(_, prev)| prev.lease)).unwrap_or(0),
            hash: 0,
        };
        let record = record.hashed();
        let before = before.map(|(slot, prev)| Superseded { slot, lease: prev.lease });
        let (slot, crowded) = place.push(&record);
        if crowded {
            self.index.split(write.key);
        }
        self.all.add(&record);
        self.history.push(&self.index.heap, slot, before.map(|before| before.slot));
        if before.is_none() {
            self.census.born(write.key, &self.index);
        }
        before
    }

    /// Deletes the keys of a range, handing each one's last version to `deleted`.
    pub(crate) fn delete(&mut self, main: u64, range: KeyRange<'_>, mut deleted: impl FnMut(RecordRef<'_>)) {
        let Some(bounds) = range.bounds() else { return };
        let live = self.index.range(bounds).filter(|versions| versions.is_live());
        let live: Vec<Slot> = live.map(KeyVersions::latest).collect();
        let mut key = Vec::new();
        for prev in live {
            let last = self.index.heap.view(prev);
            key.clear();
            key.extend_from_slice(last.key);
            deleted(last);
            let revision = Revision { main, sub: self.history.next_sub(main) };
            let record = RecordRef::tombstone(&key, revision).hashed();
            let slot = self.index.push(&record);
            self.all.add(&record);
            self.census.died(&key);
            self.history.push(&self.index.heap, slot, Some(prev));
        }
    }

    /// Whether a read may name this revision; 0 stands for the newest.
    pub(crate) fn check_revision(&self, requested: u64) -> Result<(), ReadError> {
        if requested == 0 {
            return Ok(());
        }
        if requested < self.compact_revision {
            return Err(ReadError::Compacted { requested, compact_revision: self.compact_revision });
        }
        if requested > self.revision {
            return Err(ReadError::Future { requested, revision: self.revision });
        }
        Ok(())
    }

    /// Answers a range request whose revision was checked. `revision` goes into the response.
    pub(crate) fn range(&self, request: &RangeRequest, revision: u64) -> RangeResponse {
        let at = if request.revision == 0 { NEWEST } else { request.revision };
        let mut response = RangeResponse { revision, ..RangeResponse::default() };
        let Some(bounds) = KeyRange::of(&request.key, &request.range_end).bounds() else {
            return response;
        };
        let limit = if request.limit == 0 { u64::MAX } else { request.limit };
        if let Some(response) = self.page(request, at, revision) {
            return response;
        }
        // In key order, the first `limit` matches are the result; otherwise all must be seen first.
        let key_order = request.sort_target == SortTarget::Key && request.sort_order != SortOrder::Descend;
        let mut found = Vec::new();
        for versions in self.index.range(bounds) {
            let Some(record) = versions.at(at) else { continue };
            response.count += 1;
            if request.count_only || !within_bounds(request, &record) {
                continue;
            }
            if key_order && found.len() as u64 >= limit {
                response.more = true;
            } else {
                found.push(record);
            }
        }
        if !key_order {
            sort(&mut found, request);
            response.more = found.len() as u64 > limit;
            found.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        }
        response.kvs = found.into_iter().map(|record| copy(record, request)).collect();
        response
    }

    /// Answers a request for a count, or for the first keys of a range, without walking all of it; `None`
    /// when that cannot be done.
    fn page(&self, request: &RangeRequest, at: u64, revision: u64) -> Option<RangeResponse> {
        let key_order = request.sort_target == SortTarget::Key && request.sort_order != SortOrder::Descend;
        let is_page = request.count_only || (key_order && request.limit > 0);
        if !is_page || is_bounded(request) || !self.can_count(request.revision) {
            return None;
        }
        let range = KeyRange::of(&request.key, &request.range_end);
        let mut kvs = Vec::new();
        let mut cut = request.count_only;
        if !request.count_only {
            for versions in self.index.range(range.bounds()?) {
                cut = kvs.len() as u64 == request.limit;
                if cut {
                    break;
                }
                kvs.extend(versions.at(at).map(|record| copy(record, request)));
            }
        }
        let count = if cut { self.count(range, request.revision) } else { kvs.len() as u64 };
        let more = !request.count_only && count > kvs.len() as u64;
        Some(RangeResponse { revision, count, more, kvs })
    }

    /// Whether `count` is cheap at a revision: not much has changed since.
    fn can_count(&self, revision: u64) -> bool {
        revision == 0 || self.history.next_revision() - revision <= COUNT_BACK_REVISIONS_MAX
    }

    /// Live keys in a range at a revision (0: the newest): those of now, less what came since, and what went.
    fn count(&self, range: KeyRange<'_>, revision: u64) -> u64 {
        let now = self.census.count(range, &self.index);
        if revision == 0 {
            return now;
        }
        let later = self.since(revision + 1, 0).flat_map(|events| events.records());
        // On the way it may fall below zero: a key that is gone by now is taken away before it is given back.
        later.filter(|kv| range.contains(kv.key)).fold(now, |count, kv| match kv.version {
            0 => count.wrapping_add(1),
            1 => count.wrapping_sub(1),
            _ => count,
        })
    }
}

fn is_bounded(request: &RangeRequest) -> bool {
    let RangeRequest { min_mod_revision, max_mod_revision, .. } = request;
    let RangeRequest { min_create_revision, max_create_revision, .. } = request;
    [min_mod_revision, max_mod_revision, min_create_revision, max_create_revision]
        .into_iter()
        .any(|bound| *bound != 0)
}

/// A record for the response.
fn copy(mut record: RecordRef<'_>, request: &RangeRequest) -> Arc<Record> {
    if request.keys_only {
        record.value = &[];
    }
    record.to_record()
}

fn within_bounds(request: &RangeRequest, record: &RecordRef<'_>) -> bool {
    let within = |min: u64, max: u64, revision: u64| revision >= min && (max == 0 || revision <= max);
    within(request.min_mod_revision, request.max_mod_revision, record.mod_revision)
        && within(request.min_create_revision, request.max_create_revision, record.create_revision)
}

/// Sorts records that are in ascending key order.
fn sort(kvs: &mut [RecordRef<'_>], request: &RangeRequest) {
    match request.sort_target {
        SortTarget::Key => {}
        SortTarget::Version => kvs.sort_by_key(|record| record.version),
        SortTarget::CreateRevision => kvs.sort_by_key(|record| record.create_revision),
        SortTarget::ModRevision => kvs.sort_by_key(|record| record.mod_revision),
        SortTarget::Value => kvs.sort_by(|left, right| left.value.cmp(right.value)),
    }
    if request.sort_order == SortOrder::Descend {
        kvs.reverse();
    }
}
