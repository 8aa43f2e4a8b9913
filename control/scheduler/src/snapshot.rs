//! The scheduling snapshot: the cluster as one cycle sees it.
//!
//! It is a borrow of the cache. Nothing can change the cache while it lives, so taking it costs nothing,
//! whatever the number of nodes.

use crate::node_info::NodeInfo;

/// Every known node, frozen for one cycle.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot<'a> {
    nodes: &'a [NodeInfo],
}

impl<'a> Snapshot<'a> {
    /// A snapshot of these nodes.
    pub fn new(nodes: &'a [NodeInfo]) -> Self {
        Self { nodes }
    }

    /// The nodes, in an order that depends only on the history of additions and removals.
    pub fn nodes(&self) -> &'a [NodeInfo] {
        self.nodes
    }
}
