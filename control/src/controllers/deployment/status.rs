//! What a Deployment says of its rollout. Pure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::rollout::Wanted;

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";
const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// How this turn came by the new ReplicaSet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NewSet {
    /// It was there.
    Found,
    /// It was made now.
    Created,
}

/// What a status is made of.
pub(super) struct Facts<'a> {
    pub(super) deployment: &'a Deployment,
    pub(super) wanted: Wanted,
    pub(super) new: Option<&'a ReplicaSet>,
    pub(super) how: NewSet,
    pub(super) old: &'a [ReplicaSet],
    pub(super) now: Timestamp,
}

/// The status, and after how long the deadline of its progress should be looked at.
pub(super) fn of(facts: &Facts<'_>) -> (DeploymentStatus, Option<Duration>) {
    let Facts { deployment, new, old, now, .. } = *facts;
    let before = deployment.status.clone().unwrap_or_default();
    let all = || old.iter().chain(new);
    let sum = |of: fn(&ReplicaSet) -> i32| -> i32 { all().map(of).sum() };
    let available = sum(|set| status(set, |status| status.available_replicas));
    let wanted_in_all = sum(|set| set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1));
    let mut after = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(sum(|set| set.status.as_ref().map_or(0, |status| status.replicas))),
        updated_replicas: some(new.and_then(|set| set.status.as_ref()).map_or(0, |status| status.replicas)),
        ready_replicas: some(sum(|set| status(set, |status| status.ready_replicas))),
        available_replicas: some(available),
        unavailable_replicas: some((wanted_in_all - available).max(0)),
        collision_count: before.collision_count,
        conditions: before.conditions.clone(),
        ..DeploymentStatus::default()
    };
    let mut conditions = Conditions { list: before.conditions.clone().unwrap_or_default(), now };
    let least = facts.wanted.replicas - facts.wanted.unavailable;
    match i64::from(available) >= least {
        true => conditions.set(
            AVAILABLE,
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        ),
        false => conditions.set(
            AVAILABLE,
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        ),
    }
    let next = progress(facts, &before, &after, &mut conditions);
    failure(new, old, &mut conditions);
    after.conditions = Some(conditions.list).filter(|list| !list.is_empty());
    (after, next)
}

fn status(set: &ReplicaSet, of: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> Option<i32>) -> i32 {
    set.status.as_ref().and_then(of).unwrap_or(0)
}

/// Numbers that are zero are left out.
fn some(number: i32) -> Option<i32> {
    Some(number).filter(|number| *number != 0)
}

/// Whether a status says that the rollout is through.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus, replicas: i64) -> bool {
    let is = |number: Option<i32>| i64::from(number.unwrap_or(0)) == replicas;
    is(status.updated_replicas)
        && is(status.replicas)
        && is(status.available_replicas)
        && status.observed_generation >= deployment.metadata.generation
}

fn has_moved(before: &DeploymentStatus, after: &DeploymentStatus) -> bool {
    let number = |number: Option<i32>| number.unwrap_or(0);
    let old = |status: &DeploymentStatus| number(status.replicas) - number(status.updated_replicas);
    number(after.updated_replicas) > number(before.updated_replicas)
        || old(after) < old(before)
        || number(after.ready_replicas) > number(before.ready_replicas)
        || number(after.available_replicas) > number(before.available_replicas)
}

/// Keeps the condition `Progressing`.
fn progress(
    facts: &Facts<'_>,
    before: &DeploymentStatus,
    after: &DeploymentStatus,
    conditions: &mut Conditions,
) -> Option<Duration> {
    let spec = facts.deployment.spec.as_ref()?;
    let deadline = spec.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)?;
    let known = conditions.get(PROGRESSING).cloned();
    let reason = known.as_ref().and_then(|known| known.reason.clone()).unwrap_or_default();
    if spec.paused == Some(true) {
        if reason != PAUSED && reason != TIMED_OUT {
            conditions.set(PROGRESSING, "Unknown", PAUSED, "Deployment is paused");
        }
        return None;
    }
    if reason == PAUSED {
        conditions.set(PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed");
    }
    let new = facts.new?;
    let name = new.metadata.name.as_deref().unwrap_or_default();
    match facts.how {
        NewSet::Created => {
            let message = format!("Created new replica set \"{name}\"");
            conditions.set(PROGRESSING, "True", "NewReplicaSetCreated", &message);
        }
        NewSet::Found if known.is_none() => {
            let message = format!("Found new replica set \"{name}\"");
            conditions.set(PROGRESSING, "True", "FoundNewReplicaSet", &message);
        }
        NewSet::Found => {}
    }
    let settled = reason == NEW_SET_AVAILABLE && after.replicas == after.updated_replicas;
    if settled {
        return None;
    }
    if is_complete(facts.deployment, after, facts.wanted.replicas) {
        let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
        conditions.set(PROGRESSING, "True", NEW_SET_AVAILABLE, &message);
        return None;
    }
    if has_moved(before, after) {
        let message = format!("ReplicaSet \"{name}\" is progressing.");
        conditions.moved(PROGRESSING, "ReplicaSetUpdated", &message);
    }
    let current = conditions.get(PROGRESSING)?;
    if current.reason.as_deref() == Some(TIMED_OUT) {
        return None;
    }
    let since = current.last_update_time.as_ref().map_or(facts.now, |time| time.0);
    let left = SignedDuration::from_secs(deadline.into()).checked_sub(facts.now.duration_since(since));
    match left.unwrap_or_default() {
        left if left.is_positive() => Duration::try_from(left).ok(),
        _ => {
            let message = format!("ReplicaSet \"{name}\" has timed out progressing.");
            conditions.set(PROGRESSING, "False", TIMED_OUT, &message);
            None
        }
    }
}

/// Takes over what the ReplicaSets say of pods that could not be made.
fn failure(new: Option<&ReplicaSet>, old: &[ReplicaSet], conditions: &mut Conditions) {
    let found = new.into_iter().chain(old).find_map(|set| {
        let of_set = set.status.as_ref()?.conditions.as_ref()?;
        of_set.iter().find(|condition| condition.type_ == REPLICA_FAILURE)
    });
    match found {
        Some(found) => {
            let (reason, message) = (found.reason.as_deref(), found.message.as_deref());
            conditions.set(REPLICA_FAILURE, &found.status, reason.unwrap_or(""), message.unwrap_or(""));
        }
        None => conditions.list.retain(|condition| condition.type_ != REPLICA_FAILURE),
    }
}

struct Conditions {
    list: Vec<DeploymentCondition>,
    now: Timestamp,
}

impl Conditions {
    fn get(&self, name: &str) -> Option<&DeploymentCondition> {
        self.list.iter().find(|condition| condition.type_ == name)
    }

    /// Sets a condition; one with the same status and reason keeps its times.
    fn set(&mut self, name: &str, status: &str, reason: &str, message: &str) {
        let is_same =
            |known: &DeploymentCondition| known.status == status && known.reason.as_deref() == Some(reason);
        if !self.get(name).is_some_and(is_same) {
            self.put(name, status, reason, message);
        }
    }

    /// Sets the condition that something moved: now, whatever was said before.
    fn moved(&mut self, name: &str, reason: &str, message: &str) {
        self.put(name, "True", reason, message);
    }

    fn put(&mut self, name: &str, status: &str, reason: &str, message: &str) {
        let known = self.get(name).filter(|known| known.status == status);
        let since = known.and_then(|known| known.last_transition_time.clone());
        let condition = DeploymentCondition {
            type_: name.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_update_time: Some(Time(self.now)),
            last_transition_time: since.or(Some(Time(self.now))),
        };
        self.list.retain(|condition| condition.type_ != name);
        self.list.push(condition);
    }
}
