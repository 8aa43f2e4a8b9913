//! NodeUnschedulable: a cordoned node takes no new pods, unless they tolerate it.

use crate::cluster_event::ClusterEvent;
use crate::framework::{Filter, Reason, Rejection};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::taints::{Effect, Taint};

/// Rejects nodes with `spec.unschedulable`.
#[derive(Debug, Clone, Copy)]
pub struct NodeUnschedulable;

impl Filter for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if !node.unschedulable {
            return Ok(());
        }
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            value: String::new(),
            effect: Effect::NoSchedule,
        };
        if pod.tolerations.iter().any(|toleration| toleration.tolerates(&taint)) {
            return Ok(());
        }
        Err(Rejection::unresolvable(Reason::Text("node(s) were unschedulable")))
    }

    fn helped_by(&self) -> &'static [ClusterEvent] {
        &[ClusterEvent::NodeTaintsChanged]
    }
}
