//! What a control loop has to look at, and when.
//!
//! Owns keys with the time at which each is due. A key is in it once, however often it was added; one whose
//! turn failed comes back after a wait that doubles. Does not run anything.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// The wait after a first failure.
const RETRY_MIN: Duration = Duration::from_millis(20);
/// The longest wait after failures.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Namespace and name of an object.
pub(super) type Key = (String, String);

#[derive(Debug, Default)]
pub(super) struct WorkQueue {
    due: BTreeMap<Key, Instant>,
    /// The next wait of keys whose last turns failed.
    waits: HashMap<Key, Duration>,
}

impl WorkQueue {
    /// The key is due now.
    pub(super) fn add(&mut self, key: Key) {
        self.add_at(key, Instant::now());
    }

    /// The key is due then, unless it is due before.
    pub(super) fn add_at(&mut self, key: Key, at: Instant) {
        let due = self.due.entry(key).or_insert(at);
        *due = (*due).min(at);
    }

    /// The key's turn failed: it comes back, later each time.
    pub(super) fn retry(&mut self, key: Key) {
        let wait = self.waits.entry(key.clone()).or_insert(RETRY_MIN);
        let at = Instant::now() + *wait;
        *wait = (*wait * 2).min(RETRY_MAX);
        self.add_at(key, at);
    }

    /// The key's turn went well.
    pub(super) fn forget(&mut self, key: &Key) {
        self.waits.remove(key);
    }

    /// Takes out what is due now.
    pub(super) fn take_due(&mut self) -> BTreeSet<Key> {
        let now = Instant::now();
        let taken: BTreeSet<Key> =
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
        queue.forget(&key);
        assert!(queue.waits.is_empty());
    }
}
