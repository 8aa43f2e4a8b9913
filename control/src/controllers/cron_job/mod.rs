//! CronJobs: jobs at the times of a schedule.
//!
//! Owns which jobs a CronJob has made, its status, and how many ended ones are kept. A job is named after its
//! CronJob and the minute that it is for, so that no leader makes the same one twice. Rules, reasons and messages
//! are those of Kubernetes' documentation ("CronJob").

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::cron::Schedule;
use api::{LabelSelector, Status, object};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::owners::{Controller, Owner, Work};
use super::replica_set::condition;
use crate::registry::{EventType, Object};

const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// How many missed times are looked at; beyond that a CronJob needs a deadline to go on.
const MISSED_MAX: usize = 100;
/// The longest sleep, so that a clock that is set is noticed.
const SLEEP_MAX: Duration = Duration::from_secs(600);

/// The loop over CronJobs.
#[derive(Debug, Clone, Copy)]
pub(super) struct CronJobs;

impl Controller for CronJobs {
    fn owner(&self) -> (&'static str, &'static str) {
        ("batch", "CronJob")
    }

    fn child(&self) -> (&'static str, &'static str) {
        ("batch", "Job")
    }

    fn component(&self) -> &'static str {
        "cronjob-controller"
    }

    /// Jobs are not told by labels, and none is adopted.
    fn selector(&self, _owner: &Object) -> Option<LabelSelector> {
        Some(LabelSelector::everything())
    }

    fn is_adoptable(&self, _child: &Object) -> bool {
        false
    }

    async fn turn(&self, work: &mut Work<'_>, owner: &Owner<'_>) -> Result<Option<Instant>, Status> {
        let now = Timestamp::now();
        let mut status = settle(work, owner);
        if owner.is_deleting {
            return Ok(None);
        }
        clean(work, owner).await?;
        let spec = &owner.value()["spec"];
        let zone = spec["timeZone"].as_str();
        let schedule = match Schedule::parse(spec["schedule"].as_str().unwrap_or_default(), zone) {
            Ok(schedule) => schedule,
            Err(why) => {
                let message = format!("unparseable schedule: {why}");
                work.say(owner.object, EventType::Warning, "UnparseableSchedule", message);
                return Ok(None);
            }
        };
        let mut outcome = Ok(());
        if spec["suspend"] != true
            && let Some(due) = due(work, owner, &schedule, now)
        {
            outcome = self.begin(work, owner, due, &mut status).await;
        }
        work.report(owner.object, status).await?;
        outcome?;
        let next = schedule.next_after(now);
        let wait = next.and_then(|next| Duration::try_from(next.duration_since(now)).ok());
        Ok(wait.map(|wait| Instant::now() + wait.min(SLEEP_MAX) + Duration::from_millis(10)))
    }
}

fn has_ended(job: &Object) -> Option<&'static str> {
    let said =
        |name: &str| condition(job.value(), name).is_some_and(|condition| condition["status"] == "True");
    ["Complete", "Failed"].into_iter().find(|name| said(name))
}

fn reference(job: &Object) -> Value {
    json!({"kind": "Job", "namespace": job.namespace(), "name": job.name(), "uid": object::uid(job.value()),
        "apiVersion": "batch/v1", "resourceVersion": job.revision().to_string()})
}

fn uid_of(reference: &Value) -> &str {
    reference["uid"].as_str().unwrap_or_default()
}

/// The status after what has happened to the jobs: those that ended are no longer active.
fn settle(work: &Work<'_>, owner: &Owner<'_>) -> Value {
    let mut status = owner.value()["status"].clone();
    if !status.is_object() {
        status = json!({});
    }
    let mut active = status["active"].as_array().cloned().unwrap_or_default();
    for job in &owner.children {
        let uid = object::uid(job.value());
        let is_listed = active.iter().any(|reference| uid_of(reference) == uid);
        match has_ended(job) {
            Some(how) if is_listed => {
                active.retain(|reference| uid_of(reference) != uid);
                let message = format!("Saw completed job: {}, condition: {how}", job.name());
                work.say(owner.object, EventType::Normal, "SawCompletedJob", message);
                let at = job.value()["status"]["completionTime"].as_str().map(str::to_owned);
                if how == "Complete"
                    && let Some(at) =
                        at.filter(|at| status["lastSuccessfulTime"].as_str() < Some(at.as_str()))
                {
                    status["lastSuccessfulTime"] = json!(at);
                }
            }
            None if !is_listed && object::deletion_timestamp(job.value()).is_none() => {
                active.push(reference(job));
            }
            _ => {}
        }
    }
    let exists =
        |reference: &Value| owner.children.iter().any(|job| object::uid(job.value()) == uid_of(reference));
    active.retain(exists);
    match active.is_empty() {
        true => drop(status.as_object_mut().and_then(|status| status.remove("active"))),
        false => status["active"] = json!(active),
    }
    status
}

/// Deletes ended jobs beyond the numbers that are kept, the oldest first.
async fn clean(work: &mut Work<'_>, owner: &Owner<'_>) -> Result<(), Status> {
    let spec = &owner.value()["spec"];
    for (how, limit) in [("Complete", "successfulJobsHistoryLimit"), ("Failed", "failedJobsHistoryLimit")] {
        let Some(limit) = spec[limit].as_u64() else { continue };
        let mut ended: Vec<&Arc<Object>> = owner
            .children
            .iter()
            .filter(|job| has_ended(job) == Some(how) && object::deletion_timestamp(job.value()).is_none())
            .collect();
        ended.sort_by_key(|job| {
            (
                job.value()["status"]["startTime"].as_str().unwrap_or_default().to_owned(),
                job.name().to_owned(),
            )
        });
        let surplus = ended.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
        let go = ended[..surplus].iter().map(|job| Arc::clone(job)).collect();
        let (_, failure) = work.delete(owner, go).await;
        if let Some(failure) = failure {
            return Err(failure.status);
        }
    }
    Ok(())
}

/// The newest time that has come and for which there was no job yet.
fn due(work: &Work<'_>, owner: &Owner<'_>, schedule: &Schedule, now: Timestamp) -> Option<Timestamp> {
    let value = owner.value();
    let time = |text: Option<&str>| text.and_then(object::parse_timestamp);
    let created = time(Some(object::creation_timestamp(value))).unwrap_or(now);
    let mut after = time(value["status"]["lastScheduleTime"].as_str()).unwrap_or(created);
    let deadline = value["spec"]["startingDeadlineSeconds"].as_i64();
    if let Some(earliest) =
        deadline.and_then(|seconds| now.checked_sub(SignedDuration::from_secs(seconds)).ok())
    {
        after = after.max(earliest);
    }
    let (mut newest, mut missed) = (None, 0);
    while let Some(next) = schedule.next_after(after).filter(|next| *next <= now) {
        newest = Some(next);
        after = next;
        missed += 1;
        if missed > MISSED_MAX {
            let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            work.say(owner.object, EventType::Warning, "TooManyMissedTimes", message.to_owned());
            // Straight to the last one before now: a day at a time, then on from there.
            after = now
                .checked_sub(SignedDuration::from_hours(24))
                .ok()
                .filter(|day| *day > after)
                .unwrap_or(after);
            missed = 0;
        }
    }
    newest
}

impl CronJobs {
    async fn begin(
        &self,
        work: &mut Work<'_>,
        owner: &Owner<'_>,
        due: Timestamp,
        status: &mut Value,
    ) -> Result<(), Status> {
        let spec = &owner.value()["spec"];
        let running: Vec<Arc<Object>> = owner
            .children
            .iter()
            .filter(|job| has_ended(job).is_none() && object::deletion_timestamp(job.value()).is_none())
            .cloned()
            .collect();
        match spec["concurrencyPolicy"].as_str() {
            Some("Forbid") if !running.is_empty() => {
                let message =
                    "Not starting job because prior execution is running and concurrency policy is Forbid";
                work.say(owner.object, EventType::Normal, "JobAlreadyActive", message.to_owned());
                return Ok(());
            }
            Some("Replace") if !running.is_empty() => {
                let (_, failure) = work.delete(owner, running).await;
                if let Some(failure) = failure {
                    return Err(failure.status);
                }
                status["active"] = json!([]);
            }
            _ => {}
        }
        let job = job_of(owner, due);
        let (made, failure) = work.create(owner, vec![job]).await;
        let is_there = failure.as_ref().is_some_and(|failure| failure.status.reason() == "AlreadyExists");
        if let Some(failure) = failure.filter(|_| !is_there) {
            return Err(failure.status);
        }
        let mut active = status["active"].as_array().cloned().unwrap_or_default();
        active.extend(made.iter().map(|job| reference(job)));
        if !active.is_empty() {
            status["active"] = json!(active);
        }
        status["lastScheduleTime"] = json!(object::timestamp(due));
        Ok(())
    }
}

fn job_of(owner: &Owner<'_>, due: Timestamp) -> Value {
    let template = &owner.value()["spec"]["jobTemplate"];
    let mut annotations = template["metadata"]["annotations"].clone();
    if !annotations.is_object() {
        annotations = json!({});
    }
    annotations[SCHEDULED] = json!(object::timestamp(due));
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": format!("{}-{}", owner.object.name(), due.as_second() / 60),
            "labels": template["metadata"]["labels"],
            "annotations": annotations,
            "ownerReferences": [owner.reference],
        },
        "spec": template["spec"],
    })
}
