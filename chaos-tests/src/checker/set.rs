//! Sets: `add` an element, `read` all of them (a list). Each element is added once.
//!
//! An acknowledged element is in every read that begins later; one that a read showed, in every read that begins after
//! that one ended. Nothing is there that nobody tried to add, or whose addition had failed.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::Verdict;
use crate::history::{End, Operation};

/// The property's name.
pub const PROPERTY: &str = "set";

struct Element<'a> {
    added: &'a Operation,
    /// What first proved that it is there, and where in the history that ended.
    known: Option<(usize, &'a Operation)>,
}

/// Judges all reads.
pub fn check(operations: &[Operation]) -> Verdict {
    let mut elements: HashMap<String, Element<'_>> = HashMap::new();
    let mut reads: Vec<(&Operation, HashSet<String>)> = Vec::new();
    for operation in operations {
        match (operation.f.as_str(), operation.end, operation.told.as_array()) {
            ("add", end, _) => {
                let known = operation.ret.filter(|_| end == End::Ok).map(|ret| (ret, operation));
                elements.insert(operation.asked.to_string(), Element { added: operation, known });
            }
            ("read", End::Ok, Some(list)) => {
                reads.push((operation, list.iter().map(Value::to_string).collect()));
            }
            _ => {}
        }
    }
    if reads.is_empty() {
        return Verdict::unknown(PROPERTY, 0, "the set was never read");
    }
    // In the order in which they ended, so that what one showed counts for those after it.
    reads.sort_by_key(|(read, _)| read.ret);
    for (read, list) in &reads {
        for value in list {
            let reason = match elements.get_mut(value) {
                None => "which nobody tried to add",
                Some(element) if element.added.end == End::Fail => "whose addition had failed",
                Some(element) if element.added.call > read.ret.unwrap_or(usize::MAX) => "before it was added",
                Some(element) => {
                    let ret = read.ret.unwrap_or(usize::MAX);
                    if element.known.is_none_or(|(known, _)| ret < known) {
                        element.known = Some((ret, read));
                    }
                    continue;
                }
            };
            let explanation = format!("process {} read {value}, {reason}", read.process);
            let added = elements.get(value).map(|element| element.added);
            return Verdict::invalid(PROPERTY, reads.len(), explanation)
                .showing(added.into_iter().chain([*read]));
        }
    }
    let mut lost: Vec<(&String, &Element<'_>, &Operation)> = Vec::new();
    for (read, list) in &reads {
        for (value, element) in &elements {
            if element.known.is_some_and(|(known, _)| known < read.call) && !list.contains(value) {
                lost.push((value, element, read));
            }
        }
    }
    lost.sort_by_key(|(_, element, read)| (element.added.call, read.call));
    if let Some((value, element, read)) = lost.first() {
        let mut distinct: Vec<&String> = lost.iter().map(|(value, _, _)| *value).collect();
        distinct.dedup();
        let explanation = format!(
            "{value} is missing in a read of process {} that began after it was there; {} elements are missing \
             somewhere",
            read.process,
            distinct.len()
        );
        let proof = element.known.map(|(_, proof)| proof);
        let shown: Vec<&Operation> = [element.added].into_iter().chain(proof).chain([*read]).collect();
        let mut unique: Vec<&Operation> = Vec::new();
        for operation in shown {
            if !unique.iter().any(|other| other.call == operation.call) {
                unique.push(operation);
            }
        }
        return Verdict::invalid(PROPERTY, reads.len(), explanation).showing(unique);
    }
    let acknowledged = elements.values().filter(|element| element.added.end == End::Ok).count();
    Verdict::valid(PROPERTY, acknowledged, format!("{acknowledged} acknowledged, {} reads", reads.len()))
}
