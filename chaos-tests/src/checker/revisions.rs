//! Revisions: `put` (told [key, value, revision]), `delete` (told [key, deleted, revision]), `get` (told [key, value, revision,
//! mod_revision]), `stale-get` (the same, from a member alone).
//!
//! The store's revision orders all writes, so histories of any length are judged in one pass. *revisions*: what begins
//! after an answer tells a revision no lower than that answer's, a write a higher one, and no two writes the same.
//! *reads-at-revision*: a `get` shows the newest write of its key at the revision that it tells. Writes without an answer may
//! stand anywhere.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::Verdict;
use crate::history::{End, Operation};

/// The name of the property of order.
pub const REVISIONS: &str = "revisions-never-back";
/// The name of the property of content.
pub const READS: &str = "reads-at-revision";

struct Told<'a> {
    operation: &'a Operation,
    key: String,
    value: &'a Value,
    revision: u64,
}

/// Judges all answers.
pub fn check(operations: &[Operation]) -> Vec<Verdict> {
    let told: Vec<Told<'_>> = operations.iter().filter_map(told).collect();
    vec![never_back(&told), reads(operations, &told)]
}

fn told(operation: &Operation) -> Option<Told<'_>> {
    let about = ["put", "delete", "get", "stale-get"].contains(&operation.f.as_str());
    let told = operation.told.as_array().filter(|_| about && operation.end == End::Ok)?;
    let revision = told.get(2)?.as_u64()?;
    Some(Told { operation, key: told.first()?.to_string(), value: &told[1], revision })
}

fn is_write(told: &Told<'_>) -> bool {
    match told.operation.f.as_str() {
        "put" => true,
        "delete" => told.value.as_u64() != Some(0),
        _ => false,
    }
}

fn never_back(told: &[Told<'_>]) -> Verdict {
    let linear: Vec<&Told<'_>> = told.iter().filter(|told| told.operation.f != "stale-get").collect();
    let mut writes: HashMap<u64, &Told<'_>> = HashMap::new();
    for write in linear.iter().filter(|told| is_write(told)) {
        if let Some(other) = writes.insert(write.revision, write) {
            let explanation = format!("two writes were told revision {}", write.revision);
            return Verdict::invalid(REVISIONS, linear.len(), explanation)
                .showing([other.operation, write.operation]);
        }
    }
    let mut by_end = linear.clone();
    by_end.sort_by_key(|told| told.operation.ret);
    let mut ended = by_end.into_iter().peekable();
    let mut highest: Option<&Told<'_>> = None;
    // Operations stand in the order of their beginnings.
    for later in &linear {
        while let Some(earlier) = ended.next_if(|earlier| earlier.operation.ret < Some(later.operation.call))
        {
            if highest.is_none_or(|highest| earlier.revision > highest.revision) {
                highest = Some(earlier);
            }
        }
        let Some(highest) = highest else { continue };
        let back =
            later.revision < highest.revision || (is_write(later) && later.revision == highest.revision);
        if back {
            let explanation = format!(
                "process {} was told revision {} for a {} that began after revision {} had been told",
                later.operation.process, later.revision, later.operation.f, highest.revision
            );
            return Verdict::invalid(REVISIONS, linear.len(), explanation)
                .showing([highest.operation, later.operation]);
        }
    }
    Verdict::valid(
        REVISIONS,
        linear.len(),
        format!("up to revision {}", linear.iter().map(|told| told.revision).max().unwrap_or(0)),
    )
}

fn reads(operations: &[Operation], told: &[Told<'_>]) -> Verdict {
    let mut written: HashMap<&str, BTreeMap<u64, &Told<'_>>> = HashMap::new();
    for write in told.iter().filter(|told| is_write(told)) {
        written.entry(&write.key).or_default().insert(write.revision, write);
    }
    let unanswered: Vec<&Operation> = operations
        .iter()
        .filter(|operation| operation.end == End::Info && ["put", "delete"].contains(&operation.f.as_str()))
        .collect();
    let nothing = BTreeMap::new();
    let mut checked = 0;
    for read in told.iter().filter(|told| matches!(told.operation.f.as_str(), "get" | "stale-get")) {
        checked += 1;
        let modified = read.operation.told[3].as_u64().unwrap_or(0);
        let writes = written.get(read.key.as_str()).unwrap_or(&nothing);
        let newest = writes.range(..=read.revision).next_back().map(|(_, write)| *write);
        let wrong = match newest {
            // Something newer than what was told. What is not there was deleted, perhaps by somebody who never heard.
            Some(write) if write.revision > modified => {
                let is_gone = write.operation.f == "delete" || may_be_deleted(&unanswered, read);
                (!is_gone || !read.value.is_null()).then_some("there was a newer write")
            }
            Some(write) if write.revision == modified && write.value != read.value => {
                Some("its value is another")
            }
            _ => None,
        };
        if let Some(wrong) = wrong {
            let explanation = format!(
                "process {} read key {} at revision {} as {} of revision {modified}, but {wrong}",
                read.operation.process, read.key, read.revision, read.value
            );
            let newest = newest.map(|write| write.operation);
            return Verdict::invalid(READS, checked, explanation)
                .showing(newest.into_iter().chain([read.operation]));
        }
        let known = newest.is_some_and(|write| write.revision == modified);
        if !known && !read.value.is_null() && !may_come_from(&unanswered, read) {
            let explanation = format!(
                "process {} read {} of key {}, which nobody wrote",
                read.operation.process, read.value, read.key
            );
            return Verdict::invalid(READS, checked, explanation).showing([read.operation]);
        }
    }
    Verdict::valid(READS, checked, format!("{} keys", written.len()))
}

fn may_come_from(unanswered: &[&Operation], read: &Told<'_>) -> bool {
    unanswered
        .iter()
        .any(|write| write.f == "put" && text(&write.asked[0]) == read.key && &write.asked[1] == read.value)
}

fn may_be_deleted(unanswered: &[&Operation], read: &Told<'_>) -> bool {
    let began = |write: &Operation| Some(write.call) < read.operation.ret;
    unanswered.iter().any(|write| write.f == "delete" && text(&write.asked[0]) == read.key && began(write))
}

/// A key as answers are filed under it.
fn text(key: &Value) -> String {
    key.to_string()
}
