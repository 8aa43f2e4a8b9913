//! Which objects beside its pods a node is given.
//!
//! Owns, per session, which pod refers to what. Promises least privilege: a node hears of an object only
//! while one of its pods refers to it, and is told to forget it afterwards. Level-triggered: whoever leads
//! derives everything anew from the pods, nothing is remembered from one role to the next. Contents are read
//! from this replica's own store when they are told, which holds at least what the pod was read from, so a
//! pod never arrives before an object that was written before it.

use std::collections::{BTreeMap, BTreeSet};

use api::references::{self, Reference, ReferenceKind};
use k8s_openapi::api::core::v1::PodSpec;
use proto::node::{ObjectChange, ObjectIndex, ObjectKey, ObjectRemoved, to_node};

use super::NodeSessions;
use super::mailbox::Mailbox;
use crate::leader::Epoch;
use crate::reflector::{Feed, uid};
use crate::registry::Object;

/// What the pods of one node refer to.
#[derive(Debug, Default)]
pub(super) struct Entitled {
    /// By pod uid.
    pods: BTreeMap<String, BTreeSet<Reference>>,
    /// How many pods refer to an object.
    holders: BTreeMap<Reference, usize>,
}

impl Entitled {
    /// A pod refers to exactly these (nothing: it is gone). Gives what is new, and what nobody refers to
    /// any more.
    pub(super) fn set(
        &mut self,
        uid: &str,
        references: BTreeSet<Reference>,
    ) -> (Vec<Reference>, Vec<Reference>) {
        let before = match references.is_empty() {
            true => self.pods.remove(uid),
            false => self.pods.insert(uid.to_owned(), references.clone()),
        };
        let before = before.unwrap_or_default();
        let (mut new, mut gone) = (Vec::new(), Vec::new());
        for reference in references.difference(&before) {
            let holders = self.holders.entry(reference.clone()).or_default();
            *holders += 1;
            if *holders == 1 {
                new.push(reference.clone());
            }
        }
        for reference in before.difference(&references) {
            if let Some(holders) = self.holders.get_mut(reference) {
                *holders -= 1;
                if *holders == 0 {
                    self.holders.remove(reference);
                    gone.push(reference.clone());
                }
            }
        }
        (new, gone)
    }

    /// The pods that refer to it.
    pub(super) fn pods_of(&self, reference: &Reference) -> Vec<String> {
        let holding = self.pods.iter().filter(|(_, references)| references.contains(reference));
        holding.map(|(uid, _)| uid.clone()).collect()
    }

    /// Whether a pod refers to it.
    pub(super) fn holds(&self, reference: &Reference) -> bool {
        self.holders.contains_key(reference)
    }

    /// Everything that some pod refers to.
    pub(super) fn all(&self) -> Vec<Reference> {
        self.holders.keys().cloned().collect()
    }
}

impl NodeSessions {
    /// What a pod refers to, and the volumes that its claims are bound to.
    pub(super) async fn needs_of(&self, pod: &Object) -> BTreeSet<Reference> {
        let mut references = of_pod(pod);
        let claims: Vec<Reference> = references
            .iter()
            .filter(|reference| reference.kind == ReferenceKind::PersistentVolumeClaim)
            .cloned()
            .collect();
        for claim in claims {
            let found = self.inner.registry.get_local(claim.kind.kind(), &claim.namespace, &claim.name).await;
            let Ok(Some(found)) = found else { continue };
            if let Some(volume) = found.value()["spec"]["volumeName"].as_str().filter(|name| !name.is_empty())
            {
                references.insert(Reference::new(ReferenceKind::PersistentVolume, "", volume));
            }
        }
        references
    }

    /// Tells sessions of changes of objects that their pods refer to, until cancelled.
    pub(super) async fn route_objects(&self) {
        let feeds = self.inner.objects.iter().map(|reflector| async {
            let mut feed = Feed::new(reflector.clone());
            loop {
                let delta = feed.next().await;
                self.note_volume(delta.object());
                if let Some(reference) = reference(delta.object()) {
                    let mailboxes: Vec<_> = self.mailboxes().values().cloned().collect();
                    for mailbox in &mailboxes {
                        mailbox.object(&reference);
                        self.tell_users(mailbox, &reference);
                    }
                }
            }
        });
        futures_util::future::join_all(feeds).await;
    }

    /// The pods of a claim that changed are told again: with them goes the volume that it is bound to now.
    fn tell_users(&self, mailbox: &Mailbox, reference: &Reference) {
        if reference.kind != ReferenceKind::PersistentVolumeClaim {
            return;
        }
        let users = mailbox.pods_of(reference);
        if users.is_empty() {
            return;
        }
        for pod in self.inner.pods.list() {
            let pod_uid = uid(&pod);
            if users.contains(&pod_uid) {
                mailbox.pod(pod_uid, pod.namespace(), pod.name());
            }
        }
    }

    /// What is true of an object now, as the node is told it.
    pub(super) async fn object_message(
        &self,
        epoch: Epoch,
        reference: &Reference,
        is_entitled: bool,
    ) -> to_node::Message {
        let (epoch, key) = (epoch.0, Some(key(reference)));
        let kind = reference.kind.kind();
        let read = match is_entitled {
            true => self.inner.registry.get_local(kind, &reference.namespace, &reference.name).await,
            false => Ok(None),
        };
        match read {
            Ok(Some(object)) => {
                to_node::Message::ObjectChange(ObjectChange { epoch, key, object_json: object.json() })
            }
            Ok(None) => to_node::Message::ObjectRemoved(ObjectRemoved { epoch, key }),
            Err(status) => {
                // The store is stopping: so is this session.
                tracing::warn!(%reference, %status, "cannot read an object for a node");
                to_node::Message::ObjectRemoved(ObjectRemoved { epoch, key })
            }
        }
    }
}

/// The index that follows the objects themselves.
pub(super) fn index(epoch: Epoch, references: &[Reference]) -> to_node::Message {
    to_node::Message::ObjectIndex(ObjectIndex {
        epoch: epoch.0,
        objects: references.iter().map(key).collect(),
    })
}

/// What a pod refers to, read from the stored pod without keeping a decoded copy.
pub(super) fn of_pod(pod: &Object) -> BTreeSet<Reference> {
    let spec = pod.decode_member::<PodSpec>(&["spec"]);
    spec.map(|spec| references::of_pod(pod.namespace(), pod.name(), &spec)).unwrap_or_default()
}

fn reference(object: &Object) -> Option<Reference> {
    let kind = ReferenceKind::parse(object.kind().kind)?;
    Some(Reference::new(kind, object.namespace(), object.name()))
}

fn key(reference: &Reference) -> ObjectKey {
    ObjectKey {
        kind: reference.kind.name().to_owned(),
        namespace: reference.namespace.clone(),
        name: reference.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_held_as_long_as_one_pod_refers_to_it() {
        let map = |name: &str| Reference::new(ReferenceKind::ConfigMap, "d", name);
        let set = |names: &[&str]| names.iter().map(|name| map(name)).collect::<BTreeSet<_>>();
        let mut entitled = Entitled::default();
        assert_eq!(entitled.set("u1", set(&["a", "b"])), (vec![map("a"), map("b")], vec![]));
        assert_eq!(entitled.set("u2", set(&["b"])), (vec![], vec![]));
        assert_eq!(entitled.set("u1", set(&["a"])), (vec![], vec![]), "u2 still refers to b");
        assert_eq!(entitled.set("u2", set(&[])), (vec![], vec![map("b")]));
        assert_eq!(entitled.set("u2", set(&[])), (vec![], vec![]));
        assert_eq!(entitled.all(), [map("a")]);
        assert!(entitled.holds(&map("a")) && !entitled.holds(&map("b")));
    }
}
