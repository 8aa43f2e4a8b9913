//! ReplicaSets: as many pods as asked for, no more.
//!
//! Owns the pods that ReplicaSets control and the ReplicaSets' status. A turn compares the pods that are
//! there, including those this loop made or deleted a moment ago, with the number that is asked for, and
//! makes or deletes the difference: at most [`BURST_MAX`] a turn, in batches that double as long as they
//! succeed, so that a quota or a broken template costs few refusals. Which pods go first is [`rank`]'s.

mod rank;
mod status;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::{LabelSelector, Status, object};
use futures_util::{StreamExt, stream};
use k8s_openapi::api::apps::v1::ReplicaSet;
use serde_json::{Value, json};

use super::children::{Children, Claimant, Touched};
use super::work_queue::{Key, WorkQueue};
use super::{Context, WRITES_MAX, core_kind, options, settled};
use crate::leader::Epoch;
use crate::reflector::Feed;
use crate::registry::{DeleteOptions, EventRecord, EventType, Object, Regarding, Target};

/// Pods made or deleted in one turn.
const BURST_MAX: usize = 500;
/// How often what the watch did not confirm is looked up.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(10);
const COMPONENT: &str = "replicaset-controller";

/// Runs for one epoch; the caller cancels it.
pub(super) async fn run(context: &Context, epoch: Epoch) {
    let mut sets = Feed::new(context.replica_sets.clone());
    let mut pods = Feed::new(context.pods.clone());
    let mut controller =
        Controller { context, epoch, pods: Children::new("ReplicaSet"), queue: WorkQueue::default() };
    let mut confirmations = tokio::time::interval(CONFIRM_INTERVAL);
    loop {
        while let Some(delta) = sets.try_next() {
            controller.queue.add(key_of(delta.object()));
        }
        while let Some(delta) = pods.try_next() {
            let touched = controller.pods.apply(&delta);
            controller.note(touched);
        }
        for key in controller.queue.take_due() {
            match controller.turn(&key).await {
                Ok(()) => controller.queue.forget(&key),
                Err(status) => {
                    tracing::debug!(?key, %status, "the ReplicaSet is looked at again");
                    controller.queue.retry(key);
                }
            }
        }
        tokio::select! {
            delta = sets.next() => controller.queue.add(key_of(delta.object())),
            delta = pods.next() => {
                let touched = controller.pods.apply(&delta);
                controller.note(touched);
            }
            () = controller.queue.wait() => {}
            _ = confirmations.tick() => {
                for key in controller.pods.confirm(context).await {
                    controller.queue.add(key);
                }
            }
        }
    }
}

fn key_of(object: &Object) -> Key {
    (object.namespace().to_owned(), object.name().to_owned())
}

struct Controller<'a> {
    context: &'a Context,
    epoch: Epoch,
    pods: Children,
    queue: WorkQueue,
}

/// Whether a pod counts: it runs or will.
fn is_active(pod: &Object) -> bool {
    let ended = matches!(pod.value()["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    !ended && object::deletion_timestamp(pod.value()).is_none()
}

impl Controller<'_> {
    fn note(&mut self, touched: Touched) {
        for key in touched.controllers {
            self.queue.add(key);
        }
        let Some(orphan) = touched.orphan.filter(|pod| is_active(pod)) else { return };
        for set in self.context.replica_sets.list() {
            let selector = set.namespace() == orphan.namespace();
            let selector = selector.then(|| selector_of(set.value())).flatten();
            if selector.is_some_and(|selector| selector.matches_object(orphan.value())) {
                self.queue.add(key_of(&set));
            }
        }
    }

    async fn turn(&mut self, key: &Key) -> Result<(), Status> {
        let Some(set) = self.context.replica_sets.get(&key.0, &key.1) else { return Ok(()) };
        let Some(selector) = selector_of(set.value()) else { return Ok(()) };
        let claimant =
            Claimant { context: self.context, epoch: self.epoch, owner: &set, selector: &selector };
        let is_deleting = object::deletion_timestamp(set.value()).is_some();
        let own = match is_deleting {
            true => self.pods.of(object::uid(set.value())),
            false => claimant.claim(&mut self.pods).await?,
        };
        let active: Vec<Arc<Object>> = own.into_iter().filter(|pod| is_active(pod)).collect();
        let managed = match is_deleting {
            true => Ok(active),
            false => self.manage(&set, &claimant.reference(), active).await,
        };
        let (active, failure) = match managed {
            Ok(active) => (active, None),
            Err(Failure { active, status, reason }) => (active, Some((status, reason))),
        };
        let cause = failure.as_ref().map(|(status, reason)| (*reason, status.message()));
        if let Some(at) = self.report(&set, &active, cause).await? {
            self.queue.add_at(key.clone(), at);
        }
        failure.map_or(Ok(()), |(status, _)| Err(status))
    }

    /// Makes or deletes the difference; gives the pods that are there then.
    async fn manage(
        &mut self,
        set: &Object,
        reference: &Value,
        active: Vec<Arc<Object>>,
    ) -> Result<Vec<Arc<Object>>, Failure> {
        let wanted = set.value()["spec"]["replicas"].as_u64().unwrap_or(1);
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        if active.len() < wanted {
            let missing = (wanted - active.len()).min(BURST_MAX);
            return self.create(set, reference, missing, active).await;
        }
        let surplus = (active.len() - wanted).min(BURST_MAX);
        self.delete(set, surplus, active).await
    }

    async fn create(
        &mut self,
        set: &Object,
        reference: &Value,
        missing: usize,
        mut active: Vec<Arc<Object>>,
    ) -> Result<Vec<Arc<Object>>, Failure> {
        let pod = pod_of(set, reference);
        let (context, epoch, namespace) = (self.context, self.epoch, set.namespace());
        let (mut left, mut batch) = (missing, 1);
        while left > 0 {
            let size = batch.min(left);
            let attempts = stream::iter(0..size).map(|_| {
                let (pod, options) = (pod.clone(), options(epoch));
                async move { context.registry.create(core_kind("Pod"), namespace, pod, &options).await }
            });
            let made: Vec<_> = attempts.buffer_unordered(WRITES_MAX).collect().await;
            let mut failure = None;
            for made in made {
                match made {
                    Ok(written) => {
                        self.pods.assume(&written.object);
                        let message = format!("Created pod: {}", written.object.name());
                        self.say(set, EventType::Normal, "SuccessfulCreate", message);
                        active.push(written.object);
                    }
                    Err(status) => failure = Some(status),
                }
            }
            if let Some(status) = failure {
                let message = format!("Error creating: {}", status.message());
                self.say(set, EventType::Warning, "FailedCreate", message);
                return Err(Failure { active, status, reason: "FailedCreate" });
            }
            left -= size;
            batch *= 2;
        }
        Ok(active)
    }

    async fn delete(
        &mut self,
        set: &Object,
        surplus: usize,
        active: Vec<Arc<Object>>,
    ) -> Result<Vec<Arc<Object>>, Failure> {
        if surplus == 0 {
            return Ok(active);
        }
        let ranked = rank::by_dispensability(active);
        let (go, mut stay) = (ranked[..surplus].to_vec(), ranked[surplus..].to_vec());
        let (context, epoch) = (self.context, self.epoch);
        let attempts = stream::iter(go).map(|pod| async move {
            let options = DeleteOptions {
                uid: Some(object::uid(pod.value()).to_owned()),
                fence: epoch.fence(),
                ..DeleteOptions::default()
            };
            let target = Target::new(core_kind("Pod"), pod.namespace(), pod.name());
            let deleted = context.registry.delete(target, &options).await;
            (pod, settled(deleted.map(drop)))
        });
        let outcomes: Vec<_> = attempts.buffer_unordered(WRITES_MAX).collect().await;
        let mut failure = None;
        for (pod, outcome) in outcomes {
            match outcome {
                Ok(()) => {
                    self.pods.assume_gone(&pod);
                    let message = format!("Deleted pod: {}", pod.name());
                    self.say(set, EventType::Normal, "SuccessfulDelete", message);
                }
                Err(status) => {
                    let message = format!("Error deleting: {}", status.message());
                    self.say(set, EventType::Warning, "FailedDelete", message);
                    stay.push(pod);
                    failure = Some(status);
                }
            }
        }
        match failure {
            Some(status) => Err(Failure { active: stay, status, reason: "FailedDelete" }),
            None => Ok(stay),
        }
    }

    /// Writes the status if it changed; says when a pod will have been ready long enough.
    async fn report(
        &self,
        set: &Object,
        active: &[Arc<Object>],
        failure: Option<(&str, &str)>,
    ) -> Result<Option<Instant>, Status> {
        let Ok(typed) = set.decode::<ReplicaSet>() else { return Ok(None) };
        let now = super::whole_seconds(jiff::Timestamp::now());
        let (status, next) = status::of(&typed, active, failure, now);
        let status = json!(status);
        let next = next.map(|wait| Instant::now() + wait);
        if set.value()["status"] == status {
            return Ok(next);
        }
        let target = Target::status(set.kind(), set.namespace(), set.name());
        let uid = object::uid(set.value());
        let change = |value: &mut Value| {
            if object::uid(value) == uid {
                value["status"] = status.clone();
            }
            Ok(())
        };
        settled(self.context.registry.modify(target, &options(self.epoch), change).await.map(drop))?;
        Ok(next)
    }

    fn say(&self, set: &Object, event_type: EventType, reason: &str, message: String) {
        let record = EventRecord {
            regarding: Regarding::object(set.value()),
            event_type,
            reason: reason.to_owned(),
            message,
            component: COMPONENT.to_owned(),
            host: String::new(),
            at: jiff::Timestamp::now(),
        };
        self.context.events.say(record, self.epoch.fence());
    }
}

/// What could not be done, and what is there all the same.
struct Failure {
    active: Vec<Arc<Object>>,
    status: Status,
    reason: &'static str,
}

/// Which pods are a controller's; `None`: it says nothing that makes sense.
pub(super) fn selector_of(value: &Value) -> Option<LabelSelector> {
    let typed = serde_json::from_value(value["spec"]["selector"].clone()).ok()?;
    LabelSelector::from_typed(Some(&typed)).ok()
}

/// The pod that a set's template describes.
fn pod_of(set: &Object, reference: &Value) -> Value {
    let template = &set.value()["spec"]["template"];
    let metadata = &template["metadata"];
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": format!("{}-", set.name()),
            "labels": metadata["labels"],
            "annotations": metadata["annotations"],
            "finalizers": metadata["finalizers"],
            "ownerReferences": [reference],
        },
        "spec": template["spec"],
    })
}
