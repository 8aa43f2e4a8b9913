//! Which nodes take requests from outside for Ingresses, and the certificates that they are given for that.
//!
//! Owns the set of those nodes. Promises least privilege: only a node that an administrator has given the label
//! [`ingress::NODE_LABEL`], which no node can give to itself, hears of the Secrets that Ingresses name, and only of
//! those of Ingresses that are served here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard, PoisonError};

use api::ingress;
use api::references::Reference;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use serde::de::DeserializeOwned;

use super::NodeSessions;
use crate::reflector::Delta;
use crate::registry::Object;

/// In whose name, beside the uids of pods, a node is given certificates.
pub(super) const HOLDER: &str = "ingress";
/// The kinds that decide what a node is given.
pub(super) const KINDS: [&str; 2] = ["Ingress", "IngressClass"];

impl NodeSessions {
    /// Whether a node takes requests from outside.
    pub(super) fn is_entrance(&self, node: &str) -> bool {
        self.entrances().contains(node)
    }

    /// Takes over what a node's label says, and tells the node when that is new.
    pub(super) fn note_entrance(&self, delta: &Delta) {
        let node = delta.object();
        let takes = matches!(delta, Delta::Applied(node) if is_labelled(node));
        let changed = match takes {
            true => self.entrances().insert(node.name().to_owned()),
            false => self.entrances().remove(node.name()),
        };
        let Some(mailbox) = self.mailbox(node.name()).filter(|_| changed) else { return };
        mailbox.network();
        mailbox.hold(HOLDER, self.certificates_for(node.name()));
    }

    /// The certificates that a node is given.
    pub(super) fn certificates_for(&self, node: &str) -> BTreeSet<Reference> {
        match self.is_entrance(node) {
            true => self.certificates(),
            false => BTreeSet::new(),
        }
    }

    /// An Ingress or a class changed: nodes are given what they need now.
    pub(super) fn tell_certificates(&self) {
        let certificates = self.certificates();
        let entrances = self.entrances().clone();
        for (_, mailbox) in self.mailboxes().iter().filter(|(node, _)| entrances.contains(*node)) {
            mailbox.hold(HOLDER, certificates.clone());
        }
    }

    fn certificates(&self) -> BTreeSet<Reference> {
        let classes: Vec<IngressClass> = self.every("IngressClass");
        let own = ingress::own_classes(&classes);
        let ingresses: Vec<Ingress> = self.every("Ingress");
        let served = ingresses.iter().filter(|ingress| ingress::is_served(ingress, &own));
        served.flat_map(ingress::secrets).collect()
    }

    fn every<T: DeserializeOwned>(&self, kind: &str) -> Vec<T> {
        let copy = self.inner.network.iter().find(|copy| copy.kind().kind == kind);
        let all: Vec<Arc<Object>> = copy.map(|copy| copy.list()).unwrap_or_default();
        all.iter().filter_map(|object| object.decode().ok()).collect()
    }

    fn entrances(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.inner.entrances.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an administrator has chosen the node for it.
pub(crate) fn is_labelled(node: &Object) -> bool {
    let labels = node.decode_member::<BTreeMap<String, String>>(&["metadata", "labels"]);
    labels.is_some_and(|labels| labels.get(ingress::NODE_LABEL).is_some_and(|value| value == "true"))
}
