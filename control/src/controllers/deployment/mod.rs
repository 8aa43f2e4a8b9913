//! Deployments: a ReplicaSet for each template that there was, and pods moved from the old ones to the new.
//!
//! Owns the ReplicaSets that Deployments control and the Deployments' status. A turn does one step (makes the
//! new ReplicaSet, scales some, removes those beyond the history) and reports; what the step brings about makes
//! the next turn. [`rollout`] decides numbers, [`revision`] which ReplicaSet is which, [`status`] what is said;
//! all three are pure. Pods are the ReplicaSets' business, but for `Recreate`, which waits until the old ones
//! are gone.

mod revision;
mod rollout;
mod status;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use api::{Status, object};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use serde_json::{Value, json};

use self::rollout::{Scaling, Set, Wanted};
use self::status::{Facts, NewSet};
use super::children::controller_of;
use super::owners::{Controller, Owner, Work};
use super::settled;
use super::work_queue::Key;
use crate::reflector::Delta;
use crate::registry::{DeleteOptions, EventType, Object, Target, Written};

/// The loop over Deployments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deployments;

impl Controller for Deployments {
    fn owner(&self) -> (&'static str, &'static str) {
        ("apps", "Deployment")
    }

    fn child(&self) -> (&'static str, &'static str) {
        ("apps", "ReplicaSet")
    }

    fn component(&self) -> &'static str {
        "deployment-controller"
    }

    fn other(&self) -> Option<(&'static str, &'static str)> {
        Some(("", "Pod"))
    }

    /// Whoever recreates waits for the last old pod to be gone.
    fn concerned(&self, work: &Work<'_>, delta: &Delta) -> Vec<Key> {
        let Delta::Deleted(pod) = delta else { return Vec::new() };
        let Some(set) = controller_of(pod).filter(|controller| controller.kind == "ReplicaSet") else {
            return Vec::new();
        };
        let set = work.context.every("apps", "ReplicaSet").get(pod.namespace(), &set.name);
        let owner = set.as_deref().and_then(controller_of);
        owner.map(|owner| (pod.namespace().to_owned(), owner.name)).into_iter().collect()
    }

    async fn turn(&self, work: &mut Work<'_>, owner: &Owner<'_>) -> Result<Option<Instant>, Status> {
        let Ok(typed) = owner.object.decode::<Deployment>() else { return Ok(None) };
        let Some(spec) = typed.spec.clone() else { return Ok(None) };
        let new = revision::newest(owner.value(), &owner.children);
        let is_new = |set: &Arc<Object>| new.as_ref().is_some_and(|new| new.key() == set.key());
        let old = owner.children.iter().filter(|set| !is_new(set)).cloned().collect();
        let wanted = Wanted::of(&spec);
        let reference = owner.reference.clone();
        let mut turn = Turn { deployment: owner.object, typed, wanted, reference, new, old };
        let mut steps = Steps { work };
        let how = match owner.is_deleting {
            true => NewSet::Found,
            false => steps.step(&mut turn, spec.paused == Some(true)).await?,
        };
        steps.report(&turn, how).await
    }
}

/// What a turn does.
struct Steps<'s, 'w> {
    work: &'s mut Work<'w>,
}

/// A Deployment in its turn.
struct Turn<'a> {
    deployment: &'a Object,
    typed: Deployment,
    wanted: Wanted,
    reference: Value,
    new: Option<Arc<Object>>,
    old: Vec<Arc<Object>>,
}

impl Steps<'_, '_> {
    /// Does the next thing.
    async fn step(&mut self, turn: &mut Turn<'_>, is_paused: bool) -> Result<NewSet, Status> {
        // A number that changed comes before the rollout goes on.
        if is_paused || turn.is_rescaled() {
            let scalings = rollout::scale(turn.wanted, turn.new_facts().as_ref(), &turn.old_facts());
            let are_none = scalings.is_empty();
            self.scale(turn, scalings).await?;
            if is_paused || !are_none {
                return Ok(NewSet::Found);
            }
            self.renote(turn).await?;
        }
        if turn.wanted.is_recreate {
            let running: Vec<Scaling> = turn
                .old_facts()
                .into_iter()
                .filter(|set| set.replicas > 0)
                .map(|set| (set.name, 0))
                .collect();
            if !running.is_empty() {
                self.scale(turn, running).await?;
                return Ok(NewSet::Found);
            }
            if self.has_old_pods(turn) {
                return Ok(NewSet::Found);
            }
        }
        let how = self.ensure_new(turn).await?;
        let Some(new) = turn.new_facts() else { return Ok(how) };
        let scalings = match turn.wanted.is_recreate {
            true if new.replicas != turn.wanted.replicas => vec![(new.name, turn.wanted.replicas)],
            true => Vec::new(),
            false => rollout::roll(turn.wanted, &new, &turn.old_facts()),
        };
        match scalings.is_empty() {
            true => self.forget_history(turn).await?,
            false => self.scale(turn, scalings).await?,
        }
        Ok(how)
    }

    fn has_old_pods(&self, turn: &Turn<'_>) -> bool {
        let uids: Vec<&str> = turn.old.iter().map(|set| object::uid(set.value())).collect();
        let pods = self.work.context.pods.list();
        let own = pods.iter().filter(|pod| pod.namespace() == turn.deployment.namespace());
        let mut running = own.filter(|pod| {
            let ended = matches!(pod.value()["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
            !ended && controller_of(pod).is_some_and(|controller| uids.contains(&controller.uid.as_str()))
        });
        running.next().is_some()
    }

    /// The ReplicaSet of the newest template: makes it, or brings its annotations up to date.
    async fn ensure_new(&mut self, turn: &mut Turn<'_>) -> Result<NewSet, Status> {
        let deployment = turn.deployment.value();
        let number = revision::next_revision(&turn.old);
        if let Some(new) = turn.new.clone() {
            let mut annotated = new.value().clone();
            revision::annotate(&mut annotated, deployment, number);
            annotated["spec"]["minReadySeconds"] = deployment["spec"]["minReadySeconds"].clone();
            if annotated["metadata"] != new.value()["metadata"]
                || annotated["spec"]["minReadySeconds"] != new.value()["spec"]["minReadySeconds"]
            {
                let change = |set: &mut Value| {
                    revision::annotate(set, deployment, number);
                    set["spec"]["minReadySeconds"] = deployment["spec"]["minReadySeconds"].clone();
                };
                turn.new = self.work.modify(&new, change).await?.or(turn.new.take());
            }
            return Ok(NewSet::Found);
        }
        let replicas = turn.wanted.new_replicas(0, rollout::present(&turn.old_facts()));
        let set = revision::new_set(deployment, &turn.reference, replicas, number, turn.wanted);
        let (kind, namespace) = (set_kind(), turn.deployment.namespace());
        let name = object::name(&set).to_owned();
        match self.work.context.registry.create(kind, namespace, set, &self.work.options()).await {
            Ok(Written { object, .. }) => {
                self.work.assume(&object);
                if replicas > 0 {
                    self.say_scaled(turn.deployment, &name, 0, replicas);
                }
                turn.new = Some(object);
                Ok(NewSet::Created)
            }
            Err(status) if status.reason() == "AlreadyExists" => {
                self.collided(turn, &name).await?;
                Err(status)
            }
            Err(status) => Err(status),
        }
    }

    /// Another template, or somebody else's ReplicaSet, has the name: the next hash will be another.
    async fn collided(&self, turn: &Turn<'_>, name: &str) -> Result<(), Status> {
        let found = self.work.context.registry.get(set_kind(), turn.deployment.namespace(), name).await?;
        if revision::newest(turn.deployment.value(), std::slice::from_ref(&found)).is_some()
            && controller_of(&found).is_some_and(|owner| owner.uid == object::uid(turn.deployment.value()))
        {
            // Ours after all; the watch is behind.
            return Ok(());
        }
        let target =
            Target::status(turn.deployment.kind(), turn.deployment.namespace(), turn.deployment.name());
        let change = |value: &mut Value| {
            let count = value["status"]["collisionCount"].as_u64().unwrap_or(0);
            value["status"]["collisionCount"] = json!(count + 1);
            Ok(())
        };
        settled(self.work.context.registry.modify(target, &self.work.options(), change).await.map(drop))
    }

    async fn scale(&mut self, turn: &mut Turn<'_>, scalings: Vec<Scaling>) -> Result<(), Status> {
        let wanted = turn.wanted;
        for (name, replicas) in scalings {
            let set = turn.new.iter().chain(&turn.old).find(|set| set.name() == name).cloned();
            let Some(set) = set else { continue };
            let before = replicas_of(set.value());
            let change = |value: &mut Value| {
                value["spec"]["replicas"] = json!(replicas);
                revision::note_scale(value, wanted);
            };
            if let Some(scaled) = self.work.modify(&set, change).await? {
                self.say_scaled(turn.deployment, &name, before, replicas);
                turn.replace(scaled);
            }
        }
        Ok(())
    }

    /// The number is noted at every ReplicaSet that has pods, so that the next change is seen as one.
    async fn renote(&mut self, turn: &mut Turn<'_>) -> Result<(), Status> {
        let sets: Vec<Arc<Object>> = turn.new.iter().chain(&turn.old).cloned().collect();
        for set in sets.into_iter().filter(|set| replicas_of(set.value()) > 0) {
            let wanted = turn.wanted;
            if let Some(noted) = self.work.modify(&set, |value| revision::note_scale(value, wanted)).await? {
                turn.replace(noted);
            }
        }
        Ok(())
    }

    /// Removes old ReplicaSets without pods beyond the number that is kept, once the rollout is through.
    async fn forget_history(&mut self, turn: &Turn<'_>) -> Result<(), Status> {
        let status = turn.typed.status.clone().unwrap_or_default();
        let limit = turn.typed.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(10);
        if !status::is_complete(&turn.typed, &status, turn.wanted.replicas) {
            return Ok(());
        }
        let is_idle = |set: &&Arc<Object>| {
            let value = set.value();
            replicas_of(value) == 0
                && value["status"]["replicas"].as_i64().unwrap_or(0) == 0
                && value["status"]["observedGeneration"].as_i64() >= Some(object::generation(value))
                && object::deletion_timestamp(value).is_none()
        };
        let mut idle: Vec<&Arc<Object>> = turn.old.iter().filter(is_idle).collect();
        idle.sort_by_key(|set| revision::revision(set.value()));
        let surplus = idle.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        for set in &idle[..surplus] {
            let options = DeleteOptions {
                uid: Some(object::uid(set.value()).to_owned()),
                fence: self.work.fence(),
                ..DeleteOptions::default()
            };
            let target = Target::new(set.kind(), set.namespace(), set.name());
            settled(self.work.context.registry.delete(target, &options).await.map(drop))?;
            self.work.assume_gone(set);
        }
        Ok(())
    }

    /// Writes the status and the revision if they changed; says when the deadline has to be looked at.
    async fn report(&self, turn: &Turn<'_>, how: NewSet) -> Result<Option<Instant>, Status> {
        let typed = |set: &Arc<Object>| set.decode::<ReplicaSet>().ok();
        let (new, old): (_, Vec<_>) =
            (turn.new.as_ref().and_then(typed), turn.old.iter().filter_map(typed).collect());
        let facts = Facts {
            deployment: &turn.typed,
            wanted: turn.wanted,
            new: new.as_ref(),
            how,
            old: &old,
            now: super::whole_seconds(jiff::Timestamp::now()),
        };
        let (status, next) = status::of(&facts);
        let (status, next) = (json!(status), next.map(|wait| Instant::now() + wait));
        let deployment = turn.deployment;
        let number = turn.new.as_ref().map(|set| revision::revision(set.value()).to_string());
        let has_number = object::annotation(deployment.value(), revision::REVISION) == number.as_deref();
        if deployment.value()["status"] == status && (has_number || number.is_none()) {
            return Ok(next);
        }
        // Status writes take annotations along.
        let target = Target::status(deployment.kind(), deployment.namespace(), deployment.name());
        let uid = object::uid(deployment.value());
        let change = |value: &mut Value| {
            if object::uid(value) == uid {
                value["status"] = status.clone();
                if let Some(number) = &number {
                    value["metadata"]["annotations"][revision::REVISION] = json!(number);
                }
            }
            Ok(())
        };
        settled(self.work.context.registry.modify(target, &self.work.options(), change).await.map(drop))?;
        Ok(next)
    }

    fn say_scaled(&self, deployment: &Object, set: &str, before: i64, after: i64) {
        if before == after {
            return;
        }
        let way = if after > before { "up" } else { "down" };
        let message = format!("Scaled {way} replica set {set} from {before} to {after}");
        self.work.say(deployment, EventType::Normal, "ScalingReplicaSet", message);
    }
}

fn set_kind() -> &'static api::Kind {
    api::kinds::by_kind("apps", "v1", "ReplicaSet").expect("the table of kinds has ReplicaSet")
}

fn replicas_of(set: &Value) -> i64 {
    set["spec"]["replicas"].as_i64().unwrap_or(1)
}

fn facts(set: &Arc<Object>) -> Set {
    let value = set.value();
    let noted = |key: &str| object::annotation(value, key).and_then(|text| text.parse::<i64>().ok());
    let has_acted = value["status"]["observedGeneration"].as_i64() >= Some(object::generation(value));
    Set {
        name: set.name().to_owned(),
        created: format!("{} {}", object::creation_timestamp(value), set.name()),
        replicas: replicas_of(value),
        present: has_acted.then(|| value["status"]["replicas"].as_i64().unwrap_or(0)),
        available: value["status"]["availableReplicas"].as_i64().unwrap_or(0).min(replicas_of(value)),
        scaled_for: noted(revision::DESIRED).zip(noted(revision::MOST)),
    }
}

impl Turn<'_> {
    fn new_facts(&self) -> Option<Set> {
        self.new.as_ref().map(facts)
    }

    fn old_facts(&self) -> Vec<Set> {
        self.old.iter().map(facts).collect()
    }

    /// Whether a ReplicaSet with pods was scaled for another number than is asked for now.
    fn is_rescaled(&self) -> bool {
        let mut active = self.new.iter().chain(&self.old).map(facts).filter(|set| set.replicas > 0);
        active.any(|set| set.scaled_for.is_some_and(|(replicas, _)| replicas != self.wanted.replicas))
    }

    fn replace(&mut self, set: Arc<Object>) {
        let place = self.new.iter_mut().chain(&mut self.old).find(|own| own.key() == set.key());
        if let Some(place) = place {
            *place = set;
        }
    }
}
