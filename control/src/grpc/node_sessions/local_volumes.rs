//! Volumes that lie on a node's own disk: their node is told of them whether a pod uses them or not, so that it removes the data
//! of those that are released. See [`api::local_volume`].

use std::collections::BTreeSet;

use api::local_volume;
use api::references::{Reference, ReferenceKind};

use super::NodeSessions;
use crate::registry::Object;

/// In whose name, beside the uids of pods, a node is told of its volumes.
pub(super) const HOLDER: &str = "local-volumes";

impl NodeSessions {
    /// The volumes that lie on the node's disk.
    pub(super) fn volumes_on(&self, node: &str) -> BTreeSet<Reference> {
        let copy = self.inner.objects.iter().find(|copy| copy.kind().kind == "PersistentVolume");
        let all = copy.map(|copy| copy.list()).unwrap_or_default();
        let own = all.iter().filter(|volume| local_volume::node_of(volume.value()) == Some(node));
        own.map(|volume| Reference::new(ReferenceKind::PersistentVolume, "", volume.name())).collect()
    }

    /// An object appeared, changed or went: if it is a volume on a node's disk, its node is to know.
    pub(super) fn note_volume(&self, object: &Object) {
        if object.kind().kind != "PersistentVolume" {
            return;
        }
        if let Some(node) = local_volume::node_of(object.value())
            && let Some(mailbox) = self.mailbox(node)
        {
            mailbox.hold(HOLDER, self.volumes_on(node));
        }
    }
}
