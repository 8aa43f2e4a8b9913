//! What has been counted of a job's pods. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::object;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::policy::{self, Meaning};
use super::{INDEX, has_ended, is_tracked};
use crate::registry::Object;

/// Most pods that the status names at once.
const UNCOUNTED_MAX: usize = 500;

/// How a pod ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    pub(super) uid: String,
    pub(super) index: Option<u64>,
    pub(super) is_success: bool,
    pub(super) meaning: Meaning,
}

/// The numbers of a job: those in its status, and the ends that are not yet in them.
#[derive(Debug, Clone, Default)]
pub(super) struct Ledger {
    succeeded: u64,
    failed: u64,
    /// Named by the status as it is, and still held by their finalizer.
    pub(super) ends: Vec<End>,
    uncounted_succeeded: BTreeSet<String>,
    uncounted_failed: BTreeSet<String>,
    /// What the status as it will be names.
    pub(super) first_failure: Option<String>,
}

fn texts(value: &Value) -> BTreeSet<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

impl Ledger {
    /// Goes on from the status: what it named and no longer is held becomes numbers, what has ended since is
    /// named.
    pub(super) fn of(job: &Value, pods: &[Arc<Object>]) -> Self {
        let status = &job["status"];
        let named = &status["uncountedTerminatedPods"];
        let held: BTreeSet<&str> =
            pods.iter().filter(|pod| is_tracked(pod)).map(|pod| object::uid(pod.value())).collect();
        let mut ledger = Self {
            succeeded: status["succeeded"].as_u64().unwrap_or(0),
            failed: status["failed"].as_u64().unwrap_or(0),
            ..Self::default()
        };
        // Indexes are not numbers: what is done stands in the status by index.
        let is_indexed = job["spec"]["completionMode"] == "Indexed";
        for uid in texts(&named["succeeded"]) {
            match held.contains(uid.as_str()) {
                true => drop(ledger.uncounted_succeeded.insert(uid)),
                false if is_indexed => {}
                false => ledger.succeeded += 1,
            }
        }
        for uid in texts(&named["failed"]) {
            match held.contains(uid.as_str()) {
                true => drop(ledger.uncounted_failed.insert(uid)),
                false => ledger.failed += 1,
            }
        }
        for pod in pods.iter().filter(|pod| is_tracked(pod)) {
            let Some(end) = end_of(job, pod) else { continue };
            let named = ledger.uncounted_succeeded.len() + ledger.uncounted_failed.len();
            let is_new =
                !ledger.uncounted_succeeded.contains(&end.uid) && !ledger.uncounted_failed.contains(&end.uid);
            if is_new && named < UNCOUNTED_MAX {
                if end.is_success {
                    ledger.uncounted_succeeded.insert(end.uid.clone());
                } else if end.meaning != Meaning::Ignore {
                    ledger.uncounted_failed.insert(end.uid.clone());
                }
            }
            if let Meaning::FailJob(message) = &end.meaning {
                ledger.first_failure.get_or_insert_with(|| message.clone());
            }
            ledger.ends.push(end);
        }
        ledger
    }

    /// How many have ended well.
    pub(super) fn succeeded(&self) -> u64 {
        self.succeeded + self.uncounted_succeeded.len() as u64
    }

    /// How many have ended badly.
    pub(super) fn failed(&self) -> u64 {
        self.failed + self.uncounted_failed.len() as u64
    }

    /// Whether everything that ended is a number.
    pub(super) fn is_settled(&self) -> bool {
        self.uncounted_failed.is_empty() && self.uncounted_succeeded.is_empty()
    }

    /// The pods that the status names, or that do not count, and that may lose their finalizer.
    pub(super) fn counted<'a>(&self, pods: &'a [Arc<Object>]) -> Vec<&'a Arc<Object>> {
        let may_go = |pod: &&Arc<Object>| {
            let uid = object::uid(pod.value());
            let named = self.uncounted_failed.contains(uid) || self.uncounted_succeeded.contains(uid);
            let ignored = || {
                self.ends
                    .iter()
                    .any(|end| end.uid == uid && !end.is_success && end.meaning == Meaning::Ignore)
            };
            is_tracked(pod) && (named || ignored())
        };
        pods.iter().filter(may_go).collect()
    }

    /// How many failed since the last success, and when the last of them did.
    pub(super) fn failures_in_a_row(&self, pods: &[Arc<Object>], now: Timestamp) -> Option<(u32, Timestamp)> {
        let mut ends: Vec<(Timestamp, bool)> = pods
            .iter()
            .filter(|pod| has_ended(pod))
            .map(|pod| (ended_at(pod).unwrap_or(now), pod.value()["status"]["phase"] == "Succeeded"))
            .collect();
        ends.sort();
        let failures: Vec<Timestamp> =
            ends.iter().rev().take_while(|(_, is_success)| !is_success).map(|(at, _)| *at).collect();
        let last = *failures.first()?;
        Some((u32::try_from(failures.len()).unwrap_or(u32::MAX), last))
    }

    /// The part of the status that counts.
    pub(super) fn status(&self) -> Value {
        let mut status = json!({});
        let mut named = json!({});
        if !self.uncounted_succeeded.is_empty() {
            named["succeeded"] = json!(self.uncounted_succeeded);
        }
        if !self.uncounted_failed.is_empty() {
            named["failed"] = json!(self.uncounted_failed);
        }
        status["uncountedTerminatedPods"] = named;
        if self.succeeded > 0 {
            status["succeeded"] = json!(self.succeeded);
        }
        if self.failed > 0 {
            status["failed"] = json!(self.failed);
        }
        status
    }
}

/// How a pod ended, if it has. One that was deleted before its end counts as failed.
fn end_of(job: &Value, pod: &Object) -> Option<End> {
    let value = pod.value();
    let is_success = value["status"]["phase"] == "Succeeded";
    let has_failed = value["status"]["phase"] == "Failed";
    // Whoever was stopped because the job waits has not failed; nor may it be held.
    let is_stopped = object::deletion_timestamp(value).is_some() && job["spec"]["suspend"] == true;
    if is_stopped && !is_success {
        let uid = object::uid(value).to_owned();
        return Some(End { uid, index: None, is_success: false, meaning: Meaning::Ignore });
    }
    let is_gone = object::deletion_timestamp(value).is_some()
        && job["spec"]["podReplacementPolicy"] != "Failed"
        && !is_success;
    if !is_success && !has_failed && !is_gone {
        return None;
    }
    let meaning = if is_success { Meaning::Count } else { policy::meaning(job, pod) };
    let index = object::annotation(value, INDEX).and_then(|text| text.parse().ok());
    Some(End { uid: object::uid(value).to_owned(), index, is_success, meaning })
}

/// When a pod's last container ended.
fn ended_at(pod: &Object) -> Option<Timestamp> {
    let statuses = pod.value()["status"]["containerStatuses"].as_array().into_iter().flatten();
    let ends = statuses.filter_map(|status| status["state"]["terminated"]["finishedAt"].as_str());
    ends.filter_map(object::parse_timestamp).max()
}
