//! Objects and who controls them: the pods of ReplicaSets, the ReplicaSets of Deployments, the jobs of CronJobs.
//!
//! Owns a copy of one kind of dependents, indexed by their controller, that runs ahead of the watch by what
//! this loop did itself: what it created is there at once, what it deleted is gone at once, so that no turn
//! acts twice on the same need. What the watch does not confirm in time is looked up. Also owns claiming:
//! dependents that fit and have no controller are adopted, those that no longer fit are let go.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::{LabelSelector, Status, object};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::work_queue::{Key, key_of};
use super::{Context, options, settled};
use crate::leader::Epoch;
use crate::object_store::SharedStore;
use crate::reflector::{Delta, Reflector};
use crate::registry::{Object, Target};

/// How often what the watch did not confirm is looked up.
pub(super) const CONFIRM_INTERVAL: Duration = Duration::from_secs(10);
/// How long the watch may take to show what was done here.
const CONFIRM_MAX: Duration = Duration::from_secs(30);

/// The entry of `ownerReferences` that says who controls an object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Controller {
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) uid: String,
}

#[derive(Debug)]
struct Known {
    object: Arc<Object>,
    uid: String,
    controller: Option<Controller>,
    /// Deleted here; the watch will say so.
    is_gone: bool,
    /// Done here and not yet seen in the watch, since then.
    unconfirmed: Option<Instant>,
}

/// What a change concerns.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Controllers of this loop's kind, before and after.
    pub(super) controllers: BTreeSet<Key>,
    /// The object, if nobody controls it.
    pub(super) orphan: Option<Arc<Object>>,
}

/// The dependents of one kind of controllers.
#[derive(Debug)]
pub(super) struct Children {
    /// The kind of the controllers.
    kind: &'static str,
    known: HashMap<Bytes, Known>,
    by_controller: HashMap<String, BTreeSet<Bytes>>,
}

impl Touched {
    /// The controllers that are to look: those touched, and those of `all` that the orphan would fit.
    pub(super) fn concerned(
        self,
        all: &Reflector<SharedStore>,
        selector: impl Fn(&Object) -> Option<LabelSelector>,
    ) -> BTreeSet<Key> {
        let mut keys = self.controllers;
        if let Some(orphan) = self.orphan {
            let fits = |owner: &Arc<Object>| {
                owner.namespace() == orphan.namespace()
                    && selector(owner).is_some_and(|selector| selector.matches_object(orphan.value()))
            };
            keys.extend(all.list().iter().filter(|owner| fits(owner)).map(|owner| key_of(owner)));
        }
        keys
    }
}

/// Which objects are an owner's; `None`: it says nothing that makes sense.
pub(super) fn selector_of(value: &Value) -> Option<LabelSelector> {
    let typed = serde_json::from_value(value["spec"]["selector"].clone()).ok()?;
    LabelSelector::from_typed(Some(&typed)).ok()
}

/// Who controls an object.
pub(super) fn controller_of(object: &Object) -> Option<Controller> {
    let references = object::owner_references(object.value());
    let controller = references.iter().find(|reference| reference["controller"] == true)?;
    serde_json::from_value(controller.clone()).ok()
}

impl Children {
    pub(super) fn new(kind: &'static str) -> Self {
        Self { kind, known: HashMap::new(), by_controller: HashMap::new() }
    }

    /// Takes a change of the watch in.
    pub(super) fn apply(&mut self, delta: &Delta) -> Touched {
        match delta {
            Delta::Applied(object) => self.put(object, None),
            Delta::Deleted(object) => {
                let is_later = self.known.get(object.key()).is_some_and(|known| {
                    known.uid != object::uid(object.value()) && known.object.revision() > object.revision()
                });
                if is_later { Touched::default() } else { self.take(object.key()) }
            }
        }
    }

    /// Notes what was written here.
    pub(super) fn assume(&mut self, object: &Arc<Object>) {
        self.put(object, Some(Instant::now()));
    }

    /// Notes what was deleted here.
    pub(super) fn assume_gone(&mut self, object: &Object) {
        if let Some(known) = self.known.get_mut(object.key()) {
            known.is_gone = true;
            known.unconfirmed = Some(Instant::now());
        }
    }

    fn put(&mut self, object: &Arc<Object>, unconfirmed: Option<Instant>) -> Touched {
        let uid = object::uid(object.value()).to_owned();
        if let Some(known) = self.known.get_mut(object.key()) {
            if known.object.revision() >= object.revision() {
                if !known.is_gone && unconfirmed.is_none() && known.object.revision() == object.revision() {
                    known.unconfirmed = None;
                }
                return Touched::default();
            }
            if known.is_gone && known.uid == uid {
                return Touched::default();
            }
        }
        let mut touched = self.take(object.key());
        let controller = controller_of(object);
        match &controller {
            Some(controller) if controller.kind == self.kind => {
                touched.controllers.insert((object.namespace().to_owned(), controller.name.clone()));
                self.by_controller.entry(controller.uid.clone()).or_default().insert(object.key().clone());
            }
            // Other kinds' children are no business of this loop.
            Some(_) => return touched,
            None => touched.orphan = Some(object.clone()),
        }
        let known = Known { object: object.clone(), uid, controller, is_gone: false, unconfirmed };
        self.known.insert(object.key().clone(), known);
        touched
    }

    fn take(&mut self, key: &Bytes) -> Touched {
        let mut touched = Touched::default();
        let Some(known) = self.known.remove(key) else { return touched };
        let Some(controller) = known.controller.filter(|controller| controller.kind == self.kind) else {
            return touched;
        };
        if let Some(keys) = self.by_controller.get_mut(&controller.uid) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_controller.remove(&controller.uid);
            }
        }
        touched.controllers.insert((known.object.namespace().to_owned(), controller.name));
        touched
    }

    /// What somebody controls, in the order of names.
    pub(super) fn of(&self, uid: &str) -> Vec<Arc<Object>> {
        let keys = self.by_controller.get(uid).into_iter().flatten();
        let known = keys.filter_map(|key| self.known.get(key)).filter(|known| !known.is_gone);
        known.map(|known| known.object.clone()).collect()
    }

    fn orphans(&self, namespace: &str) -> impl Iterator<Item = &Arc<Object>> {
        let free = self.known.values().filter(|known| known.controller.is_none() && !known.is_gone);
        free.map(|known| &known.object).filter(move |object| object.namespace() == namespace)
    }

    /// Looks up what the watch should have shown by now; gives the controllers that are touched.
    pub(super) async fn confirm(&mut self, context: &Context) -> BTreeSet<Key> {
        let is_overdue =
            |known: &&Known| known.unconfirmed.is_some_and(|since| since.elapsed() > CONFIRM_MAX);
        let overdue: Vec<Arc<Object>> =
            self.known.values().filter(is_overdue).map(|known| known.object.clone()).collect();
        let mut touched = BTreeSet::new();
        for object in overdue {
            let found = context.registry.get(object.kind(), object.namespace(), object.name()).await;
            match found {
                Ok(found) => {
                    touched.extend(self.take(object.key()).controllers);
                    touched.extend(self.put(&found, None).controllers);
                }
                Err(status) if status.reason() == "NotFound" => {
                    touched.extend(self.take(object.key()).controllers);
                }
                Err(status) => tracing::debug!(%status, "what was done is not confirmed yet"),
            }
        }
        touched
    }
}

/// Who claims.
pub(super) struct Claimant<'a> {
    pub(super) context: &'a Context,
    pub(super) epoch: Epoch,
    /// A ReplicaSet, a Deployment.
    pub(super) owner: &'a Object,
    pub(super) selector: &'a LabelSelector,
}

impl Claimant<'_> {
    /// The reference that makes an object the owner's.
    pub(super) fn reference(&self) -> Value {
        let kind = self.owner.kind();
        json!({"apiVersion": kind.api_version(), "kind": kind.kind, "name": self.owner.name(),
            "uid": object::uid(self.owner.value()), "controller": true, "blockOwnerDeletion": true})
    }

    /// Everything that is the owner's: what was, without what no longer fits, with what fits and is free.
    pub(super) async fn claim(
        &self,
        children: &mut Children,
        is_adoptable: impl Fn(&Object) -> bool,
    ) -> Result<Vec<Arc<Object>>, Status> {
        let uid = object::uid(self.owner.value());
        let mut own = Vec::new();
        for child in children.of(uid) {
            if self.selector.matches_object(child.value()) {
                own.push(child);
            } else if object::deletion_timestamp(child.value()).is_none() {
                self.release(&child, children).await?;
            }
        }
        let free = children.orphans(self.owner.namespace());
        let is_free = |child: &&Arc<Object>| {
            object::deletion_timestamp(child.value()).is_none()
                && self.selector.matches_object(child.value())
                && is_adoptable(child)
        };
        let free: Vec<Arc<Object>> = free.filter(is_free).cloned().collect();
        if free.is_empty() {
            return Ok(own);
        }
        // Only an owner that is still there, and staying, adopts.
        let Target { kind, namespace, name, .. } = self.target(self.owner);
        let newest = self.context.registry.get(kind, namespace, name).await?;
        if object::uid(newest.value()) != uid || object::deletion_timestamp(newest.value()).is_some() {
            return Ok(own);
        }
        for child in free {
            if let Some(adopted) = self.adopt(&child, children).await? {
                own.push(adopted);
            }
        }
        Ok(own)
    }

    fn target<'o>(&self, object: &'o Object) -> Target<'o> {
        Target::new(object.kind(), object.namespace(), object.name())
    }

    async fn adopt(&self, child: &Object, children: &mut Children) -> Result<Option<Arc<Object>>, Status> {
        let uid = object::uid(child.value());
        let mut is_adopted = false;
        let change = |value: &mut Value| {
            let references = object::owner_references(value);
            is_adopted = object::uid(value) == uid
                && object::deletion_timestamp(value).is_none()
                && references.iter().all(|reference| reference["controller"] != true);
            if is_adopted {
                let mut references = references.to_vec();
                references.push(self.reference());
                object::set_metadata(value, "ownerReferences", references);
            }
            Ok(())
        };
        let written = self.context.registry.modify(self.target(child), &options(self.epoch), change).await;
        match written {
            Ok(written) => {
                children.assume(&written.object);
                Ok(is_adopted.then_some(written.object))
            }
            Err(status) => settled(Err(status)).map(|()| None),
        }
    }

    async fn release(&self, child: &Object, children: &mut Children) -> Result<(), Status> {
        let (owner, uid) = (object::uid(self.owner.value()), object::uid(child.value()));
        let change = |value: &mut Value| {
            if object::uid(value) == uid
                && let Some(references) = value["metadata"]["ownerReferences"].as_array_mut()
            {
                references.retain(|reference| reference["uid"] != owner);
            }
            Ok(())
        };
        match self.context.registry.modify(self.target(child), &options(self.epoch), change).await {
            Ok(written) => {
                children.assume(&written.object);
                Ok(())
            }
            Err(status) => settled(Err(status)),
        }
    }
}
