//! NodeAffinity: `nodeSelector` and required node affinity decide; preferred node affinity ranks.

use crate::cluster_event::ClusterEvent;
use crate::framework::{Filter, Reason, Rejection, Score, normalize_by_max};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// Rejects nodes that the pod's selector or required terms do not match; prefers those whose matching
/// preferred terms weigh most.
#[derive(Debug, Clone, Copy)]
pub struct NodeAffinity;

impl Filter for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn applies(&self, pod: &PodInfo) -> bool {
        !pod.node_selector.is_empty() || pod.required_terms.is_some()
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let selected = pod.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value));
        let required = pod
            .required_terms
            .as_ref()
            .is_none_or(|terms| terms.iter().any(|term| term.matches(&node.name, &node.labels)));
        if selected && required {
            return Ok(());
        }
        Err(Rejection::unresolvable(Reason::Text("node(s) didn't match Pod's node affinity/selector")))
    }

    fn helped_by(&self) -> &'static [ClusterEvent] {
        &[ClusterEvent::NodeLabelsChanged]
    }
}

impl Score for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn applies(&self, pod: &PodInfo) -> bool {
        !pod.preferred_terms.is_empty()
    }

    fn score(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        pod.preferred_terms
            .iter()
            .filter(|(_, term)| term.matches(&node.name, &node.labels))
            .map(|(weight, _)| weight)
            .sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize_by_max(scores, false);
    }
}
