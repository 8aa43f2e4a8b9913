//! Queue, cache and cycle together: the calls that the shell makes, in the shape of what it sees.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::cache::Cache;
use crate::cluster_event::ClusterEvent;
use crate::cycle::{Cycle, FitError};
use crate::framework::Framework;
use crate::pod_info::{InvalidPod, PodInfo, PodVolumes};
use crate::queue::{Queue, QueueCounts, QueueLimits};
use crate::resources::InvalidQuantity;

/// What a scheduler needs to know.
#[derive(Debug)]
pub struct SchedulerConfig {
    /// Pods whose `spec.schedulerName` is this are ours.
    pub scheduler_name: String,
    /// The rules.
    pub framework: Framework,
    /// The waits.
    pub limits: QueueLimits,
    /// Seed of the tie-breaks.
    pub seed: u64,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            scheduler_name: "default-scheduler".to_owned(),
            framework: Framework::default_profile(),
            limits: QueueLimits::default(),
            seed: 0,
        }
    }
}

/// What came of one pod.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The pod is assumed on this node: bind it, then report [`Scheduler::bind_failed`] if that fails.
    Bind {
        /// The pod, in the version decided on.
        pod: Arc<PodInfo>,
        /// The node's name.
        node: Arc<str>,
    },
    /// The pod fits nowhere and waits.
    Unschedulable {
        /// The pod.
        pod: Arc<PodInfo>,
        /// Why.
        error: FitError,
    },
}

/// The scheduler's whole state. `now` is any monotonic time, always from the same origin.
#[derive(Debug)]
pub struct Scheduler {
    name: String,
    framework: Framework,
    queue: Queue,
    cache: Cache,
    cycle: Cycle,
}

impl Scheduler {
    /// A scheduler that knows nothing yet.
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            name: config.scheduler_name,
            framework: config.framework,
            queue: Queue::new(config.limits),
            cache: Cache::default(),
            cycle: Cycle::new(config.seed),
        }
    }

    /// A node appeared or changed.
    pub fn node_changed(&mut self, node: &Node, now: Duration) -> Result<(), InvalidQuantity> {
        for event in self.cache.upsert_node(node)? {
            self.wake(event, now);
        }
        Ok(())
    }

    /// A node's object is gone.
    pub fn node_removed(&mut self, name: &str) {
        self.cache.remove_node(name);
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
        let info = match PodInfo::new(pod) {
            Ok(info) => Arc::new(PodInfo { volumes, ..info }),
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
            self.queue.remove(&info.uid);
            if self.cache.place(info) {
                self.wake(ClusterEvent::PodRemoved, now);
            }
        } else if info.waits_for(&self.name) {
            // A pod whose binding is under way stays in flight; the queue keeps its newest version.
            if !self.cache.is_assumed(&info.uid) || self.queue.get(&info.uid).is_some() {
                self.queue.upsert(info, now);
            }
        } else if !self.cache.is_assumed(&info.uid) {
            self.queue.remove(&info.uid);
        }
        Ok(())
    }

    /// A pod's object is gone, or it ended.
    pub fn pod_removed(&mut self, uid: &str, now: Duration) {
        self.queue.remove(uid);
        if self.cache.remove_pod(uid) {
            self.wake(ClusterEvent::PodRemoved, now);
        }
    }

    /// Schedules the next ready pod. `None`: none is ready.
    pub fn schedule_next(&mut self, now: Duration) -> Option<Outcome> {
        loop {
            let pod = self.queue.pop(now)?;
            let found = self.cycle.schedule_one(&self.framework, self.cache.snapshot(), &pod);
            match found {
                Ok(decision) => match self.cache.assume(pod.clone(), &decision.node) {
                    Ok(()) => return Some(Outcome::Bind { pod, node: decision.node }),
                    // It counts on a node already: the store has it bound, there is nothing to decide.
                    Err(_) => {
                        self.queue.remove(&pod.uid);
                    }
                },
                Err(error) => {
                    let rejected_by = if error.nodes == 0 { u32::MAX } else { error.rejected_by };
                    self.queue.park(&pod.uid, rejected_by, now);
                    return Some(Outcome::Unschedulable { pod, error });
                }
            }
        }
    }

    /// The binding is stored: the pod is out of the queue; its node counts it until the watch says more.
    pub fn bound(&mut self, uid: &str) {
        self.queue.remove(uid);
    }

    /// The binding was not stored: the room is free again and the pod is tried again after its back-off.
    pub fn bind_failed(&mut self, uid: &str, now: Duration) {
        self.queue.requeue(uid, now);
        if self.cache.forget(uid) {
            self.wake(ClusterEvent::PodRemoved, now);
        }
    }

    /// Decisions of an earlier leadership that the store does not show count no more: every pod that is
    /// still only assumed is forgotten and tried again.
    pub fn drop_assumed(&mut self, now: Duration) {
        let mut assumed = self.cache.assumed();
        assumed.sort_unstable();
        for uid in assumed {
            self.bind_failed(&uid, now);
        }
    }

    /// Whether a pod is ready now.
    pub fn has_ready(&self, now: Duration) -> bool {
        self.queue.has_ready(now)
    }

    /// When a pod becomes ready by time alone.
    pub fn next_due(&self) -> Option<Duration> {
        self.queue.next_due()
    }

    /// How many pods wait where.
    pub fn counts(&self) -> QueueCounts {
        self.queue.counts()
    }

    /// The node cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    fn wake(&mut self, event: ClusterEvent, now: Duration) {
        let helped = self.framework.helped_by(event);
        if helped != 0 {
            self.queue.wake(helped, now);
        }
    }
}
