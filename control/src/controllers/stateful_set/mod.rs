//! StatefulSets: pods with names, volumes and an order.
//!
//! Owns which pods of a StatefulSet there are and of which revision, and its status. A turn does the next thing
//! that the order allows: make the first pod that is missing, wait for one that is not ready yet, take the last
//! one away, or replace one of an old revision. [`plan`] decides; it is pure. [`pod`] says what a pod with an
//! ordinal looks like. Claims are made before their pods and stay when pods go, unless the retention policy says
//! otherwise.

mod plan;
mod pod;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use api::{Status, object};
use jiff::SignedDuration;
use serde_json::{Value, json};

use self::plan::{Facts, Member, Step};
use super::owners::{Controller, Owner, Work, has_ended};
use super::replica_set::available_in;
use super::revisions::{self, HASH_LABEL};
use super::{core_kind, settled};
use crate::registry::{DeleteOptions, EventType, Object, Target};

/// The loop over StatefulSets.
#[derive(Debug, Clone, Copy)]
pub(super) struct StatefulSets;

impl Controller for StatefulSets {
    fn owner(&self) -> (&'static str, &'static str) {
        ("apps", "StatefulSet")
    }

    fn component(&self) -> &'static str {
        "statefulset-controller"
    }

    async fn turn(&self, work: &mut Work<'_>, owner: &Owner<'_>) -> Result<Option<Instant>, Status> {
        let collisions = owner.value()["status"]["collisionCount"].as_u64().unwrap_or(0);
        let history = revisions::history(work, owner, collisions).await?;
        let Some(update) = history.last().cloned() else { return Ok(None) };
        let named = owner.value()["status"]["currentRevision"].as_str().unwrap_or_default();
        let current = history.iter().find(|revision| revision.name() == named).unwrap_or(&update).clone();
        let now = super::whole_seconds(jiff::Timestamp::now());
        let (facts, next) = facts(owner, &current, &update, now);
        let step = match owner.is_deleting {
            true => Step::Wait,
            false => plan::next(&facts),
        };
        let outcome = self.carry_out(work, owner, &step, [&current, &update]).await;
        let done = plan::is_rolled_out(&facts);
        let status = status(owner, &facts, if done { &update } else { &current }, &update);
        work.report(owner.object, status).await?;
        let live: Vec<String> = facts.members.iter().map(|member| member.revision.clone()).collect();
        let limit = owner.value()["spec"]["revisionHistoryLimit"].as_i64().unwrap_or(10);
        if !owner.is_deleting {
            revisions::truncate(work, &history, &[&live[..], &[current.name().to_owned()]].concat(), limit)
                .await?;
            retain_claims(work, owner, &facts).await?;
        }
        outcome?;
        // A step brings about the next one through the watch; one that changed nothing there looks again.
        Ok(next.map(|wait| Instant::now() + wait))
    }
}

/// What there is, by ordinal; and after how long a pod will have been ready long enough.
fn facts(
    owner: &Owner<'_>,
    current: &Object,
    update: &Object,
    now: jiff::Timestamp,
) -> (Facts, Option<std::time::Duration>) {
    let spec = &owner.value()["spec"];
    let min_ready = SignedDuration::from_secs(spec["minReadySeconds"].as_i64().unwrap_or(0));
    let mut next = None;
    let members = owner.children.iter().filter_map(|child| {
        let ordinal = pod::ordinal(owner.object.name(), child.name())?;
        let available = available_in(child, min_ready, now);
        if let Some(wait) = available.filter(|wait| !wait.is_zero()) {
            next = Some(next.map_or(wait, |before: std::time::Duration| before.min(wait)));
        }
        Some(Member {
            ordinal,
            revision: object::label(child.value(), HASH_LABEL).unwrap_or_default().to_owned(),
            is_ready: available.is_some(),
            is_available: available.is_some_and(|wait| wait.is_zero()),
            has_ended: has_ended(child),
            is_terminating: object::deletion_timestamp(child.value()).is_some(),
        })
    });
    let members = members.collect();
    let rolling = &spec["updateStrategy"]["rollingUpdate"];
    let replicas = spec["replicas"].as_i64().unwrap_or(1);
    let facts = Facts {
        members,
        start: spec["ordinals"]["start"].as_i64().unwrap_or(0),
        replicas,
        is_parallel: spec["podManagementPolicy"] == "Parallel",
        partition: rolling["partition"].as_i64().unwrap_or(0),
        unavailable_max: plan::at_most(&rolling["maxUnavailable"], replicas),
        is_on_delete: spec["updateStrategy"]["type"] == "OnDelete",
        current: current.name().to_owned(),
        update: update.name().to_owned(),
    };
    (facts, next)
}

impl StatefulSets {
    async fn carry_out(
        &self,
        work: &mut Work<'_>,
        owner: &Owner<'_>,
        step: &Step,
        revisions: [&Arc<Object>; 2],
    ) -> Result<(), Status> {
        match step {
            Step::Wait => Ok(()),
            Step::Make(wanted) => {
                let mut pods = Vec::new();
                for (ordinal, revision) in wanted {
                    let of = revisions.into_iter().find(|known| known.name() == revision);
                    let template = revisions::template_of(of.unwrap_or(revisions[1]));
                    ensure_claims(work, owner, *ordinal).await?;
                    pods.push(pod::of(owner, &template, revision, *ordinal));
                }
                let (_, failure) = work.create(owner, pods).await;
                failure.map_or(Ok(()), |failure| Err(failure.status))
            }
            Step::Remove(ordinals) => {
                let go = owner.children.iter().filter(|child| {
                    pod::ordinal(owner.object.name(), child.name())
                        .is_some_and(|ordinal| ordinals.contains(&ordinal))
                });
                let (_, failure) = work.delete(owner, go.cloned().collect()).await;
                failure.map_or(Ok(()), |failure| Err(failure.status))
            }
        }
    }
}

/// Makes the claims of a pod that is to be made.
async fn ensure_claims(work: &Work<'_>, owner: &Owner<'_>, ordinal: i64) -> Result<(), Status> {
    let (kind, namespace) = (core_kind("PersistentVolumeClaim"), owner.object.namespace());
    for claim in pod::claims(owner, ordinal) {
        let name = object::name(&claim).to_owned();
        if work.context.claims.get(namespace, &name).is_some() {
            continue;
        }
        match work.context.registry.create(kind, namespace, claim, &work.options()).await {
            Ok(_) => {
                let message = format!(
                    "create Claim {name} Pod {} in StatefulSet {} success",
                    pod::name(owner.object.name(), ordinal),
                    owner.object.name()
                );
                work.say(owner.object, EventType::Normal, "SuccessfulCreate", message);
            }
            Err(status) if status.reason() == "AlreadyExists" => {}
            Err(status) => {
                let message = format!("create Claim {name} failed error: {}", status.message());
                work.say(owner.object, EventType::Warning, "FailedCreate", message);
                return Err(status);
            }
        }
    }
    Ok(())
}

/// Deletes the claims of pods that were scaled away, if the policy says so. A pod that still runs keeps them.
async fn retain_claims(work: &Work<'_>, owner: &Owner<'_>, facts: &Facts) -> Result<(), Status> {
    if owner.value()["spec"]["persistentVolumeClaimRetentionPolicy"]["whenScaled"] != "Delete" {
        return Ok(());
    }
    let namespace = owner.object.namespace();
    let templates = owner.value()["spec"]["volumeClaimTemplates"].as_array().cloned().unwrap_or_default();
    let prefixes: Vec<String> = templates
        .iter()
        .map(|template| format!("{}-{}", object::name(template), owner.object.name()))
        .collect();
    for claim in work.context.claims.list().iter().filter(|claim| claim.namespace() == namespace) {
        let Some(ordinal) = prefixes.iter().find_map(|prefix| pod::ordinal(prefix, claim.name())) else {
            continue;
        };
        let is_used = facts.members.iter().any(|member| member.ordinal == ordinal);
        if is_used || facts.is_wanted(ordinal) || object::deletion_timestamp(claim.value()).is_some() {
            continue;
        }
        let options = DeleteOptions {
            uid: Some(object::uid(claim.value()).to_owned()),
            fence: work.fence(),
            ..DeleteOptions::default()
        };
        let target = Target::new(claim.kind(), namespace, claim.name());
        settled(work.context.registry.delete(target, &options).await.map(drop))?;
    }
    Ok(())
}

fn status(owner: &Owner<'_>, facts: &Facts, current: &Object, update: &Object) -> Value {
    let count = |is: &dyn Fn(&Member) -> bool| facts.members.iter().filter(|member| is(member)).count();
    let standing = |member: &Member| !member.is_terminating && !member.has_ended;
    let mut status = json!({
        "observedGeneration": object::generation(owner.value()),
        "replicas": count(&|member| !member.has_ended),
        "availableReplicas": count(&|member| member.is_available && standing(member)),
        "currentRevision": current.name(),
        "updateRevision": update.name(),
        "collisionCount": owner.value()["status"]["collisionCount"].as_u64().unwrap_or(0),
    });
    let some = [
        ("readyReplicas", count(&|member| member.is_ready && standing(member))),
        ("currentReplicas", count(&|member| member.revision == current.name() && standing(member))),
        ("updatedReplicas", count(&|member| member.revision == update.name() && standing(member))),
    ];
    for (field, number) in some.into_iter().filter(|(_, number)| *number > 0) {
        status[field] = json!(number);
    }
    if let Some(conditions) = owner.value()["status"].get("conditions") {
        status["conditions"] = conditions.clone();
    }
    status
}
