//! Jobs: pods that run to their end.
//!
//! Owns the pods of jobs and the jobs' status. Each pod carries a finalizer until its end is counted, so that none
//! is lost or counted twice whoever deletes it and whoever leads: the status first names the pods that ended
//! (`uncountedTerminatedPods`), then they lose their finalizer, then they become numbers. [`ledger`] does that
//! sum, [`verdict`] says whether the job is through, [`indexes`] which parts of an Indexed job are left, and
//! [`policy`] what a failed pod means; all four are pure. Numbers, reasons and messages are those of Kubernetes'
//! documentation ("Jobs", "Pod failure policy", "Automatic cleanup for finished jobs").

mod indexes;
mod ledger;
mod policy;
mod verdict;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::{Status, object};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use self::indexes::Indexes;
use self::ledger::Ledger;
use self::verdict::{Facts, Verdict};
use super::owners::{BURST_MAX, Controller, Owner, Work, has_ended, is_active, pod_of};
use super::replica_set::condition;
use super::settled;
use crate::registry::{DeleteOptions, EventType, Object, Propagation, Target};

/// Keeps a pod until its end is counted.
pub(super) const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// The part of an Indexed job that a pod is for.
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// The wait after a first failed pod; it doubles with each further one up to the maximum.
const BACKOFF_MIN: Duration = Duration::from_secs(10);
/// The longest such wait.
const BACKOFF_MAX: Duration = Duration::from_secs(600);

/// The loop over Jobs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Jobs;

impl Controller for Jobs {
    fn owner(&self) -> (&'static str, &'static str) {
        ("batch", "Job")
    }

    fn component(&self) -> &'static str {
        "job-controller"
    }

    async fn turn(&self, work: &mut Work<'_>, owner: &Owner<'_>) -> Result<Option<Instant>, Status> {
        let now = super::whole_seconds(Timestamp::now());
        if let Some(ended) = finished_at(owner.value()) {
            release(work, &owner.children).await?;
            return expire(work, owner, ended, now).await;
        }
        let managed_by = owner.value()["spec"]["managedBy"].as_str();
        if owner.is_deleting || managed_by.is_some_and(|by| by != "kubernetes.io/job-controller") {
            release(work, &owner.children).await?;
            return Ok(None);
        }
        Turn::new(owner, now).run(work).await
    }
}

/// When the job ended, if it has.
fn finished_at(job: &Value) -> Option<Timestamp> {
    let ended = |name: &str| condition(job, name).filter(|condition| condition["status"] == "True");
    let condition = ended("Complete").or_else(|| ended("Failed"))?;
    let at = condition["lastTransitionTime"].as_str().and_then(object::parse_timestamp);
    Some(at.unwrap_or(Timestamp::UNIX_EPOCH))
}

/// Lets pods go whose job counts no more.
async fn release(work: &mut Work<'_>, pods: &[Arc<Object>]) -> Result<(), Status> {
    for pod in pods.iter().filter(|pod| is_tracked(pod)) {
        untrack(work, pod).await?;
    }
    Ok(())
}

fn is_tracked(pod: &Object) -> bool {
    object::finalizers(pod.value()).any(|finalizer| finalizer == TRACKING)
}

async fn untrack(work: &mut Work<'_>, pod: &Object) -> Result<(), Status> {
    let change = |value: &mut Value| {
        let kept: Vec<String> =
            object::finalizers(value).filter(|own| *own != TRACKING).map(str::to_owned).collect();
        object::set_metadata(value, "finalizers", if kept.is_empty() { Value::Null } else { json!(kept) });
    };
    work.modify(pod, change).await.map(drop)
}

/// Removes a job that has been through for long enough.
async fn expire(
    work: &Work<'_>,
    owner: &Owner<'_>,
    ended: Timestamp,
    now: Timestamp,
) -> Result<Option<Instant>, Status> {
    let Some(ttl) = owner.value()["spec"]["ttlSecondsAfterFinished"].as_i64() else { return Ok(None) };
    if owner.is_deleting {
        return Ok(None);
    }
    let left = SignedDuration::from_secs(ttl).checked_sub(now.duration_since(ended)).unwrap_or_default();
    if left.is_positive() {
        return Ok(Some(Instant::now() + Duration::try_from(left).unwrap_or_default()));
    }
    let options = DeleteOptions {
        uid: Some(object::uid(owner.value()).to_owned()),
        fence: work.fence(),
        propagation: Some(Propagation::Foreground),
        ..DeleteOptions::default()
    };
    let target = Target::new(owner.object.kind(), owner.object.namespace(), owner.object.name());
    settled(work.context.registry.delete(target, &options).await.map(drop))?;
    Ok(None)
}

/// One look at a job that is not through.
struct Turn<'a> {
    owner: &'a Owner<'a>,
    now: Timestamp,
    ledger: Ledger,
    active: Vec<Arc<Object>>,
    indexes: Option<Indexes>,
}

impl<'a> Turn<'a> {
    fn new(owner: &'a Owner<'a>, now: Timestamp) -> Self {
        let ledger = Ledger::of(owner.value(), &owner.children);
        let active: Vec<Arc<Object>> = owner.children.iter().filter(|pod| is_active(pod)).cloned().collect();
        let indexes = Indexes::of(owner.value(), &ledger, &owner.children);
        Self { owner, now, ledger, active, indexes }
    }

    fn spec(&self) -> &Value {
        &self.owner.value()["spec"]
    }

    async fn run(mut self, work: &mut Work<'_>) -> Result<Option<Instant>, Status> {
        let verdict = verdict::of(&self.facts());
        let is_suspended = self.spec()["suspend"] == true && matches!(verdict, Verdict::Runs);
        let (outcome, next) = match &verdict {
            Verdict::Runs if !is_suspended => self.manage(work).await,
            // Whoever is through, or waits, needs no pods.
            _ => {
                let (stay, failure) = work.delete(self.owner, std::mem::take(&mut self.active)).await;
                self.active = stay;
                (failure.map_or(Ok(()), |failure| Err(failure.status)), None)
            }
        };
        let status = self.status(&verdict, is_suspended);
        self.announce(work, &status, &verdict, is_suspended);
        work.report(self.owner.object, status).await?;
        // Counted is counted: those that the status now names may go.
        for pod in self.ledger.counted(&self.owner.children) {
            untrack(work, pod).await?;
        }
        outcome?;
        let deadline = self.deadline().filter(|_| matches!(verdict, Verdict::Runs) && !is_suspended);
        Ok(next.into_iter().chain(deadline).min().map(|wait| Instant::now() + wait))
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            job: self.owner.value(),
            pods: &self.owner.children,
            ledger: &self.ledger,
            indexes: self.indexes.as_ref(),
            active: self.active.len(),
            now: self.now,
        }
    }

    fn start_time(&self) -> Timestamp {
        let start = self.owner.value()["status"]["startTime"].as_str().and_then(object::parse_timestamp);
        start.unwrap_or(self.now)
    }

    /// After how long the job has been running too long.
    fn deadline(&self) -> Option<Duration> {
        let seconds = self.spec()["activeDeadlineSeconds"].as_i64()?;
        let left = SignedDuration::from_secs(seconds) - self.now.duration_since(self.start_time());
        Some(Duration::try_from(left).unwrap_or_default() + Duration::from_secs(1))
    }

    /// Makes or deletes the difference between the pods that run and those that should.
    async fn manage(&mut self, work: &mut Work<'_>) -> (Result<(), Status>, Option<Duration>) {
        let wanted = self.wanted();
        if self.active.len() > wanted {
            // Those that began last are missed least.
            self.active.sort_by_key(|pod| object::creation_timestamp(pod.value()).to_owned());
            let go = self.active.split_off(wanted);
            let (stay, failure) = work.delete(self.owner, go).await;
            self.active.extend(stay);
            return (failure.map_or(Ok(()), |failure| Err(failure.status)), None);
        }
        let missing = (wanted - self.active.len()).min(BURST_MAX);
        if missing == 0 {
            return (Ok(()), None);
        }
        if let Some(wait) = self.backoff() {
            return (Ok(()), Some(wait));
        }
        let pods = match &self.indexes {
            None => vec![self.pod(None); missing],
            Some(indexes) => indexes.next(missing).into_iter().map(|index| self.pod(Some(index))).collect(),
        };
        let (made, failure) = work.create(self.owner, pods).await;
        self.active.extend(made);
        (failure.map_or(Ok(()), |failure| Err(failure.status)), None)
    }

    /// How many pods should run now.
    fn wanted(&self) -> usize {
        let spec = self.spec();
        let parallelism = usize::try_from(spec["parallelism"].as_u64().unwrap_or(1)).unwrap_or(usize::MAX);
        // A pod that is going still does its part where it is waited for.
        let terminating = self
            .owner
            .children
            .iter()
            .filter(|pod| object::deletion_timestamp(pod.value()).is_some() && !has_ended(pod));
        let going = if spec["podReplacementPolicy"] == "Failed" { terminating.count() } else { 0 };
        let parallelism = parallelism.saturating_sub(going);
        match (spec["completions"].as_u64(), &self.indexes) {
            (_, Some(indexes)) => parallelism.min(indexes.left()),
            (Some(completions), None) => {
                let done = usize::try_from(self.ledger.succeeded()).unwrap_or(usize::MAX);
                parallelism.min(usize::try_from(completions).unwrap_or(usize::MAX).saturating_sub(done))
            }
            // A queue of work: once one has found it empty, no more begin.
            (None, None) if self.ledger.succeeded() > 0 => self.active.len().min(parallelism),
            (None, None) => parallelism,
        }
    }

    /// How long to wait before another pod is made, after failures in a row.
    fn backoff(&self) -> Option<Duration> {
        let (failures, last) = self.ledger.failures_in_a_row(&self.owner.children, self.now)?;
        let wait = BACKOFF_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(BACKOFF_MAX);
        let passed = Duration::try_from(self.now.duration_since(last)).unwrap_or_default();
        wait.checked_sub(passed).filter(|left| !left.is_zero())
    }

    fn pod(&self, index: Option<u64>) -> Value {
        let mut pod = pod_of(&self.spec()["template"], &self.owner.reference);
        let name = self.owner.object.name();
        let mut finalizers: Vec<String> = object::finalizers(&pod).map(str::to_owned).collect();
        finalizers.push(TRACKING.to_owned());
        object::set_metadata(&mut pod, "finalizers", json!(finalizers));
        match index {
            None => object::set_metadata(&mut pod, "generateName", format!("{name}-")),
            Some(index) => {
                object::set_metadata(&mut pod, "generateName", format!("{name}-{index}-"));
                let failures = self.indexes.as_ref().map_or(0, |indexes| indexes.failures(index));
                indexes::mark(&mut pod, name, index, failures);
            }
        }
        pod
    }

    fn status(&self, verdict: &Verdict, is_suspended: bool) -> Value {
        let old = &self.owner.value()["status"];
        let mut status = self.ledger.status();
        let terminating =
            self.owner.children.iter().filter(|pod| object::deletion_timestamp(pod.value()).is_some());
        let terminating = terminating.filter(|pod| !has_ended(pod)).count();
        let is_ready = |pod: &&Arc<Object>| {
            condition(pod.value(), "Ready").is_some_and(|ready| ready["status"] == "True")
        };
        status["ready"] = json!(self.active.iter().filter(is_ready).count());
        status["terminating"] = json!(terminating);
        if !self.active.is_empty() {
            status["active"] = json!(self.active.len());
        }
        if !is_suspended {
            status["startTime"] = json!(object::timestamp(self.start_time()));
        }
        if let Some(indexes) = &self.indexes {
            indexes.write(&mut status);
        }
        let is_through = self.active.is_empty() && terminating == 0 && self.ledger.is_settled();
        let conditions = verdict::conditions(&old["conditions"], verdict, is_through, is_suspended, self.now);
        if conditions.iter().any(|one| one["type"] == "Complete" && one["status"] == "True") {
            status["completionTime"] = json!(object::timestamp(self.now));
        }
        if !conditions.is_empty() {
            status["conditions"] = Value::from(conditions);
        }
        status
    }

    /// Says what became of the job, once.
    fn announce(&self, work: &Work<'_>, status: &Value, verdict: &Verdict, is_suspended: bool) {
        let (job, old) = (self.owner.object, &self.owner.value()["status"]);
        let has = |status: &Value, name: &str| {
            let conditions = status["conditions"].as_array().into_iter().flatten();
            conditions.into_iter().any(|one| one["type"] == name && one["status"] == "True")
        };
        let begins = |name: &str| has(status, name) && !has(old, name);
        if begins("Complete") {
            work.say(job, EventType::Normal, "Completed", "Job completed".to_owned());
        }
        if begins("Failed")
            && let Verdict::Failed { reason, message } = verdict
        {
            work.say(job, EventType::Warning, reason, message.clone());
        }
        if begins("Suspended") {
            work.say(job, EventType::Normal, "Suspended", "Job suspended".to_owned());
        }
        if !is_suspended && has(old, "Suspended") {
            work.say(job, EventType::Normal, "Resumed", "Job resumed".to_owned());
        }
    }
}
