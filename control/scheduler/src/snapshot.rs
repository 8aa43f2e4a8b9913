//! The scheduling snapshot: the cluster as one cycle sees it.
//!
//! It is a borrow of the cache. Nothing can change the cache while it lives, so taking it costs nothing,
//! whatever the number of nodes.

use crate::labels::Namespaces;
use crate::node_info::NodeInfo;

/// Every known node, frozen for one cycle.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot<'a> {
    nodes: &'a [NodeInfo],
    namespaces: &'a Namespaces,
    holders: usize,
}

impl<'a> Snapshot<'a> {
    pub(crate) fn new(nodes: &'a [NodeInfo], namespaces: &'a Namespaces, holders: usize) -> Self {
        Self { nodes, namespaces, holders }
    }

    /// The nodes, in an order that depends only on the history of additions and removals.
    pub fn nodes(&self) -> &'a [NodeInfo] {
        self.nodes
    }

    /// The labels of namespaces.
    pub fn namespaces(&self) -> &'a Namespaces {
        self.namespaces
    }

    /// How many placed pods attract or repel others.
    pub fn holders(&self) -> usize {
        self.holders
    }
}
