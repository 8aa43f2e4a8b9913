//! Whether a job is through, and what its conditions say. Pure.

use std::sync::Arc;

use api::object;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::indexes::Indexes;
use super::ledger::Ledger;
use crate::registry::Object;

/// What there is to judge by.
pub(super) struct Facts<'a> {
    pub(super) job: &'a Value,
    pub(super) pods: &'a [Arc<Object>],
    pub(super) ledger: &'a Ledger,
    pub(super) indexes: Option<&'a Indexes>,
    pub(super) active: usize,
    pub(super) now: Timestamp,
}

/// What is said of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on.
    Runs,
    /// Enough pods have ended well.
    Complete { reason: &'static str, message: &'static str },
    /// It will not come to a good end.
    Failed { reason: &'static str, message: String },
}

fn failed(reason: &'static str, message: impl Into<String>) -> Verdict {
    Verdict::Failed { reason, message: message.into() }
}

/// The verdict. One that stands already is kept.
pub(super) fn of(facts: &Facts<'_>) -> Verdict {
    if let Some(verdict) = standing(&facts.job["status"]) {
        return verdict;
    }
    let spec = &facts.job["spec"];
    if let Some(message) = &facts.ledger.first_failure {
        return failed("PodFailurePolicy", message.clone());
    }
    if exceeds_backoff(facts) {
        return failed("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    let started = facts.job["status"]["startTime"].as_str().and_then(object::parse_timestamp);
    if let (Some(seconds), Some(started)) = (spec["activeDeadlineSeconds"].as_i64(), started)
        && spec["suspend"] != true
        && facts.now.duration_since(started) >= SignedDuration::from_secs(seconds)
    {
        return failed("DeadlineExceeded", "Job was active longer than specified deadline");
    }
    if let Some(indexes) = facts.indexes {
        return judge_indexes(facts, indexes);
    }
    let done = facts.ledger.succeeded();
    let is_complete = match spec["completions"].as_u64() {
        Some(completions) => done >= completions,
        // A queue of work is empty once one has found it so and all are through.
        None => done > 0 && facts.active == 0,
    };
    if is_complete { complete() } else { Verdict::Runs }
}

fn complete() -> Verdict {
    Verdict::Complete { reason: "CompletionsReached", message: "Reached expected number of succeeded pods" }
}

fn judge_indexes(facts: &Facts<'_>, indexes: &Indexes) -> Verdict {
    let spec = &facts.job["spec"];
    if let Some(most) = spec["maxFailedIndexes"].as_u64()
        && indexes.failed.len() as u64 > most
    {
        let message = "Job has exceeded the specified maximal number of failed indexes";
        return failed("MaxFailedIndexesExceeded", message);
    }
    let rules = spec["successPolicy"]["rules"].as_array().into_iter().flatten();
    for rule in rules {
        let wanted = rule["succeededIndexes"].as_str().map(super::indexes::parse);
        let counted = match &wanted {
            Some(wanted) => indexes.done.intersection(wanted).count(),
            None => indexes.done.len(),
        };
        let needed = match (rule["succeededCount"].as_u64(), &wanted) {
            (Some(count), _) => usize::try_from(count).unwrap_or(usize::MAX),
            (None, Some(wanted)) => wanted.len(),
            (None, None) => continue,
        };
        if counted >= needed {
            return Verdict::Complete { reason: "SuccessPolicy", message: "Matched rules at index 0" };
        }
    }
    if !indexes.is_over() {
        return Verdict::Runs;
    }
    if indexes.failed.is_empty() { complete() } else { failed("FailedIndexes", "Job has failed indexes") }
}

/// Failed pods, and restarts of those that restart in place.
fn exceeds_backoff(facts: &Facts<'_>) -> bool {
    let spec = &facts.job["spec"];
    let limit = spec["backoffLimit"].as_u64().unwrap_or(6);
    if facts.ledger.failed() > limit {
        return true;
    }
    if spec["template"]["spec"]["restartPolicy"] != "OnFailure" {
        return false;
    }
    let restarts = |pod: &Arc<Object>| -> u64 {
        let lists = ["containerStatuses", "initContainerStatuses"];
        let statuses = lists.iter().filter_map(|list| pod.value()["status"][*list].as_array()).flatten();
        statuses.filter_map(|status| status["restartCount"].as_u64()).sum()
    };
    let running = facts.pods.iter().filter(|pod| super::is_active(pod));
    let restarts: u64 = running.map(restarts).sum();
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

/// What was said before.
fn standing(status: &Value) -> Option<Verdict> {
    let conditions = status["conditions"].as_array()?;
    let said = |name: &str| {
        conditions.iter().find(|condition| condition["type"] == name && condition["status"] == "True")
    };
    if let Some(condition) = said("FailureTarget") {
        let reason = match condition["reason"].as_str() {
            Some("PodFailurePolicy") => "PodFailurePolicy",
            Some("DeadlineExceeded") => "DeadlineExceeded",
            Some("MaxFailedIndexesExceeded") => "MaxFailedIndexesExceeded",
            Some("FailedIndexes") => "FailedIndexes",
            _ => "BackoffLimitExceeded",
        };
        return Some(failed(reason, condition["message"].as_str().unwrap_or_default()));
    }
    said("SuccessCriteriaMet").map(|condition| match condition["reason"].as_str() {
        Some("SuccessPolicy") => {
            Verdict::Complete { reason: "SuccessPolicy", message: "Matched rules at index 0" }
        }
        _ => complete(),
    })
}

/// The conditions: first what will be, then, once no pod runs and all are counted, what is.
pub(super) fn conditions(
    old: &Value,
    verdict: &Verdict,
    is_through: bool,
    is_suspended: bool,
    now: Timestamp,
) -> Vec<Value> {
    let mut conditions = old.as_array().cloned().unwrap_or_default();
    let mut set = |name: &str, status: &str, reason: &str, message: &str| {
        let known = conditions.iter_mut().find(|condition| condition["type"] == name);
        if known.as_ref().is_some_and(|known| known["status"] == status) {
            return;
        }
        let time = object::timestamp(now);
        let condition = json!({"type": name, "status": status, "lastProbeTime": time,
            "lastTransitionTime": time, "reason": reason, "message": message});
        match known {
            Some(known) => *known = condition,
            None => conditions.push(condition),
        }
    };
    match verdict {
        Verdict::Runs => {}
        Verdict::Complete { reason, message } => {
            set("SuccessCriteriaMet", "True", reason, message);
            if is_through {
                set("Complete", "True", reason, message);
            }
        }
        Verdict::Failed { reason, message } => {
            set("FailureTarget", "True", reason, message);
            if is_through {
                set("Failed", "True", reason, message);
            }
        }
    }
    let was = old.as_array().into_iter().flatten().any(|condition| condition["type"] == "Suspended");
    if is_suspended {
        set("Suspended", "True", "JobSuspended", "Job suspended");
    } else if was {
        set("Suspended", "False", "JobResumed", "Job resumed");
    }
    conditions
}
