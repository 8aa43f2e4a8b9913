//! Queue, cache and cycle together: the calls that the shell makes, in the shape of what it sees.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::cache::Cache;
use crate::cluster_event::{Change, ClusterEvent};
use crate::cycle::{Cycle, VICTIMS_LEAVE};
use crate::explain::Records;
use crate::fit_error::{Displacing, FitError};
use crate::framework::{Configuration, Framework, Permission};
use crate::outcome::Outcome;
use crate::plugins::PrioritySort;
use crate::pod_info::{InvalidPod, PodInfo, PodVolumes};
use crate::preemption::{Budget, Budgets};
use crate::queue::{GroupKey, Queue, QueueCounts, QueueLimits};
use crate::resources::InvalidQuantity;

/// What a scheduler needs to know.
#[derive(Debug)]
pub struct SchedulerConfig {
    /// The profiles. A pod belongs to the one whose name its `spec.schedulerName` is.
    pub profiles: Vec<Framework>,
    /// The waits.
    pub limits: QueueLimits,
    /// Seed of the tie-breaks.
    pub seed: u64,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self { profiles: vec![Framework::default_profile()], limits: QueueLimits::default(), seed: 0 }
    }
}

impl SchedulerConfig {
    /// What a configuration file says.
    pub fn new(configuration: &Configuration, seed: u64) -> Result<Self, crate::framework::ConfigError> {
        let profiles = configuration.frameworks(&Configuration::registry())?;
        Ok(Self { profiles, limits: configuration.limits(), seed })
    }
}

#[derive(Debug)]
pub(crate) struct Profile {
    pub(crate) framework: Framework,
    pub(crate) cycle: Cycle,
    pub(crate) gangs: bool,
}

/// A pod that a Permit plugin lets wait.
#[derive(Debug)]
struct Waiting {
    pod: Arc<PodInfo>,
    node: Arc<str>,
    deadline: Duration,
}

/// The scheduler's whole state. `now` is any monotonic time, always from the same origin.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) profiles: Vec<Profile>,
    pub(crate) queue: Queue,
    pub(crate) cache: Cache,
    budgets: Budgets,
    /// By pod for which room is being made: those who have to leave for it.
    victims: HashMap<Arc<str>, Vec<Arc<str>>>,
    /// Minimum members by pod group, as group objects say.
    pub(crate) group_minimums: HashMap<GroupKey, usize>,
    waiting: BTreeMap<Arc<str>, Waiting>,
    pub(crate) records: Records,
    pub(crate) out: std::collections::VecDeque<Outcome>,
}

impl Scheduler {
    /// A scheduler that knows nothing yet.
    pub fn new(config: SchedulerConfig) -> Self {
        let sorter = config.profiles.first().and_then(Framework::sorter);
        let profiles = config.profiles.into_iter().map(|framework| Profile {
            gangs: framework.has(crate::framework::Point::Permit, crate::plugins::Coscheduling::NAME),
            cycle: Cycle::new(config.seed),
            framework,
        });
        Self {
            profiles: profiles.collect(),
            queue: Queue::sorted_by(sorter.unwrap_or_else(|| Arc::new(PrioritySort)), config.limits),
            cache: Cache::default(),
            budgets: Budgets::default(),
            victims: HashMap::new(),
            group_minimums: HashMap::new(),
            waiting: BTreeMap::new(),
            records: Records::default(),
            out: std::collections::VecDeque::new(),
        }
    }

    /// Whether pods of this `spec.schedulerName` are ours.
    pub fn is_ours(&self, scheduler_name: &str) -> bool {
        self.profile(scheduler_name).is_some()
    }

    pub(crate) fn profile(&self, scheduler_name: &str) -> Option<usize> {
        self.profiles.iter().position(|profile| profile.framework.name() == scheduler_name)
    }

    /// A node appeared or changed.
    pub fn node_changed(&mut self, node: &Node, now: Duration) -> Result<(), InvalidQuantity> {
        let changes = self.cache.upsert_node(node)?;
        let name = node.metadata.name.as_deref().unwrap_or_default();
        for change in changes {
            self.wake(change, Some(name), None, now);
        }
        Ok(())
    }

    /// A node's object is gone.
    pub fn node_removed(&mut self, name: &str, now: Duration) {
        if self.cache.remove_node(name) {
            self.wake(Change::NodeRemoved, None, None, now);
        }
    }

    /// A namespace's labels; `None`: it is gone.
    pub fn namespace_changed(&mut self, name: &str, labels: Option<BTreeMap<String, String>>, now: Duration) {
        if self.cache.set_namespace(name, labels) {
            self.wake(Change::Namespace, None, None, now);
        }
    }

    /// The disruption budgets, all of them.
    pub fn budgets_changed(&mut self, budgets: Vec<Budget>) {
        if budgets != self.budgets.all {
            self.budgets = Budgets { all: budgets, version: self.budgets.version + 1 };
        }
    }

    /// How many members a pod group needs, as its object says; `None`: there is no such object.
    pub fn group_changed(&mut self, namespace: &str, name: &str, minimum: Option<usize>, now: Duration) {
        let key = (Arc::from(namespace), Arc::from(name));
        for member in self.queue.members(&key) {
            self.queue.activate(&member.uid, now);
        }
        match minimum {
            Some(minimum) => self.group_minimums.insert(key, minimum),
            None => self.group_minimums.remove(&key),
        };
    }

    /// A pod without volumes of its own appeared or changed. A pod that cannot be read is not scheduled.
    pub fn pod_changed(&mut self, pod: &Pod, now: Duration) -> Result<(), InvalidPod> {
        self.pod_changed_with(pod, PodVolumes::default(), now)
    }

    /// A pod appeared or changed, or what is known of its volumes did.
    pub fn pod_changed_with(
        &mut self,
        pod: &Pod,
        volumes: PodVolumes,
        now: Duration,
    ) -> Result<(), InvalidPod> {
        let info = match PodInfo::with_volumes(pod, volumes) {
            Ok(info) => self.cache.intern(info),
            Err(error) => {
                if let Some(uid) = &pod.metadata.uid {
                    self.queue.remove(uid);
                }
                return Err(error);
            }
        };
        if info.finished {
            self.pod_removed(&info.uid, now);
        } else if info.node_name.is_some() {
            self.placed(info, now);
        } else {
            self.pending(info, now);
        }
        Ok(())
    }

    fn placed(&mut self, pod: Arc<PodInfo>, now: Duration) {
        self.queue.remove(&pod.uid);
        self.victims.remove(&pod.uid);
        self.cache.end_nomination(&pod.uid);
        let placed = self.cache.place(pod.clone());
        let node = pod.node_name.as_deref();
        if placed.released {
            self.wake(Change::PodRemoved, node, Some(&pod), now);
        }
        if placed.added {
            self.wake(Change::PodAdded, node, Some(&pod), now);
        } else if placed.relabelled {
            self.wake(Change::PodLabels, node, Some(&pod), now);
        }
    }

    fn pending(&mut self, pod: Arc<PodInfo>, now: Duration) {
        let assumed = self.cache.is_assumed(&pod.uid);
        let profile = self.profile(&pod.scheduler_name).filter(|_| pod.is_pending());
        let Some(profile) = profile else {
            if !assumed {
                self.queue.remove(&pod.uid);
                self.end_nomination(&pod.uid, now);
            }
            return;
        };
        // A pod whose binding is under way stays in flight; the queue keeps its newest version.
        if assumed && self.queue.get(&pod.uid).is_none() {
            return;
        }
        if !assumed {
            self.follow_nomination(&pod, now);
        }
        let is_new = self.queue.get(&pod.uid).is_none();
        match self.profiles[profile].framework.pre_enqueue(&pod) {
            Ok(()) => {
                self.queue.upsert(pod.clone(), now);
                if is_new {
                    self.wake_group(&pod, now);
                }
            }
            Err(_) if assumed => {}
            Err(_) => self.queue.hold(pod, now),
        }
    }

    /// Room that another leader keeps for a pod, or does not keep any more, as the pod's status says.
    fn follow_nomination(&mut self, pod: &Arc<PodInfo>, now: Duration) {
        let before = self.queue.get(&pod.uid).map(|known| known.nominated_node.clone());
        match (&pod.nominated_node, before) {
            (new, Some(old)) if *new == old => {}
            (Some(node), _) => self.cache.nominate(pod.clone(), node),
            (None, Some(_)) => self.end_nomination(&pod.uid, now),
            (None, None) => {}
        }
    }

    /// A pod's object is gone, or it ended.
    pub fn pod_removed(&mut self, uid: &str, now: Duration) {
        self.queue.remove(uid);
        self.waiting.remove(uid);
        self.end_nomination(uid, now);
        if let Some((node, pod)) = self.cache.remove_pod(uid) {
            self.wake(Change::PodRemoved, Some(&node), Some(&pod), now);
        }
    }

    /// The pods that were to leave for this one cannot be made to: it is tried again.
    pub fn displacing_failed(&mut self, uid: &str, now: Duration) {
        self.end_nomination(uid, now);
        self.queue.activate(uid, now);
    }

    fn end_nomination(&mut self, uid: &str, now: Duration) {
        self.victims.remove(uid);
        if let Some(node) = self.cache.end_nomination(uid) {
            self.wake(Change::PodRemoved, Some(&node), None, now);
        }
    }

    /// Schedules the next ready pod. `None`: none is ready.
    pub fn schedule_next(&mut self, now: Duration) -> Option<Outcome> {
        loop {
            if let Some(outcome) = self.out.pop_front() {
                return Some(outcome);
            }
            self.expire_waiting(now);
            let pod = self.queue.pop(now)?;
            let Some(profile) = self.profile(&pod.scheduler_name) else {
                self.queue.remove(&pod.uid);
                continue;
            };
            if self.cache.is_placed(&pod.uid) {
                // It counts on a node already: the store has it bound, there is nothing to decide.
                self.queue.remove(&pod.uid);
                continue;
            }
            if self.profiles[profile].gangs && pod.group.is_some() {
                self.schedule_group(profile, pod, now);
                continue;
            }
            let outcome = self.schedule_pod(profile, pod, now);
            self.out.extend(outcome);
        }
    }

    fn schedule_pod(&mut self, profile: usize, pod: Arc<PodInfo>, now: Duration) -> Option<Outcome> {
        let Profile { framework, cycle, .. } = &mut self.profiles[profile];
        let found = cycle.schedule_one(framework, &self.cache, &pod);
        self.record(profile, &pod, found.as_ref());
        match found {
            Ok(decision) => self.settle(profile, pod, decision.node, now),
            Err(error) => Some(self.fits_nowhere(profile, pod, error, now)),
        }
    }

    /// Reserve, Permit, PreBind: the node is found, and the pod is about to go there.
    fn settle(
        &mut self,
        profile: usize,
        pod: Arc<PodInfo>,
        node: Arc<str>,
        now: Duration,
    ) -> Option<Outcome> {
        if self.cache.assume(pod.clone(), &node).is_err() {
            self.queue.remove(&pod.uid);
            return None;
        }
        let framework = &self.profiles[profile].framework;
        let refused = match framework.reserve(&pod, &node) {
            Err(refused) => Some(refused),
            Ok(()) => match framework.permit(&pod, &node) {
                (member, Permission::Reject(reason)) => Some((member, reason)),
                (_, Permission::Wait(wait)) => {
                    let waiting = Waiting { pod: pod.clone(), node, deadline: now + wait };
                    self.waiting.insert(pod.uid.clone(), waiting);
                    return None;
                }
                (_, Permission::Allow) => framework.pre_bind(&pod, &node).err(),
            },
        };
        match refused {
            None => {
                self.victims.remove(&pod.uid);
                self.cache.end_nomination(&pod.uid);
                self.wake(Change::PodAdded, Some(&node), Some(&pod), now);
                Some(Outcome::Bind { pod, node })
            }
            Some((member, reason)) => {
                framework.unreserve(&pod, &node);
                let nodes = self.cache.snapshot().nodes().len();
                let rejection = crate::framework::Rejection::unresolvable(reason);
                let error = FitError::everywhere(nodes, member, rejection);
                self.cache.forget(&pod.uid);
                self.queue.park(&pod.uid, error.rejected_by, now);
                Some(Outcome::Unschedulable { pod, error })
            }
        }
    }

    fn fits_nowhere(
        &mut self,
        profile: usize,
        pod: Arc<PodInfo>,
        mut error: FitError,
        now: Duration,
    ) -> Outcome {
        let Profile { framework, cycle, .. } = &mut self.profiles[profile];
        let victims = self.victims.get(&pod.uid).into_iter().flatten();
        let are_leaving = victims.into_iter().any(|victim| self.cache.is_placed(victim));
        let displaced = match error.nodes {
            0 => Err(Displacing::Unasked),
            _ if are_leaving => Err(Displacing::NotEligible(VICTIMS_LEAVE)),
            _ => cycle.displace(framework, &self.cache, &self.budgets, &pod),
        };
        let rejected_by = if error.nodes == 0 { u64::MAX } else { error.rejected_by };
        self.queue.park(&pod.uid, rejected_by, now);
        match displaced {
            Ok(displacement) => {
                for other in &displacement.passed_over {
                    self.victims.remove(&other.uid);
                    self.cache.end_nomination(&other.uid);
                }
                let victims = displacement.victims.iter().map(|victim| victim.uid.clone());
                self.victims.insert(pod.uid.clone(), victims.collect());
                self.cache.nominate(pod.clone(), &displacement.node);
                Outcome::Displace { pod, error, displacement }
            }
            Err(displacing) => {
                error.displacing = displacing;
                Outcome::Unschedulable { pod, error }
            }
        }
    }

    /// Lets a pod go that a Permit plugin made wait. The next [`Self::schedule_next`] gives it.
    pub fn allow(&mut self, uid: &str, now: Duration) {
        let Some(Waiting { pod, node, .. }) = self.waiting.remove(uid) else { return };
        let refused = match self.profile(&pod.scheduler_name) {
            Some(profile) => self.profiles[profile].framework.pre_bind(&pod, &node).is_err(),
            None => true,
        };
        match refused {
            true => self.bind_failed(uid, now),
            false => self.out.push_back(Outcome::Bind { pod, node }),
        }
    }

    fn expire_waiting(&mut self, now: Duration) {
        let due: Vec<Arc<str>> =
            self.waiting.iter().filter(|(_, pod)| pod.deadline <= now).map(|(uid, _)| uid.clone()).collect();
        for uid in due {
            self.waiting.remove(&uid);
            self.bind_failed(&uid, now);
        }
    }

    /// The binding is stored: the pod is out of the queue; its node counts it until the watch says more.
    pub fn bound(&mut self, uid: &str, node: &str) {
        if let Some(pod) = self.queue.get(uid).cloned()
            && let Some(profile) = self.profile(&pod.scheduler_name)
        {
            self.profiles[profile].framework.post_bind(&pod, node);
        }
        self.queue.remove(uid);
    }

    /// The binding was not stored: the room is free again and the pod is tried again after its back-off.
    pub fn bind_failed(&mut self, uid: &str, now: Duration) {
        self.queue.requeue(uid, now);
        let node = self.cache.remove_assumed(uid);
        if let Some((node, pod)) = node {
            if let Some(profile) = self.profile(&pod.scheduler_name) {
                self.profiles[profile].framework.unreserve(&pod, &node);
            }
            self.wake(Change::PodRemoved, Some(&node), Some(&pod), now);
        }
    }

    /// Decisions of an earlier leadership that the store does not show count no more: every pod that is
    /// still only assumed is forgotten and tried again.
    pub fn drop_assumed(&mut self, now: Duration) {
        let mut assumed = self.cache.assumed();
        assumed.sort_unstable();
        self.waiting.clear();
        self.out.clear();
        for uid in assumed {
            self.bind_failed(&uid, now);
        }
    }

    /// Whether a pod is ready now.
    pub fn has_ready(&self, now: Duration) -> bool {
        !self.out.is_empty() || self.queue.has_ready(now)
    }

    /// When a pod becomes ready by time alone.
    pub fn next_due(&self) -> Option<Duration> {
        let waiting = self.waiting.values().map(|waiting| waiting.deadline).min();
        self.queue.next_due().into_iter().chain(waiting).min()
    }

    /// How many pods wait where.
    pub fn counts(&self) -> QueueCounts {
        self.queue.counts()
    }

    /// The node cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    pub(crate) fn wake(&mut self, change: Change, node: Option<&str>, pod: Option<&PodInfo>, now: Duration) {
        if self.queue.nobody_parked() {
            return;
        }
        let node = node.and_then(|name| self.cache.node(name));
        let event = ClusterEvent { change, node, pod };
        let profiles = &self.profiles;
        let helps = |rejected_by: u64, waiting: &PodInfo| {
            let profile =
                profiles.iter().find(|profile| profile.framework.name() == &*waiting.scheduler_name);
            profile.is_some_and(|profile| profile.framework.hint(rejected_by, waiting, &event))
        };
        self.queue.wake(helps, now);
        // Whoever has room kept on the node hears of everything that happens there.
        if let Some(node) = node.filter(|_| matches!(change, Change::PodRemoved | Change::NodeAllocatable)) {
            let uids: Vec<Arc<str>> = node.nominated().iter().map(|pod| pod.uid.clone()).collect();
            for uid in uids {
                self.queue.activate(&uid, now);
            }
        }
    }
}
