//! The loop under every controller whose objects own others: ReplicaSets their pods, Deployments their
//! ReplicaSets, CronJobs their jobs.
//!
//! Owns what all of them do alike: which owners are due, which children each has ([`Children`]), making and
//! deleting children in batches, writing the status if it changed, saying what was done. What a turn decides is
//! the [`Controller`]'s. Runs for one epoch.
//!
//! ```text
//!   owners ─┐
//!   children ─┼─► queue ─► turn(owner) ─► create, delete, report ─► children, and round again
//!   others ─┘
//! ```

use std::sync::Arc;
use std::time::Instant;

use api::{Kind, LabelSelector, Status, object};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::children::{CONFIRM_INTERVAL, Children, Claimant, Touched, selector_of};
use super::work_queue::{Key, WorkQueue, key_of};
use super::{Context, WRITES_MAX, options, settled};
use crate::leader::Epoch;
use crate::object_store::SharedStore;
use crate::reflector::{Delta, Feed, Reflector};
use crate::registry::{DeleteOptions, EventRecord, EventType, Object, Propagation, Regarding, Target};

/// Children made or deleted in one turn.
pub(super) const BURST_MAX: usize = 500;

/// What one kind of owners does.
pub(super) trait Controller {
    /// Group and kind of the owners.
    fn owner(&self) -> (&'static str, &'static str);

    /// Group and kind of what they own.
    fn child(&self) -> (&'static str, &'static str) {
        ("", "Pod")
    }

    /// Who says what was done.
    fn component(&self) -> &'static str;

    /// What else there is to look at.
    fn other(&self) -> Option<(&'static str, &'static str)> {
        None
    }

    /// The owners that are to look again because something else changed.
    fn concerned(&self, _work: &Work<'_>, _delta: &Delta) -> Vec<Key> {
        Vec::new()
    }

    /// Which children would fit; `None`: the owner says nothing that makes sense.
    fn selector(&self, owner: &Object) -> Option<LabelSelector> {
        selector_of(owner.value())
    }

    /// Whether a child without an owner may be adopted.
    fn is_adoptable(&self, _child: &Object) -> bool {
        true
    }

    /// Looks at one owner and does the next thing; gives when to look again, if that is known.
    fn turn(
        &self,
        work: &mut Work<'_>,
        owner: &Owner<'_>,
    ) -> impl Future<Output = Result<Option<Instant>, Status>> + Send;
}

/// An owner in its turn.
pub(super) struct Owner<'a> {
    pub(super) object: &'a Arc<Object>,
    /// What is its own.
    pub(super) children: Vec<Arc<Object>>,
    /// The reference that makes an object its own.
    pub(super) reference: Value,
    pub(super) is_deleting: bool,
}

impl Owner<'_> {
    pub(super) fn value(&self) -> &Value {
        self.object.value()
    }
}

/// What a turn works with.
pub(super) struct Work<'a> {
    pub(super) context: &'a Context,
    epoch: Epoch,
    component: &'static str,
    pub(super) owners: Reflector<SharedStore>,
    child_kind: &'static Kind,
    children: Children,
}

/// What could not be done.
pub(super) struct Failure {
    pub(super) status: Status,
    pub(super) reason: &'static str,
}

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run<C: Controller + Sync>(context: &Context, epoch: Epoch, controller: C) {
    let of = |(group, kind)| context.every(group, kind).clone();
    let (owners, children) = (of(controller.owner()), of(controller.child()));
    let mut work = Work {
        context,
        epoch,
        component: controller.component(),
        child_kind: children.kind(),
        children: Children::new(controller.owner().1),
        owners: owners.clone(),
    };
    let mut queue = WorkQueue::default();
    let (mut owners, mut children) = (Feed::new(owners), Feed::new(children));
    let mut others = controller.other().map(|kind| Feed::new(of(kind)));
    let mut confirmations = tokio::time::interval(CONFIRM_INTERVAL);
    let child_changed = |work: &mut Work<'_>, queue: &mut WorkQueue, delta: &Delta| {
        let mut touched: Touched = work.children.apply(delta);
        touched.orphan = touched.orphan.filter(|child| controller.is_adoptable(child));
        touched
            .concerned(&work.owners, |owner| controller.selector(owner))
            .into_iter()
            .for_each(|key| queue.add(key));
    };
    loop {
        while let Some(delta) = owners.try_next() {
            queue.add(key_of(delta.object()));
        }
        while let Some(delta) = children.try_next() {
            child_changed(&mut work, &mut queue, &delta);
        }
        while let Some(delta) = others.as_mut().and_then(Feed::try_next) {
            controller.concerned(&work, &delta).into_iter().for_each(|key| queue.add(key));
        }
        for key in queue.take_due() {
            match work.look(&controller, &key).await {
                Ok(next) => {
                    queue.forget(&key);
                    if let Some(at) = next {
                        queue.add_at(key, at);
                    }
                }
                Err(status) => queue.ended(key, Err(status)),
            }
        }
        tokio::select! {
            delta = owners.next() => queue.add(key_of(delta.object())),
            delta = children.next() => child_changed(&mut work, &mut queue, &delta),
            delta = next(&mut others) => {
                controller.concerned(&work, &delta).into_iter().for_each(|key| queue.add(key));
            }
            () = queue.wait() => {}
            _ = confirmations.tick() => {
                for key in work.children.confirm(context).await {
                    queue.add(key);
                }
            }
        }
    }
}

async fn next(feed: &mut Option<Feed<SharedStore>>) -> Delta {
    match feed {
        Some(feed) => feed.next().await,
        None => std::future::pending().await,
    }
}

impl Work<'_> {
    async fn look<C: Controller>(&mut self, controller: &C, key: &Key) -> Result<Option<Instant>, Status> {
        let Some(object) = self.owners.get(&key.0, &key.1) else { return Ok(None) };
        let Some(selector) = controller.selector(&object) else { return Ok(None) };
        let is_deleting = object::deletion_timestamp(object.value()).is_some();
        let claimant =
            Claimant { context: self.context, epoch: self.epoch, owner: &object, selector: &selector };
        let reference = claimant.reference();
        let mut children = match is_deleting {
            true => self.children.of(object::uid(object.value())),
            false => claimant.claim(&mut self.children, |child| controller.is_adoptable(child)).await?,
        };
        children.sort_by(|one, other| one.key().cmp(other.key()));
        let owner = Owner { object: &object, children, reference, is_deleting };
        controller.turn(self, &owner).await
    }

    /// Makes children, in batches that double as long as they succeed; gives those made, and why not all.
    pub(super) async fn create(
        &mut self,
        owner: &Owner<'_>,
        wanted: Vec<Value>,
    ) -> (Vec<Arc<Object>>, Option<Failure>) {
        let (mut made, mut batch) = (Vec::new(), 1);
        let mut wanted = wanted.into_iter();
        let (context, epoch, namespace) = (self.context, self.epoch, owner.object.namespace());
        let (kind, noun) = (self.child_kind, self.noun());
        loop {
            let now: Vec<Value> = wanted.by_ref().take(batch).collect();
            if now.is_empty() {
                return (made, None);
            }
            let attempts = stream::iter(now).map(|child| {
                let options = options(epoch);
                async move { context.registry.create(kind, namespace, child, &options).await }
            });
            let attempts: Vec<_> = attempts.buffer_unordered(WRITES_MAX).collect().await;
            let mut failure = None;
            for attempt in attempts {
                match attempt {
                    Ok(written) => {
                        self.children.assume(&written.object);
                        let message = format!("Created {noun}: {}", written.object.name());
                        self.say(owner.object, EventType::Normal, "SuccessfulCreate", message);
                        made.push(written.object);
                    }
                    Err(status) => failure = Some(status),
                }
            }
            if let Some(status) = failure {
                let message = format!("Error creating: {}", status.message());
                self.say(owner.object, EventType::Warning, "FailedCreate", message);
                return (made, Some(Failure { status, reason: "FailedCreate" }));
            }
            batch *= 2;
        }
    }

    /// Deletes children; gives those that stay because it failed, and why.
    pub(super) async fn delete(
        &mut self,
        owner: &Owner<'_>,
        go: Vec<Arc<Object>>,
    ) -> (Vec<Arc<Object>>, Option<Failure>) {
        let (context, epoch, noun) = (self.context, self.epoch, self.noun());
        let attempts = stream::iter(go).map(|child| async move {
            let options = DeleteOptions {
                uid: Some(object::uid(child.value()).to_owned()),
                fence: epoch.fence(),
                propagation: Some(Propagation::Background),
                ..DeleteOptions::default()
            };
            let target = Target::new(child.kind(), child.namespace(), child.name());
            let deleted = context.registry.delete(target, &options).await;
            // Whoever has to wait, for its node or a finalizer, is still there.
            let (waiting, outcome) = match deleted {
                Ok(deleted) => ((!deleted.removed).then_some(deleted.object), Ok(())),
                Err(status) => (None, settled(Err(status))),
            };
            (child, waiting, outcome)
        });
        let outcomes: Vec<_> = attempts.buffer_unordered(WRITES_MAX).collect().await;
        let (mut stay, mut failure) = (Vec::new(), None);
        for (child, waiting, outcome) in outcomes {
            match outcome {
                Ok(()) => {
                    match &waiting {
                        Some(waiting) => self.children.assume(waiting),
                        None => self.children.assume_gone(&child),
                    }
                    let message = format!("Deleted {noun}: {}", child.name());
                    self.say(owner.object, EventType::Normal, "SuccessfulDelete", message);
                }
                Err(status) => {
                    let message = format!("Error deleting: {}", status.message());
                    self.say(owner.object, EventType::Warning, "FailedDelete", message);
                    stay.push(child);
                    failure = Some(Failure { status, reason: "FailedDelete" });
                }
            }
        }
        (stay, failure)
    }

    /// Changes a child, if it is still the same; gives it as it then is.
    pub(super) async fn modify(
        &mut self,
        child: &Object,
        mut change: impl FnMut(&mut Value) + Send,
    ) -> Result<Option<Arc<Object>>, Status> {
        let uid = object::uid(child.value());
        let target = Target::new(child.kind(), child.namespace(), child.name());
        let apply = |value: &mut Value| {
            if object::uid(value) == uid {
                change(value);
            }
            Ok(())
        };
        match self.context.registry.modify(target, &options(self.epoch), apply).await {
            Ok(written) => {
                self.children.assume(&written.object);
                Ok(Some(written.object))
            }
            Err(status) => settled(Err(status)).map(|()| None),
        }
    }

    /// Makes one child without saying so.
    pub(super) async fn create_quietly(&mut self, owner: &Owner<'_>, child: Value) -> Result<(), Status> {
        let (kind, namespace) = (self.child_kind, owner.object.namespace());
        let written = self.context.registry.create(kind, namespace, child, &self.options()).await?;
        self.children.assume(&written.object);
        Ok(())
    }

    /// What is an owner's own now.
    pub(super) fn children_of(&self, owner: &Object) -> Vec<Arc<Object>> {
        self.children.of(object::uid(owner.value()))
    }

    /// Notes a child that was made otherwise.
    pub(super) fn assume(&mut self, child: &Arc<Object>) {
        self.children.assume(child);
    }

    /// Notes a child that was deleted otherwise.
    pub(super) fn assume_gone(&mut self, child: &Object) {
        self.children.assume_gone(child);
    }

    /// Writes the owner's status if it changed.
    pub(super) async fn report(&self, owner: &Object, status: Value) -> Result<(), Status> {
        if owner.value()["status"] == status {
            return Ok(());
        }
        let target = Target::status(owner.kind(), owner.namespace(), owner.name());
        let uid = object::uid(owner.value());
        let change = |value: &mut Value| {
            if object::uid(value) == uid {
                value["status"] = status.clone();
            }
            Ok(())
        };
        settled(self.context.registry.modify(target, &self.options(), change).await.map(drop))
    }

    /// Says what was done to an object, or why not.
    pub(super) fn say(&self, about: &Object, event_type: EventType, reason: &str, message: String) {
        let regarding = Regarding::object(about.value());
        let record = EventRecord::now(self.component, regarding, event_type, reason, message);
        self.context.events.say(record, self.epoch.fence());
    }

    /// How this loop writes: only while it leads.
    pub(super) fn options(&self) -> crate::registry::WriteOptions {
        options(self.epoch)
    }

    /// The fence of what is deleted by hand.
    pub(super) fn fence(&self) -> Option<u64> {
        self.epoch.fence()
    }

    fn noun(&self) -> &'static str {
        match self.child_kind.kind {
            "Job" => "job",
            "ReplicaSet" => "replica set",
            _ => "pod",
        }
    }
}

/// The pod that a template describes.
pub(super) fn pod_of(template: &Value, reference: &Value) -> Value {
    let metadata = &template["metadata"];
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "labels": metadata["labels"],
            "annotations": metadata["annotations"],
            "finalizers": metadata["finalizers"],
            "ownerReferences": [reference],
        },
        "spec": template["spec"],
    })
}

/// Whether a pod counts: it runs or will.
pub(super) fn is_active(pod: &Object) -> bool {
    !has_ended(pod) && object::deletion_timestamp(pod.value()).is_none()
}

/// Whether all of a pod's containers are through.
pub(super) fn has_ended(pod: &Object) -> bool {
    matches!(pod.value()["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}
