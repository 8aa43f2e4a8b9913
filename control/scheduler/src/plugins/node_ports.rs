//! NodePorts: two pods of a node cannot take the same host port.

use crate::cluster_event::ClusterEvent;
use crate::framework::{Filter, Reason, Rejection};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// Rejects nodes where a wanted host port is taken.
#[derive(Debug, Clone, Copy)]
pub struct NodePorts;

impl Filter for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn applies(&self, pod: &PodInfo) -> bool {
        !pod.host_ports.is_empty()
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if !node.has_port_conflict(&pod.host_ports) {
            return Ok(());
        }
        let text = "node(s) didn't have free ports for the requested pod ports";
        Err(Rejection::resolvable(Reason::Text(text)))
    }

    fn helped_by(&self) -> &'static [ClusterEvent] {
        &[ClusterEvent::PodRemoved]
    }
}
