//! Pod groups: the members are scheduled together, or none of them is.
//!
//! Because the core decides one pod after the other without waiting for anybody, a group is decided on in
//! one go: its waiting members are placed one by one, and if fewer than the minimum find a node, all of
//! them are taken off again before anybody saw it. No group ever holds room while it waits for the rest,
//! so two groups cannot block each other. Nobody is displaced for a group.

use std::sync::Arc;
use std::time::Duration;

use crate::cluster_event::Change;
use crate::core::{Profile, Scheduler};
use crate::fit_error::FitError;
use crate::outcome::Outcome;
use crate::pod_info::PodInfo;
use crate::queue::GroupKey;

type Placed = Vec<(Arc<PodInfo>, Arc<str>)>;

impl Scheduler {
    /// Decides on the whole group of a pod that has just been popped.
    pub(crate) fn schedule_group(&mut self, profile: usize, first: Arc<PodInfo>, now: Duration) {
        let Some(group) = &first.group else { return };
        let key: GroupKey = (first.namespace.clone(), group.name.clone());
        let members = self.waiting_members(&key, &first);
        let running = self.cache.group_members(&key);
        let minimum = self.group_minimum(&key, &members);
        if members.len() + running < minimum {
            let have = members.len() + running;
            let why =
                format!("pod group {:?} has {have} of the {minimum} pods that it needs at least", &*key.1);
            return self.park_group(&members, &group_error(self, why), now);
        }
        let (placed, failed) = self.place_members(profile, members);
        if placed.len() + running >= minimum && !placed.is_empty() {
            for (pod, error) in failed {
                self.queue.park(&pod.uid, error.rejected_by, now);
                self.out.push_back(Outcome::Unschedulable { pod, error });
            }
            for (pod, node) in &placed {
                self.wake(Change::PodAdded, Some(node), Some(pod), now);
            }
            self.out.push_back(Outcome::BindGroup { pods: placed });
            return;
        }
        let found = placed.len() + running;
        for (pod, _) in &placed {
            self.cache.forget(&pod.uid);
        }
        let (mut error, cause) = match failed.first() {
            Some((_, error)) => (error.clone(), error.to_string()),
            None => (group_error(self, String::new()), String::new()),
        };
        let why = format!("only {found} of the {minimum} pods of pod group {:?} fit: {cause}", &*key.1);
        error.pod_reason = Some(why.trim_end_matches('.').to_owned());
        let members: Vec<Arc<PodInfo>> =
            placed.into_iter().map(|(pod, _)| pod).chain(failed.into_iter().map(|(pod, _)| pod)).collect();
        self.park_group(&members, &error, now);
    }

    /// The popped pod and every other member that waits; all of them are in flight then.
    fn waiting_members(&mut self, key: &GroupKey, first: &Arc<PodInfo>) -> Vec<Arc<PodInfo>> {
        let others = self.queue.members(key);
        let mut members = vec![first.clone()];
        for other in others.iter().filter(|other| other.uid != first.uid) {
            if !self.cache.is_placed(&other.uid) {
                members.extend(self.queue.take(&other.uid));
            }
        }
        members
    }

    /// What the group's object says, else what its members say, else all that wait.
    fn group_minimum(&self, key: &GroupKey, members: &[Arc<PodInfo>]) -> usize {
        let said = members.iter().filter_map(|pod| pod.group.as_ref()?.min).max();
        self.group_minimums.get(key).copied().or(said).unwrap_or(members.len())
    }

    fn place_members(
        &mut self,
        profile: usize,
        members: Vec<Arc<PodInfo>>,
    ) -> (Placed, Vec<(Arc<PodInfo>, FitError)>) {
        let (mut placed, mut failed) = (Vec::new(), Vec::new());
        for pod in members {
            let Profile { framework, cycle, .. } = &mut self.profiles[profile];
            match cycle.schedule_one(framework, &self.cache, &pod) {
                Ok(decision) if self.cache.assume(pod.clone(), &decision.node).is_ok() => {
                    placed.push((pod, decision.node));
                }
                Ok(_) => {}
                Err(error) => failed.push((pod, error)),
            }
        }
        (placed, failed)
    }

    fn park_group(&mut self, members: &[Arc<PodInfo>], error: &FitError, now: Duration) {
        for pod in members {
            self.queue.park(&pod.uid, error.rejected_by, now);
            self.out.push_back(Outcome::Unschedulable { pod: pod.clone(), error: error.clone() });
        }
    }

    /// A new member may complete a group: those that wait for it are tried again.
    pub(crate) fn wake_group(&mut self, pod: &PodInfo, now: Duration) {
        let Some(group) = &pod.group else { return };
        let key = (pod.namespace.clone(), group.name.clone());
        for member in self.queue.members(&key) {
            self.queue.activate(&member.uid, now);
        }
    }
}

fn group_error(scheduler: &Scheduler, why: String) -> FitError {
    let nodes = scheduler.cache.snapshot().nodes().len();
    FitError { pod_reason: Some(why), unresolvable: nodes, ..FitError::new(nodes) }
}
