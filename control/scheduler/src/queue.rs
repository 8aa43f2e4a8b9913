//! The scheduling queue: which pod comes next, and when a pod that did not fit is tried again.
//!
//! | place | meaning | leaves by |
//! |---|---|---|
//! | gated | must not be tried | a change of the pod |
//! | active | ready to be scheduled; in the order of the profile's QueueSort | `pop` |
//! | in flight | being decided on or bound | `requeue`, `park`, `remove` |
//! | back-off | was tried; waits its time | time passing |
//! | unschedulable | fits nowhere as the cluster is | an event that can help; at the latest `unschedulable_max` |
//!
//! It holds one small entry per waiting pod of the store and grows with nothing else. Equal pods that were
//! rejected alike wait as one group, so that an event asks each plugin once per group.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::framework::Plugin;
use crate::plugins::PrioritySort;
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
    /// Held back.
    pub gated: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Gated,
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
    /// The plugins that rejected it last, as a bit set.
    rejected_by: u64,
}

/// The key of the active line: the smallest comes first.
type ActiveKey = ((i64, Duration), u64, Arc<str>);

/// Pods that one event helps alike: class and labels by their addresses (which the entries hold), and who
/// rejected them.
type Alike = (usize, usize, u64);

fn alike(entry: &Entry) -> Alike {
    let labels = Arc::as_ptr(&entry.pod.labels) as usize;
    (Arc::as_ptr(&entry.pod.class) as usize, labels, entry.rejected_by)
}

/// A pod group: namespace and name.
pub type GroupKey = (Arc<str>, Arc<str>);

/// The group that a pod is a member of.
pub(crate) fn group_of(pod: &PodInfo) -> Option<GroupKey> {
    pod.group.as_ref().map(|group| (pod.namespace.clone(), group.name.clone()))
}

/// The scheduling queue. `now` is any monotonic time, always from the same origin.
#[derive(Debug)]
pub struct Queue {
    limits: QueueLimits,
    sorter: Arc<dyn Plugin>,
    entries: HashMap<Arc<str>, Entry>,
    active: BTreeSet<ActiveKey>,
    backoff: BTreeSet<(Duration, Arc<str>)>,
    unschedulable: BTreeSet<(Duration, Arc<str>)>,
    parked: HashMap<Alike, HashSet<Arc<str>>>,
    groups: HashMap<GroupKey, BTreeSet<Arc<str>>>,
    gated: usize,
    arrivals: u64,
}

impl Queue {
    /// An empty queue in the order of priorities.
    pub fn new(limits: QueueLimits) -> Self {
        Self::sorted_by(Arc::new(PrioritySort), limits)
    }

    /// An empty queue in the order of a plugin.
    pub fn sorted_by(sorter: Arc<dyn Plugin>, limits: QueueLimits) -> Self {
        Self {
            limits,
            sorter,
            entries: HashMap::new(),
            active: BTreeSet::new(),
            backoff: BTreeSet::new(),
            unschedulable: BTreeSet::new(),
            parked: HashMap::new(),
            groups: HashMap::new(),
            gated: 0,
            arrivals: 0,
        }
    }

    /// Takes in a pod that waits for a node, or the newer version of one that already does. A change that
    /// can alter where the pod fits ends its wait for the cluster to change.
    pub fn upsert(&mut self, pod: Arc<PodInfo>, now: Duration) {
        let uid = pod.uid.clone();
        let Some(mut entry) = self.detach(&uid) else {
            return self.admit(pod, Place::Active, now);
        };
        let matters = pod.differs_for_scheduling(&entry.pod);
        entry.pod = pod;
        if entry.place == Place::Gated || (matters && entry.place == Place::Unschedulable) {
            entry.place = ready_place(&entry, now);
        }
        self.attach(uid, entry);
    }

    /// Takes in a pod that must not be tried, or takes it back from where it waits.
    pub fn hold(&mut self, pod: Arc<PodInfo>, now: Duration) {
        self.detach(&pod.uid);
        self.admit(pod, Place::Gated, now);
    }

    fn admit(&mut self, pod: Arc<PodInfo>, place: Place, now: Duration) {
        self.arrivals += 1;
        let entry = Entry {
            place,
            since: now,
            arrival: self.arrivals,
            attempts: 0,
            backoff_until: Duration::ZERO,
            rejected_by: 0,
            pod,
        };
        self.attach(entry.pod.uid.clone(), entry);
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
        let (_, _, uid) = self.active.pop_first()?;
        let entry = self.entries.get_mut(&uid)?;
        entry.place = Place::InFlight;
        entry.attempts = entry.attempts.saturating_add(1);
        Some(entry.pod.clone())
    }

    /// Takes a waiting pod out of turn; it is then in flight. `None`: it does not wait, or must not be tried.
    pub fn take(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let (uid, place) = self.entries.get_key_value(uid).map(|(uid, entry)| (uid.clone(), entry.place))?;
        if matches!(place, Place::Gated | Place::InFlight) {
            return None;
        }
        let mut entry = self.detach(&uid)?;
        entry.place = Place::InFlight;
        entry.attempts = entry.attempts.saturating_add(1);
        let pod = entry.pod.clone();
        self.attach(uid, entry);
        Some(pod)
    }

    /// The waiting members of a pod group, in the order of their arrival.
    pub fn members(&self, group: &GroupKey) -> Vec<Arc<PodInfo>> {
        let uids = self.groups.get(group).into_iter().flatten();
        let mut entries: Vec<&Entry> = uids.filter_map(|uid| self.entries.get(uid)).collect();
        entries.sort_unstable_by_key(|entry| entry.arrival);
        entries.into_iter().map(|entry| entry.pod.clone()).collect()
    }

    /// Puts an in-flight pod back: its binding failed. It is tried again after its back-off.
    pub fn requeue(&mut self, uid: &str, now: Duration) {
        self.fail(uid, Place::Backoff, 0, now);
    }

    /// Parks an in-flight pod: it fits nowhere, say the plugins in `rejected_by`.
    pub fn park(&mut self, uid: &str, rejected_by: u64, now: Duration) {
        self.fail(uid, Place::Unschedulable, rejected_by, now);
    }

    fn fail(&mut self, uid: &str, place: Place, rejected_by: u64, now: Duration) {
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

    /// The cluster changed: groups of pods of which `helps` says so (given who rejected them, and one of
    /// them) are tried again, after what is left of their back-off.
    pub fn wake(&mut self, mut helps: impl FnMut(u64, &PodInfo) -> bool, now: Duration) {
        let mut woken: Vec<Arc<str>> = Vec::new();
        for ((_, _, rejected_by), uids) in &self.parked {
            let Some(entry) = uids.iter().next().and_then(|uid| self.entries.get(uid)) else { continue };
            if helps(*rejected_by, &entry.pod) {
                woken.extend(uids.iter().cloned());
            }
        }
        for uid in woken {
            self.make_ready(uid, now);
        }
    }

    /// Something happened that concerns this very pod: it is tried again after what is left of its back-off.
    pub fn activate(&mut self, uid: &str, now: Duration) {
        if let Some((uid, entry)) = self.entries.get_key_value(uid)
            && entry.place == Place::Unschedulable
        {
            self.make_ready(uid.clone(), now);
        }
    }

    /// Whether nobody waits for the cluster to change.
    pub fn nobody_parked(&self) -> bool {
        self.parked.is_empty()
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
        let gated = self.gated;
        let in_flight = self.entries.len() - active - backoff - unschedulable - gated;
        QueueCounts { active, backoff, unschedulable, in_flight, gated }
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
        if let Some(group) = group_of(&entry.pod)
            && let Some(members) = self.groups.get_mut(&group)
        {
            members.remove(&uid);
            if members.is_empty() {
                self.groups.remove(&group);
            }
        }
        match entry.place {
            Place::Active => {
                self.active.remove(&(self.sort_key(&entry), entry.arrival, uid));
            }
            Place::Backoff => {
                self.backoff.remove(&(entry.backoff_until, uid));
            }
            Place::Unschedulable => {
                if let Some(group) = self.parked.get_mut(&alike(&entry)) {
                    group.remove(&uid);
                    if group.is_empty() {
                        self.parked.remove(&alike(&entry));
                    }
                }
                self.unschedulable.remove(&(entry.since, uid));
            }
            Place::Gated => self.gated -= 1,
            Place::InFlight => {}
        }
        Some(entry)
    }

    fn attach(&mut self, uid: Arc<str>, entry: Entry) {
        if let Some(group) = group_of(&entry.pod) {
            self.groups.entry(group).or_default().insert(uid.clone());
        }
        match entry.place {
            Place::Active => {
                self.active.insert((self.sort_key(&entry), entry.arrival, uid.clone()));
            }
            Place::Backoff => {
                self.backoff.insert((entry.backoff_until, uid.clone()));
            }
            Place::Unschedulable => {
                self.parked.entry(alike(&entry)).or_default().insert(uid.clone());
                self.unschedulable.insert((entry.since, uid.clone()));
            }
            Place::Gated => self.gated += 1,
            Place::InFlight => {}
        }
        self.entries.insert(uid, entry);
    }

    fn sort_key(&self, entry: &Entry) -> (i64, Duration) {
        let sort = self.sorter.queue_sort();
        sort.map_or((0, entry.since), |sort| sort.key(&entry.pod, entry.since))
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
        queue.wake(|by, _| by & 0b10 != 0, at(0));
        let counts = queue.counts();
        assert_eq!((counts.unschedulable, counts.backoff), (1, 1), "back-off holds even when woken");
        assert_eq!(pop(&mut queue, at(1)).as_deref(), Some("b"));
        queue.wake(|by, _| by & 0b01 != 0, at(5));
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
