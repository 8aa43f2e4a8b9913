//! NodePorts: two pods of a node cannot take the same host port.

use crate::cluster_event::{Change, ClusterEvent};
use crate::framework::{Filter, Plugin, Reason, Rejection};
use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// Rejects nodes where a wanted host port is taken. Ports differ by protocol and by address, where
/// `0.0.0.0` is every address.
#[derive(Debug, Clone, Copy)]
pub struct NodePorts;

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn helped_by(&self) -> &'static [Change] {
        &[Change::PodRemoved]
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent<'_>) -> bool {
        let Some(removed) = event.pod else { return true };
        let wanted = &pod.class.host_ports;
        wanted.iter().any(|port| removed.class.host_ports.iter().any(|freed| freed.conflicts(port)))
    }

    fn filter(&self) -> Option<&dyn Filter> {
        Some(self)
    }
}

impl Filter for NodePorts {
    fn applies(&self, pod: &PodInfo) -> bool {
        !pod.class.host_ports.is_empty()
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if !node.has_port_conflict(&pod.class.host_ports) {
            return Ok(());
        }
        let text = "node(s) didn't have free ports for the requested pod ports";
        Err(Rejection::resolvable(Reason::Text(text)))
    }
}
