//! What the scheduler remembers of its last decisions, for whoever asks why a pod is where it is.
//!
//! A record is made at the moment of the decision, from the same knowledge. Looking at every node costs more
//! than deciding does, so while many pods wait only the outcome is kept.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::core::{Profile, Scheduler};
use crate::cycle::{Decision, Examined};
use crate::fit_error::FitError;
use crate::pod_info::PodInfo;

/// How many decisions are remembered.
pub const RECORDS_MAX: usize = 512;
/// How many nodes of a decision are remembered: the chosen one, and the first others.
pub const RECORDED_NODES_MAX: usize = 128;
/// With so many pods ready, only the outcome is kept.
const HURRY_PODS: usize = 8;

/// One decision.
#[derive(Debug, Clone)]
pub struct Record {
    /// The pod, in the version decided on.
    pub pod: Arc<PodInfo>,
    /// Where it went; `None`: nowhere.
    pub node: Option<Arc<str>>,
    /// How many nodes passed every filter.
    pub feasible: usize,
    /// How many nodes there were.
    pub nodes: usize,
    /// Why it went nowhere.
    pub message: String,
    /// The nodes that are remembered.
    pub examined: Vec<Examined>,
    /// Whether only the outcome was kept because many pods waited.
    pub in_hurry: bool,
}

/// The last decisions.
#[derive(Debug, Default)]
pub(crate) struct Records(VecDeque<Record>);

impl Scheduler {
    /// The newest decision about a pod.
    pub fn explain(&self, namespace: &str, name: &str) -> Option<&Record> {
        self.records
            .0
            .iter()
            .rev()
            .find(|record| *record.pod.namespace == *namespace && *record.pod.name == *name)
    }

    /// Remembers a decision that was just made and has not changed anything yet.
    pub(crate) fn record(&mut self, profile: usize, pod: &Arc<PodInfo>, found: Result<&Decision, &FitError>) {
        let in_hurry = self.queue.counts().active >= HURRY_PODS;
        let nodes = self.cache.snapshot().nodes().len();
        let chosen = found.ok().and_then(|decision| self.cache.position(&decision.node));
        let others = (0..nodes).filter(|at| Some(*at) != chosen);
        let wanted: Vec<usize> = chosen.into_iter().chain(others).take(RECORDED_NODES_MAX).collect();
        let Profile { framework, cycle, .. } = &mut self.profiles[profile];
        let examined = match in_hurry {
            true => Vec::new(),
            false => cycle.examine(framework, &self.cache, pod, &wanted),
        };
        if self.records.0.len() >= RECORDS_MAX {
            self.records.0.pop_front();
        }
        self.records.0.push_back(Record {
            pod: pod.clone(),
            node: found.ok().map(|decision| decision.node.clone()),
            feasible: found.map_or(0, |decision| decision.feasible),
            nodes,
            message: found.err().filter(|_| !in_hurry).map(ToString::to_string).unwrap_or_default(),
            examined,
            in_hurry,
        });
    }
}
