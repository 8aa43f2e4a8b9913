//! Rejects runs in which nothing was shown: nothing acknowledged, or a fault that never happened.

use std::collections::BTreeMap;

use super::Verdict;
use crate::history::{End, Event, History, Operation, Phase};

/// The property's name.
pub const PROPERTY: &str = "not-vacuous";
/// The name for faults.
pub const FAULTS: &str = "faults-fired";

/// Something was acknowledged, of each kind of operation that was asked for at all.
pub fn acknowledged(operations: &[Operation]) -> Verdict {
    let mut kinds: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for operation in operations {
        let (asked, done) = kinds.entry(&operation.f).or_default();
        *asked += 1;
        *done += usize::from(operation.end == End::Ok);
    }
    let done = kinds.values().map(|(_, done)| done).sum();
    if done == 0 {
        return Verdict::invalid(PROPERTY, 0, "nothing was acknowledged, so nothing was shown");
    }
    let words: Vec<String> = kinds.iter().map(|(f, (asked, done))| format!("{f} {done}/{asked}")).collect();
    Verdict::valid(PROPERTY, done, format!("acknowledged of asked: {}", words.join(", ")))
}

/// Every fault of the plan fired: the nemesis noted that it had an effect.
pub fn fired<'a>(history: &History, planned: impl IntoIterator<Item = &'a str>) -> Verdict {
    let mut fired: BTreeMap<&str, usize> = BTreeMap::new();
    // Notes of beginnings and ends have a word behind the fault's name.
    let fires =
        |event: &&Event| event.phase == Phase::Info && event.error.is_none() && !event.f.contains(':');
    for event in history.faults().filter(fires) {
        *fired.entry(&event.f).or_default() += 1;
    }
    let mut planned: Vec<&str> = planned.into_iter().collect();
    planned.sort_unstable();
    planned.dedup();
    let idle: Vec<&str> = planned.iter().copied().filter(|name| !fired.contains_key(name)).collect();
    let count = fired.values().sum();
    if !idle.is_empty() {
        let errors: Vec<String> = history.faults().filter_map(|event| event.error.clone()).take(3).collect();
        let explanation = format!("never fired: {}. {}", idle.join(", "), errors.join("; "));
        return Verdict::invalid(FAULTS, count, explanation.trim());
    }
    let words: Vec<String> = fired.iter().map(|(name, times)| format!("{name} ×{times}")).collect();
    Verdict::valid(FAULTS, count, words.join(", "))
}
