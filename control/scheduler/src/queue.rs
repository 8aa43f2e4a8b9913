//! The scheduling queue: which pod comes next, and when a pod that did not fit is tried again.
//!
//! | place | meaning | leaves by |
//! |---|---|---|
//! | active | ready to be scheduled; highest priority first, then the longest waiting | `pop` |
//! | in flight | being decided on or bound | `requeue`, `park`, `remove` |
//! | back-off | was tried; waits its time | time passing |
//! | unschedulable | fits nowhere as the cluster is | an event that can help; at the latest `unschedulable_max` |
//!
//! It holds one small entry per waiting pod of the store and grows with nothing else.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::pod_info::PodInfo;

/// The waits of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// The wait after the first failed attempt; it doubles with each further one.
    pub backoff_initial: Duration,
    /// The longest such wait.
    pub backoff_max: Duration,
    /// A pod that fits nowhere is tried again after this time even if nothing happened.
    pub unschedulable_max: Duration,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self {
            backoff_initial: Duration::from_secs(1),
            backoff_max: Duration::from_secs(10),
            unschedulable_max: Duration::from_secs(300),
        }
    }
}

/// How many pods are where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// Ready.
    pub active: usize,
    /// Waiting out their back-off.
    pub backoff: usize,
    /// Waiting for the cluster to change.
    pub unschedulable: usize,
    /// Being scheduled or bound.
    pub in_flight: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Active,
    InFlight,
    Backoff,
    Unschedulable,
}

#[derive(Debug)]
struct Entry {
    pod: Arc<PodInfo>,
    place: Place,
    /// When the pod joined the line, or failed last.
    since: Duration,
    /// Order of arrival among equals.
    arrival: u64,
    attempts: u32,
    backoff_until: Duration,
    /// The filters that rejected it last, as a bit set.
    rejected_by: u32,
}

/// The key of the active line: the smallest comes first.
type ActiveKey = (Reverse<i32>, Duration, u64, Arc<str>);

/// The scheduling queue. `now` is any monotonic time, always from the same origin.
#[derive(Debug)]
pub struct Queue {
    limits: QueueLimits,
    entries: HashMap<Arc<str>, Entry>,
    active: BTreeSet<ActiveKey>,
    backoff: BTreeSet<(Duration, Arc<str>)>,
    unschedulable: BTreeSet<(Duration, Arc<str>)>,
    arrivals: u64,
}

impl Queue {
    /// An empty queue.
    pub fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            entries: HashMap::new(),
            active: BTreeSet::new(),
            backoff: BTreeSet::new(),
            unschedulable: BTreeSet::new(),
            arrivals: 0,
        }
    }

    /// Takes in a pod that waits for a node, or the newer version of one that already does. A change that
    /// can alter where the pod fits ends its wait for the cluster to change.
    pub fn upsert(&mut self, pod: Arc<PodInfo>, now: Duration) {
        let uid = pod.uid.clone();
        let Some(mut entry) = self.detach(&uid) else {
            self.arrivals += 1;
            let entry = Entry {
                pod,
                place: Place::Active,
                since: now,
                arrival: self.arrivals,
                attempts: 0,
                backoff_until: Duration::ZERO,
                rejected_by: 0,
            };
            return self.attach(uid, entry);
        };
        let matters = pod.differs_for_scheduling(&entry.pod);
        entry.pod = pod;
        if matters && entry.place == Place::Unschedulable {
            entry.place = ready_place(&entry, now);
        }
        self.attach(uid, entry);
    }

    /// The newest version known of a pod in the queue.
    pub fn get(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.entries.get(uid).map(|entry| &entry.pod)
    }

    /// Removes a pod wherever it is: it is bound, gone, or not ours.
    pub fn remove(&mut self, uid: &str) -> bool {
        self.detach(uid).is_some()
    }

    /// The next pod to schedule; it is then in flight.
    pub fn pop(&mut self, now: Duration) -> Option<Arc<PodInfo>> {
        self.release_due(now);
        let (_, _, _, uid) = self.active.pop_first()?;
        let entry = self.entries.get_mut(&uid)?;
        entry.place = Place::InFlight;
        entry.attempts = entry.attempts.saturating_add(1);
        Some(entry.pod.clone())
    }

    /// Puts an in-flight pod back: its binding failed. It is tried again after its back-off.
    pub fn requeue(&mut self, uid: &str, now: Duration) {
        self.fail(uid, Place::Backoff, 0, now);
    }

    /// Parks an in-flight pod: it fits nowhere, says the filters in `rejected_by`.
    pub fn park(&mut self, uid: &str, rejected_by: u32, now: Duration) {
        self.fail(uid, Place::Unschedulable, rejected_by, now);
    }

    fn fail(&mut self, uid: &str, place: Place, rejected_by: u32, now: Duration) {
        let Some(mut entry) = self.detach(uid) else { return };
        if entry.place == Place::InFlight {
            let doublings = entry.attempts.saturating_sub(1).min(16);
            let wait = self.limits.backoff_initial.saturating_mul(1 << doublings);
            entry.backoff_until = now + wait.min(self.limits.backoff_max);
            entry.since = now;
            entry.rejected_by = rejected_by;
            entry.place = place;
        }
        self.attach(Arc::from(uid), entry);
    }

    /// The cluster changed in a way that lifts rejections of the filters in `helped`: pods that one of
    /// them rejected are tried again, after what is left of their back-off.
    pub fn wake(&mut self, helped: u32, now: Duration) {
        let woken: Vec<Arc<str>> = self
            .unschedulable
            .iter()
            .filter(|(_, uid)| self.entries.get(uid).is_some_and(|entry| entry.rejected_by & helped != 0))
            .map(|(_, uid)| uid.clone())
            .collect();
        for uid in woken {
            self.make_ready(uid, now);
        }
    }

    /// When something becomes ready by time alone, if nothing is ready now.
    pub fn next_due(&self) -> Option<Duration> {
        let backoff = self.backoff.first().map(|(due, _)| *due);
        let parked = self.unschedulable.first().map(|(since, _)| *since + self.limits.unschedulable_max);
        [backoff, parked].into_iter().flatten().min()
    }

    /// Whether a pod is ready now.
    pub fn has_ready(&self, now: Duration) -> bool {
        !self.active.is_empty() || self.next_due().is_some_and(|due| due <= now)
    }

    /// How many pods are where.
    pub fn counts(&self) -> QueueCounts {
        let (active, backoff, unschedulable) =
            (self.active.len(), self.backoff.len(), self.unschedulable.len());
        let in_flight = self.entries.len() - active - backoff - unschedulable;
        QueueCounts { active, backoff, unschedulable, in_flight }
    }

    fn release_due(&mut self, now: Duration) {
        while self.backoff.first().is_some_and(|(due, _)| *due <= now) {
            let Some((_, uid)) = self.backoff.pop_first() else { break };
            self.make_ready(uid, now);
        }
        let max = self.limits.unschedulable_max;
        while self.unschedulable.first().is_some_and(|(since, _)| *since + max <= now) {
            let Some((_, uid)) = self.unschedulable.pop_first() else { break };
            self.make_ready(uid, now);
        }
    }

    fn make_ready(&mut self, uid: Arc<str>, now: Duration) {
        let Some(mut entry) = self.detach(&uid) else { return };
        entry.place = ready_place(&entry, now);
        self.attach(uid, entry);
    }

    /// Takes an entry out of its line and of the map.
    fn detach(&mut self, uid: &str) -> Option<Entry> {
        let (uid, entry) = self.entries.remove_entry(uid)?;
        match entry.place {
            Place::Active => {
                self.active.remove(&(Reverse(entry.pod.priority), entry.since, entry.arrival, uid));
            }
            Place::Backoff => {
                self.backoff.remove(&(entry.backoff_until, uid));
            }
            Place::Unschedulable => {
                self.unschedulable.remove(&(entry.since, uid));
            }
            Place::InFlight => {}
        }
        Some(entry)
    }

    fn attach(&mut self, uid: Arc<str>, entry: Entry) {
        match entry.place {
            Place::Active => {
                self.active.insert((Reverse(entry.pod.priority), entry.since, entry.arrival, uid.clone()));
            }
            Place::Backoff => {
                self.backoff.insert((entry.backoff_until, uid.clone()));
            }
            Place::Unschedulable => {
                self.unschedulable.insert((entry.since, uid.clone()));
            }
            Place::InFlight => {}
        }
        self.entries.insert(uid, entry);
    }
}

fn ready_place(entry: &Entry, now: Duration) -> Place {
    if entry.backoff_until > now { Place::Backoff } else { Place::Active }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Pod, PodSpec};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn pod(uid: &str, priority: i32) -> Arc<PodInfo> {
        let pod = Pod {
            metadata: ObjectMeta {
                uid: Some(uid.to_owned()),
                name: Some(uid.to_owned()),
                ..Default::default()
            },
            spec: Some(PodSpec { priority: Some(priority), ..Default::default() }),
            ..Default::default()
        };
        Arc::new(PodInfo::new(&pod).expect("valid pod"))
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn pop(queue: &mut Queue, now: Duration) -> Option<String> {
        queue.pop(now).map(|pod| pod.uid.to_string())
    }

    #[test]
    fn priority_first_then_first_come() {
        let mut queue = Queue::new(QueueLimits::default());
        for (uid, priority) in [("a", 0), ("b", 10), ("c", 0), ("d", 10)] {
            queue.upsert(pod(uid, priority), at(0));
        }
        queue.upsert(pod("c", 20), at(1));
        let order: Vec<_> = std::iter::from_fn(|| pop(&mut queue, at(1))).collect();
        assert_eq!(order, ["c", "b", "d", "a"]);
        assert_eq!(queue.counts().in_flight, 4);
    }

    #[test]
    fn back_off_doubles_to_its_bound() {
        let mut queue = Queue::new(QueueLimits::default());
        queue.upsert(pod("a", 0), at(0));
        let mut now = at(0);
        for wait in [1, 2, 4, 8, 10, 10] {
            assert_eq!(pop(&mut queue, now).as_deref(), Some("a"));
            queue.requeue("a", now);
            assert_eq!(queue.next_due(), Some(now + at(wait)));
            assert_eq!(pop(&mut queue, now + at(wait) - Duration::from_millis(1)), None);
            now += at(wait);
        }
    }

    #[test]
    fn events_wake_only_whom_they_help() {
        let mut queue = Queue::new(QueueLimits::default());
        for uid in ["a", "b"] {
            queue.upsert(pod(uid, 0), at(0));
            queue.pop(at(0));
        }
        queue.park("a", 0b01, at(0));
        queue.park("b", 0b10, at(0));
        queue.wake(0b10, at(0));
        let counts = queue.counts();
        assert_eq!((counts.unschedulable, counts.backoff), (1, 1), "back-off holds even when woken");
        assert_eq!(pop(&mut queue, at(1)).as_deref(), Some("b"));
        queue.wake(0b01, at(5));
        assert_eq!(pop(&mut queue, at(5)).as_deref(), Some("a"), "back-off is over: at once");
    }

    #[test]
    fn a_parked_pod_is_tried_again_in_the_end_and_when_it_changes() {
        let mut queue = Queue::new(QueueLimits::default());
        queue.upsert(pod("a", 0), at(0));
        queue.pop(at(0));
        queue.park("a", 1, at(0));
        assert_eq!(pop(&mut queue, at(299)), None);
        queue.upsert(pod("a", 0), at(299));
        assert_eq!(pop(&mut queue, at(299)), None, "nothing changed that matters");
        assert_eq!(pop(&mut queue, at(300)).as_deref(), Some("a"));
        queue.park("a", 1, at(300));
        queue.upsert(pod("a", 1), at(310));
        assert_eq!(pop(&mut queue, at(310)).as_deref(), Some("a"));
    }

    #[test]
    fn a_pod_removed_in_flight_does_not_come_back() {
        let mut queue = Queue::new(QueueLimits::default());
        queue.upsert(pod("a", 0), at(0));
        queue.pop(at(0));
        assert!(queue.remove("a"));
        queue.requeue("a", at(0));
        assert_eq!(pop(&mut queue, at(100)), None);
        assert_eq!(queue.counts(), QueueCounts::default());
    }
}
