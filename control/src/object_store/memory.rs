//! A store in memory with the semantics of the replicated one, for tests and for driving clients by hand.
//!
//! Owns every version since the last compaction, so reads at a revision, watches from a revision and their
//! `Compacted` ends behave as they do on a replica. Leadership and availability are set by the test. It
//! promises nothing about durability and has no bounds: it is not for production.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::stream;
use tokio::sync::watch;

use super::{
    Condition, Consistency, Error, Leadership, ListRequest, Listing, Mutation, ObjectStore, StoredObject,
    Transaction, TransactionOutcome, WatchEvent, WatchItem, WatchStream,
};

/// Most revisions that one watch item holds.
const WATCH_BATCH_REVISIONS_MAX: usize = 256;

/// The store. Clones share the same content.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    newest: watch::Sender<u64>,
    leadership: watch::Sender<Leadership>,
}

#[derive(Debug)]
struct State {
    revision: u64,
    compact_revision: u64,
    keys: BTreeMap<Bytes, Vec<Version>>,
    history: BTreeMap<u64, Vec<WatchEvent>>,
    unavailable: Option<String>,
}

#[derive(Debug, Clone)]
struct Version {
    create_revision: u64,
    mod_revision: u64,
    /// `None`: the key was deleted.
    value: Option<Bytes>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store at revision 1, led by itself in term 1.
    pub fn new() -> Self {
        let state = State {
            revision: 1,
            compact_revision: 0,
            keys: BTreeMap::new(),
            history: BTreeMap::new(),
            unavailable: None,
        };
        let leadership = Leadership { term: 1, leader: Some(1), is_self: true };
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                newest: watch::Sender::new(1),
                leadership: watch::Sender::new(leadership),
            }),
        }
    }

    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.lock().revision
    }

    /// Drops every version that no read at `revision` or later can see.
    pub fn compact(&self, revision: u64) {
        let mut state = self.lock();
        let revision = revision.min(state.revision);
        state.compact_revision = state.compact_revision.max(revision);
        state.history = state.history.split_off(&(revision + 1));
        state.keys.retain(|_, versions| {
            let visible = versions.partition_point(|version| version.mod_revision <= revision);
            let keep_from = match visible.checked_sub(1) {
                Some(last) if versions[last].value.is_none() => visible,
                Some(last) => last,
                None => 0,
            };
            versions.drain(..keep_from);
            !versions.is_empty()
        });
        drop(state);
        // Wakes watches that have fallen behind the compaction.
        self.shared.newest.send_modify(|_| {});
    }

    /// Sets who leads; a fence is compared with `leadership.term`.
    pub fn set_leadership(&self, leadership: Leadership) {
        self.shared.leadership.send_replace(leadership);
    }

    /// Makes every write and linearizable read fail with `Unavailable` (as without a quorum), or work again.
    pub fn set_unavailable(&self, reason: Option<&str>) {
        self.lock().unavailable = reason.map(str::to_owned);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn transact_now(&self, transactions: Vec<Transaction>) -> Result<Vec<TransactionOutcome>, Error> {
        let term = self.shared.leadership.borrow().term;
        let mut state = self.lock();
        if let Some(reason) = &state.unavailable {
            return Err(Error::Unavailable { reason: reason.clone() });
        }
        let outcomes =
            transactions.into_iter().map(|transaction| state.transact(transaction, term)).collect();
        let revision = state.revision;
        drop(state);
        self.shared.newest.send_if_modified(|newest| std::mem::replace(newest, revision) != revision);
        Ok(outcomes)
    }
}

impl State {
    fn current(&self, key: &Bytes) -> Option<StoredObject> {
        self.at(key, self.revision)
    }

    fn at(&self, key: &Bytes, revision: u64) -> Option<StoredObject> {
        let versions = self.keys.get(key)?;
        let visible = versions.partition_point(|version| version.mod_revision <= revision);
        let version = &versions[visible.checked_sub(1)?];
        Some(StoredObject {
            key: key.clone(),
            value: version.value.clone()?,
            create_revision: version.create_revision,
            mod_revision: version.mod_revision,
        })
    }

    fn transact(&mut self, transaction: Transaction, term: u64) -> TransactionOutcome {
        if transaction.fence.is_some_and(|fence| fence != term) {
            return TransactionOutcome::Fenced;
        }
        let holds = |condition: &Condition| match condition {
            Condition::Absent { key } => self.current(key).is_none(),
            Condition::Unchanged { key, mod_revision } => {
                self.current(key).is_some_and(|object| object.mod_revision == *mod_revision)
            }
        };
        if !transaction.conditions.iter().all(holds) {
            let current = transaction.conditions.iter().map(|condition| match condition {
                Condition::Absent { key } | Condition::Unchanged { key, .. } => self.current(key),
            });
            return TransactionOutcome::ConditionFailed { current: current.collect() };
        }
        let revision = self.revision + 1;
        let events: Vec<WatchEvent> = transaction
            .mutations
            .into_iter()
            .filter_map(|mutation| match mutation {
                Mutation::Put { key, value } => Some(self.put(key, value, revision)),
                Mutation::Delete { key } => self.delete(key, revision),
            })
            .collect();
        if !events.is_empty() {
            self.revision = revision;
            self.history.insert(revision, events);
        }
        TransactionOutcome::Committed { revision: self.revision }
    }

    fn put(&mut self, key: Bytes, value: Bytes, revision: u64) -> WatchEvent {
        let previous = self.current(&key);
        let create_revision = previous.as_ref().map_or(revision, |object| object.create_revision);
        let version = Version { create_revision, mod_revision: revision, value: Some(value.clone()) };
        self.keys.entry(key.clone()).or_default().push(version);
        let object = StoredObject { key, value, create_revision, mod_revision: revision };
        WatchEvent { object, previous, deleted: false }
    }

    fn delete(&mut self, key: Bytes, revision: u64) -> Option<WatchEvent> {
        let previous = self.current(&key)?;
        let version =
            Version { create_revision: previous.create_revision, mod_revision: revision, value: None };
        self.keys.entry(key).or_default().push(version);
        let object = StoredObject { mod_revision: revision, ..previous.clone() };
        Some(WatchEvent { object, previous: Some(previous), deleted: true })
    }

    fn readable(&self, requested: u64) -> Result<(), Error> {
        if requested < self.compact_revision {
            return Err(Error::Compacted { requested, compact_revision: self.compact_revision });
        }
        if requested > self.revision {
            return Err(Error::Future { requested, newest: self.revision });
        }
        Ok(())
    }

    fn list(&self, request: &ListRequest) -> Result<Listing, Error> {
        let revision = match request.revision {
            Some(revision) => {
                self.readable(revision)?;
                revision
            }
            None => self.revision,
        };
        let start = match &request.after {
            Some(after) => std::ops::Bound::Excluded(after.clone()),
            None => std::ops::Bound::Included(request.prefix.clone()),
        };
        let mut items = Vec::new();
        let mut remaining = 0;
        let range = self.keys.range((start, std::ops::Bound::Unbounded));
        for (key, _) in range.take_while(|(key, _)| key.starts_with(&request.prefix)) {
            let Some(object) = self.at(key, revision) else { continue };
            if request.limit.is_some_and(|limit| items.len() >= limit) {
                remaining += 1;
            } else {
                items.push(object);
            }
        }
        Ok(Listing { items, revision, remaining })
    }

    /// What a watch that has seen everything below `next` gets now, and where it stands after that.
    fn watch_step(&self, prefix: &Bytes, next: u64) -> Result<Option<(WatchItem, u64)>, Error> {
        if next <= self.compact_revision {
            return Err(Error::Compacted { requested: next, compact_revision: self.compact_revision });
        }
        if next > self.revision {
            return Ok(None);
        }
        let mut events = Vec::new();
        let mut reached = next;
        for (revision, changes) in self.history.range(next..).take(WATCH_BATCH_REVISIONS_MAX) {
            events.extend(changes.iter().filter(|change| change.object.key.starts_with(prefix)).cloned());
            reached = *revision;
        }
        let item = match events.is_empty() {
            true => WatchItem::Progress { revision: reached },
            false => WatchItem::Events(events),
        };
        Ok(Some((item, reached + 1)))
    }
}

struct Watch {
    store: MemoryStore,
    newest: watch::Receiver<u64>,
    prefix: Bytes,
    next: u64,
}

impl Watch {
    async fn step(mut self) -> Option<(Result<WatchItem, Error>, Option<Self>)> {
        loop {
            self.newest.mark_unchanged();
            let step = self.store.lock().watch_step(&self.prefix, self.next);
            match step {
                Err(error) => return Some((Err(error), None)),
                Ok(Some((item, next))) => {
                    self.next = next;
                    return Some((Ok(item), Some(self)));
                }
                Ok(None) => self.newest.changed().await.ok()?,
            }
        }
    }
}

impl ObjectStore for MemoryStore {
    async fn get(&self, key: Bytes, consistency: Consistency) -> Result<(Option<StoredObject>, u64), Error> {
        let state = self.lock();
        match &state.unavailable {
            Some(reason) if consistency == Consistency::Linearizable => {
                Err(Error::Unavailable { reason: reason.clone() })
            }
            _ => Ok((state.current(&key), state.revision)),
        }
    }

    async fn list(&self, request: ListRequest) -> Result<Listing, Error> {
        let state = self.lock();
        match &state.unavailable {
            Some(reason)
                if request.consistency == Consistency::Linearizable && request.revision.is_none() =>
            {
                Err(Error::Unavailable { reason: reason.clone() })
            }
            _ => state.list(&request),
        }
    }

    async fn transact(&self, transaction: Transaction) -> Result<TransactionOutcome, Error> {
        let mut outcomes = self.transact_now(vec![transaction])?;
        Ok(outcomes.pop().expect("one transaction gives one outcome"))
    }

    async fn transact_all(&self, transactions: Vec<Transaction>) -> Result<Vec<TransactionOutcome>, Error> {
        self.transact_now(transactions)
    }

    async fn watch(&self, prefix: Bytes, from_revision: u64) -> Result<WatchStream, Error> {
        let compact_revision = self.lock().compact_revision;
        if from_revision <= compact_revision {
            return Err(Error::Compacted { requested: from_revision, compact_revision });
        }
        let newest = self.shared.newest.subscribe();
        let watch = Watch { store: self.clone(), newest, prefix, next: from_revision };
        Ok(Box::pin(stream::unfold(Some(watch), |watch| async { watch?.step().await })))
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.shared.leadership.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    fn put(key: &str, value: &str) -> Transaction {
        let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
        Transaction { mutations: vec![Mutation::Put { key, value }], ..Transaction::default() }
    }

    fn list(prefix: &'static str, revision: Option<u64>) -> ListRequest {
        ListRequest {
            prefix: Bytes::from_static(prefix.as_bytes()),
            after: None,
            limit: None,
            revision,
            consistency: Consistency::Linearizable,
        }
    }

    #[tokio::test]
    async fn reads_at_a_revision_see_that_revision_until_it_is_compacted() {
        let store = MemoryStore::new();
        store.transact(put("/a/x", "1")).await.unwrap();
        store.transact(put("/a/x", "2")).await.unwrap();
        let old = store.list(list("/a/", Some(2))).await.unwrap();
        assert_eq!(old.items[0].value, "1");
        store.compact(3);
        assert!(matches!(store.list(list("/a/", Some(2))).await, Err(Error::Compacted { .. })));
        assert_eq!(store.list(list("/a/", Some(3))).await.unwrap().items[0].value, "2");
        assert!(matches!(store.list(list("/a/", Some(9))).await, Err(Error::Future { newest: 3, .. })));
    }

    #[tokio::test]
    async fn a_failed_condition_changes_nothing_and_shows_the_current_state() {
        let store = MemoryStore::new();
        store.transact(put("/a/x", "1")).await.unwrap();
        let key = Bytes::from_static(b"/a/x");
        let mut stale = put("/a/x", "2");
        stale.conditions.push(Condition::Unchanged { key: key.clone(), mod_revision: 1 });
        let TransactionOutcome::ConditionFailed { current } = store.transact(stale).await.unwrap() else {
            panic!("the condition must fail");
        };
        assert_eq!(current[0].as_ref().unwrap().mod_revision, 2);
        assert_eq!(store.revision(), 2);
        let fenced = Transaction { fence: Some(7), ..put("/a/x", "3") };
        assert_eq!(store.transact(fenced).await.unwrap(), TransactionOutcome::Fenced);
    }

    #[tokio::test]
    async fn a_watch_replays_history_then_follows_and_ends_when_compacted() {
        let store = MemoryStore::new();
        store.transact(put("/a/x", "1")).await.unwrap();
        let mut watch = store.watch(Bytes::from_static(b"/a/"), 2).await.unwrap();
        let Some(Ok(WatchItem::Events(events))) = watch.next().await else { panic!("events expected") };
        assert_eq!(events[0].object.mod_revision, 2);
        let delete = Mutation::Delete { key: Bytes::from_static(b"/a/x") };
        store.transact(Transaction { mutations: vec![delete], ..Transaction::default() }).await.unwrap();
        let Some(Ok(WatchItem::Events(events))) = watch.next().await else { panic!("events expected") };
        assert!(events[0].deleted);
        assert_eq!((events[0].object.mod_revision, &events[0].object.value[..]), (3, &b"1"[..]));
        store.transact(put("/b/y", "1")).await.unwrap();
        assert_eq!(watch.next().await, Some(Ok(WatchItem::Progress { revision: 4 })));
        store.transact(put("/a/z", "1")).await.unwrap();
        store.compact(5);
        assert!(matches!(watch.next().await, Some(Err(Error::Compacted { .. }))));
        assert_eq!(watch.next().await, None);
    }
}
