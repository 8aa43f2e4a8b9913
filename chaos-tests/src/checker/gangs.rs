//! Groups of pods: `create-pod` with {group, needs}, beside what `pods` tell of bindings.
//!
//! *all-or-none*: at each revision either none of a group's pods has been bound yet, or at least as many as the group needs. Every
//! version of a pod is told of, so the first one that names a node is that of its binding.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Verdict, pods};
use crate::history::Operation;

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
    for pod in pods::observations(operations) {
        let group = pod.word("group");
        if needs.contains_key(group) && !pod.word("node").is_empty() && seen.insert(pod.word("uid")) {
            bound.entry(group).or_default().entry(pod.revision).or_default().push(pod.told);
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
