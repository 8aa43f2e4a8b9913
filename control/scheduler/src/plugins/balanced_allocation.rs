//! NodeResourcesBalancedAllocation: a node whose CPU and memory fill up evenly wastes neither.

use crate::framework::{SCORE_MAX, Score};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// Prefers nodes where, with the pod, the used fractions of CPU and memory lie close together.
#[derive(Debug, Clone, Copy)]
pub struct NodeResourcesBalancedAllocation;

fn fraction(taken: i64, capacity: i64) -> f64 {
    (taken as f64 / capacity as f64).min(1.0)
}

impl Score for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn applies(&self, pod: &PodInfo) -> bool {
        pod.requests.milli_cpu > 0 || pod.requests.memory > 0
    }

    fn score(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let has = &node.allocatable;
        if has.milli_cpu <= 0 || has.memory <= 0 {
            return SCORE_MAX;
        }
        let cpu = fraction(node.requested.milli_cpu + pod.requests.milli_cpu, has.milli_cpu);
        let memory = fraction(node.requested.memory + pod.requests.memory, has.memory);
        // The standard deviation of two numbers is half their distance.
        let deviation = (cpu - memory).abs() / 2.0;
        ((1.0 - deviation) * 100.0) as i64
    }
}
