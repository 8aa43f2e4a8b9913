//! The changes of the cluster that can make a waiting pod fit.

use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;

/// A kind of change after which a pod that fitted nowhere may fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    /// A node appeared.
    NodeAdded,
    /// A node's object is gone.
    NodeRemoved,
    /// A node offers other amounts than before.
    NodeAllocatable,
    /// A node's labels changed.
    NodeLabels,
    /// A node's taints changed, or it was cordoned or uncordoned.
    NodeTaints,
    /// A node has other images.
    NodeImages,
    /// A pod was placed on a node.
    PodAdded,
    /// A pod gave back what it held on a node: it ended, was deleted, or asks for less.
    PodRemoved,
    /// The labels of a pod on a node changed.
    PodLabels,
    /// A namespace's labels changed.
    Namespace,
}

impl Change {
    /// Every kind of change.
    pub const ALL: [Self; 10] = [
        Self::NodeAdded,
        Self::NodeRemoved,
        Self::NodeAllocatable,
        Self::NodeLabels,
        Self::NodeTaints,
        Self::NodeImages,
        Self::PodAdded,
        Self::PodRemoved,
        Self::PodLabels,
        Self::Namespace,
    ];

    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

/// One change, with what it happened to. A plugin's hint says whether it can help a waiting pod.
#[derive(Debug, Clone, Copy)]
pub struct ClusterEvent<'a> {
    /// What kind of change.
    pub change: Change,
    /// The node that changed, or whose pod did, as it is now.
    pub node: Option<&'a NodeInfo>,
    /// The pod that changed.
    pub pod: Option<&'a PodInfo>,
}
