//! Which parts of an Indexed job are done, have failed, run or are left. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::object;
use serde_json::{Value, json};

use super::INDEX;
use super::is_active;
use super::ledger::Ledger;
use super::policy::Meaning;
use crate::registry::Object;

/// How often the pod of an index has failed, on the pods of an index.
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const VARIABLE: &str = "JOB_COMPLETION_INDEX";

#[derive(Debug, Clone)]
pub(super) struct Indexes {
    completions: u64,
    pub(super) done: BTreeSet<u64>,
    pub(super) failed: BTreeSet<u64>,
    running: BTreeSet<u64>,
    /// How often each has failed.
    failures: BTreeMap<u64, u64>,
    /// Whether failures are counted by index.
    is_limited: bool,
}

impl Indexes {
    /// `None`: the job is not of that kind.
    pub(super) fn of(job: &Value, ledger: &Ledger, pods: &[Arc<Object>]) -> Option<Self> {
        if job["spec"]["completionMode"] != "Indexed" {
            return None;
        }
        let status = &job["status"];
        let read = |field: &str| parse(status[field].as_str().unwrap_or_default());
        let limit = job["spec"]["backoffLimitPerIndex"].as_u64();
        let mut indexes = Self {
            completions: job["spec"]["completions"].as_u64().unwrap_or(0),
            done: read("completedIndexes"),
            failed: read("failedIndexes"),
            running: BTreeSet::new(),
            failures: BTreeMap::new(),
            is_limited: limit.is_some(),
        };
        for end in &ledger.ends {
            let Some(index) = end.index else { continue };
            if end.is_success {
                indexes.done.insert(index);
            } else if end.meaning == Meaning::FailIndex {
                indexes.failed.insert(index);
            }
        }
        for pod in pods {
            let Some(index) = index_of(pod) else { continue };
            if is_active(pod) {
                indexes.running.insert(index);
            } else if pod.value()["status"]["phase"] == "Failed" {
                let before = object::annotation(pod.value(), FAILURES);
                let before: u64 = before.and_then(|text| text.parse().ok()).unwrap_or(0);
                let seen = indexes.failures.entry(index).or_default();
                *seen = (*seen).max(before + 1);
            }
        }
        if let Some(limit) = limit {
            let over = indexes.failures.iter().filter(|(_, seen)| **seen > limit);
            indexes.failed.extend(over.map(|(index, _)| *index));
        }
        indexes.done.retain(|index| *index < indexes.completions);
        indexes.failed.retain(|index| *index < indexes.completions && !indexes.done.contains(index));
        Some(indexes)
    }

    /// How many are neither done nor failed.
    pub(super) fn left(&self) -> usize {
        let over = self.done.len() + self.failed.len();
        usize::try_from(self.completions).unwrap_or(usize::MAX).saturating_sub(over)
    }

    /// Whether all of them are done or have failed.
    pub(super) fn is_over(&self) -> bool {
        self.left() == 0
    }

    /// The lowest that nobody works on.
    pub(super) fn next(&self, count: usize) -> Vec<u64> {
        let is_free = |index: &u64| {
            !self.done.contains(index) && !self.failed.contains(index) && !self.running.contains(index)
        };
        (0..self.completions).filter(is_free).take(count).collect()
    }

    /// How often an index has failed.
    pub(super) fn failures(&self, index: u64) -> u64 {
        self.failures.get(&index).copied().unwrap_or(0)
    }

    pub(super) fn write(&self, status: &mut Value) {
        status["completedIndexes"] = json!(format(&self.done));
        if !self.done.is_empty() {
            status["succeeded"] = json!(self.done.len());
        }
        if self.is_limited {
            status["failedIndexes"] = json!(format(&self.failed));
        }
    }
}

fn index_of(pod: &Object) -> Option<u64> {
    object::annotation(pod.value(), INDEX)?.parse().ok()
}

/// Makes a pod the one for that index, which has failed so often before.
pub(super) fn mark(pod: &mut Value, job: &str, index: u64, failures: u64) {
    let text = index.to_string();
    object::set_label(pod, INDEX, &text);
    let mut annotations = pod["metadata"]["annotations"].clone();
    if !annotations.is_object() {
        annotations = json!({});
    }
    annotations[INDEX] = json!(text);
    annotations[FAILURES] = json!(failures.to_string());
    object::set_metadata(pod, "annotations", annotations);
    pod["spec"]["hostname"] = json!(format!("{job}-{index}"));
    let variable = json!({"name": VARIABLE, "valueFrom":
        {"fieldRef": {"apiVersion": "v1", "fieldPath": format!("metadata.labels['{INDEX}']")}}});
    for list in ["containers", "initContainers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            let has =
                container["env"].as_array().is_some_and(|env| env.iter().any(|own| own["name"] == VARIABLE));
            if !has {
                match container["env"].as_array_mut() {
                    Some(env) => env.push(variable.clone()),
                    None => container["env"] = json!([variable]),
                }
            }
        }
    }
}

/// Reads `1,3-5`.
pub(super) fn parse(text: &str) -> BTreeSet<u64> {
    let mut indexes = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(low), Ok(high)) = (low.parse::<u64>(), high.parse::<u64>()) {
            indexes.extend(low..=high.min(low.saturating_add(super::super::owners::BURST_MAX as u64 * 1000)));
        }
    }
    indexes
}

/// Writes `1,3-5`.
fn format(indexes: &BTreeSet<u64>) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for index in indexes {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == *index => *end = *index,
            _ => runs.push((*index, *index)),
        }
    }
    let texts = runs.into_iter().map(|(low, high)| match high - low {
        0 => low.to_string(),
        1 => format!("{low},{high}"),
        _ => format!("{low}-{high}"),
    });
    texts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_indexes_are_written_short_and_read_back() {
        for (indexes, text) in
            [(vec![], ""), (vec![0], "0"), (vec![0, 1], "0,1"), (vec![1, 3, 4, 5, 9], "1,3-5,9")]
        {
            let set: BTreeSet<u64> = indexes.into_iter().collect();
            assert_eq!(format(&set), text);
            assert_eq!(parse(text), set);
        }
    }
}
