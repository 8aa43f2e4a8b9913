//! TaintToleration: taints keep pods away that do not tolerate them, or make a node less wanted.

use crate::cluster_event::{Change, ClusterEvent};
use crate::framework::{Filter, Group, Plugin, PreScore, Reason, Rejection, ScoreState, normalize_by_max};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::snapshot::Snapshot;
use crate::taints::{Taint, Toleration};

/// Rejects nodes with a `NoSchedule` or `NoExecute` taint that the pod does not tolerate; prefers those
/// with the fewest untolerated `PreferNoSchedule` taints.
#[derive(Debug, Clone, Copy)]
pub struct TaintToleration;

pub(super) fn untolerated<'a>(pod: &PodInfo, taints: &'a [Taint]) -> Option<&'a Taint> {
    taints.iter().find(|taint| !tolerated(&pod.class.tolerations, taint))
}

fn tolerated(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| toleration.tolerates(taint))
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn helped_by(&self) -> &'static [Change] {
        &[Change::NodeTaints]
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        event.node.is_none_or(|node| untolerated(pod, &node.object.hard_taints).is_none())
    }

    fn filter(&self) -> Option<&dyn Filter> {
        Some(self)
    }

    fn pre_score(&self) -> Option<&dyn PreScore> {
        Some(self)
    }
}

impl Filter for TaintToleration {
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        match untolerated(pod, &node.object.hard_taints) {
            None => Ok(()),
            Some(taint) => Err(Rejection::unresolvable(Reason::UntoleratedTaint {
                key: taint.key.clone(),
                value: taint.value.clone(),
            })),
        }
    }
}

impl PreScore for TaintToleration {
    fn pre_score(&self, pod: &PodInfo, _cluster: Snapshot<'_>) -> Option<Box<dyn ScoreState>> {
        Some(Box::new(SoftTaints { tolerations: pod.class.tolerations.clone() }))
    }
}

#[derive(Debug)]
struct SoftTaints {
    tolerations: Vec<Toleration>,
}

impl ScoreState for SoftTaints {
    fn facets(&self, _at: usize, node: &NodeInfo, facets: &mut Vec<i64>) {
        let soft = node.object.soft_taints.iter();
        let count = soft.filter(|taint| !tolerated(&self.tolerations, taint)).count();
        facets.push(i64::try_from(count).unwrap_or(i64::MAX));
    }

    fn score(&self, groups: &[Group<'_>], scores: &mut [i64]) {
        for (group, score) in groups.iter().zip(scores.iter_mut()) {
            *score = group.facets[0];
        }
        normalize_by_max(scores, true);
    }
}
