//! What a control loop has to look at, and when.
//!
//! Owns keys with the time at which each is due. A key is in it once, however often it was added; one whose
//! turn failed comes back after a wait that doubles. Does not run anything.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use api::Status;

use crate::registry::Object;

/// The wait after a first failure of objects that others wait for.
const RETRY_MIN: Duration = Duration::from_millis(20);
/// The longest such wait.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Namespace and name of an object.
pub(super) type Key = (String, String);

/// The key of an object.
pub(super) fn key_of(object: &Object) -> Key {
    (object.namespace().to_owned(), object.name().to_owned())
}

#[derive(Debug)]
pub(super) struct WorkQueue<K = Key> {
    due: BTreeMap<K, Instant>,
    /// The next wait of keys whose last turns failed.
    waits: BTreeMap<K, Duration>,
    retry_min: Duration,
    retry_max: Duration,
}

impl Default for WorkQueue {
    fn default() -> Self {
        Self::new(RETRY_MIN, RETRY_MAX)
    }
}

impl<K: Ord + Clone + std::fmt::Debug> WorkQueue<K> {
    /// An empty queue with the wait after a first failure, and the longest.
    pub(super) fn new(retry_min: Duration, retry_max: Duration) -> Self {
        Self { due: BTreeMap::new(), waits: BTreeMap::new(), retry_min, retry_max }
    }

    /// The key is due now.
    pub(super) fn add(&mut self, key: K) {
        self.add_at(key, Instant::now());
    }

    /// The key is due then, unless it is due before.
    pub(super) fn add_at(&mut self, key: K, at: Instant) {
        let due = self.due.entry(key).or_insert(at);
        *due = (*due).min(at);
    }

    /// The key is due now, unless it waits already for whatever reason.
    pub(super) fn add_new(&mut self, key: K) {
        self.due.entry(key).or_insert_with(Instant::now);
    }

    /// The key's turn failed: it comes back, later each time.
    pub(super) fn retry(&mut self, key: K) {
        let wait = self.waits.entry(key.clone()).or_insert(self.retry_min);
        let at = Instant::now() + *wait;
        *wait = (*wait * 2).min(self.retry_max);
        self.add_at(key, at);
    }

    /// The key's turn went well.
    pub(super) fn forget(&mut self, key: &K) {
        self.waits.remove(key);
    }

    /// The key is of no interest any more.
    pub(super) fn remove(&mut self, key: &K) {
        self.due.remove(key);
        self.forget(key);
    }

    /// Notes how a key's turn ended.
    pub(super) fn ended(&mut self, key: K, outcome: Result<(), Status>) {
        match outcome {
            Ok(()) => self.forget(&key),
            Err(status) => {
                tracing::debug!(?key, %status, "looked at again");
                self.retry(key);
            }
        }
    }

    /// Takes out what is due now.
    pub(super) fn take_due(&mut self) -> BTreeSet<K> {
        let now = Instant::now();
        let taken: BTreeSet<K> =
            self.due.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        self.due.retain(|key, _| !taken.contains(key));
        taken
    }

    /// Waits until something is due. Cancelling the wait loses nothing.
    pub(super) async fn wait(&self) {
        match self.due.values().min() {
            Some(at) => tokio::time::sleep_until((*at).into()).await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_due_once_and_as_early_as_anybody_asked() {
        let key = ("n".to_owned(), "a".to_owned());
        let mut queue = WorkQueue::default();
        queue.add_at(key.clone(), Instant::now() + Duration::from_secs(60));
        assert!(queue.take_due().is_empty());
        queue.add(key.clone());
        queue.add_at(key.clone(), Instant::now() + Duration::from_secs(60));
        assert_eq!(queue.take_due().len(), 1);
        assert!(queue.take_due().is_empty());
        queue.retry(key.clone());
        queue.retry(key.clone());
        assert_eq!(queue.waits[&key], RETRY_MIN * 4);
        queue.add_new(key.clone());
        assert!(queue.take_due().is_empty(), "it waits already");
        queue.forget(&key);
        assert!(queue.waits.is_empty());
    }
}
