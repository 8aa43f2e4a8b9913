//! The keyspace: keys with all their versions since the compact revision, and the history of changes.
//!
//! Promises: a read at a revision between the compact revision and the newest sees exactly what the keys
//! were then; the tally of live records (hash, number, bytes) is exact after every change and compaction.
//! It does not judge requests (that is `txn`) and knows no leases beyond the number in each record.

use std::collections::btree_map::Entry;
use std::sync::Arc;

use bytes::Bytes;

use crate::census::{CHUNK_KEYS_MAX, Census};
use crate::command::{RangeRequest, SortOrder, SortTarget};
use crate::history::{Event, History, Tally};
use crate::key_index::{KeyHistory, KeyIndex, KeyRange};
use crate::outcome::{RangeResponse, ReadError};
use crate::record::{KeyValue, Record};
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
    pub(crate) value: Option<Bytes>,
    /// `None`: keep the one there.
    pub(crate) lease: Option<i64>,
}

impl Keyspace {
    pub(crate) fn new() -> Self {
        Self {
            index: KeyIndex::new(),
            census: Census::new(CHUNK_KEYS_MAX),
            history: History::new(),
            revision: REVISION_INITIAL,
            compact_revision: 0,
            swept_revision: 0,
            all: Tally::default(),
        }
    }

    /// The tally of records that a read at an allowed revision, or a watch from one, can see.
    pub(crate) fn live(&self) -> Tally {
        self.all.minus(self.history.dead_at(self.compact_revision))
    }

    /// The newest version of `key`, if it exists.
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Arc<Record>> {
        self.index.get(key).and_then(KeyHistory::live)
    }

    /// The newest versions of the keys in a range.
    pub(crate) fn live_in<'a>(&'a self, range: KeyRange<'a>) -> impl Iterator<Item = &'a Arc<Record>> {
        let keys = range.bounds().map(|bounds| self.index.range::<[u8], _>(bounds));
        keys.into_iter().flatten().filter_map(|(_, versions)| versions.live())
    }

    /// Writes a key and returns the version before, if it existed.
    pub(crate) fn put(&mut self, write: Write<'_>) -> Option<Arc<Record>> {
        let sub = self.history.next_sub(write.main);
        let mut kv = KeyValue {
            mod_revision: write.main,
            sub,
            create_revision: write.main,
            version: 1,
            lease: write.lease.unwrap_or(0),
            ..KeyValue::default()
        };
        // The key is a copy of its own, shared by all versions: the command's buffer must not live on
        // in the index when its value is long superseded.
        let prev_kv = match self.index.entry(Bytes::copy_from_slice(write.key)) {
            Entry::Vacant(vacant) => {
                kv.key = vacant.key().clone();
                kv.value = write.value.unwrap_or_default();
                let record = Arc::new(Record::new(kv));
                self.all.add(&record);
                vacant.insert(KeyHistory::new(record.clone()));
                self.history.push(Event { kv: record, prev_kv: None });
                None
            }
            Entry::Occupied(mut occupied) => {
                kv.key = occupied.key().clone();
                let versions = occupied.get_mut();
                let prev_kv = versions.live().cloned();
                if let Some(prev) = &prev_kv {
                    kv.create_revision = prev.create_revision;
                    kv.version = prev.version + 1;
                    kv.lease = write.lease.unwrap_or(prev.lease);
                }
                kv.value = match (write.value, &prev_kv) {
                    (Some(value), _) => value,
                    (None, Some(prev)) => prev.value.clone(),
                    (None, None) => Bytes::new(),
                };
                let record = Arc::new(Record::new(kv));
                self.all.add(&record);
                versions.push(record.clone());
                self.history.push(Event { kv: record, prev_kv: prev_kv.clone() });
                prev_kv
            }
        };
        if prev_kv.is_none() {
            self.census.born(write.key, &self.index);
        }
        prev_kv
    }

    /// Deletes the keys of a range, handing each one's last version to `deleted`.
    pub(crate) fn delete(&mut self, main: u64, range: KeyRange<'_>, mut deleted: impl FnMut(&Arc<Record>)) {
        let Some(bounds) = range.bounds() else { return };
        for (key, versions) in self.index.range_mut::<[u8], _>(bounds) {
            let Some(prev) = versions.live().cloned() else { continue };
            let revision = Revision { main, sub: self.history.next_sub(main) };
            let record = Arc::new(Record::new(KeyValue::tombstone(key.clone(), revision)));
            self.all.add(&record);
            versions.push(record.clone());
            self.census.died(&prev.key);
            deleted(&prev);
            self.history.push(Event { kv: record, prev_kv: Some(prev) });
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
        for (_, versions) in self.index.range::<[u8], _>(bounds) {
            if request.count_only || (key_order && response.kvs.len() as u64 >= limit) {
                if versions.is_live_at(at) {
                    response.count += 1;
                    response.more |= !request.count_only && !response.more && {
                        versions.at(at).is_some_and(|record| within_bounds(request, record))
                    };
                }
            } else if let Some(record) = versions.at(at) {
                response.count += 1;
                if within_bounds(request, record) {
                    response.kvs.push(record.clone());
                }
            }
        }
        if !key_order {
            sort(&mut response.kvs, request);
            response.more = response.kvs.len() as u64 > limit;
            response.kvs.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        }
        if request.keys_only {
            take_values(&mut response.kvs);
        }
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
            for (_, versions) in self.index.range::<[u8], _>(range.bounds()?) {
                cut = kvs.len() as u64 == request.limit;
                if cut {
                    break;
                }
                kvs.extend(versions.at(at).cloned());
            }
        }
        let count = if cut { self.count(range, request.revision) } else { kvs.len() as u64 };
        let more = !request.count_only && count > kvs.len() as u64;
        if request.keys_only {
            take_values(&mut kvs);
        }
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
        let later = self.history.since(revision + 1, 0).flat_map(|events| events.into_records());
        // On the way it may fall below zero: a key that is gone by now is taken away before it is given back.
        later.filter(|kv| range.contains(&kv.key)).fold(now, |count, kv| match kv.version {
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

fn take_values(kvs: &mut [Arc<Record>]) {
    for record in kvs {
        *record = Arc::new(Record::detached(without_value(record)));
    }
}

fn within_bounds(request: &RangeRequest, record: &Record) -> bool {
    let within = |min: u64, max: u64, revision: u64| revision >= min && (max == 0 || revision <= max);
    within(request.min_mod_revision, request.max_mod_revision, record.mod_revision)
        && within(request.min_create_revision, request.max_create_revision, record.create_revision)
}

fn without_value(record: &Record) -> KeyValue {
    KeyValue {
        key: record.key.clone(),
        value: Bytes::new(),
        create_revision: record.create_revision,
        mod_revision: record.mod_revision,
        sub: record.sub,
        version: record.version,
        lease: record.lease,
    }
}

/// Sorts records that are in ascending key order.
fn sort(kvs: &mut [Arc<Record>], request: &RangeRequest) {
    match request.sort_target {
        SortTarget::Key => {}
        SortTarget::Version => kvs.sort_by_key(|record| record.version),
        SortTarget::CreateRevision => kvs.sort_by_key(|record| record.create_revision),
        SortTarget::ModRevision => kvs.sort_by_key(|record| record.mod_revision),
        SortTarget::Value => kvs.sort_by(|left, right| left.value.cmp(&right.value)),
    }
    if request.sort_order == SortOrder::Descend {
        kvs.reverse();
    }
}
