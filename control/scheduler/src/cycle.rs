//! One scheduling cycle: filter the nodes, rank those that pass, choose.
//!
//! Large clusters are not searched to the end: as in kube-scheduler, the cycle stops at a share of feasible
//! nodes that shrinks as the cluster grows, and the next cycle starts where this one stopped. Among equally
//! good nodes a counter-driven generator chooses, so the same calls give the same decisions.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::framework::{Filter, Framework, Reason, Rejection};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::snapshot::Snapshot;

/// Every node of a cluster of this size is looked at, and at least so many feasible ones in a larger one.
const FEASIBLE_NODES_MIN: usize = 100;
/// The smallest share of nodes that a cycle tries to find feasible, in percent.
const FEASIBLE_PERCENT_MIN: usize = 5;

/// Where a pod goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The node's name.
    pub node: Arc<str>,
    /// How many nodes passed the filters.
    pub feasible: usize,
    /// How many nodes were looked at.
    pub evaluated: usize,
}

/// A pod fits nowhere. Displays as the message that users know from kube-scheduler.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct FitError {
    /// How many nodes there are.
    pub nodes: usize,
    /// How many nodes gave each reason.
    pub reasons: BTreeMap<Reason, usize>,
    /// The same for the question whether removing pods would help.
    pub preemption: BTreeMap<Reason, usize>,
    /// The filters that rejected a node, as a bit set over the framework's filters.
    pub rejected_by: u32,
}

impl FitError {
    fn new(nodes: usize) -> Self {
        Self { nodes, reasons: BTreeMap::new(), preemption: BTreeMap::new(), rejected_by: 0 }
    }

    fn note(&mut self, filter: usize, rejection: Rejection, pod: &PodInfo, node: &NodeInfo) {
        self.rejected_by |= 1 << filter;
        for reason in rejection.reasons {
            *self.reasons.entry(reason).or_default() += 1;
        }
        let text = if !rejection.resolvable {
            "Preemption is not helpful for scheduling"
        } else if node.pods().any(|other| other.priority < pod.priority) {
            "Lower-priority pods are not preempted by this scheduler"
        } else {
            "No preemption victims found for incoming pod"
        };
        *self.preemption.entry(Reason::Text(text)).or_default() += 1;
    }
}

/// "2 Insufficient cpu, 1 node(s) were unschedulable": sorted as text, as kube-scheduler sorts.
fn histogram(counts: &BTreeMap<Reason, usize>) -> String {
    let mut parts: Vec<_> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    parts.sort_unstable();
    parts.join(", ")
}

impl fmt::Display for FitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        let nodes = self.nodes;
        write!(f, "0/{nodes} nodes are available: {}.", histogram(&self.reasons))?;
        write!(f, " preemption: 0/{nodes} nodes are available: {}.", histogram(&self.preemption))
    }
}

/// What lives from cycle to cycle: where to start, the tie-breaker's counter, buffers.
#[derive(Debug)]
pub struct Cycle {
    start: usize,
    random: u64,
    feasible: Vec<usize>,
    totals: Vec<i64>,
    scores: Vec<i64>,
}

impl Cycle {
    /// Cycles whose tie-breaks follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { start: 0, random: seed, feasible: Vec::new(), totals: Vec::new(), scores: Vec::new() }
    }

    /// Finds the best node for a pod.
    pub fn schedule_one(
        &mut self,
        framework: &Framework,
        snapshot: Snapshot<'_>,
        pod: &PodInfo,
    ) -> Result<Decision, FitError> {
        let nodes = snapshot.nodes();
        let evaluated = self.find_feasible(framework, nodes, pod)?;
        let chosen = match self.feasible[..] {
            [only] => only,
            _ => {
                self.rank(framework, nodes, pod);
                self.choose()
            }
        };
        Ok(Decision { node: nodes[chosen].name.clone(), feasible: self.feasible.len(), evaluated })
    }

    /// Fills `feasible` and says how many nodes it looked at.
    fn find_feasible(
        &mut self,
        framework: &Framework,
        nodes: &[NodeInfo],
        pod: &PodInfo,
    ) -> Result<usize, FitError> {
        self.feasible.clear();
        let wanted = feasible_nodes_wanted(nodes.len());
        let filters: Vec<(usize, &dyn Filter)> = framework
            .filters()
            .iter()
            .enumerate()
            .filter(|(_, filter)| filter.applies(pod))
            .map(|(at, filter)| (at, filter.as_ref()))
            .collect();
        let mut error = FitError::new(nodes.len());
        let start = if self.start < nodes.len() { self.start } else { 0 };
        let mut evaluated = 0;
        for at in (start..nodes.len()).chain(0..start) {
            evaluated += 1;
            let verdict = filters
                .iter()
                .try_for_each(|(which, filter)| filter.filter(pod, &nodes[at]).map_err(|no| (*which, no)));
            match verdict {
                Ok(()) => self.feasible.push(at),
                Err((which, rejection)) => error.note(which, rejection, pod, &nodes[at]),
            }
            if self.feasible.len() >= wanted {
                break;
            }
        }
        if self.feasible.is_empty() {
            return Err(error);
        }
        self.start = (start + evaluated) % nodes.len();
        Ok(evaluated)
    }

    fn rank(&mut self, framework: &Framework, nodes: &[NodeInfo], pod: &PodInfo) {
        self.totals.clear();
        self.totals.resize(self.feasible.len(), 0);
        for (rule, weight) in framework.scores() {
            if !rule.applies(pod) {
                continue;
            }
            self.scores.clear();
            self.scores.extend(self.feasible.iter().map(|&at| rule.score(pod, &nodes[at])));
            rule.normalize(&mut self.scores);
            for (total, score) in self.totals.iter_mut().zip(&self.scores) {
                *total += score * weight;
            }
        }
    }

    /// One of the best, each with the same chance.
    fn choose(&mut self) -> usize {
        let best = self.totals.iter().copied().max().unwrap_or(0);
        let ties = self.totals.iter().filter(|&&total| total == best).count() as u64;
        let pick = if ties > 1 { self.next_random() % ties } else { 0 };
        let mut seen = 0;
        for (at, &total) in self.totals.iter().enumerate() {
            if total == best {
                if seen == pick {
                    return self.feasible[at];
                }
                seen += 1;
            }
        }
        self.feasible[0]
    }

    /// SplitMix64: a counter through a mixer, so the sequence follows from the seed alone.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// How many feasible nodes are enough: all up to 100, then a share from 50 % falling to 5 %.
fn feasible_nodes_wanted(nodes: usize) -> usize {
    let percent = 50_usize.saturating_sub(nodes / 125).max(FEASIBLE_PERCENT_MIN);
    (nodes * percent / 100).max(FEASIBLE_NODES_MIN).min(nodes.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_searched_shrinks_as_the_cluster_grows() {
        for (nodes, wanted) in
            [(0, 1), (1, 1), (100, 100), (200, 100), (1000, 420), (5000, 500), (15000, 750)]
        {
            assert_eq!(feasible_nodes_wanted(nodes), wanted, "{nodes} nodes");
        }
    }

    #[test]
    fn reasons_are_counted_and_sorted_as_text() {
        let reasons = BTreeMap::from([
            (Reason::Text("node(s) were unschedulable"), 2),
            (Reason::Insufficient("cpu".into()), 10),
            (Reason::UntoleratedTaint { key: "key".into(), value: "value".into() }, 1),
        ]);
        let preemption = BTreeMap::from([(Reason::Text("Preemption is not helpful for scheduling"), 13)]);
        let error = FitError { nodes: 13, reasons, preemption, rejected_by: 0 };
        assert_eq!(
            error.to_string(),
            "0/13 nodes are available: 1 node(s) had untolerated taint {key: value}, 10 Insufficient cpu, \
             2 node(s) were unschedulable. preemption: 0/13 nodes are available: \
             13 Preemption is not helpful for scheduling."
        );
        assert_eq!(FitError::new(0).to_string(), "no nodes available to schedule pods");
    }
}
