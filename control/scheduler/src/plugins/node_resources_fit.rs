//! NodeResourcesFit: requests must fit into what is free; the emptier node is better (LeastAllocated).

use std::borrow::Cow;

use crate::cluster_event::ClusterEvent;
use crate::framework::{Filter, Reason, Rejection, SCORE_MAX, Score};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// Rejects nodes with too little left of a requested resource, or with no place for one more pod; prefers
/// those that keep most CPU and memory free.
#[derive(Debug, Clone, Copy)]
pub struct NodeResourcesFit;

/// Adds up what is missing on one node. Allocates only when something is.
#[derive(Default)]
struct Shortage {
    reasons: Vec<Reason>,
    larger_than_node: bool,
}

impl Shortage {
    fn check(&mut self, name: Cow<'static, str>, requested: i64, taken: i64, allocatable: i64) {
        if requested > 0 && requested > allocatable - taken {
            self.reasons.push(Reason::Insufficient(name));
            self.larger_than_node |= requested > allocatable;
        }
    }
}

impl Filter for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let (wanted, taken, has) = (&pod.requests, &node.requested, &node.allocatable);
        let mut shortage = Shortage::default();
        if taken.pods + 1 > has.pods {
            shortage.reasons.push(Reason::Text("Too many pods"));
        }
        shortage.check("cpu".into(), wanted.milli_cpu, taken.milli_cpu, has.milli_cpu);
        shortage.check("memory".into(), wanted.memory, taken.memory, has.memory);
        shortage.check(
            "ephemeral-storage".into(),
            wanted.ephemeral_storage,
            taken.ephemeral_storage,
            has.ephemeral_storage,
        );
        for (name, amount) in wanted.others() {
            shortage.check(Cow::Owned(name.to_string()), *amount, taken.other(name), has.other(name));
        }
        if shortage.reasons.is_empty() {
            return Ok(());
        }
        Err(Rejection { reasons: shortage.reasons, resolvable: !shortage.larger_than_node })
    }

    fn helped_by(&self) -> &'static [ClusterEvent] {
        &[ClusterEvent::PodRemoved, ClusterEvent::NodeAllocatableChanged]
    }
}

impl Score for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn score(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let mut sum = 0;
        let mut weights = 0;
        for (capacity, taken) in [
            (node.allocatable.milli_cpu, node.scored.milli_cpu + pod.scored.milli_cpu),
            (node.allocatable.memory, node.scored.memory + pod.scored.memory),
        ] {
            if capacity > 0 {
                weights += 1;
                sum += (capacity - taken).max(0) * SCORE_MAX / capacity;
            }
        }
        if weights == 0 { 0 } else { sum / weights }
    }
}
