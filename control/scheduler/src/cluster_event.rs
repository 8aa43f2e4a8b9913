//! The changes of the cluster that can make a waiting pod fit.

/// A change after which a pod that fitted nowhere may fit. Each [`crate::Filter`] names those that can
/// lift its own rejections, so that a change wakes only the pods it can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClusterEvent {
    /// A node appeared.
    NodeAdded,
    /// A node offers other amounts than before.
    NodeAllocatableChanged,
    /// A node's labels changed.
    NodeLabelsChanged,
    /// A node's taints changed, or it was cordoned or uncordoned.
    NodeTaintsChanged,
    /// A pod gave back what it held on a node: it ended, was deleted, or asks for less.
    PodRemoved,
}

impl ClusterEvent {
    /// Every event.
    pub const ALL: [Self; 5] = [
        Self::NodeAdded,
        Self::NodeAllocatableChanged,
        Self::NodeLabelsChanged,
        Self::NodeTaintsChanged,
        Self::PodRemoved,
    ];

    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}
