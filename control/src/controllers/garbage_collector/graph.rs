//! Who belongs to whom: every object that owns or is owned, by uid. Pure.

use std::collections::{BTreeSet, HashMap};

use api::Kind;
use api::object::{FOREGROUND_FINALIZER, ORPHAN_FINALIZER};
use serde::Deserialize;

use crate::reflector::{Delta, uid};
use crate::registry::Object;

/// An entry of `metadata.ownerReferences`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct OwnerReference {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) block_owner_deletion: bool,
}

/// What matters of an object.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) kind: &'static Kind,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) is_deleting: bool,
    pub(super) finalizers: Vec<String>,
}

impl Node {
    /// Whether it waits for its dependents to be gone.
    pub(super) fn waits_for_dependents(&self) -> bool {
        self.is_deleting && self.finalizers.iter().any(|finalizer| finalizer == FOREGROUND_FINALIZER)
    }

    /// Whether it waits for its dependents to forget it.
    pub(super) fn orphans_dependents(&self) -> bool {
        self.is_deleting && self.finalizers.iter().any(|finalizer| finalizer == ORPHAN_FINALIZER)
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    uid: String,
    deletion_timestamp: Option<String>,
    finalizers: Option<Vec<String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

/// Every object and who depends on it.
#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: HashMap<String, Node>,
    /// By owner. An owner need not be known.
    dependents: HashMap<String, BTreeSet<String>>,
}

impl Graph {
    pub(super) fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// The objects that name an owner, with their uids.
    pub(super) fn dependents<'a>(&'a self, owner: &str) -> impl Iterator<Item = (&'a str, &'a Node)> {
        let uids = self.dependents.get(owner).into_iter().flatten();
        uids.filter_map(|uid| Some((uid.as_str(), self.nodes.get(uid)?)))
    }

    /// Takes a change in; gives the uids of the objects for which something may be to do now.
    pub(super) fn apply(&mut self, delta: &Delta) -> BTreeSet<String> {
        match delta {
            Delta::Applied(object) => self.applied(object),
            Delta::Deleted(object) => {
                let uid = uid(object);
                self.removed(&uid)
            }
        }
    }

    fn applied(&mut self, object: &Object) -> BTreeSet<String> {
        let Metadata { uid, deletion_timestamp, finalizers, owner_references } =
            object.decode_member(&["metadata"]).unwrap_or_default();
        let node = Node {
            kind: object.kind(),
            namespace: object.namespace().to_owned(),
            name: object.name().to_owned(),
            owners: owner_references.unwrap_or_default(),
            is_deleting: deletion_timestamp.is_some(),
            finalizers: finalizers.unwrap_or_default(),
        };
        let before = self.nodes.get(&uid).map(|known| known.owners.clone()).unwrap_or_default();
        let mut touched = BTreeSet::new();
        for owner in before.iter().filter(|owner| !node.owners.contains(owner)) {
            self.leave(&owner.uid, &uid);
            touched.insert(owner.uid.clone());
        }
        for owner in &node.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        if node.waits_for_dependents() {
            touched.extend(self.dependents(&uid).map(|(dependent, _)| dependent.to_owned()));
        }
        if !node.owners.is_empty() || node.waits_for_dependents() || node.orphans_dependents() {
            touched.insert(uid.clone());
        }
        self.nodes.insert(uid, node);
        touched
    }

    /// Takes out what is known to be gone.
    pub(super) fn removed(&mut self, uid: &str) -> BTreeSet<String> {
        let mut touched: BTreeSet<String> =
            self.dependents(uid).map(|(dependent, _)| dependent.to_owned()).collect();
        if let Some(node) = self.nodes.remove(uid) {
            for owner in &node.owners {
                self.leave(&owner.uid, uid);
                touched.insert(owner.uid.clone());
            }
        }
        touched
    }

    /// Whether nothing is known yet.
    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Takes out every object of a kind that is served no more; gives the uids for which something may be to
    /// do now.
    pub(super) fn forget_kind(&mut self, kind: &Kind) -> BTreeSet<String> {
        let is_it = |node: &Node| node.kind.group == kind.group && node.kind.plural == kind.plural;
        let gone: Vec<String> =
            self.nodes.iter().filter(|(_, node)| is_it(node)).map(|(uid, _)| uid.clone()).collect();
        gone.iter().flat_map(|uid| self.removed(uid)).collect()
    }

    fn leave(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }
}
