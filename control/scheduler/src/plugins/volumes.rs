//! VolumeBinding and VolumeZone: a pod goes where its volumes can be used, and nowhere before they can be.

use crate::cluster_event::{Change, ClusterEvent};
use crate::framework::{Filter, Plugin, PreFilter, PreFiltered, Reason, Rejection};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::selector::NodeTerm;
use crate::snapshot::Snapshot;

/// Rejects every node while a claim of the pod is missing or unbound, and nodes on which one of its volumes
/// cannot be used.
#[derive(Debug, Clone, Copy)]
pub struct VolumeBinding;

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn helped_by(&self) -> &'static [Change] {
        // A change of its claims or volumes changes the pod itself, as the scheduler sees it.
        &[Change::NodeLabels]
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        pod.class.volumes.problem.is_none()
            && event.node.is_none_or(|node| Filter::filter(self, pod, node).is_ok())
    }

    fn pre_filter(&self) -> Option<&dyn PreFilter> {
        Some(self)
    }

    fn filter(&self) -> Option<&dyn Filter> {
        Some(self)
    }
}

impl PreFilter for VolumeBinding {
    fn pre_filter(&self, pod: &PodInfo, _cluster: Snapshot<'_>) -> Result<PreFiltered, Rejection> {
        match &pod.class.volumes.problem {
            Some(problem) => Err(Rejection::unresolvable(Reason::Pod(problem.clone()))),
            None => Ok(PreFiltered::default()),
        }
    }
}

impl Filter for VolumeBinding {
    fn applies(&self, pod: &PodInfo) -> bool {
        !pod.class.volumes.terms.is_empty()
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let object = &node.object;
        let usable =
            |terms: &Vec<NodeTerm>| terms.iter().any(|term| term.matches(&object.name, &object.labels));
        if pod.class.volumes.terms.iter().all(usable) {
            return Ok(());
        }
        Err(Rejection::unresolvable(Reason::Text("node(s) didn't match PersistentVolume's node affinity")))
    }
}

/// Rejects nodes outside the zones of the pod's volumes.
#[derive(Debug, Clone, Copy)]
pub struct VolumeZone;

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }

    fn helped_by(&self) -> &'static [Change] {
        &[Change::NodeLabels]
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        event.node.is_none_or(|node| Filter::filter(self, pod, node).is_ok())
    }

    fn filter(&self) -> Option<&dyn Filter> {
        Some(self)
    }
}

impl Filter for VolumeZone {
    fn applies(&self, pod: &PodInfo) -> bool {
        !pod.class.volumes.zones.is_empty()
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let labels = &node.object.labels;
        let in_zone = |(key, values): &(String, Vec<String>)| {
            labels.get(key).is_some_and(|value| values.contains(value))
        };
        if pod.class.volumes.zones.iter().all(in_zone) {
            return Ok(());
        }
        Err(Rejection::unresolvable(Reason::Text("node(s) had no available volume zone")))
    }
}
