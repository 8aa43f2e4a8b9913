//! VolumeBinding: a pod goes where its volumes can be used, and nowhere before they can be.

use crate::cluster_event::ClusterEvent;
use crate::framework::{Filter, Reason, Rejection};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// Rejects every node while a claim of the pod is missing or unbound, and nodes on which one of its volumes
/// cannot be used.
#[derive(Debug, Clone, Copy)]
pub struct VolumeBinding;

impl Filter for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn applies(&self, pod: &PodInfo) -> bool {
        pod.volumes.problem.is_some() || !pod.volumes.terms.is_empty()
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if let Some(problem) = &pod.volumes.problem {
            return Err(Rejection::unresolvable(Reason::Volumes(problem.clone())));
        }
        let usable = |terms: &Vec<_>| {
            terms.iter().any(|term: &crate::selector::NodeTerm| term.matches(&node.name, &node.labels))
        };
        if pod.volumes.terms.iter().all(usable) {
            return Ok(());
        }
        Err(Rejection::unresolvable(Reason::Text("node(s) didn't match PersistentVolume's node affinity")))
    }

    fn helped_by(&self) -> &'static [ClusterEvent] {
        // A change of its claims or volumes changes the pod itself, as the scheduler sees it.
        &[ClusterEvent::NodeLabelsChanged]
    }
}
