//! Groups of pods: `create-pod` with {group, needs}, beside what `pods` tell of bindings.
//!
//! *all-or-none*: at each revision either none of a group's pods has been bound yet, or at least as many as the group needs. Every
//! version of a pod is told of, so the first one that names a node is that of its binding.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use super::Verdict;
use crate::history::{End, Operation};

/// The property's name.
pub const PROPERTY: &str = "all-or-none";

/// Judges all groups.
pub fn check(operations: &[Operation]) -> Verdict {
    let needs: HashMap<&str, u64> = operations
        .iter()
        .filter_map(|operation| {
            Some((operation.asked["group"].as_str()?, operation.asked["needs"].as_u64()?))
        })
        .collect();
    // By group, and by revision: the pods that were bound in it.
    let mut bound: HashMap<&str, BTreeMap<u64, Vec<&Operation>>> = HashMap::new();
    let mut seen: HashSet<&str> = HashSet::new();
    let mut told: Vec<(u64, &Value, &Operation)> = Vec::new();
    for operation in operations.iter().filter(|operation| operation.f == "pods" && operation.end == End::Ok) {
        for pod in operation.told.as_array().into_iter().flatten() {
            told.extend(pod["revision"].as_u64().map(|revision| (revision, pod, operation)));
        }
    }
    told.sort_by_key(|(revision, ..)| *revision);
    for (revision, pod, operation) in told {
        let word = |name: &str| pod[name].as_str().unwrap_or_default();
        if needs.contains_key(word("group")) && !word("node").is_empty() && seen.insert(word("uid")) {
            bound.entry(word("group")).or_default().entry(revision).or_default().push(operation);
        }
    }
    for (group, revisions) in &bound {
        let least = needs.get(group).copied().unwrap_or_default();
        let Some((revision, first)) = revisions.first_key_value() else { continue };
        if (first.len() as u64) < least {
            let explanation = format!(
                "at revision {revision} {} pods of group {group} are bound, and it is of no use without {least}",
                first.len()
            );
            return Verdict::invalid(PROPERTY, bound.len(), explanation).showing(first.iter().copied());
        }
    }
    if bound.is_empty() {
        return Verdict::unknown(PROPERTY, needs.len(), "no group was bound");
    }
    let explanation = format!("{} of {} groups were bound, each at once", bound.len(), needs.len());
    Verdict::valid(PROPERTY, bound.len(), explanation)
}
