//! A local copy of every object of one kind, kept current by list and watch.
//!
//! Owns one task per kind and replica, the copy itself, an index over it, and the fan-out of its changes.
//! Promises: the copy moves forward only; subscribers see every change after their snapshot, in order, or
//! learn that they lagged and start again from a new snapshot; a watch that cannot go on (compacted, store
//! gone for a while) is replaced by a list whose differences are published as ordinary changes. A new
//! leader calls [`Reflector::sync`] to have everything that earlier leaders wrote.
//!
//! ```text
//!   list ──► watch ──► apply ──► copy + index ──► subscribers (bounded; who lags takes a new snapshot)
//!     ▲        │ ends                ▲
//!     └────────┘          sync: list linearizable
//! ```

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::Kind;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::object_store::{
    Consistency, Error, ListRequest, Listing, ObjectStore, StoredObject, WatchItem, WatchStream,
};
use crate::registry::{Object, keys};

/// How many changes a subscriber may lag behind before it has to take a new snapshot.
const SUBSCRIBER_LAG_MAX: usize = 4096;
/// The wait after a failed list or watch; it doubles up to the maximum.
const RETRY_MIN: Duration = Duration::from_millis(50);
/// The longest such wait.
const RETRY_MAX: Duration = Duration::from_secs(2);

/// A change of the copy.
#[derive(Debug, Clone)]
pub enum Delta {
    /// The object appeared or changed.
    Applied(Arc<Object>),
    /// The object is gone; this is how it last was.
    Deleted(Arc<Object>),
}

impl Delta {
    /// The object that changed.
    pub fn object(&self) -> &Object {
        let (Self::Applied(object) | Self::Deleted(object)) = self;
        object
    }
}

/// What an index makes of an object: under which text it is found, if any.
pub type IndexBy = fn(&Object) -> Option<String>;

/// A snapshot and what follows it.
#[derive(Debug)]
pub struct Subscription {
    /// Every object at the moment of subscribing.
    pub snapshot: Vec<Arc<Object>>,
    /// Every later change. After `Lagged`, subscribe again.
    pub deltas: broadcast::Receiver<Delta>,
}

#[derive(Debug)]
struct Entry {
    object: Arc<Object>,
    uid: String,
    indexed: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Bytes, Entry>,
    index: HashMap<String, BTreeSet<Bytes>>,
    /// Everything up to here is in the copy, because a list was made there. Older events are echoes.
    floor: u64,
    /// The newest revision in the copy, by list or by event.
    reached: u64,
}

struct Inner<S> {
    store: S,
    kind: &'static Kind,
    index_by: IndexBy,
    state: Mutex<State>,
    deltas: broadcast::Sender<Delta>,
    synced: watch::Sender<bool>,
}

/// The handle; clones share the copy.
pub struct Reflector<S> {
    inner: Arc<Inner<S>>,
}

impl<S> Clone for Reflector<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<S> std::fmt::Debug for Reflector<S> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Reflector").field("kind", &self.inner.kind.kind).finish_non_exhaustive()
    }
}

impl<S: ObjectStore + Clone> Reflector<S> {
    /// A reflector of one kind with an empty copy; [`Reflector::run`] fills it.
    pub fn new(store: S, kind: &'static Kind, index_by: IndexBy) -> Self {
        let inner = Inner {
            store,
            kind,
            index_by,
            state: Mutex::new(State::default()),
            deltas: broadcast::Sender::new(SUBSCRIBER_LAG_MAX),
            synced: watch::Sender::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The kind that is copied.
    pub fn kind(&self) -> &'static Kind {
        self.inner.kind
    }

    /// Whether both are handles of one copy.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Keeps the copy current until cancelled.
    pub async fn run(self, cancel: CancellationToken) {
        let mut wait = RETRY_MIN;
        while !cancel.is_cancelled() {
            let round = async {
                let outcome = self.round(&mut wait).await;
                tracing::debug!(kind = self.inner.kind.kind, ?outcome, "list and watch begin again");
                // A compacted watch says that we were slow, not that the store is in trouble.
                if !matches!(outcome, Err(Error::Compacted { .. })) {
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
            };
            cancel.run_until_cancelled(round).await;
        }
    }

    /// One list and the watch after it, until the watch ends.
    async fn round(&self, wait: &mut Duration) -> Result<(), Error> {
        let revision = self.relist(Consistency::Serializable).await?;
        let mut events: WatchStream = self.inner.store.watch(self.prefix(), revision + 1).await?;
        self.inner.synced.send_replace(true);
        *wait = RETRY_MIN;
        while let Some(item) = events.next().await {
            if let WatchItem::Events(changes) = item? {
                for change in changes {
                    self.apply(change.object, change.deleted);
                }
            }
        }
        Ok(())
    }

    /// Brings the copy up to everything that was acknowledged before this call, by whichever leader.
    pub async fn sync(&self) -> Result<(), Error> {
        self.relist(Consistency::Linearizable).await.map(|_| ())
    }

    async fn relist(&self, consistency: Consistency) -> Result<u64, Error> {
        let request =
            ListRequest { prefix: self.prefix(), after: None, limit: None, revision: None, consistency };
        let listing = self.inner.store.list(request).await?;
        let revision = listing.revision;
        self.replace(listing);
        Ok(revision)
    }

    fn prefix(&self) -> Bytes {
        keys::prefix(self.inner.kind, None)
    }

    /// Waits until the copy was filled for the first time.
    pub async fn wait_synced(&self) {
        let mut synced = self.inner.synced.subscribe();
        // The sender lives in `inner`, which we hold.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// One object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let key = keys::object(self.inner.kind, namespace, name);
        self.lock().entries.get(&key).map(|entry| entry.object.clone())
    }

    /// Every object.
    pub fn list(&self) -> Vec<Arc<Object>> {
        self.lock().entries.values().map(|entry| entry.object.clone()).collect()
    }

    /// Whether there is any object.
    pub fn any(&self) -> bool {
        !self.lock().entries.is_empty()
    }

    /// The objects found under a text of the index, in key order.
    pub fn indexed(&self, text: &str) -> Vec<Arc<Object>> {
        let state = self.lock();
        let keys = state.index.get(text).into_iter().flatten();
        keys.filter_map(|key| state.entries.get(key)).map(|entry| entry.object.clone()).collect()
    }

    /// The objects that the index leaves out.
    pub fn not_indexed(&self) -> Vec<Arc<Object>> {
        let state = self.lock();
        let left_out = state.entries.values().filter(|entry| entry.indexed.is_none());
        left_out.map(|entry| entry.object.clone()).collect()
    }

    /// Every text of the index.
    pub fn index_texts(&self) -> Vec<String> {
        self.lock().index.keys().cloned().collect()
    }

    /// Every object now, and every change from now on.
    pub fn subscribe(&self) -> Subscription {
        let state = self.lock();
        let snapshot = state.entries.values().map(|entry| entry.object.clone()).collect();
        Subscription { snapshot, deltas: self.inner.deltas.subscribe() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the copy equal to a list, publishing the differences.
    fn replace(&self, listing: Listing) {
        let mut state = self.lock();
        // The watch has overtaken this list: the copy holds all of it and more.
        if listing.revision < state.reached {
            return;
        }
        let listed: BTreeSet<Bytes> = listing.items.iter().map(|stored| stored.key.clone()).collect();
        let gone: Vec<Bytes> = state.entries.keys().filter(|key| !listed.contains(*key)).cloned().collect();
        for key in gone {
            self.remove(&mut state, &key);
        }
        for stored in listing.items {
            self.put(&mut state, stored);
        }
        state.floor = listing.revision;
        state.reached = listing.revision;
    }

    fn apply(&self, stored: StoredObject, deleted: bool) {
        let mut state = self.lock();
        if stored.mod_revision <= state.floor {
            return;
        }
        state.reached = state.reached.max(stored.mod_revision);
        if deleted {
            self.remove(&mut state, &stored.key);
        } else {
            self.put(&mut state, stored);
        }
    }

    fn put(&self, state: &mut State, stored: StoredObject) {
        let key = stored.key.clone();
        let known = state.entries.get(&key);
        if known.is_some_and(|entry| entry.object.revision() >= stored.mod_revision) {
            return;
        }
        let object = Arc::new(Object::new(self.inner.kind, stored));
        let uid = uid(&object);
        // Deleted and made again between two looks: subscribers must see both lives.
        if known.is_some_and(|entry| entry.uid != uid) {
            self.remove(state, &key);
        }
        let indexed = (self.inner.index_by)(&object);
        if let Some(entry) = state.entries.get(&key)
            && entry.indexed != indexed
            && let Some(text) = entry.indexed.clone()
        {
            state.unindex(&text, &key);
        }
        if let Some(text) = &indexed {
            state.index.entry(text.clone()).or_default().insert(key.clone());
        }
        state.entries.insert(key, Entry { object: object.clone(), uid, indexed });
        // Nobody listening is fine.
        let _ = self.inner.deltas.send(Delta::Applied(object));
    }

    fn remove(&self, state: &mut State, key: &Bytes) {
        let Some(entry) = state.entries.remove(key) else { return };
        if let Some(text) = &entry.indexed {
            state.unindex(text, key);
        }
        let _ = self.inner.deltas.send(Delta::Deleted(entry.object));
    }
}

impl State {
    fn unindex(&mut self, text: &str, key: &Bytes) {
        if let Some(keys) = self.index.get_mut(text) {
            keys.remove(key);
            if keys.is_empty() {
                self.index.remove(text);
            }
        }
    }
}

/// A subscription that mends itself: after a lag it subscribes again and gives the differences, so that its
/// reader sees plain changes only.
pub struct Feed<S> {
    reflector: Reflector<S>,
    deltas: broadcast::Receiver<Delta>,
    waiting: VecDeque<Delta>,
    known: HashMap<Bytes, Arc<Object>>,
}

impl<S> std::fmt::Debug for Feed<S> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Feed").field("kind", &self.reflector.inner.kind.kind).finish_non_exhaustive()
    }
}

impl<S: ObjectStore + Clone> Feed<S> {
    /// The kind that is followed.
    pub fn kind(&self) -> &'static Kind {
        self.reflector.kind()
    }

    /// Begins with everything that is there.
    pub fn new(reflector: Reflector<S>) -> Self {
        let subscription = reflector.subscribe();
        Self {
            reflector,
            deltas: subscription.deltas,
            waiting: subscription.snapshot.into_iter().map(Delta::Applied).collect(),
            known: HashMap::new(),
        }
    }

    /// The next change, if there is one now.
    pub fn try_next(&mut self) -> Option<Delta> {
        loop {
            if let Some(delta) = self.waiting.pop_front() {
                return Some(self.note(delta));
            }
            match self.deltas.try_recv() {
                Ok(delta) => self.waiting.push_back(delta),
                Err(broadcast::error::TryRecvError::Lagged(_)) => self.subscribe_again(),
                Err(_) => return None,
            }
        }
    }

    /// The next change. Cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Delta {
        loop {
            if let Some(delta) = self.waiting.pop_front() {
                return self.note(delta);
            }
            match self.deltas.recv().await {
                Ok(delta) => self.waiting.push_back(delta),
                Err(broadcast::error::RecvError::Lagged(_)) => self.subscribe_again(),
                // Cannot be: the sender lives in the reflector that we hold.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    fn note(&mut self, delta: Delta) -> Delta {
        match &delta {
            Delta::Applied(object) => self.known.insert(object.key().clone(), object.clone()),
            Delta::Deleted(object) => self.known.remove(object.key()),
        };
        delta
    }

    fn subscribe_again(&mut self) {
        let subscription = self.reflector.subscribe();
        self.deltas = subscription.deltas;
        self.waiting.clear();
        let mut gone = self.known.clone();
        let mut applied = Vec::new();
        for object in subscription.snapshot {
            match gone.remove(object.key()) {
                Some(known) if known.revision() == object.revision() => {}
                Some(known) if uid(&known) != uid(&object) => {
                    self.waiting.push_back(Delta::Deleted(known));
                    applied.push(object);
                }
                _ => applied.push(object),
            }
        }
        self.waiting.extend(gone.into_values().map(Delta::Deleted));
        self.waiting.extend(applied.into_iter().map(Delta::Applied));
    }
}

/// The object's uid, without decoding the rest.
pub(crate) fn uid(object: &Object) -> String {
    object.decode_member(&["metadata", "uid"]).unwrap_or_default()
}

/// Indexes pods by the node that they are bound to.
pub fn pod_node(object: &Object) -> Option<String> {
    object.decode_member::<String>(&["spec", "nodeName"]).filter(|name| !name.is_empty())
}

/// For kinds that need no index.
pub fn no_index(_: &Object) -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::object_store::memory::MemoryStore;
    use crate::object_store::{Mutation, Transaction};

    fn pods() -> &'static Kind {
        api::kinds::by_kind("", "v1", "Pod").expect("pods are served")
    }

    fn pod(name: &str, uid: &str, node: Option<&str>) -> Mutation {
        let mut value = json!({"metadata": {"name": name, "namespace": "d", "uid": uid}, "spec": {}});
        if let Some(node) = node {
            value["spec"]["nodeName"] = Value::from(node);
        }
        Mutation::Put { key: keys::object(pods(), "d", name), value: value.to_string().into() }
    }

    async fn write(store: &MemoryStore, mutation: Mutation) {
        let transaction = Transaction { mutations: vec![mutation], ..Transaction::default() };
        store.transact(transaction).await.expect("memory store");
    }

    fn names(objects: &[Arc<Object>]) -> Vec<String> {
        let mut names: Vec<_> = objects.iter().map(|object| object.name().to_owned()).collect();
        names.sort();
        names
    }

    async fn next(subscription: &mut Subscription) -> String {
        let delta = tokio::time::timeout(Duration::from_secs(5), subscription.deltas.recv());
        match delta.await.expect("a change in time").expect("not lagged") {
            Delta::Applied(object) => format!("+{} {}", object.name(), uid(&object)),
            Delta::Deleted(object) => format!("-{} {}", object.name(), uid(&object)),
        }
    }

    #[tokio::test]
    async fn the_copy_follows_the_store_and_its_index() {
        let store = MemoryStore::new();
        write(&store, pod("a", "1", None)).await;
        let reflector = Reflector::new(store.clone(), pods(), pod_node);
        let cancel = CancellationToken::new();
        let task = tokio::spawn(reflector.clone().run(cancel.clone()));
        reflector.wait_synced().await;
        let mut subscription = reflector.subscribe();
        assert_eq!(names(&subscription.snapshot), ["a"]);

        write(&store, pod("a", "1", Some("n1"))).await;
        write(&store, pod("b", "2", Some("n1"))).await;
        assert_eq!(next(&mut subscription).await, "+a 1");
        assert_eq!(next(&mut subscription).await, "+b 2");
        assert_eq!(names(&reflector.indexed("n1")), ["a", "b"]);

        write(&store, Mutation::Delete { key: keys::object(pods(), "d", "a") }).await;
        assert_eq!(next(&mut subscription).await, "-a 1");
        assert_eq!(names(&reflector.indexed("n1")), ["b"]);
        assert!(reflector.get("d", "a").is_none());
        cancel.cancel();
        task.await.expect("the task ends");
    }

    #[tokio::test]
    async fn a_compacted_watch_becomes_a_list_whose_differences_are_published() {
        let store = MemoryStore::new();
        for (name, uid) in [("gone", "1"), ("same", "2"), ("reborn", "3")] {
            write(&store, pod(name, uid, None)).await;
        }
        let reflector = Reflector::new(store.clone(), pods(), pod_node);
        reflector.relist(Consistency::Serializable).await.expect("memory store");
        let mut subscription = reflector.subscribe();
        // While nobody watches: one goes, one is made anew, one appears; the history is compacted.
        for name in ["gone", "reborn"] {
            write(&store, Mutation::Delete { key: keys::object(pods(), "d", name) }).await;
        }
        write(&store, pod("reborn", "4", None)).await;
        write(&store, pod("new", "5", None)).await;
        store.compact(store.revision());
        let cancel = CancellationToken::new();
        let task = tokio::spawn(reflector.clone().run(cancel.clone()));
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(next(&mut subscription).await);
        }
        seen.sort();
        assert_eq!(seen, ["+new 5", "+reborn 4", "-gone 1", "-reborn 3"]);
        cancel.cancel();
        task.await.expect("the task ends");
    }

    #[tokio::test]
    async fn a_feed_that_lagged_still_gives_every_difference() {
        let store = MemoryStore::new();
        for (name, uid) in [("gone", "1"), ("same", "2"), ("reborn", "3")] {
            write(&store, pod(name, uid, None)).await;
        }
        let reflector = Reflector::new(store.clone(), pods(), pod_node);
        reflector.sync().await.expect("memory store");
        let mut feed = Feed::new(reflector.clone());
        let mut first = 0;
        while feed.try_next().is_some() {
            first += 1;
        }
        assert_eq!(first, 3);
        write(&store, Mutation::Delete { key: keys::object(pods(), "d", "gone") }).await;
        write(&store, pod("reborn", "4", None)).await;
        // Changes of another pod push those two out of the bounded channel.
        reflector.sync().await.expect("memory store");
        for _ in 0..=SUBSCRIBER_LAG_MAX {
            write(&store, pod("busy", "5", None)).await;
            reflector.sync().await.expect("memory store");
        }
        let mut seen = Vec::new();
        while let Some(delta) = feed.try_next() {
            seen.push(match delta {
                Delta::Applied(object) => format!("+{}", uid(&object)),
                Delta::Deleted(object) => format!("-{}", uid(&object)),
            });
        }
        seen.sort();
        assert_eq!(seen, ["+4", "+5", "-1", "-3"]);
    }

    #[tokio::test]
    async fn echoes_of_what_a_list_already_gave_change_nothing() {
        let store = MemoryStore::new();
        write(&store, pod("a", "1", None)).await;
        let reflector = Reflector::new(store.clone(), pods(), pod_node);
        let old = store.get(keys::object(pods(), "d", "a"), Consistency::Serializable).await;
        let (Some(old), _) = old.expect("memory store") else { panic!("a exists") };
        write(&store, Mutation::Delete { key: keys::object(pods(), "d", "a") }).await;
        reflector.sync().await.expect("memory store");
        reflector.apply(old, false);
        assert!(reflector.list().is_empty(), "the list was newer than the event");
    }
}
