//! TaintToleration: taints keep pods away that do not tolerate them, or make a node less wanted.

use crate::cluster_event::ClusterEvent;
use crate::framework::{Filter, Reason, Rejection, Score, normalize_by_max};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::taints::Taint;

/// Rejects nodes with a `NoSchedule` or `NoExecute` taint that the pod does not tolerate; prefers those
/// with the fewest untolerated `PreferNoSchedule` taints.
#[derive(Debug, Clone, Copy)]
pub struct TaintToleration;

fn tolerated(pod: &PodInfo, taint: &Taint) -> bool {
    pod.tolerations.iter().any(|toleration| toleration.tolerates(taint))
}

impl Filter for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        match node.hard_taints.iter().find(|taint| !tolerated(pod, taint)) {
            None => Ok(()),
            Some(taint) => Err(Rejection::unresolvable(Reason::UntoleratedTaint {
                key: taint.key.clone(),
                value: taint.value.clone(),
            })),
        }
    }

    fn helped_by(&self) -> &'static [ClusterEvent] {
        &[ClusterEvent::NodeTaintsChanged]
    }
}

impl Score for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn score(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let untolerated = node.soft_taints.iter().filter(|taint| !tolerated(pod, taint)).count();
        i64::try_from(untolerated).unwrap_or(i64::MAX)
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize_by_max(scores, true);
    }
}
