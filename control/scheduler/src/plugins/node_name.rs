//! NodeName: a pod that names its node fits nowhere else.

use crate::cluster_event::ClusterEvent;
use crate::framework::{Filter, Reason, Rejection};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// Rejects every node but the one in `spec.nodeName`.
#[derive(Debug, Clone, Copy)]
pub struct NodeName;

impl Filter for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn applies(&self, pod: &PodInfo) -> bool {
        pod.node_name.is_some()
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if pod.node_name.as_ref().is_none_or(|name| *name == node.name) {
            return Ok(());
        }
        Err(Rejection::unresolvable(Reason::Text("node(s) didn't match the requested node name")))
    }

    fn helped_by(&self) -> &'static [ClusterEvent] {
        &[]
    }
}
